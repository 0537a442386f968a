"""The operator of a sparse MLP in training: against the dense MLP, under autograd, compilation, checkpointing."""

from __future__ import annotations

import blast_kernels.mlp_training.ops  # noqa: F401  (registers torch.ops.blast.*)
import pytest
import torch
import torch.utils.checkpoint
from blast_kernels.mlp_training.autograd import dense_gradients, mlp_training_eager
from inference_cases import relative_error
from training_cases import Mlp, dense_mlp, live_blocks, mlp_of

GATES = [("untied", "silu"), ("tied", "gelu"), ("none", "gelu_tanh"), ("none", "none")]
PATTERNS = [("uniform", "uniform"), ("empty_rows", "empty_columns"), ("one_block", "full"), ("full", "one_block")]
NO_GRADIENT = (None, None)


def leaves_of(mlp: Mlp, tokens: int = 7, device: str = "cpu") -> list[torch.Tensor]:
    """`x`, front blocks, down blocks, biases if any; all of them want a gradient."""
    columns = mlp.lists.inputs.shape[0] * mlp.front[0].shape[2]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, tokens, columns, generator=generator, dtype=torch.float64).to(device, mlp.down.dtype)
    biases = [] if mlp.front_bias is None else [mlp.front_bias, mlp.down_bias]
    return [tensor.clone().requires_grad_() for tensor in (x, *mlp.front, mlp.down, *biases)]


def run(mlp: Mlp, gate: str, activation: str, x, *rest) -> torch.Tensor:
    front, down, biases = list(rest[: len(mlp.front)]), rest[len(mlp.front)], rest[len(mlp.front) + 1 :] or NO_GRADIENT
    lists = list(mlp.lists)
    return torch.ops.blast.block_sparse_mlp_training(x, front, down, *biases, lists, activation, gate)[0]


def expected(mlp: Mlp, activation: str, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, list]:
    """Output and gradients of the dense MLP in float64; those of the weights at the live blocks."""
    dense = [x, *mlp.dense_front, mlp.dense_down]
    biases = [] if mlp.front_bias is None else [mlp.front_bias, mlp.down_bias]
    wide = [tensor.detach().double().requires_grad_() for tensor in (*dense, *biases)]
    fronts = len(mlp.front)
    y = dense_mlp(wide[0], wide[1 : 1 + fronts], wide[1 + fronts], wide[2 + fronts :] or NO_GRADIENT, activation)
    grads = list(torch.autograd.grad(y, wide, grad.double()))
    for n, (values, mask) in enumerate(zip((*mlp.front, mlp.down), mlp.masks, strict=True), start=1):
        grads[n] = live_blocks(grads[n], mask, *values.shape[1:])
    return y, grads


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_output_and_all_gradients_are_those_of_the_dense_mlp(gate, activation, patterns, device):
    mlp = mlp_of(gate, patterns, 32, 16, 64, device=device)
    leaves = leaves_of(mlp, device=device)
    y = run(mlp, gate, activation, *leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(device)
    grads = torch.autograd.grad(y, leaves, grad)
    dense_y, dense_grads = expected(mlp, activation, leaves[0], grad)
    assert relative_error(y, dense_y) < 1e-5
    for ours, dense in zip(grads, dense_grads, strict=True):
        assert ours.shape == dense.shape
        assert relative_error(ours, dense) < 1e-5


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_the_dense_gradients_follow_from_what_a_backward_pass_tells_those_of_dead_hidden_blocks_as_well(
    gate, activation, patterns, device
):
    mlp = mlp_of(gate, patterns, 32, 16, 64, device=device)
    leaves = leaves_of(mlp, device=device)
    x, *blocks = leaves
    fronts = len(mlp.front)
    biases = blocks[fronts + 1 :] or NO_GRADIENT
    told = []
    y = mlp_training_eager(
        lambda *given: told.extend(given),
        None,
        x,
        blocks[:fronts],
        blocks[fronts],
        *biases,
        mlp.lists,
        activation,
        gate,
    )
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(device)
    assert told == []
    grads = torch.autograd.grad(y, leaves, grad)
    # Without a tale the same, bit for bit.
    plain = run(mlp, gate, activation, *leaves)
    assert torch.equal(y, plain)
    for ours, theirs in zip(grads, torch.autograd.grad(plain, leaves, grad), strict=True):
        assert torch.equal(ours, theirs)
    assert [tensor.data_ptr() for tensor in told] == [x.data_ptr(), grad.data_ptr()]
    taken = dense_gradients(told[1], told[0], blocks[:fronts], blocks[fronts], biases[0], mlp.whole, activation, gate)
    wide = [tensor.detach().double().requires_grad_() for tensor in (*mlp.dense_front, mlp.dense_down)]
    fixed = [None if bias is None else bias.detach().double() for bias in biases]
    y = dense_mlp(x.detach().double(), wide[:fronts], wide[fronts], fixed, activation)
    for ours, dense in zip(taken, torch.autograd.grad(y, wide, grad.double()), strict=True):
        assert ours.shape == dense.shape
        assert not ours.requires_grad
        assert relative_error(ours, dense) < 1e-5


def test_without_a_dtype_operands_of_two_are_refused():
    mlp = mlp_of("untied", ("uniform", "uniform"), 16, 16, 16)
    x, *blocks = leaves_of(mlp)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16 .* blocks are torch\.float32"):
        mlp_training_eager(None, None, x.bfloat16(), blocks[:2], blocks[2], None, None, mlp.lists, "silu", "untied")


@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_gradients_of_float32_blocks_are_not_rounded_to_the_dtype_of_the_products(gate, activation, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 32, 16, 64, device=device)
    leaves = leaves_of(mlp, device=device)
    x, *blocks = leaves
    fronts = len(mlp.front)
    biases = blocks[fronts + 1 :] or NO_GRADIENT
    y = mlp_training_eager(
        None, torch.bfloat16, x, blocks[:fronts], blocks[fronts], *biases, mlp.lists, activation, gate
    )
    assert y.dtype == torch.bfloat16
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(device, torch.bfloat16)
    grads = torch.autograd.grad(y, leaves, grad)
    rounded = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    expected_y = run(mlp, gate, activation, *rounded)
    assert torch.equal(y, expected_y)
    for n, (ours, theirs) in enumerate(zip(grads, torch.autograd.grad(expected_y, rounded, grad), strict=True)):
        assert ours.dtype == torch.float32
        # The same sums; those of blocks and biases carry more digits than bfloat16 has.
        assert torch.equal(ours.bfloat16(), theirs)
        assert torch.equal(ours, ours.bfloat16().float()) == (n == 0)


@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_gradcheck_of_the_twin(gate, activation):
    mlp = mlp_of(gate, ("uniform", "uniform"), 3, 2, 4, torch.float64, grid=(3, 3, 2))
    assert torch.autograd.gradcheck(lambda *leaves: run(mlp, gate, activation, *leaves), leaves_of(mlp, 2))


@pytest.mark.parametrize(("gate", "activation"), GATES[:3])
def test_it_compiles_without_a_break_and_gives_the_same_gradients(gate, activation, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)
    compiled = torch.compile(
        lambda *given: run(mlp, gate, activation, *given).sin(), fullgraph=True, backend="aot_eager"
    )
    plain = torch.autograd.grad(run(mlp, gate, activation, *leaves).sin().sum(), leaves)
    ours = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant, device):
    mlp = mlp_of("untied", ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)

    def grads_through(function):
        for leaf in leaves:
            leaf.grad = None
        function().square().sum().backward()
        return [leaf.grad.clone() for leaf in leaves]

    plain = grads_through(lambda: run(mlp, "untied", "silu", *leaves))
    kept = grads_through(
        lambda: torch.utils.checkpoint.checkpoint(
            lambda *given: run(mlp, "untied", "silu", *given), *leaves, use_reentrant=reentrant
        )
    )
    for one, other in zip(kept, plain, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_several_backward_passes_add_up(device):
    mlp = mlp_of("none", ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)
    for _ in range(2):
        run(mlp, "none", "gelu", *leaves).sum().backward()
    once = torch.autograd.grad(run(mlp, "none", "gelu", *leaves).sum(), leaves)
    for leaf, single in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * single)


