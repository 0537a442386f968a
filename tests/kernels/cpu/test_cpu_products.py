"""The operators on a CPU against dense float64 products, in every way they can be computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import blast_kernels.register  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from blast_kernels.cpu import launch
from blast_kernels.mlp_inference.row_lists import drop_columns, live_hidden_rows, plain_row_list
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_cases import PATTERNS, dense_gate_up, gate_up_of, index_of, mask_of, matrix_of, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import blast

linear, product, mlp = (
    getattr(torch.ops.blast, name) for name in ("block_sparse_linear", "block_sparse_product", "block_sparse_mlp")
)
# One rounding of the result; that of the hidden activations of an MLP adds to it.
BOUND = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 1e-3}
cases = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
dtypes = st.sampled_from([torch.float32, torch.bfloat16] * 3 + [torch.float64, torch.float16])
sides = st.sampled_from([16, 32, 48, 64, 80, 128, 192, 8])
counts = st.integers(1, 5)
# Both sides of every bound: few and many tokens, panels of one to three vectors, several panels.
tokens = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 47, 48, 49, 65, 96, 130])
seeds = st.integers(0, 2**31)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@cases
@given(dtypes, sides, sides, counts, counts, st.sampled_from(PATTERNS), tokens, st.booleans(), st.integers(1, 3), seeds)
def test_a_layer_equals_the_dense_layer(
    way, dtype, b_out, b_in, rows, cols, pattern, count, has_bias, threads, seed
):  # fmt: skip
    matrix = matrix_of(mask_of(pattern, rows, cols, seed), b_out, b_in, dtype, seed=seed)
    bias = random(rows * b_out, seed=seed + 1, dtype=dtype) if has_bias else None
    x = random(count, cols * b_in, seed=seed + 2, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = linear(x, matrix.values, *matrix.index, *matrix.t_index, bias)
    finally:
        torch.set_num_threads(before)
    expected = F.linear(x.double(), matrix.dense.double(), None if bias is None else bias.double())
    assert out.dtype == dtype
    assert relative_error(out, expected) < BOUND[dtype]


@cases
@given(
    dtypes, sides, sides, st.sampled_from(["none", "untied", "tied"]), st.sampled_from(["silu", "gelu", "gelu_tanh"]),
    tokens, st.booleans(), st.booleans(), seeds,
)  # fmt: skip
def test_a_whole_mlp_equals_the_dense_mlp(way, dtype, b_hidden, b_in, gate, activation, count, skip, has_bias, seed):
    masks = [mask_of("uniform", 5, 3, seed + n, 0.4) for n in (0, 1)]
    if gate != "untied":
        masks[1] = masks[0]
    # A hidden block that is always zero, and one that nobody reads.
    masks[0][1] = False
    down_mask = mask_of("uniform", 4, 5, seed + 2, 0.5)
    down_mask[:, 2] = False
    down = matrix_of(down_mask, b_in, b_hidden, dtype, seed=seed + 3)
    index, places, live = down.index, None, None
    if skip and gate != "none":
        live = live_hidden_rows(index_of(masks[0])[0], index_of(masks[1])[0], index[1])
        *index, places = drop_columns(*index, live)
    gate_up = gate_up_of(gate, masks, b_hidden, b_in, dtype, live_rows=live)
    row_list = plain_row_list(*index, places=places)
    biases = [None, None]
    if has_bias:
        biases = [random(5 * b_hidden, dtype=dtype) if gate == "none" else None, random(4 * b_in, dtype=dtype)]
    x = random(count, 3 * b_in, seed=seed + 4, dtype=dtype)
    blocks = None if places is None else places.numel()
    first = (gate_up.values, gate_up.up, gate_up.row_list, biases[0])
    sizes = (5 * b_hidden, 4 * b_in)
    out = mlp(x, *first, down.values, row_list, biases[1], *sizes, activation, gate, down_blocks=blocks)
    hidden = dense_gate_up(x, gate_up.dense if gate != "none" else gate_up.dense[:1], biases[0], activation)
    expected = F.linear(hidden, down.dense.double(), None if biases[1] is None else biases[1].double())
    assert relative_error(out, expected) < 2 * BOUND[dtype]


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "none"])
@pytest.mark.parametrize("count", [1, 20])
def test_activations_are_right_from_tiny_to_huge(way, activation, count):
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.logspace(-30, 30, 121), -torch.logspace(-30, 30, 121)])
    x = F.pad(x, (0, -len(x) % 16)).expand(count, -1).contiguous()
    side = torch.arange(x.shape[1] // 16, dtype=torch.int32)
    row_list = plain_row_list(torch.arange(len(side) + 1, dtype=torch.int32), side)
    identity = torch.eye(16).expand(len(side), 16, 16).contiguous()
    out = product(x, identity, row_list, None, x.shape[1], activation, "none")
    expected = dense_gate_up(x, [torch.eye(x.shape[1])], None, activation)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 40])
def test_what_is_not_finite_stays_in_its_token(way, dtype, count):
    matrix = matrix_of(mask_of("full", 2, 2), 32, 32, dtype)
    x = random(count, 64, dtype=dtype)
    row_list = plain_row_list(*matrix.index)
    expected = product(x, matrix.values, row_list, None, 64, "silu", "none")
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    out = product(x, matrix.values, row_list, None, 64, "silu", "none")
    assert out[1].isnan().all()
    assert not out[2].isfinite().all()
    others = [token for token in range(count) if token not in (1, 2)]
    assert torch.equal(out[others], expected[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 50])
def test_matrices_without_blocks_give_bias_or_zero(way, dtype, count):
    matrix = matrix_of(torch.zeros(3, 2, dtype=torch.bool), 32, 32, dtype)
    bias, x = random(96, dtype=dtype), random(count, 64, dtype=dtype)
    assert torch.equal(linear(x, matrix.values, *matrix.index, *matrix.t_index, bias), bias.expand(count, -1))
    row_list = plain_row_list(*matrix.index)
    assert (product(x, matrix.values, row_list, None, 96, "silu", "tied", up=matrix.values) == 0).all()


@pytest.mark.parametrize("count", [2, 20, 200])
def test_operands_may_have_any_strides_and_leading_dimensions(way, count):
    matrix = matrix_of(mask_of("uniform", 3, 4, 1), 32, 16)
    x = random(64, 2, count, seed=3).permute(1, 2, 0)
    out = linear(x, matrix.values, *matrix.index, *matrix.t_index)
    assert out.shape == (2, count, 96)
    assert relative_error(out, F.linear(x.double(), matrix.dense.double())) < BOUND[torch.float32]


def mlp_of(dtype: torch.dtype, hidden: int = 256, ffn: int = 512) -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(hidden, ffn), nn.GELU(), nn.Linear(ffn, hidden)).to(dtype)
    masks = {"0.0": torch.rand(ffn // 32, hidden // 32) < 0.4, "0.2": torch.rand(hidden // 32, ffn // 32) < 0.4}
    return blast.to_sparse(nn.Sequential(inner), masks, drop=True).eval()


@pytest.mark.parametrize("count", [3, 300])
def test_equal_inputs_give_equal_bits_with_any_number_of_threads(way, count, monkeypatch):
    monkeypatch.setattr(launch, "ALONE_BYTES", 0)
    model, x = blast.fuse(mlp_of(torch.bfloat16)), random(count, 256, dtype=torch.bfloat16)
    outputs = []
    with torch.inference_mode():
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            outputs.append(model(x))
    torch.set_num_threads(1)
    assert all(torch.equal(out, outputs[0]) for out in outputs) or way == "plain"
    assert all(relative_error(out, outputs[0]) < 1e-2 for out in outputs)


def test_several_python_threads_may_call_at_once(way):
    model = blast.fuse(mlp_of(torch.float32))
    inputs = [random(count, 256, seed=count) for count in (1, 3, 17, 60, 150, 400) * 4]

    def run(x):
        with torch.inference_mode():
            return model(x)

    expected = [run(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, inputs))
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


@pytest.mark.parametrize("count", [2, 70])
def test_gradients_are_those_of_the_dense_layer(way, count):
    matrix = matrix_of(mask_of("uniform", 3, 4, 2, 0.5), 32, 16, torch.float32)
    x, values = random(count, 64).requires_grad_(), matrix.values.clone().requires_grad_()
    weight = matrix.dense.clone().requires_grad_()
    grad = random(count, 96, seed=5)
    found = torch.autograd.grad(linear(x, values, *matrix.index, *matrix.t_index), (x, values), grad)
    dense = torch.autograd.grad(F.linear(x, weight), (x, weight), grad)
    tiles = dense[1].view(3, 32, 4, 16).transpose(1, 2)[mask_of("uniform", 3, 4, 2, 0.5)]
    assert relative_error(found[0], dense[0]) < 1e-6
    assert relative_error(found[1], tiles) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("count", [3, 40])
def test_vmap_tracing_and_a_default_device_change_nothing(way, fused, count):
    model, x = mlp_of(torch.float32), random(2, count, 256)
    model = blast.fuse(model) if fused else model
    with torch.no_grad():
        expected = model(x)
        with torch.device("meta"):
            assert torch.equal(model(x), expected)
        torch.testing.assert_close(torch.vmap(model)(x), expected)
        traced = torch.jit.trace(model, x, check_trace=False)
        assert torch.equal(traced(2 * x), model(2 * x))


class Watching(TorchDispatchMode):
    """Notes the operators that run."""

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [False, True])
def test_a_call_without_its_operator_gives_the_same_and_is_left_to_whoever_wants_to_see_operators(fused, monkeypatch):
    model, x, calls = mlp_of(torch.float32), random(2, 5, 256), []
    model = blast.fuse(model) if fused else model
    plain = launch.serves_at_once
    monkeypatch.setattr(launch, "serves_at_once", lambda *a: calls.append(plain(*a)) or calls[-1])
    with torch.no_grad():
        found = model(x)
        with torch.profiler.profile() as profile:
            seen = model(x)
        with Watching() as watching:
            assert torch.equal(model(x), found)
    if launch.kernels() is not None:
        once = [True] if fused else [True, True]
        assert calls == once + [False] * 2 * len(once)
    assert torch.equal(found, seen)
    name = f"block_sparse_{'mlp' if fused else 'linear'}"
    assert f"blast::{name}" in {event.key for event in profile.key_averages()}
    assert f"blast.{name}.default" in watching.seen
    assert found.shape == (2, 5, 256)
    with torch.no_grad(), pytest.raises(ValueError, match=r"last dimension must be (256|a multiple of 32)"):
        model(random(2, 5, 100))


@pytest.mark.parametrize("fused", [False, True])
def test_a_compiled_model_computes_the_same(way, fused):
    model, x = mlp_of(torch.float32), random(20, 256)
    model = blast.fuse(model) if fused else model
    with torch.inference_mode():
        expected = model(x)
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [2, 40])
def test_fp8_weights_and_autocast_give_what_their_layers_give(way, count):
    x = random(count, 256, dtype=torch.bfloat16)
    model = blast.fuse(mlp_of(torch.bfloat16), weights="fp8")
    with torch.inference_mode():
        found = model(x)
        assert relative_error(found, blast.unfuse(model)(x)) < 1e-2
        plain = mlp_of(torch.float32)
        expected = plain(x.float())
        for model in (plain, blast.fuse(mlp_of(torch.float32))):
            with torch.autocast("cpu", torch.bfloat16):
                assert relative_error(model(x.float()), expected) < 1e-2
