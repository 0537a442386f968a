"""Steps that are replayed as CUDA graphs train as steps that are launched kernel by kernel."""

from __future__ import annotations

import pytest
import torch
from switch_cases import sparsify

from blast.training import cuda_graphs
from blast.training.loop import train
from blast.training.settings import TrainingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS = 24
# Of six steps one updates the masks and the others are replayed; the first after it is captured if it has to be.
CASES = {
    "masked": {"execution": "masked"},
    "switching": {"execution": "sparse", "break_even": 0.55},
    "sparse": {"execution": "sparse", "grow": "swap"},
    "warm": {"execution": "masked", "regrown_state": "warm", "regrown_warmup": 4},
    "warm switching": {
        **{"execution": "sparse", "break_even": 0.55, "regrown_state": "warm", "regrown_warmup": 3},
        "grow_score": "random",
    },
}


def tokens_of(step: int) -> torch.Tensor:
    """Cut out of longer rows, as a training loop cuts inputs: a capture must not be compiled anew for that."""
    return torch.randint(8, (2, 25), generator=torch.Generator().manual_seed(step)).cuda()[:, 1:]


def trained(case: str, tmp_path=None, stop_at: int | None = None, **settings):
    def batch_at(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return tokens_of(step), tokens_of(step)

    ours = sparsify("llama-nano", device="cuda", steps=STEPS, update_every=6, **CASES[case])
    for group in ours.optimizer.param_groups:
        group["capturable"] = settings.get("cuda_graphs", False)
    history = train(
        ours.model,
        TrainingSettings(
            steps=STEPS, batch=2, learning_rate=2e-3, checkpoint_seconds=0, evaluate_every=4, spike=0, **settings
        ),
        batch_at=batch_at,
        loss_of=lambda model, batch: model(input_ids=batch[0], labels=batch[1]).loss,
        evaluate=lambda model: model(input_ids=torch.arange(24, device="cuda")[None]).logits.square().mean().item(),
        optimizer=ours.optimizer,
        sparsifier=ours,
        state_file=None if tmp_path is None else tmp_path / "state.pt",
        say=lambda line: None,
    )
    return ours, history


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_train_as_launched_ones(case):
    plain, expected = trained(case)
    ours, history = trained(case, cuda_graphs=True)
    for curve in ("train_loss", "validation_loss"):
        assert history.curves[curve]["step"] == expected.curves[curve]["step"]
        torch.testing.assert_close(
            torch.tensor(history.curves[curve]["value"]),
            torch.tensor(expected.curves[curve]["value"]),
            rtol=1e-4,
            atol=0,
        )
    assert history.curves["sparse_execution"] == expected.curves["sparse_execution"]
    assert all(torch.equal(mask, plain.masks[name]) for name, mask in ours.masks.items())


def test_steps_are_replayed_without_memory_to_spare(monkeypatch):
    _, expected = trained("switching", cuda_graphs=True)
    monkeypatch.setattr(cuda_graphs, "ROOM", 10**9)
    _, history = trained("switching", cuda_graphs=True)
    assert history.curves == expected.curves


def test_a_failed_capture_says_why_and_leaves_the_gpu_usable():
    memory, stream = cuda_graphs.GraphMemory(torch.cuda.Stream()), torch.cuda.Stream()
    x = torch.ones(8, device="cuda")
    with torch.cuda.stream(stream):
        with pytest.raises(ZeroDivisionError):
            memory.capture(lambda: (memory.split(), 1 // 0))
        made = []
        (graph,) = memory.capture(lambda: made.append(x + 1))
        torch.cuda.synchronize()
        assert made[0].tolist() == [2.0] * 8
        x.fill_(2)
        graph.replay()
    torch.cuda.synchronize()
    assert made[0].tolist() == [3.0] * 8


@pytest.mark.filterwarnings("error")
def test_a_work_is_split_into_graphs_that_are_replayed_in_order():
    stream = torch.cuda.Stream()
    memory, x = cuda_graphs.GraphMemory(stream), torch.ones(8, device="cuda")
    with torch.cuda.stream(stream):
        # Nothing is launched between the first two splits.
        graphs = memory.capture(lambda: (x.mul_(3), memory.split(), memory.split(), x.add_(1)), lambda: x.mul_(2))
        assert len(graphs) == 4
        torch.cuda.synchronize()
        assert x.tolist() == [8.0] * 8
        for graph in graphs:
            graph.replay()
    torch.cuda.synchronize()
    assert x.tolist() == [50.0] * 8


def test_a_killed_run_with_graphs_goes_on(tmp_path):
    _, expected = trained("switching", cuda_graphs=True)
    with pytest.raises(KeyboardInterrupt):
        trained("switching", tmp_path, stop_at=17, cuda_graphs=True)
    _, history = trained("switching", tmp_path, cuda_graphs=True)
    torch.testing.assert_close(
        torch.tensor(history.curves["train_loss"]["value"]), torch.tensor(expected.curves["train_loss"]["value"]),
        rtol=1e-4, atol=0,
    )  # fmt: skip
    assert history.seconds["step"] == expected.curves["validation_loss"]["step"]
    assert history.seconds["value"] == sorted(history.seconds["value"])


def test_compiled_steps_are_replayed_too():
    torch.compiler.reset()
    _, expected = trained("switching")
    ours = sparsify("llama-nano", device="cuda", steps=STEPS, update_every=6, **CASES["switching"])
    for group in ours.optimizer.param_groups:
        group["capturable"] = True
    compiled = torch.compile(lambda model, batch: model(input_ids=batch[0], labels=batch[1]).loss, dynamic=False)
    history = train(
        ours.model,
        TrainingSettings(steps=STEPS, batch=2, learning_rate=2e-3, evaluate_every=99, cuda_graphs=True),
        batch_at=lambda step: (tokens_of(step), tokens_of(step)),
        loss_of=compiled,
        evaluate=lambda model: 0.0,
        optimizer=ours.optimizer,
        sparsifier=ours,
        say=lambda line: None,
    )
    torch.testing.assert_close(
        torch.tensor(history.curves["train_loss"]["value"]), torch.tensor(expected.curves["train_loss"]["value"]),
        rtol=1e-3, atol=0,
    )  # fmt: skip
    assert history.spent["compiling"] > 0
