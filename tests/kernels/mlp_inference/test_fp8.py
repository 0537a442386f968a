"""fp8 weights with a scale a block: what rounding costs, and that the kernels compute with exactly what is stored."""

from __future__ import annotations

import blast_kernels.register  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from blast_kernels.common.quantize import FP8, dequantize, quantize_blocks, quantize_pairs
from blast_kernels.mlp_inference import ops, reference
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.launch import product
from blast_kernels.mlp_inference.row_lists import plain_row_list
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import dense_gate_up, gate_up_of, mask_of, matrix_of, relative_error

mlp = torch.ops.blast.block_sparse_mlp
operator = torch.ops.blast.block_sparse_product
# One rounding of the result, and of a held gate; measured in the interpreter: 4e-4 and 3e-3.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
GATES = ("none", "untied", "tied")
HALVES = (torch.float16, torch.bfloat16)
LARGEST = {torch.float16: 65504.0, torch.bfloat16: 3.38e38, torch.float32: 3.4e38}


def quantized(values, up, gate):
    """Blocks and scales of a product in fp8, as the operators take them: `q, scales` and the rest by name."""
    if gate == "tied":
        q, up, scales = quantize_pairs(values, up)
        return q, scales, {"up": up}
    q, scales = quantize_blocks(values)
    if gate == "none":
        return q, scales, {}
    up, up_scales = quantize_blocks(up)
    return q, scales, {"up": up, "up_scales": up_scales}


def restored(q, scales, more, gate, dtype=torch.float64):
    """The blocks that these stand for, those of up second (None without a gate)."""
    up = more.get("up")
    if up is not None:
        up = dequantize(up, scales if gate == "tied" else more["up_scales"], dtype)
    return dequantize(q, scales, dtype), up


def exact_product(x, q, scales, more, row_list, bias, out_features, activation, gate):
    """The same in float64 from float64 weights: every step but the sums is exact."""
    wide = None if bias is None else bias.double()
    values, up = restored(q, scales, more, gate)
    return reference.product(x.double(), values, row_list, wide, out_features, activation, gate, up=up)


def dense_gate_up_of(gate_up, gate, q, scales, more):
    """The dense matrices that quantised gate-up blocks stand for, made block by block from the row list, float64."""
    pieces = restored(q, scales, more, gate)
    b_out, b_in = pieces[0].shape[1:]
    dense = [torch.zeros_like(matrix, dtype=torch.float64) for matrix in gate_up.dense]
    for row, start, up_start, counts, *columns in gate_up.row_list.tolist():
        up_count, count = divmod(counts, 1 << 16)
        listed = [(0, start + n, columns[n]) for n in range(count)]
        if gate == "tied":
            listed += [(1, start + n, columns[n]) for n in range(count)]
        listed += [(1, up_start + n, columns[count + n]) for n in range(up_count)]
        for which, place, column in listed:
            rows, inside = slice(row * b_out, (row + 1) * b_out), slice(column * b_in, (column + 1) * b_in)
            dense[which][rows, inside] = pieces[which][place]
    return dense if gate != "none" else dense[:1]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(LARGEST)),
    st.integers(-160, 130),
    st.integers(0, 20),
    st.integers(0, 2**31),
)
def test_an_element_is_off_by_a_sixteenth_of_itself_or_half_a_subnormal_step(dtype, power, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    exponent = power - spread * torch.rand(3, 4, 8, generator=generator)
    sign = torch.randint(0, 2, (3, 4, 8), generator=generator) * 2 - 1
    drawn = (sign * 2.0 ** exponent.double()).clamp(-LARGEST[dtype], LARGEST[dtype])
    values = drawn.to(dtype)
    q, scales = quantize_blocks(values)
    error = (dequantize(q, scales).double() - values.double()).abs()
    wide = scales.double()[:, None, None]
    assert (error <= torch.maximum(values.double().abs() / 16, wide * 2.0**-10)).all()
    normal = values.double().abs() >= wide * 2.0**-6
    assert (error[normal] <= values.double().abs()[normal] / 16).all()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(LARGEST)), st.integers(-160, 130), st.integers(0, 2**31))