@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_asked_for_alone_is_the_same(wanted, device):
    mlp = mlp_of("none", ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)
    all_of_them = torch.autograd.grad(run(mlp, "none", "gelu", *leaves).sum(), leaves)
    for n, leaf in enumerate(leaves):
        leaf.requires_grad_(n == wanted)
    (alone,) = torch.autograd.grad(run(mlp, "none", "gelu", *leaves).sum(), [leaves[wanted]])
    assert torch.equal(alone, all_of_them[wanted])


def test_only_pre_activations_of_live_hidden_blocks_are_saved(device):
    mlp = mlp_of("untied", ("empty_rows", "uniform"), 16, 16, 16, device=device)
    live = (mlp.masks[0].any(1) & mlp.masks[1].any(1) & mlp.masks[2].any(0)).sum().item()
    assert 0 < live < 4
    x, gate, up, down = leaves_of(mlp, device=device)
    _, saved = torch.ops.blast.block_sparse_mlp_training(
        x, [gate, up], down, None, None, list(mlp.lists), "silu", "untied"
    )
    assert saved.shape == (14, 2 * live * 16)
    assert not saved.requires_grad


def test_the_saved_input_may_not_be_overwritten_before_the_backward_pass(device):
    mlp = mlp_of("none", ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)
    y = run(mlp, "none", "gelu", *leaves)
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_does_not_fit_is_refused_in_one_sentence(device):
    mlp = mlp_of("untied", ("uniform", "uniform"), 16, 16, 16, device=device)
    x, gate, up, down = (leaf.detach() for leaf in leaves_of(mlp, device=device))
    lists = list(mlp.lists)
    op = torch.ops.blast.block_sparse_mlp_training
    bias = torch.zeros(64, device=device)
    for message, arguments in (
        ("gate 'both' is unknown", (x, [gate, up], down, None, None, lists, "silu", "both")),
        ("activation 'relu' is unknown", (x, [gate, up], down, None, None, lists, "relu", "untied")),
        ("wants 2 front matrices, not 1", (x, [up], down, None, None, lists, "silu", "untied")),
        ("takes no bias", (x, [gate, up], down, bias, None, lists, "silu", "untied")),
        ("convert or move", (x.half(), [gate, up], down, None, None, lists, "silu", "untied")),
        (
            "no hidden blocks in common",
            (x, [gate, up], down[:, :, :8].contiguous(), None, None, lists, "silu", "untied"),
        ),
        ("its last dimension must be 48", (x[..., :-1], [gate, up], down, None, None, lists, "silu", "untied")),
        ("lists must be int32", (x, [gate, up], down, None, None, [n.long() for n in lists], "silu", "untied")),
    ):
        with pytest.raises(ValueError, match=message):
            op(*arguments)
