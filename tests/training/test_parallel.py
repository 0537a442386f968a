"""Two processes over gloo train as one, whichever way they do it, and go on from a saved state."""

from __future__ import annotations

import pytest
import torch
from distributed_cases import RANKS
from parallel_cases import CUT, trained, work
from ranks import run_ranks

from blast.errors import BlastError
from blast.training.parallel import parallelize
from blast.training.settings import PARALLEL, TrainingSettings


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    run_ranks(work, str(folder), ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    return trained("average")


@pytest.mark.slow
@pytest.mark.parametrize("way", PARALLEL)
def test_two_processes_train_as_one(ranks, alone, way):
    for rank in ranks:
        assert all(torch.equal(mask, alone["masks"][name]) for name, mask in rank[way]["whole"]["masks"].items())
    ours = ranks[0][way]["whole"]
    # Each process sees the loss of its own share.
    both = [torch.tensor(rank[way]["whole"]["curves"]["train_loss"]["value"]) for rank in ranks]
    expected = torch.tensor(alone["curves"]["train_loss"]["value"])
    torch.testing.assert_close(sum(both) / RANKS, expected, rtol=1e-4, atol=0)
    assert ours["curves"]["validation_loss"]["value"] == pytest.approx(
        alone["curves"]["validation_loss"]["value"], rel=1e-3
    )
    assert ours["weights"].keys() == alone["weights"].keys()
    for name, weight in ours["weights"].items():
        if weight.dim() > 1:  # the bias of attention's keys has no gradient but rounding, which Adam makes steps of
            torch.testing.assert_close(weight, alone["weights"][name], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", PARALLEL)
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(ranks, way):
    for rank in ranks:
        whole, resumed = rank[way]["whole"], rank[way]["resumed"]
        assert whole["weights"].keys() == resumed["weights"].keys()
        assert all(torch.equal(value, resumed["weights"][name]) for name, value in whole["weights"].items())
        assert all(torch.equal(mask, resumed["masks"][name]) for name, mask in whole["masks"].items())
        ours, theirs = (run["curves"]["train_loss"] for run in (resumed, whole))
        assert ours["value"][CUT:] == theirs["value"][CUT:]


def test_one_process_keeps_its_model_and_other_ways_are_refused():
    model = torch.nn.Linear(2, 2)
    assert all(parallelize(model, way) is model for way in PARALLEL)
    with pytest.raises(ValueError, match="way is 'fsdp'; use one of average, ddp, fully_shard"):
        parallelize(model, "fsdp")
    with pytest.raises(BlastError, match=r"'parallel' is 'dpp'.*ddp"):
        TrainingSettings.from_dict({"steps": 1, "batch": 1, "learning_rate": 1, "parallel": "dpp"})
