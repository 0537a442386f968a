"""Each training kernel against its twin: gates, block shapes, mask patterns, dtypes, tokens that divide nothing."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.mlp_training import launch, reference
from blast_kernels.mlp_training.heuristics import SddmmConfig, TileConfig, group_members, parts_for, sddmm_config
from blast_kernels.mlp_training.index_lists import index_lists_on_device
from inference_cases import index_of, relative_error
from training_cases import mlp_of

BOUNDS = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
PATTERNS = [("uniform", "uniform"), ("empty_rows", "uniform"), ("uniform", "empty_columns"), ("one_block", "full")]
GATES = [("untied", "silu"), ("tied", "gelu_tanh"), ("none", "gelu")]
SHAPES = [(32, 32, 32), (16, 32, 64)]


def both(name: str, *arguments, config=None):
    """The results of a kernel and of its twin, as lists."""
    ours = getattr(launch, name)(*arguments, config=config)
    twin = getattr(reference, name)(*arguments)
    return ([ours], [twin]) if isinstance(ours, torch.Tensor) else (list(ours), list(twin))


def agree(name: str, *arguments, config=None) -> None:
    ours, twin = both(name, *arguments, config=config)
    assert len(ours) == len(twin)
    for mine, expected in zip(ours, twin, strict=True):
        assert mine.shape == expected.shape
        bound = BOUNDS[next(a.dtype for a in arguments if isinstance(a, torch.Tensor))]
        assert relative_error(mine, expected) < bound, name


def noise(device: str, dtype: torch.dtype, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(len(size) + size[-1])).to(device, dtype)


def run_all(mlp, gate: str, activation: str, tokens: int, device: str, dtype: torch.dtype, config=None, samples=None):
    """Each kernel on the inputs that its forerunner's twin gives."""
    b_in = mlp.front[0].shape[2]
    b_out = mlp.down.shape[1]
    lists = mlp.lists
    x = noise(device, dtype, tokens, lists.inputs.shape[0] * b_in)
    grad = noise(device, dtype, tokens, lists.down.shape[0] * b_out)
    agree("front", x, mlp.front, lists.front, mlp.front_bias, activation, gate, config=config)
    pre, hidden = reference.front(x, mlp.front, lists.front, mlp.front_bias, activation, gate)
    agree("gather_product", hidden, [mlp.down], lists.down, mlp.down_bias, False, config=config)
    agree("hidden_grad", grad, mlp.down, pre, lists.hidden, activation, gate == "none", config=config)
    grad_pre, hidden, _ = reference.hidden_grad(grad, mlp.down, pre, lists.hidden, activation, gate == "none")
    agree("gather_product", grad_pre, mlp.front, lists.inputs, None, True, config=config)
    shapes = [tuple(values.shape) for values in mlp.front]
    agree("sample", grad_pre, x, lists.front_groups, shapes, True, config=samples)
    agree("sample", hidden, grad, lists.down_groups, [tuple(mlp.down.shape)], False, config=samples)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_kernels_agree_with_their_twins_for_every_pattern(gate, activation, patterns, device):
    mlp = mlp_of(gate, patterns, 32, 32, 32, device=device)
    run_all(mlp, gate, activation, 45, device, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blocks", SHAPES, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_kernels_agree_with_their_twins_in_half_precision(gate, activation, blocks, dtype, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), *blocks, dtype=dtype, device=device)
    run_all(mlp, gate, activation, 70, device, dtype)


@pytest.mark.parametrize("weights_first", [False, True])
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_slices_of_a_block_and_weights_first_change_nothing(gate, activation, weights_first, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 64, 64, 64, torch.float16, device)
    run_all(mlp, gate, activation, 150, device, torch.float16, TileConfig(64, 32, 32, 2, 4, weights_first, 2))


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_groups_and_parts_of_the_sampled_product_change_nothing(members, parts, device):
    mlp = mlp_of(
        "untied", ("uniform", "uniform"), 32, 32, 32, device=device, members=(members, members), grid=(5, 4, 4)
    )
    x, pre = noise(device, torch.float32, 90, 4 * 32), noise(device, torch.float32, 90, 2 * len(mlp.lists.live) * 32)
    shapes = [tuple(values.shape) for values in mlp.front]
    agree("sample", pre, x, mlp.lists.front_groups, shapes, True, config=SddmmConfig(16, 2, 4, parts))


def test_no_live_hidden_block_leaves_the_bias_and_zero_gradients(device):
    mlp = mlp_of("untied", ("uniform", "one_block"), 32, 32, 32, device=device)
    masks = [torch.zeros_like(mask) for mask in mlp.masks]
    lists = index_lists_on_device([index_of(masks[0])] * 2, index_of(masks[2]), 3)
    lists = type(lists)(*(records.to(device) for records in lists))
    mlp = mlp._replace(front=[v[:0] for v in mlp.front], down=mlp.down[:0], lists=lists)
    run_all(mlp, "untied", "silu", 40, device, torch.float32)
    bias = noise(device, torch.float32, 3 * 32)
    empty = torch.zeros(40, 0, device=device)
    y = launch.gather_product(empty, [mlp.down], lists.down, bias, False)
    assert torch.equal(y, bias.expand(40, -1))


def test_no_tokens_give_no_result_and_zero_gradients(device):
    mlp = mlp_of("untied", ("uniform", "uniform"), 32, 32, 32, device=device)
    run_all(mlp, "untied", "silu", 0, device, torch.float32)


def test_the_same_inputs_give_the_same_gradient_bit_by_bit(device):
    mlp = mlp_of("none", ("uniform", "uniform"), 32, 32, 32, torch.float16, device)
    x, pre = noise(device, torch.float16, 130, 96), noise(device, torch.float16, 130, len(mlp.lists.live) * 32)
    shapes = [tuple(mlp.front[0].shape)]
    runs = [launch.sample(pre, x, mlp.lists.front_groups, shapes, True, SddmmConfig(16, 2, 4, 4))[0] for _ in range(2)]
    assert torch.equal(*runs)


def test_parts_fill_whole_waves_and_stay_in_reach_of_the_steps():
    config = SddmmConfig(64, 3, 4)
    few = parts_for(16, 1, 16, 8192, 128 * 128, config)
    assert 4 <= few <= 16
    assert parts_for(10_000, 1, 10_000, 8192, 128 * 128, config) == 1
    assert parts_for(16, 1, 16, 64, 128 * 128, config) == 1


def test_groups_of_one_where_they_are_just_one_wave():
    """300 live blocks of 128 x 128 at three programs a multiprocessor fit an H100 at once, 500 do not."""
    assert group_members(128, 300, 500) == (1, 2)
    assert group_members(128) == group_members(64, 300, 300) == (2, 2)
    config = sddmm_config(128, 128, 1, False, True)
    assert 3 * config.stages * config.k * (128 + 128) * 2 <= 228 * 1024


def test_the_lists_ask_for_members_with_the_numbers_of_live_blocks():
    asked = []

    def members(front: int, down: int) -> tuple[int, int]:
        asked.append((front, down))
        return 1, 4

    offsets = torch.tensor([0, 2, 2, 3], dtype=torch.int32)  # the second hidden block is dead
    front = (offsets, torch.tensor([0, 1, 1], dtype=torch.int32))
    down = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32))
    lists = index_lists_on_device([front, front], down, 2, members=members)
    assert asked == [(6, 2)]
    assert (lists.front_groups.shape[1], lists.down_groups.shape[1]) == (4, 10)
