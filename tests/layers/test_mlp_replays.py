"""A fused MLP on a GPU repeats its launches; whatever changes, it computes what the operator computes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_fused_mlp_follows_writes import WRITES, expected, fused_model, sparse_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import blast
from blast.layers import mlp_replays, sparse_mlp
from blast.layers.mlp_replays import KEPT

run_mlp = sparse_mlp.run_mlp


class Replays:
    """Stands in for the replays of a GPU. Each computes with the memory that its call read."""

    def __init__(self) -> None:
        self.made = self.used = 0
        self.wrong = 0.0

    def run_mlp(self, x: Tensor, *operands, record: bool):
        assert record
        self.made += 1
        # The same memory, and other tensors: as with addresses, a change in place is seen and new memory is not.
        held = [part.detach() if isinstance(part, Tensor) else part for part in operands]

        tried = []

        def replay(given: Tensor) -> Tensor:
            # The first call compares it with the ordinary call.
            self.used += bool(tried)
            tried.append(given)
            return self.wrong + run_mlp(given, *held)[0]

        return run_mlp(x, *operands)[0], replay


@pytest.fixture
def replays(monkeypatch) -> Replays:
    found = Replays()
    monkeypatch.setattr(mlp_replays, "_on_gpu", lambda x: True)
    monkeypatch.setattr(sparse_mlp, "run_mlp", found.run_mlp)
    return found


def fresh(replays: Replays, model: nn.Module | None = None) -> nn.Module:
    """A fused model that was not called yet; fusing calls it."""
    model = fused_model() if model is None else model
    model[0]._replays.clear()
    replays.made = replays.used = 0
    return model


def tokens(count: int = 3) -> Tensor:
    return torch.randn(count, 32, dtype=torch.float64)


def check(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(model, x), rtol=1e-10, atol=1e-12)


def test_the_second_call_of_a_shape_is_a_replay(replays) -> None:
    model = fresh(replays)
    for _ in range(3):
        check(model, tokens())
    assert (replays.made, replays.used) == (1, 2)
    check(model, tokens(5))
    check(model, tokens()[None])
    assert (replays.made, replays.used) == (3, 2)


def test_a_replay_that_gives_another_result_is_dropped_with_a_warning(replays, monkeypatch) -> None:
    monkeypatch.setattr(mlp_replays._Trust, "lost", False)
    model, replays.wrong = fresh(replays), 1.0
    with pytest.warns(UserWarning, match="gave another result than the launches"):
        check(model, tokens())
    replays.wrong = 0.0
    for count in (3, 5, 3, 5):  # none is trusted any more
        check(model, tokens(count))
    assert (replays.made, replays.used) == (5, 0)


def test_results_that_are_not_finite_are_the_same_results() -> None:
    result = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert mlp_replays._same(result + 1e-3, result)
    assert not mlp_replays._same(result + 1.0, result)
    assert not mlp_replays._same(result - 1.0, result)
    assert not mlp_replays._same(-result, result)
    assert mlp_replays._same(result[:0], result[:0])


@pytest.mark.parametrize("write", WRITES)
def test_a_write_takes_effect_in_a_replay(write, replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    with torch.no_grad():
        before = model(x)
    WRITES[write](model)
    check(model, x)
    check(model, x)
    with torch.no_grad():
        assert not torch.allclose(model(x), before)
    assert replays.used >= 3


def test_other_strides_at_the_same_address_are_seen(replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    layer = model[0].up_proj
    layer.values.data = layer.values.data.transpose(1, 2)
    check(model, x)
    check(model, x)
    assert replays.used == 0


@pytest.mark.parametrize("in_place", [True, False])
def test_a_new_mask_is_seen(in_place, replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    index = model[0].down_proj.index
    # Two blocks of the first row change places with their columns.
    columns = index.col_indices
    first = columns[: int(index.row_offsets[1])].clone()
    assert first.numel() > 1
    if in_place:
        columns[: first.numel()] = first.flip(0)
    else:
        index.col_indices = torch.cat([first.flip(0), columns[first.numel() :]])
    with torch.no_grad():
        before, changed = model(x), model(x)
    torch.testing.assert_close(before, changed)
    other = blast.unfuse(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(changed, other(x), rtol=1e-10, atol=1e-12)
    assert replays.made == 2


def test_a_change_of_the_module_ends_the_replays(replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    handle = model[0].act_fn.register_forward_hook(lambda module, given, output: output * 2)
    with torch.no_grad():
        torch.testing.assert_close(model(x), 2 * expected(model, x), rtol=1e-10, atol=1e-12)
    handle.remove()
    check(model, x)
    assert replays.used == 1
    model[0].activation_name = "gelu"
    with torch.no_grad():
        assert not torch.allclose(model(x), expected(model, x))
    model[0].activation_name = "silu"
    model.float()
    with torch.no_grad():
        out = model(x.float())
    torch.testing.assert_close(out, expected(model, x.float()), rtol=1e-4, atol=1e-5)
    model.double()
    check(model, x)
    assert replays.used == 1


def test_what_is_watched_or_needs_gradients_is_no_replay(replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    model(x).sum().backward()
    with torch.no_grad():
        with FlopCounterMode(display=False):
            check(model, x)
        torch.testing.assert_close(torch.vmap(model)(x), expected(model, x), rtol=1e-10, atol=1e-12)
        with torch.autocast("cpu", torch.bfloat16):
            model(x.float())
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected(model, x), rtol=1e-10, atol=1e-12)
    assert replays.used == 0
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected(model, x), rtol=1e-10, atol=1e-12)
    assert replays.used == 1


def test_a_functional_call_computes_with_what_it_is_given(replays) -> None:
    model, x = fresh(replays), tokens()
    check(model, x)
    given = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict(given, strict=False)
    with torch.no_grad():
        out = torch.func.functional_call(model, given, (x,))
    torch.testing.assert_close(out, expected(other, x), rtol=1e-10, atol=1e-12)
    assert replays.used == 0


def test_a_copy_has_no_replays_and_their_number_is_limited(replays) -> None:
    model = fresh(replays)
    for count in range(1, KEPT + 5):
        check(model, tokens(count))
    assert len(model[0]._replays._known) == KEPT
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other[0]._replays._known) == 0
        check(other, tokens())


def test_weights_in_fp8_are_followed(replays) -> None:
    torch.manual_seed(0)
    model = fresh(replays, blast.fuse(sparse_model().bfloat16().eval(), weights="fp8"))
    x = tokens().bfloat16()

    def close() -> bool:
        wanted = expected(model, x).double()
        return bool((model(x).double() - wanted).norm() < 0.02 * wanted.norm())

    with torch.no_grad():
        assert all(close() for _ in range(3))
        assert (replays.made, replays.used) == (1, 2)
        state = {name: 2 * part if part.is_floating_point() else part for name, part in model.state_dict().items()}
        model.load_state_dict(state)
        assert all(close() for _ in range(2))
    assert replays.made == 2


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 40, 300])
@pytest.mark.parametrize("weights", ["same", "fp8"])
def test_replays_on_a_gpu_compute_what_the_operator_does(shared, count, weights, monkeypatch) -> None:
    model = blast.fuse(sparse_model(shared).bfloat16().cuda().eval(), weights=weights)
    # Fusing has called it.
    model[0]._replays.clear()
    with torch.no_grad():
        model(tokens(count).bfloat16().cuda())
        assert len(model[0]._replays._known) == 1
        for _ in range(3):
            x = tokens(count).bfloat16().cuda()
            repeated = model(x)
            with monkeypatch.context() as context:
                context.setattr(mlp_replays, "_on_gpu", lambda x: False)
                by_operator = model(x)
            torch.testing.assert_close(repeated, by_operator)


@pytest.mark.gpu
def test_a_replay_is_captured_in_a_graph_and_follows_the_stream() -> None:
    model = blast.fuse(sparse_model().bfloat16().cuda().eval())
    x = tokens(4).bfloat16().cuda()
    with torch.no_grad():
        model(x)
        expected_here = model(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            on_stream = model(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        graph.replay()
        torch.testing.assert_close(out, expected_here)
        torch.testing.assert_close(on_stream, expected_here)
        x.copy_(tokens(4))
        graph.replay()
        torch.testing.assert_close(out, model(x))