def test_scales_are_powers_of_two_that_fill_the_format_and_overflow_nothing(dtype, power, seed):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(5, 4, 8, generator=generator).double() * 2.0**power).clamp(-LARGEST[dtype], LARGEST[dtype])
    values = values.to(dtype)
    values[2] = 0
    q, scales = quantize_blocks(values)
    assert q.dtype == FP8
    assert (torch.frexp(scales).mantissa == 0.5).all()
    largest = values.double().abs().amax((1, 2)) / scales.double()
    assert (largest <= 448).all()
    # Below, the scale is held up so that q · scale stays exact in the dtype.
    ordinary = values.double().abs().amax((1, 2)) >= 448 * 2.0 ** (-15 if dtype == torch.float16 else -117)
    assert (largest[ordinary] > 224).all()
    assert scales[2] == 1
    assert not q[2].float().any()
    # What the kernels do: convert to the dtype, multiply there.
    assert torch.equal(q.to(dtype) * scales.to(dtype)[:, None, None], dequantize(q, scales, dtype))
    assert torch.equal(dequantize(q, scales, dtype).double(), dequantize(q, scales).double())
    assert dequantize(q, scales, dtype).isfinite().all()


def test_a_block_with_something_that_is_no_number_has_none_and_spoils_no_other_block():
    values = torch.ones(3, 16, 16)
    values[0, 0, 0], values[1, 0, 0] = float("nan"), float("inf")
    restored = dequantize(*quantize_blocks(values))
    assert restored[:2].isnan().all()
    assert torch.equal(restored[2], values[2])


@pytest.mark.parametrize("values", [torch.ones(2, 4, 4, dtype=torch.float64), torch.ones(4, 4)])
def test_what_cannot_be_quantised_is_said_in_one_sentence(values):
    with pytest.raises(ValueError, match=r"pass blocks .* in float16, bfloat16 or") as caught:
        quantize_blocks(values)
    assert "\n" not in str(caught.value)


def gate_up_cases(gate, dtype, device, block=(32, 32), pattern="empty_rows"):
    """A gate-up product with an empty row whose blocks are, in turn, ordinary, zero, tiny and huge; quantised."""
    masks = [mask_of(pattern, 4, 5, seed, 0.5) for seed in (0, 1)]
    masks[0][0] = False
    gate_up = gate_up_of(gate, masks[: 2 if gate == "untied" else 1], *block, dtype, device)
    # Gate times up has to stay a float16 as well.
    power = 40 if dtype == torch.bfloat16 else 7 if gate == "none" else 4
    parts = [gate_up.values.clone(), None if gate_up.up is None else gate_up.up.clone()]
    for values in parts:
        if values is not None:
            values[1::4] = 0
            values[2::4] *= 2.0**-power
            values[3::4] *= 2.0**power
    gate_up = gate_up._replace(values=parts[0], up=parts[1])
    return gate_up, *quantized(*parts, gate)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gate", GATES)
def test_twin_equals_dense_linear_algebra_with_the_dequantised_weights(gate, dtype):
    gate_up, q, scales, more = gate_up_cases(gate, dtype, "cpu")
    x = torch.randn(7, 160).to(dtype)
    bias = torch.randn(128).to(dtype) if gate == "none" else None
    expected = dense_gate_up(x, dense_gate_up_of(gate_up, gate, q, scales, more), bias, "gelu")
    out = operator(x, q, gate_up.row_list, bias, 128, "gelu", gate, scales, **more)
    assert relative_error(out, expected) < BOUND[dtype]
    exact = exact_product(x, q, scales, more, gate_up.row_list, bias, 128, "gelu", gate)
    assert relative_error(exact, expected) < 1e-13


BLOCKS = [(16, 16), (32, 32), (64, 64), (128, 128), (32, 128), (128, 32)]
# Each pair of tokens, a block, a gate and a dtype is among those that are quick.
EVERY = [
    pytest.param(tokens, block, gate, dtype, marks=() if (t + b + g + d) % 2 == 0 else pytest.mark.slow)
    for t, tokens in enumerate([1, 20, 70])
    for b, block in enumerate(BLOCKS)
    for g, gate in enumerate(GATES)
    for d, dtype in enumerate(HALVES)
]


