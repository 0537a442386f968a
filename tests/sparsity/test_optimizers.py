"""Optimizers other than one of torch's that holds everything: each works, or is refused in one sentence."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import tiles
from blast.errors import BlastError
from blast.model.convert import to_sparse
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.ownership import _IN_USE
from blast.sparsity.sparsifier import Sparsifier

SETTINGS = {"sparsity": 0.5, "block": 8, "steps": 8, "update_every": 2}


def two_mlps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)))


def config(**settings) -> SparsifyConfig:
    return SparsifyConfig(**{**SETTINGS, **settings})


def adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def train(sparsifier: Sparsifier, optimizers, steps: int = 8) -> None:
    for step in range(steps):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        sparsifier.model(x).square().mean().backward()
        sparsifier.step()
        for optimizer in optimizers:
            optimizer.step()
        sparsifier.model.zero_grad()


def assert_dead_blocks_hold_zeros(sparsifier: Sparsifier) -> None:
    to_sparse(copy.deepcopy(sparsifier.model), sparsifier.masks)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_matrices_in_two_optimizers_are_pruned_as_in_one(execution):
    one, two = two_mlps(), two_mlps()
    alone = adamw(one.parameters())
    several = [adamw(two[0].parameters()), adamw(two[1].parameters())]
    expected = Sparsifier(one, alone, config(execution=execution))
    ours = Sparsifier(two, several, config(execution=execution))
    train(expected, [alone])
    train(ours, several)
    assert ours.finished
    assert ours.execution == execution
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name


def test_a_matrix_in_none_of_the_optimizers_is_refused_by_name():
    model = two_mlps()
    with pytest.raises(BlastError, match=r"no given optimizer holds the weight of '1.0', nor 1 other .* in a list"):
        Sparsifier(model, adamw(model[0].parameters()), config())


def test_a_frozen_matrix_that_nothing_trains_is_refused_by_name():
    model = two_mlps()
    model[1][0].weight.requires_grad_(False)
    trained = adamw(p for p in model.parameters() if p.requires_grad)
    with pytest.raises(BlastError, match=r"holds the weight of '1.0' \(it is frozen\)"):
        Sparsifier(model, trained, config())
    adapter = nn.Parameter(torch.zeros(3))
    with pytest.raises(BlastError, match=r"holds the weight of '0.0' \(it is frozen\)"):
        Sparsifier(two_mlps().requires_grad_(False), adamw([adapter]), config())
    Sparsifier(model, trained, config(targets=("0.*", "1.2")))


def test_a_matrix_in_two_optimizers_is_refused_by_name():
    model = two_mlps()
    both = [adamw(model.parameters()), adamw(model[1].parameters())]
    with pytest.raises(BlastError, match=r"2 optimizers hold the weight of '1.0'"):
        Sparsifier(model, both, config())


def test_an_optimizer_from_before_the_layers_were_replaced_is_refused():
    model = two_mlps()
    old = adamw(model.parameters())
    model[1] = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    with pytest.raises(BlastError, match=r"no given optimizer holds the weight of '1.0'"):
        Sparsifier(model, old, config())


def test_no_optimizer_at_all_is_refused():
    with pytest.raises(BlastError, match="the list of optimizers is empty"):
        Sparsifier(two_mlps(), [], config())
    with pytest.raises(BlastError, match="a Sequential is no optimizer"):
        Sparsifier(two_mlps(), two_mlps(), config())


class Lookahead(torch.optim.Optimizer):
    """Slow weights follow the fast ones; it writes to the weights after the step of the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("slow", parameter.clone())
        self.optimizer.step()
        for parameter in self.param_groups[0]["params"]:
            slow = self.state[parameter]["slow"]
            parameter.copy_(slow.lerp_(parameter, 0.5))


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_wrapper_with_weights_of_its_own_leaves_dead_blocks_at_zero(execution):
    model = two_mlps()
    optimizer = Lookahead(adamw(model.parameters()))
    sparsifier = Sparsifier(model, optimizer, config(execution=execution, break_even=0.3))
    train(sparsifier, [optimizer])
    assert sparsifier.execution == execution
    assert_dead_blocks_hold_zeros(sparsifier)
    states = [optimizer.state, optimizer.optimizer.state]
    assert all(
        value.shape == p.shape for state in states for p, of in state.items() for value in of.values() if value.dim()
    )


