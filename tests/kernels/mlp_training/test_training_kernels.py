"""Each training kernel agrees with its reference: gates, block shapes, mask patterns, dtypes and odd token counts."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.mlp_training import launch, reference
from blast_kernels.mlp_training.heuristics import SddmmConfig, TileConfig, group_members, sddmm_config, split_k_parts
from blast_kernels.mlp_training.index_lists import index_lists_on_device
from inference_cases import index_of, relative_error
from training_cases import mlp_of

BOUNDS = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
PATTERNS = [("uniform", "uniform"), ("empty_rows", "uniform"), ("uniform", "empty_columns"), ("one_block", "full")]
GATES = [("untied", "silu"), ("tied", "gelu_tanh"), ("none", "gelu")]
SHAPES = [(32, 32, 32), (16, 32, 64)]
FEW_BLOCKS = (3, 2, 2)
# Each pair of a gate, a shape and a dtype is among those that are quick.
HALF = [
    pytest.param(*gate, shape, dtype, marks=() if (g + s + d) % 2 else pytest.mark.slow)
    for g, gate in enumerate(GATES)
    for s, shape in enumerate(SHAPES)
    for d, dtype in enumerate((torch.float16, torch.bfloat16))
]


def both(name: str, *arguments, config=None):
    """The results of a kernel and of its reference, as lists."""
    ours = getattr(launch, name)(*arguments, config=config)
    expected = getattr(reference, name)(*arguments)
    return ([ours], [expected]) if isinstance(ours, torch.Tensor) else (list(ours), list(expected))


def agree(name: str, *arguments, config=None) -> None:
    ours, expected = both(name, *arguments, config=config)
    assert len(ours) == len(expected)
    bound = BOUNDS[next(a.dtype for a in arguments if isinstance(a, torch.Tensor))]
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < bound, name


def noise(device: str, dtype: torch.dtype, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(len(size) + size[-1])).to(device, dtype)


def run_all(mlp, gate: str, activation: str, tokens: int, device: str, dtype: torch.dtype, config=None):
    """Checks each kernel on the inputs that the reference of the kernel before gives."""
    b_in = mlp.gate_up[0].shape[2]
    b_out = mlp.down.shape[1]
    lists = mlp.lists
    x = noise(device, dtype, tokens, lists.input_grad.shape[0] * b_in)
    grad = noise(device, dtype, tokens, lists.down.shape[0] * b_out)
    agree("gate_up", x, mlp.gate_up, lists.gate_up, mlp.up_bias, activation, gate, config=config)
    pre, hidden = reference.gate_up(x, mlp.gate_up, lists.gate_up, mlp.up_bias, activation, gate)
    agree("gather_matmul", hidden, [mlp.down], lists.down, mlp.down_bias, False, config=config)
    agree("hidden_grad", grad, mlp.down, pre, lists.hidden_grad, activation, gate == "none", config=config)
    grad_pre, hidden, _ = reference.hidden_grad(grad, mlp.down, pre, lists.hidden_grad, activation, gate == "none")
    agree("gather_matmul", grad_pre, mlp.gate_up, lists.input_grad, None, True, config=config)
    shapes = [tuple(values.shape) for values in mlp.gate_up]
    agree("sddmm", grad_pre, x, lists.gate_up_groups, shapes, True)
    agree("sddmm", hidden, grad, lists.down_groups, [tuple(mlp.down.shape)], False)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_kernels_agree_with_their_references_for_every_pattern(gate, activation, patterns, device):
    mlp = mlp_of(gate, patterns, 32, 32, 32, device=device)
    run_all(mlp, gate, activation, 45, device, torch.float32)


@pytest.mark.parametrize(("gate", "activation", "blocks", "dtype"), HALF)
def test_kernels_agree_with_their_references_in_half_precision(gate, activation, blocks, dtype, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), *blocks, dtype=dtype, device=device, grid=FEW_BLOCKS)
    run_all(mlp, gate, activation, 70, device, dtype)


@pytest.mark.parametrize("weights_first", [False, True])
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_slices_and_weights_first_do_not_change_the_results(gate, activation, weights_first, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 64, 64, 64, torch.float16, device, FEW_BLOCKS)
    # Three tiles of tokens, the last of which is cut, in groups of two.
    run_all(mlp, gate, activation, 130, device, torch.float16, TileConfig(64, 32, 32, 2, 4, weights_first, 2))


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_group_size_and_token_parts_do_not_change_the_block_gradients(members, parts, device):
    mlp = mlp_of(
        "untied", ("uniform", "uniform"), 32, 32, 32, device=device, members=(members, members), grid=(5, 4, 4)
    )
    x, pre = noise(device, torch.float32, 90, 4 * 32), noise(device, torch.float32, 90, 2 * len(mlp.lists.live) * 32)
    shapes = [tuple(values.shape) for values in mlp.gate_up]
    agree("sddmm", pre, x, mlp.lists.gate_up_groups, shapes, True, config=SddmmConfig(16, 2, 4, parts))


def test_without_a_live_hidden_block_the_result_is_the_bias_and_gradients_are_zero(device):
    mlp = mlp_of("untied", ("uniform", "one_block"), 32, 32, 32, device=device)
    masks = [torch.zeros_like(mask) for mask in mlp.masks]
    lists = index_lists_on_device([index_of(masks[0])] * 2, index_of(masks[2]), 3)
    lists = type(lists)(*(index.to(device) for index in lists))
    mlp = mlp._replace(gate_up=[v[:0] for v in mlp.gate_up], down=mlp.down[:0], lists=lists)
    run_all(mlp, "untied", "silu", 40, device, torch.float32)
    bias = noise(device, torch.float32, 3 * 32)
    empty = torch.zeros(40, 0, device=device)
    y = launch.gather_matmul(empty, [mlp.down], lists.down, bias, False)
    assert torch.equal(y, bias.expand(40, -1))


def test_no_tokens_give_an_empty_result_and_zero_gradients(device):
    mlp = mlp_of("untied", ("uniform", "uniform"), 32, 32, 32, device=device)
    run_all(mlp, "untied", "silu", 0, device, torch.float32)


def test_equal_inputs_give_equal_gradients_bit_for_bit(device):
    mlp = mlp_of("none", ("uniform", "uniform"), 32, 32, 32, torch.float16, device)
    x, pre = noise(device, torch.float16, 130, 96), noise(device, torch.float16, 130, len(mlp.lists.live) * 32)
    shapes = [tuple(mlp.gate_up[0].shape)]
    runs = [launch.sddmm(pre, x, mlp.lists.gate_up_groups, shapes, True, SddmmConfig(16, 2, 4, 4))[0] for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("gate", ["none", "untied"])
def test_without_an_activation_the_gradient_passes_unchanged(gate, device):
    mlp = mlp_of(gate, ("full", "full"), 32, 32, 32, device=device, grid=(1, 1, 1))
    grad, pre = (noise(device, torch.float32, 5, width) for width in (32, 32 * len(mlp.gate_up)))
    agree("hidden_grad", grad, mlp.down, pre, mlp.lists.hidden_grad, "none", gate == "none")


def test_tokens_are_split_only_if_groups_are_few_and_steps_are_many():
    config = SddmmConfig(64, 3, 4)
    few = split_k_parts(16, 1, 16, 8192, 128 * 128, config)
    assert 4 <= few <= 16
    assert split_k_parts(10_000, 1, 10_000, 8192, 128 * 128, config) == 1
    assert split_k_parts(16, 1, 16, 64, 128 * 128, config) == 1
    # Each part costs about two microseconds.
    assert [split_k_parts(16, 1, 16, tokens, 128 * 128, config) for tokens in (512, 2048, 8192)] == [1, 2, 4]


def test_groups_have_one_block_if_that_makes_exactly_one_wave():
    """With three programs a multiprocessor an H100 runs 300 live blocks of 128 x 128 at once, but not 500."""
    assert group_members(128, 300, 500) == (1, 2)
    assert group_members(128) == group_members(64, 300, 300) == (2, 2)
    config = sddmm_config(128, 128, 1, False, True)
    assert 3 * config.stages * config.k * (128 + 128) * 2 <= 228 * 1024


def test_the_group_size_may_follow_from_the_numbers_of_live_blocks():
    asked = []

    def members(gate_up: int, down: int) -> tuple[int, int]:
        asked.append((gate_up, down))
        return 1, 4

    offsets = torch.tensor([0, 2, 2, 3], dtype=torch.int32)  # the second hidden block is dead
    gate_up = (offsets, torch.tensor([0, 1, 1], dtype=torch.int32))
    down = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32))
    lists = index_lists_on_device([gate_up, gate_up], down, 2, members=members)
    assert asked == [(6, 2)]
    assert (lists.gate_up_groups.shape[1], lists.down_groups.shape[1]) == (4, 10)