@pytest.mark.parametrize(("tokens", "block", "gate", "dtype"), EVERY)
def test_kernels_equal_the_dequantised_weights(tokens, block, gate, dtype, device):
    gate_up, q, scales, more = gate_up_cases(gate, dtype, device, block)
    x = torch.randn(tokens, 5 * block[1]).to(device, dtype)
    bias = torch.randn(4 * block[0]).to(device, dtype) if gate == "none" else None
    y = torch.full((tokens, 4 * block[0]), float("nan"), dtype=dtype, device=device)
    product(x, q, gate_up.row_list, bias, y, "silu", gate, scales=scales, **more)
    expected = exact_product(x, q, scales, more, gate_up.row_list, bias, 4 * block[0], "silu", gate)
    assert relative_error(y, expected) < BOUND[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tokens", [3, 70])
def test_tiny_and_huge_blocks_are_as_right_as_others(tokens, gate, dtype, device):
    # A block row for each magnitude, each with a block of its own, so that none hides the error of another.
    gate_up = gate_up_of(gate, [torch.eye(4, dtype=torch.bool)] * (2 if gate == "untied" else 1), 32, 32, dtype, device)
    power = 40 if dtype == torch.bfloat16 else 7 if gate == "none" else 3
    factors = 2.0 ** (power * (torch.arange(4, device=device) - 1.5) / 1.5).round().to(dtype)[:, None, None]
    q, scales, more = quantized(gate_up.values * factors, None if gate_up.up is None else gate_up.up * factors, gate)
    assert scales.max() >= 2.0 ** (power) * scales.min()
    x = torch.randn(tokens, 128).to(device, dtype)
    y = torch.full((tokens, 128), float("nan"), dtype=dtype, device=device)
    product(x, q, gate_up.row_list, None, y, "none", gate, scales=scales, **more)
    expected = exact_product(x, q, scales, more, gate_up.row_list, None, 128, "none", gate)
    for row in range(4):
        assert relative_error(y[:, 32 * row : 32 * row + 32], expected[:, 32 * row : 32 * row + 32]) < BOUND[dtype]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "config",
    [
        KernelConfig("stream", 16, 32, 128, 3, 4),
        KernelConfig("stream", 16, 64, 256, 3, 4, split=3),
        KernelConfig("tiles", 32, 64, 32, 3, 4, split=2),
        KernelConfig("tiles", 128, 64, 64, 3, 4, False, 2),
    ],
)
def test_every_kind_of_config_reads_fp8(config, gate, device):
    gate_up, q, scales, more = gate_up_cases(gate, torch.float16, device, (64, 64), "skewed_rows")
    x = torch.randn(37, 320).to(device, torch.float16)
    y = torch.full((37, 256), float("nan"), dtype=torch.float16, device=device)
    product(x, q, gate_up.row_list, None, y, "silu", gate, config, scales=scales, **more)
    assert relative_error(y, exact_product(x, q, scales, more, gate_up.row_list, None, 256, "silu", gate)) < 1e-3


def test_a_matrix_without_any_block_gives_the_activation_of_the_bias(device):
    gate_up = gate_up_of("none", [torch.zeros(2, 3, dtype=torch.bool)], 64, 64, torch.float16, device)
    q, scales = quantize_blocks(gate_up.values)
    bias = torch.randn(128).to(device, torch.float16)
    for tokens in (4, 70):
        y = torch.full((tokens, 128), float("nan"), dtype=torch.float16, device=device)
        x = torch.ones(tokens, 192, dtype=torch.float16, device=device)
        product(x, q, gate_up.row_list, bias, y, "gelu", "none", scales=scales)
        assert relative_error(y, F.gelu(bias.double()).expand(tokens, -1)) < 1e-3