class Stateful(torch.optim.SGD):
    """SGD that keeps one more value for each parameter."""

    made = staticmethod(torch.zeros_like)

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["more"] = self.made(parameter.detach())


class Subclass(Tensor):
    """A tensor of another class, as quantised moments are."""


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda p: torch.full(p.shape, 128, dtype=torch.uint8), r"uint8"),
        (lambda p: torch.zeros(p.numel() // 4, 2), r"\[256, 2\]|\[\d+, 2\]"),
        (lambda p: torch.zeros_like(p).as_subclass(Subclass), "Subclass"),
        (lambda p: [torch.zeros_like(p)], "list"),
    ],
)
def test_state_that_cannot_be_cleared_by_blocks_is_refused_when_it_appears(made, what, execution, monkeypatch):
    monkeypatch.setattr(Stateful, "made", staticmethod(made))
    model = two_mlps()
    optimizer = Stateful(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, config(execution=execution, update_every=100))
    train(sparsifier, [optimizer], steps=1)
    with pytest.raises(BlastError, match=f"Stateful keeps 'more' \\(.*({what}).*\\) for the weight .* of '0.0'"):
        train(sparsifier, [optimizer], steps=1)
    with pytest.raises(BlastError, match="Stateful keeps 'more'"):
        Sparsifier(two := two_mlps(), with_state(two), config())


def with_state(model: nn.Module) -> Stateful:
    optimizer = Stateful(model.parameters(), lr=0.01)
    optimizer.step()
    return optimizer


def test_a_state_by_row_or_column_trains_masked():
    model = two_mlps()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, config())
    train(sparsifier, [optimizer])
    assert sparsifier.finished
    assert_dead_blocks_hold_zeros(sparsifier)


@pytest.mark.parametrize("kind", ["LBFGS", "Rprop"])
def test_optimizers_that_cannot_work_are_refused_at_once(kind):
    model = two_mlps()
    with pytest.raises(BlastError, match=f"{kind} .*; use AdamW"):
        Sparsifier(model, getattr(torch.optim, kind)(model.parameters()), config())


def test_an_optimizer_that_steps_inside_backward_is_refused():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = two_mlps()
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.01})
    with pytest.raises(BlastError, match=r"'0.0' is trained by an optimizer that steps inside backward\(\)"):
        Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.01), config())


def test_an_object_without_the_hooks_of_torch_is_refused():
    class Duck:
        def __init__(self, parameters):
            self.param_groups, self.state = [{"params": list(parameters)}], {}

        def step(self):
            pass

    class Wrapper(Duck):
        """Keeps a state of its own, which it may write into the weights after the step of the optimizer inside."""

        def __init__(self, optimizer):
            super().__init__(optimizer.param_groups[0]["params"])
            self.optimizer = optimizer

    model = two_mlps()
    with pytest.raises(BlastError, match="Wrapper calls no step hooks"):
        Sparsifier(model, Wrapper(adamw(model.parameters())), config())
    with pytest.raises(BlastError, match="Duck calls no step hooks"):
        Sparsifier(model, Duck(model.parameters()), config())


def test_a_second_sparsifier_takes_over():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    first = Sparsifier(model, optimizer, config(sparsity=0.75))
    train(first, [optimizer])
    second = Sparsifier(model, optimizer, config(sparsity=0.25))
    train(second, [optimizer])
    for name, mask in second.masks.items():
        filled = (tiles(model.get_submodule(name).weight.detach(), second.config.block) != 0).any(3).any(1)
        assert torch.equal(filled, mask), name
    with pytest.raises(BlastError, match="a newer Sparsifier prunes the same matrices"):
        train(first, [optimizer], steps=1)


def test_two_sparsifiers_of_other_matrices_work_side_by_side():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    both = [Sparsifier(model, optimizer, config(targets=(f"{n}.*",), sparsity=s)) for n, s in ((0, 0.75), (1, 0.25))]
    for _ in range(8):
        model(torch.randn(8, 16)).square().mean().backward()
        for sparsifier in both:
            sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    assert [sparsifier.sparsity_achieved for sparsifier in both] == [0.75, 0.25]
    for sparsifier in both:
        assert_dead_blocks_hold_zeros(sparsifier)


