"""The operator of a sparse MLP in training: equal to the dense MLP; with autograd, compilation and checkpointing."""

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
NO_BIAS = (None, None)


def leaves_of(mlp: Mlp, tokens: int = 7, device: str = "cpu") -> list[torch.Tensor]:
    """`x`, blocks of gate-up and of down, and biases if any; all require a gradient."""
    columns = mlp.lists.input_grad.shape[0] * mlp.gate_up[0].shape[2]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, tokens, columns, generator=generator, dtype=torch.float64).to(device, mlp.down.dtype)
    biases = [] if mlp.up_bias is None else [mlp.up_bias, mlp.down_bias]
    return [tensor.clone().requires_grad_() for tensor in (x, *mlp.gate_up, mlp.down, *biases)]


def run(mlp: Mlp, gate: str, activation: str, x, *rest) -> torch.Tensor:
    matrices = len(mlp.gate_up)
    gate_up, down, biases = list(rest[:matrices]), rest[matrices], rest[matrices + 1 :] or NO_BIAS
    lists = list(mlp.lists)
    return torch.ops.blast.block_sparse_mlp_training(x, gate_up, down, *biases, lists, activation, gate)[0]


def expected(mlp: Mlp, activation: str, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, list]:
    """Output and gradients of the dense MLP in float64; the gradients of weights at the live blocks only."""
    dense = [x, *mlp.dense_gate_up, mlp.dense_down]
    biases = [] if mlp.up_bias is None else [mlp.up_bias, mlp.down_bias]
    wide = [tensor.detach().double().requires_grad_() for tensor in (*dense, *biases)]
    matrices = len(mlp.gate_up)
    y = dense_mlp(wide[0], wide[1 : 1 + matrices], wide[1 + matrices], wide[2 + matrices :] or NO_BIAS, activation)
    grads = list(torch.autograd.grad(y, wide, grad.double()))
    for n, (values, mask) in enumerate(zip((*mlp.gate_up, mlp.down), mlp.masks, strict=True), start=1):
        grads[n] = live_blocks(grads[n], mask, *values.shape[1:])
    return y, grads


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_output_and_all_gradients_equal_those_of_the_dense_mlp(gate, activation, patterns, device):
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
def test_dense_gradients_from_saved_activations_equal_those_of_the_dense_mlp_also_in_dead_blocks(
    gate, activation, patterns, device
):
    mlp = mlp_of(gate, patterns, 32, 16, 64, device=device)
    leaves = leaves_of(mlp, device=device)
    x, *blocks = leaves
    matrices = len(mlp.gate_up)
    biases = blocks[matrices + 1 :] or NO_BIAS
    saved = []
    y = mlp_training_eager(
        lambda *activations: saved.extend(activations),
        None,
        x,
        blocks[:matrices],
        blocks[matrices],
        *biases,
        mlp.lists,
        activation,
        gate,
    )
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(device)
    assert saved == []
    grads = torch.autograd.grad(y, leaves, grad)
    # The operator without a callback gives the same, bit for bit.
    plain = run(mlp, gate, activation, *leaves)
    assert torch.equal(y, plain)
    for ours, theirs in zip(grads, torch.autograd.grad(plain, leaves, grad), strict=True):
        assert torch.equal(ours, theirs)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr(), grad.data_ptr()]
    computed = dense_gradients(
        saved[1], saved[0], blocks[:matrices], blocks[matrices], biases[0], mlp.complete_lists, activation, gate
    )
    wide = [tensor.detach().double().requires_grad_() for tensor in (*mlp.dense_gate_up, mlp.dense_down)]
    fixed = [None if bias is None else bias.detach().double() for bias in biases]
    y = dense_mlp(x.detach().double(), wide[:matrices], wide[matrices], fixed, activation)
    for ours, dense in zip(computed, torch.autograd.grad(y, wide, grad.double()), strict=True):
        assert ours.shape == dense.shape
        assert not ours.requires_grad
        assert relative_error(ours, dense) < 1e-5


