"""Masked-dense, sparse, and one after the other: the same training but for rounding."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from switch_cases import OPTIMIZERS, SETTINGS, STEPS, dense_weights, nano, nano_loss, sparsify, steps

from blast.layers.block_linear import BlockLinear
from blast.layers.training_mlp import TrainingMlp
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.execution import switch
from blast.sparsity.execution.sparse import attach_dense_gradients, detach_dense_gradients
from blast.sparsity.sparsifier import Sparsifier

MODELS = ("llama-nano", "gpt2-nano")
WAYS = {
    "sparse": {"execution": "sparse"},
    "switching": {"execution": "sparse", "break_even": 0.6},
}


def same(ours, theirs, losses, expected) -> None:
    """Both runs saw the same losses and ended with the same masks and weights, within float32 rounding."""
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=2e-5, atol=0)
    assert all(torch.equal(mask, theirs.masks[name]) for name, mask in ours.masks.items())
    for name, weight in dense_weights(ours.model).items():
        torch.testing.assert_close(weight, dense_weights(theirs.model)[name], rtol=1e-3, atol=2e-5, msg=name)


def run(name, way, optimizer="adamw", accumulate=1, clip=0.5, **settings):
    masked = sparsify(name, optimizer, execution="masked", **settings)
    expected = steps(masked, accumulate=accumulate, clip=clip)
    ours = sparsify(name, optimizer, **WAYS[way], **settings)
    losses = steps(ours, accumulate=accumulate, clip=clip)
    assert masked.execution == "masked"
    assert ours.execution == "sparse"
    assert expected[0] - expected[-1] > 0.01  # it does train
    same(ours, masked, losses, expected)
    return ours


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_curves_agree_across_the_ways_of_execution(name, way):
    ours = run(name, way)
    assert any(isinstance(module, TrainingMlp) for module in ours.model.modules())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_dense_gradients_of_whole_mlps_are_those_of_their_layers(name, autocast):
    """Also for hidden blocks that no live block reads; an MLP skips these in other steps."""
    ours = sparsify(name, execution="sparse", sparsity=0.9, schedule="constant", hold=0.0)
    mlps = [module for module in ours.model.modules() if isinstance(module, TrainingMlp)]
    found = []
    for whole in (True, False):
        attach_dense_gradients(ours._mask_groups)
        if not whole:
            for mlp in mlps:
                mlp.forward = mlp.original.forward
        ours.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nano_loss(ours.model, 3).backward()
        layers = [layer for mlp in mlps for layer in mlp.layers]
        assert any((layer.mask().sum(0) == 0).any() for layer in layers)
        found.append([(layer.dense_gradient.total.clone(), layer.values.grad.clone()) for layer in layers])
        detach_dense_gradients(ours._mask_groups)
    bound = 0.03 if autocast else 1e-5
    for ours_of, theirs in zip(*found, strict=True):
        for gradient, expected in zip(ours_of, theirs, strict=True):
            assert gradient.dtype == expected.dtype == torch.float32
            assert (gradient - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_moments_of_any_optimizer_are_carried_over(name, optimizer):
    run(name, "switching", optimizer, clip=None)


@pytest.mark.parametrize("grow", ["swap", "none"])
def test_every_kind_of_mask_update_is_the_same(grow):
    run("gpt2-nano", "sparse", grow=grow)


def test_gradients_accumulated_over_two_passes_grow_the_same_blocks():
    run("llama-nano", "switching", accumulate=2)


def test_gate_and_up_with_one_mask_share_their_index():
    ours = run("llama-nano", "switching", tie_gate_up=True)
    mlp = ours.model.model.layers[0].mlp
    assert mlp.gate_proj.index is mlp.up_proj.index
    assert mlp.gate_kind == "tied"


@pytest.mark.parametrize("ranking", ["layer", pytest.param("model", marks=pytest.mark.slow)])
def test_masks_that_compete_over_matrices_are_the_same(ranking):
    run("llama-nano", "switching", ranking=ranking)


def test_the_switch_happens_at_the_break_even_and_holds_live_blocks_alone():
    ours = sparsify("gpt2-nano", execution="auto", break_even=0.6)
    while ours.execution == "masked":
        assert ours.sparsity_achieved < 0.6
        assert not any(isinstance(module, BlockLinear) for module in ours.model.modules())
        steps(ours, ours.step_count + 1)
    assert ours.sparsity_achieved >= 0.6
    for name, mask in ours.masks.items():
        layer = ours.model.get_submodule(name)
        assert layer.values.shape == (int(mask.sum()), 32, 32)
        state = ours.optimizer.state[layer.values]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == layer.values.shape
        assert state["exp_avg"].count_nonzero() > 0
    held = [id(p) for group in ours.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in ours.model.parameters())
    assert len(ours.optimizer.state) == len(held)


def test_nothing_keeps_the_dense_weights_and_moments_alive_after_the_switch():
    ours = sparsify("llama-nano", execution="sparse", break_even=0.6)
    steps(ours, 3)
    weights = [ours.model.get_submodule(name).weight for name in ours.masks]
    left = [weakref.ref(tensor) for w in weights for tensor in (w, w.grad, *ours.optimizer.state[w].values())]
    del weights
    steps(ours)
    gc.collect()
    # The step counts of AdamW are carried over as they are.
    alive = [ref() for ref in left if ref() is not None]
    assert all(tensor.numel() == 1 for tensor in alive)
    assert len(alive) == len(ours.masks)


def test_nothing_keeps_the_sparse_mlps_alive_after_the_way_back():
    ours = sparsify("llama-nano", execution="sparse")
    left = [weakref.ref(module) for module in ours.model.modules() if isinstance(module, TrainingMlp)]
    assert left
    ours.to_masked()
    gc.collect()
    assert all(ref() is None for ref in left)


def test_without_a_gpu_auto_stays_masked():
    ours = sparsify("gpt2-nano", execution="auto")
    steps(ours)
    assert ours.execution == "masked"


def test_auto_switches_only_where_every_matrix_trains_by_the_operator(monkeypatch):
    asked = []
    monkeypatch.setattr(switch, "training_break_even", lambda *of: asked.append(of) or 0.6)
    ours = sparsify("llama-nano", execution="auto")
    steps(ours)
    assert ours.execution == "sparse"
    assert {(gate, shape) for _, _, gate, shape in asked} == {("untied", (384, 128))}
    attention = sparsify("llama-nano", execution="auto", targets=("mlp", "*.o_proj"))
    steps(attention)
    model = nano("gpt2-nano")
    model.transformer.h[1].mlp.dropout.p = 0.1
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    dropping = Sparsifier(model, optimizer, SparsifyConfig(**SETTINGS, execution="auto"))
    steps(dropping)
    assert attention.execution == dropping.execution == "masked"


def test_a_run_can_go_to_sparse_and_back_by_hand():
    masked = sparsify("llama-nano", execution="masked")
    expected = steps(masked)
    ours = sparsify("llama-nano", execution="masked")
    losses = steps(ours, 3)
    ours.to_sparse()
    losses += steps(ours, 7)
    ours.to_masked()
    losses += steps(ours, STEPS)
    same(ours, masked, losses, expected)


def test_grown_blocks_start_with_empty_moments_and_their_gradient_of_the_step():
    ours = sparsify("gpt2-nano", execution="sparse", grow="swap", initial_sparsity=0.5, sparsity=0.5, hold=0.0)
    steps(ours, 2)
    before = {name: mask.clone() for name, mask in ours.masks.items()}
    ours.optimizer.zero_grad()
    nano_loss(ours.model, 2).backward()
    ours.step()
    seen = 0
    for name, mask in ours.masks.items():
        layer = ours.model.get_submodule(name)
        grown = (mask & ~before[name])[layer.index.index.coordinates()]
        seen += int(grown.sum())
        assert layer.values[grown].count_nonzero() == 0
        assert ours.optimizer.state[layer.values]["exp_avg"][grown].count_nonzero() == 0
        assert not grown.any() or layer.values.grad[grown].count_nonzero() > 0
        assert layer.values[~grown].count_nonzero() > 0
    assert seen > 0


def test_the_dense_gradient_is_made_at_mask_updates_alone():
    ours = sparsify("llama-nano", execution="sparse", update_every=3)
    for step in range(STEPS):
        accumulating = [m.dense_gradient is not None for m in ours.model.modules() if isinstance(m, BlockLinear)]
        assert all(accumulating) == any(accumulating) == (step % 3 == 0 and step < 9)
        steps(ours, step + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "fixed"), [({}, False), ({"schedule": "constant", "grow": "none"}, True)])
def test_a_compiled_model_trains_the_same_and_is_not_compiled_at_every_mask_update(settings, fixed):
    masked = sparsify("llama-nano", execution="masked", **settings)
    expected = steps(masked)
    torch._dynamo.reset()
    ours = sparsify("llama-nano", execution="sparse", **settings)
    module = ours.model
    layers = [layer for layer in module.modules() if isinstance(layer, BlockLinear)]
    assert all(layer.masks_fixed == fixed for layer in layers)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ours.model = torch.compile(module, backend=count)
    losses = steps(ours, 3)
    compiled = len(graphs)
    losses += steps(ours)
    assert len(graphs) == compiled
    ours.model = module
    same(ours, masked, losses, expected)
    assert any("block_sparse_mlp_training" in graph.print_readable(False) for graph in graphs) == fixed


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_grows_the_same_blocks(reentrant):
    masked, ours = sparsify("llama-nano", execution="masked"), sparsify("llama-nano", **WAYS["switching"])
    for sparsifier in (masked, ours):
        sparsifier.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        sparsifier.model.train()
    same(ours, masked, steps(ours), steps(masked))
    assert ours.execution == "sparse"


def test_under_autocast_the_state_stays_float32_and_the_curves_agree_within_bfloat16():
    masked, ours = sparsify("llama-nano", execution="masked"), sparsify("llama-nano", **WAYS["switching"])
    expected, losses = steps(masked, autocast=True), steps(ours, autocast=True)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-2, atol=0)
    layer = ours.model.model.layers[0].mlp.down_proj
    tensors = [layer.values, layer.values.grad, *ours.optimizer.state[layer.values].values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