def test_a_model_that_is_sparse_already_is_refused():
    model = two_mlps()
    to_sparse(model, {"0.0": torch.rand(8, 2) < 0.5, "0.2": torch.rand(2, 8) < 0.5}, drop=True)
    for targets in ("mlp", "0.*", r"re:0\.0"):
        with pytest.raises(BlastError, match=r"'0.0' is block-sparse already; call blast.to_dense\(model\) first"):
            Sparsifier(model, adamw(model.parameters()), config(targets=(targets,)))
    other = Sparsifier(model, optimizer := adamw(model.parameters()), config(targets=("1.*",)))
    train(other, [optimizer])
    assert other.sparsity_achieved == 0.5


def test_moments_that_are_loaded_later_do_not_come_back_in_grown_blocks():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    sparsifier = Sparsifier(model, optimizer, config(steps=100, initial_sparsity=0.5))
    train(sparsifier, [optimizer], steps=1)
    foreign = copy.deepcopy(optimizer.state_dict())
    for state in foreign["state"].values():
        state["exp_avg"] += 1.0
    optimizer.load_state_dict(foreign)
    before = sparsifier.masks
    train(sparsifier, [], steps=2)
    grown = {name: mask & ~before[name] for name, mask in sparsifier.masks.items()}
    assert any(mask.any() for mask in grown.values())
    for name, mask in grown.items():
        moments = tiles(optimizer.state[model.get_submodule(name).weight]["exp_avg"], sparsifier.config.block)
        assert not moments.permute(0, 2, 1, 3)[mask].any(), name


def test_moments_of_blocks_are_not_loaded_into_dense_matrices():
    model, other = two_mlps(), two_mlps()
    ours, theirs = adamw(model.parameters()), adamw(other.parameters())
    sparse = Sparsifier(model, ours, config(execution="sparse", initial_sparsity=0.25))
    train(sparse, [ours], steps=1)
    Sparsifier(other, theirs, config(initial_sparsity=0.25))
    with pytest.raises(BlastError, match="load the sparsifier's state before that of the optimizer"):
        theirs.load_state_dict(ours.state_dict())


def test_gradients_that_the_optimizer_has_used_are_refused():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    sparsifier = Sparsifier(model, optimizer, config(grow="none"))
    for set_to_none in (True, False):
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        if not sparsifier.step_count:
            with pytest.raises(BlastError, match="has already used these gradients; call sparsifier"):
                sparsifier.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    train(sparsifier, [optimizer], steps=3)


def test_a_model_and_its_optimizer_can_still_be_copied_and_pickled():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    sparsifier = Sparsifier(model, optimizer, config())
    train(sparsifier, [optimizer], steps=3)
    copied_model, copied = copy.deepcopy((model, optimizer))
    assert pickle.loads(pickle.dumps(copied)).state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    x = torch.ones(1, 16)
    assert torch.equal(copied_model(x), model(x))


def test_a_sparsifier_is_freed_with_its_optimizer():
    def alive() -> int:
        gc.collect()
        return len(_IN_USE)

    before = alive()
    model = two_mlps()
    Sparsifier(model, adamw(model.parameters()), config())
    assert alive() == before


@pytest.mark.parametrize("implementation", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_every_implementation_of_an_optimizer_leaves_dead_blocks_at_zero(implementation):
    model = two_mlps()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **implementation)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    sparsifier = Sparsifier(model, optimizer, config())
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    for _ in range(8):
        train(sparsifier, [optimizer], steps=1)
        scheduler.step()
    assert sparsifier.finished
    assert_dead_blocks_hold_zeros(sparsifier)


def test_muon_and_adamw_together_leave_dead_blocks_at_zero():
    model = two_mlps()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizers = [torch.optim.Muon(matrices, lr=0.01), adamw(p for p in model.parameters() if p.dim() < 2)]
    sparsifier = Sparsifier(model, optimizers, config())
    train(sparsifier, optimizers)
    assert_dead_blocks_hold_zeros(sparsifier)
    with pytest.raises(BlastError, match="Muon cannot train live blocks only"):
        Sparsifier(model, optimizers, config(execution="sparse"))


def test_a_loop_that_never_calls_step_is_told_once():
    model = two_mlps()
    optimizer = adamw(model.parameters())
    sparsifier = Sparsifier(model, optimizer, config())
    model(torch.randn(8, 16)).square().mean().backward()

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.step()

    with pytest.warns(UserWarning, match=r"has made 200 steps without sparsifier.step\(\)") as told:
        run(500)
    assert len(told) == 1
    optimizer.zero_grad()
    train(sparsifier, [optimizer])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(500)