def test_operands_of_two_dtypes_are_refused_if_no_dtype_is_given():
    mlp = mlp_of("untied", ("uniform", "uniform"), 16, 16, 16)
    x, *blocks = leaves_of(mlp)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16 .* blocks are torch\.float32"):
        mlp_training_eager(None, None, x.bfloat16(), blocks[:2], blocks[2], None, None, mlp.lists, "silu", "untied")


@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_gradients_of_float32_blocks_are_not_rounded_to_the_dtype_of_the_products(gate, activation, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 32, 16, 64, device=device)
    leaves = leaves_of(mlp, device=device)
    x, *blocks = leaves
    matrices = len(mlp.gate_up)
    biases = blocks[matrices + 1 :] or NO_BIAS
    y = mlp_training_eager(
        None, torch.bfloat16, x, blocks[:matrices], blocks[matrices], *biases, mlp.lists, activation, gate
    )
    assert y.dtype == torch.bfloat16
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(device, torch.bfloat16)
    grads = torch.autograd.grad(y, leaves, grad)
    rounded = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    expected_y = run(mlp, gate, activation, *rounded)
    assert torch.equal(y, expected_y)
    for n, (ours, theirs) in enumerate(zip(grads, torch.autograd.grad(expected_y, rounded, grad), strict=True)):
        assert ours.dtype == torch.float32
        # The sums are equal; those of blocks and biases have more digits than bfloat16.
        assert torch.equal(ours.bfloat16(), theirs)
        assert torch.equal(ours, ours.bfloat16().float()) == (n == 0)


@pytest.mark.parametrize(("gate", "activation"), GATES)
def test_the_reference_passes_gradcheck(gate, activation):
    mlp = mlp_of(gate, ("uniform", "uniform"), 3, 2, 4, torch.float64, grid=(3, 3, 2))
    assert torch.autograd.gradcheck(lambda *leaves: run(mlp, gate, activation, *leaves), leaves_of(mlp, 2))


@pytest.mark.parametrize(("gate", "activation"), GATES[:3])
def test_it_compiles_as_one_graph_with_the_same_gradients(gate, activation, device):
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


class Blocked(torch.autograd.Function):
    """Lets no gradient through: not zeros, but none."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("gate", "activation"), GATES[:3])
def test_without_a_gradient_of_the_result_nothing_gets_one(gate, activation, eager, device):
    mlp = mlp_of(gate, ("uniform", "uniform"), 16, 16, 16, device=device)
    x, *rest = leaves = leaves_of(mlp, device=device)
    if eager:
        matrices = len(mlp.gate_up)
        operands = rest[:matrices], rest[matrices], *(rest[matrices + 1 :] or NO_BIAS), mlp.lists, activation, gate
        y = mlp_training_eager(None, None, x, *operands)
    else:
        y = run(mlp, gate, activation, x, *rest)
    Blocked.apply(y).sum().backward()
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_computed_alone_is_the_same(wanted, device):
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


def test_overwriting_a_saved_tensor_before_the_backward_pass_is_an_error(device):
    mlp = mlp_of("none", ("uniform", "uniform"), 16, 16, 16, device=device)
    leaves = leaves_of(mlp, device=device)
    y = run(mlp, "none", "gelu", *leaves)
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_wrong_arguments_are_refused_in_one_sentence(device):
    mlp = mlp_of("untied", ("uniform", "uniform"), 16, 16, 16, device=device)
    x, gate, up, down = (leaf.detach() for leaf in leaves_of(mlp, device=device))
    lists = list(mlp.lists)
    op = torch.ops.blast.block_sparse_mlp_training
    bias = torch.zeros(64, device=device)
    for message, arguments in (
        ("gate 'both' is unknown", (x, [gate, up], down, None, None, lists, "silu", "both")),
        ("activation 'relu' is unknown", (x, [gate, up], down, None, None, lists, "relu", "untied")),
        ("needs 2 tensors in gate_up, not 1", (x, [up], down, None, None, lists, "silu", "untied")),
        ("takes no up_bias", (x, [gate, up], down, bias, None, lists, "silu", "untied")),
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