def mlp_case(gate, dtype, device):
    """Operands of an MLP 96 → 128 → 64 in fp8, and the same with the weights that these stand for."""
    masks = [mask_of("uniform", 8, 6, seed, 0.4) for seed in (0, 1)]
    gate_up = gate_up_of(gate, masks[: 2 if gate == "untied" else 1], 16, 16, dtype, device)
    down = matrix_of(mask_of("uniform", 4, 8, 2, 0.4), 16, 16, dtype, device, seed=3)
    row_list = plain_row_list(*down.index)
    q, scales, more = quantized(gate_up.values, gate_up.up, gate)
    down_q, down_scales = quantize_blocks(down.values)
    shape = (128, 64, "silu", gate)
    full_down = dequantize(down_q, down_scales, dtype)
    full = (*restored(q, scales, more, gate, dtype), gate_up.row_list, None, full_down, row_list, None, *shape)
    up, up_scales = more.get("up"), more.get("up_scales")
    return (q, up, gate_up.row_list, None, down_q, row_list, None, *shape, scales, up_scales, down_scales), full


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tokens", [1, 40, 150])
def test_a_whole_mlp_computes_what_its_dequantised_weights_do(tokens, gate, dtype, device):
    in_fp8, full = mlp_case(gate, dtype, device)
    x = torch.randn(tokens, 96).to(device, dtype)
    # The same sums of the same numbers; on a GPU perhaps with other tiles.
    assert relative_error(mlp(x, *in_fp8), mlp(x, *full)) < BOUND[dtype]


@pytest.mark.parametrize("gate", GATES)
def test_operators_pass_torchs_own_check(gate, device):
    in_fp8, _ = mlp_case(gate, torch.bfloat16, device)
    x = torch.randn(3, 96).to(device, torch.bfloat16)
    # All but the check of the schema: it compares inputs by arithmetic that torch has not for fp8 on a CPU.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(mlp, (x, *in_fp8), test_utils=checks)
    q, up, row_list, *_, scales, up_scales, _ = in_fp8
    operands = (x, q, row_list, None, 128, "silu", gate, scales, up, up_scales)
    torch.library.opcheck(operator, operands, test_utils=checks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": None}, "values are torch.float8_e4m3fn and have no scales; pass those that quantize_blocks gave"),
        ({"values": torch.ones(6, 16, 16)}, "values are torch.float32; only torch.float8_e4m3fn values have scales"),
        ({"x": torch.randn(5, 32)}, "x is torch.float32; torch.float8_e4m3fn values need x in float16 or bfloat16"),
        ({"scales": torch.ones(5)}, r"contiguous float32 vector of 6 entries on cpu, not torch.float32 \[5\] on cpu"),
        ({"scales": torch.ones(6).half()}, "not torch.float16"),
        ({"values": torch.ones(6, 16, 16).to(torch.float8_e5m2), "scales": None}, "use one of float32"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(changes, message):
    gate_up = gate_up_of("none", [mask_of("full", 3, 2)], 16, 16)
    q, scales = quantize_blocks(gate_up.values)
    arguments = {
        "x": torch.randn(5, 32).half(), "values": q, "row_list": gate_up.row_list, "bias": None, "out_features": 48,
        "activation": "silu", "gate": "none", "scales": scales,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message) as caught:
        operator(**{**arguments, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("gate", GATES)
def test_a_gpu_that_cannot_convert_fp8_gets_the_values_back(gate, device, monkeypatch):
    in_fp8, full = mlp_case(gate, torch.bfloat16, device)
    x = torch.randn(5, 96).to(device, torch.bfloat16)
    monkeypatch.setattr(ops, "_converts_float8", lambda device: False)
    assert torch.equal(mlp(x, *in_fp8), mlp(x, *full))


@pytest.mark.gpu
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_an_mlp_in_fp8_replays_in_a_cuda_graph(gate, tokens, device):
    in_fp8, full = mlp_case(gate, torch.bfloat16, device)
    x = torch.randn(tokens, 96).to(device, torch.bfloat16)
    mlp(x, *in_fp8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mlp(x, *in_fp8)
    for _ in range(5):
        x.normal_()
        out.fill_(float("nan"))
        graph.replay()
        assert relative_error(out, mlp(x, *full)) < BOUND[torch.bfloat16]
