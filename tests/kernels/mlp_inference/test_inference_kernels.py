"""The fast kernels against their reference, and the reference against dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.mlp_inference import reference
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.launch import Chain, counters_needed, product
from inference_cases import PATTERNS, GateUp, dense_gate_up, gate_up_of, mask_of, relative_error

# float16 and bfloat16 round a held gate once and the result once.
BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
GATES = ("none", "untied", "tied")
BLOCKS = [(16, 16), (32, 32), (64, 64), (128, 128), (32, 128), (64, 128), (128, 32), (128, 64)]


def masks_of(pattern: str, rows: int, cols: int) -> list[torch.Tensor]:
    return [mask_of(pattern, rows, cols, seed) for seed in (0, 1)]


def check(
    gate_up: GateUp, tokens: int, gate: str, device: str, activation: str = "silu", bias: bool = False, config=None
) -> None:
    dtype = gate_up.values.dtype
    out_features, in_features = gate_up.dense[0].shape
    x = torch.randn(tokens, in_features).to(device, dtype)
    offset = torch.randn(out_features).to(device, dtype) if bias else None
    y = torch.full((tokens, out_features), float("nan"), dtype=dtype, device=device)
    product(x, gate_up.values, gate_up.row_list, offset, y, activation, gate, config, up=gate_up.up)
    wide = None if offset is None else offset.float()
    up = None if gate_up.up is None else gate_up.up.float()
    expected = reference.product(
        x.float(), gate_up.values.float(), gate_up.row_list, wide, out_features, activation, gate, up=up
    )
    assert relative_error(y, expected) < BOUND[dtype]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_twin_equals_dense_linear_algebra(pattern, gate):
    gate_up = gate_up_of(gate, masks_of(pattern, 4, 5)[: 2 if gate == "untied" else 1], 16, 32, torch.float64)
    x = torch.randn(7, 160, dtype=torch.float64)
    bias = torch.randn(64, dtype=torch.float64) if gate == "none" else None
    for activation in ("silu", "gelu", "gelu_tanh", "none"):
        out = reference.product(x, gate_up.values, gate_up.row_list, bias, 64, activation, gate, up=gate_up.up)
        assert relative_error(out, dense_gate_up(x, gate_up.dense, bias, activation)) < 1e-13


SHAPES = [(t, torch.float16) for t in (3, 20, 40, 150)] + [
    (5, torch.bfloat16),
    (150, torch.bfloat16),
    (19, torch.float32),
]
# Each pair of a block, a gate and a shape is among those that are quick: they are drawn as a Latin square.
EVERY = [
    pytest.param(block, gate, *shape, marks=() if (b + g + s) % 3 == 0 else pytest.mark.slow)
    for b, block in enumerate(BLOCKS)
    for g, gate in enumerate(GATES)
    for s, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(("block", "gate", "tokens", "dtype"), EVERY)
def test_every_block_gate_and_dtype_with_the_config_of_its_shape(block, gate, tokens, dtype, device):
    gate_up = gate_up_of(gate, masks_of("uniform", 2, 3), *block, dtype, device)
    check(gate_up, tokens, gate, device)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 130])
def test_every_pattern(tokens, pattern, gate, device):
    check(gate_up_of(gate, masks_of(pattern, 4, 5), 32, 64, torch.float16, device), tokens, gate, device)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("tokens", [5, 140])
def test_bias_and_activation_of_a_plain_front(tokens, activation, device):
    gate_up = gate_up_of("none", masks_of("empty_rows", 4, 3), 64, 64, torch.float16, device)
    check(gate_up, tokens, "none", device, activation, bias=True)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "config",
    [
        KernelConfig("tiles", 128, 64, 64, 3, 4, True, 2),
        KernelConfig("tiles", 64, 64, 64, 2, 4, False, 3),
        KernelConfig("tiles", 32, 128, 128, 3, 4),
        KernelConfig("stream", 16, 128, 128, 3, 8),
        KernelConfig("stream", 64, 32, 128, 3, 4),
        KernelConfig("stream", 16, 64, 128, 3, 4, split=3),
        KernelConfig("tiles", 64, 64, 64, 3, 4, split=2),
        KernelConfig("tiles", 128, 64, 64, 3, 4, False, 2, split=4),
    ],
)
def test_configs_differ_in_speed_alone(config, gate, device):
    gate_up = gate_up_of(gate, masks_of("skewed_rows", 2, 3), 128, 128, torch.float16, device)
    # One whole tile of tokens and a part of another.
    check(gate_up, config.tile + 3, gate, device, config=config)


@pytest.mark.parametrize("before", [KernelConfig("stream", 16, 64, 128, 3, 4), KernelConfig("tiles", 64, 64, 64, 3, 4)])
def test_the_kernel_in_front_clears_the_counters_of_a_split_product(before, device):
    gate_up = gate_up_of("none", masks_of("skewed_rows", 2, 3), 128, 128, torch.float16, device)
    split = KernelConfig("tiles", 64, 64, 64, 3, 4, split=2)
    x = torch.randn(70, 384).to(device, torch.float16)
    counters = torch.full((counters_needed(split, 70, 2, 128),), 99, dtype=torch.int32, device=device)
    y = torch.empty(70, 256, dtype=torch.float16, device=device)
    for config, chain in ((before, Chain(clears=counters)), (split, Chain(counters=counters))):
        y.fill_(float("nan"))
        product(x, gate_up.values, gate_up.row_list, None, y, "none", "none", config, chain=chain)
        assert relative_error(y, x.float() @ gate_up.dense[0].float().t()) < 1e-3
    assert (counters == 2).all()


@pytest.mark.parametrize("tokens", [4, 150])
def test_a_matrix_without_any_block_gives_the_activation_of_the_bias(tokens, device):
    gate_up = gate_up_of("none", [torch.zeros(2, 3, dtype=torch.bool)], 64, 64, torch.float16, device)
    check(gate_up, tokens, "none", device, "gelu", bias=True)


def test_activations_that_start_at_an_odd_address_are_accepted(device):
    gate_up = gate_up_of("none", masks_of("full", 2, 2), 64, 64, torch.float16, device)
    x = torch.randn(150 * 128 + 1).to(device, torch.float16)[1:].view(150, 128)
    y = torch.empty(150, 128, dtype=torch.float16, device=device)
    product(x, gate_up.values, gate_up.row_list, None, y, "none", "none")
    assert relative_error(y, x.float() @ gate_up.dense[0].float().t()) < 1e-3


def test_rows_without_a_record_are_left_alone(device):
    live = torch.tensor([True, False, True])
    gate_up = gate_up_of("none", masks_of("full", 3, 2), 32, 32, torch.float16, device, live)
    for tokens in (4, 150):
        y = torch.full((tokens, 96), 7.0, dtype=torch.float16, device=device)
        x = torch.randn(tokens, 64).to(device, torch.float16)
        product(x, gate_up.values, gate_up.row_list, None, y, "none", "none")
        assert (y[:, 32:64] == 7).all()
        assert relative_error(y[:, :32], x.float() @ gate_up.dense[0][:32].float().t()) < 1e-3


def test_the_same_call_gives_the_same_bits(device):
    gate_up = gate_up_of("untied", masks_of("skewed_rows", 2, 3), 64, 64, torch.float16, device)
    x = torch.randn(150, 192).to(device, torch.float16)
    outputs = []
    for _ in range(2):
        y = torch.empty(150, 128, dtype=torch.float16, device=device)
        product(x, gate_up.values, gate_up.row_list, None, y, "silu", "untied", up=gate_up.up)
        outputs.append(y)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 128, 129, 8192])
def test_a_config_fits_its_block(tokens, block, gate):
    for row_list in (4, 400):
        for has_tma in (True, False):
            config = heuristic_config(tokens, row_list, *block, gate, has_tma=has_tma)
            assert block[0] % config.slice == 0
            assert config.k % block[1] == 0 or block[1] % config.k == 0
            if config.kernel == "tiles":
                assert has_tma
                assert config.k <= block[1]


@pytest.mark.gpu
def test_more_elements_than_an_int32_counts(device):
    # 2^31 elements of activations and of output: an int32 product of token and width would wrap.
    gate_up = gate_up_of("none", [torch.eye(256, dtype=torch.bool)], 64, 64, torch.bfloat16, device)
    x = torch.randn(2**17 + 3, 2**14, device=device, dtype=torch.bfloat16)
    tail = slice(2**17 - 61, None)
    expected = x[tail].float() @ gate_up.dense[0].float().t()
    for config in (None, KernelConfig("stream", 64, 64, 128, 3, 4)):
        y = torch.full_like(x, float("nan"))
        product(x, gate_up.values, gate_up.row_list, None, y, "none", "none", config)
        assert relative_error(y[tail], expected) < BOUND[torch.bfloat16]
        assert not torch.isnan(y).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter: needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 300, 2048])
@pytest.mark.parametrize("pattern", ["skewed_rows", "empty_rows", "full"])
@pytest.mark.parametrize(
    ("gate", "block", "stages"),
    [("none", 128, 3), ("untied", 128, 3), ("tied", 128, 4), ("none", 64, 4), ("untied", 64, 3), ("tied", 64, 4)],
)
def test_the_persistent_kernel_on_a_gpu(gate, block, stages, pattern, tokens, dtype):
    # Several tiles a program: that is where its warps could lose count of each other.
    gate_up = gate_up_of(gate, masks_of(pattern, 61, 9), block, block, dtype, "cuda")
    slice_ = 64 if gate == "tied" else block
    config = KernelConfig("persistent", 256, slice_, 64, stages, 4, False, 2)
    check(gate_up, tokens, gate, "cuda", bias=gate == "none", config=config)
