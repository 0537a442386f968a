"""The suite `training_step` without a GPU: whole steps of tiny models with a fake clock and fake bytes."""

from __future__ import annotations

import pytest
import torch
from training_step_case import SETTINGS, measure, use_fake_gpu, values

from blast.benchmark import training_step
from blast.benchmark.inputs import batches
from blast.benchmark.step import breakdown, training_setup
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.convert import masks_of
from blast.model.module_replacement import sparse_layers
from blast.sparsity.mask_update import MaskUpdate


@pytest.fixture
def fake_gpu(monkeypatch):
    use_fake_gpu(monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_an_error_of_one_sentence():
    with pytest.raises(BlastError, match=r"'training_step' needs a GPU and .* no CUDA GPU; .*blast job"):
        training_step.measure("gpt2", 0.9, (64, 64), 0, SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2-tiny", "llama-tiny", "vit-tiny"])
def test_dense_ours_and_masked_dense_are_timed_with_their_memory_and_parts(fake_gpu, architecture):
    metrics = measure(architecture)
    assert values(metrics, "step_time") == {"dense_compiled": 10.0, "ours": 4.0, "masked_dense": 12.0}
    # Two layers: 2 of attention, 3 of MLP and half of the optimizer leave 4.5 of 10.
    assert values(metrics, "time_other") == {"dense_compiled": 4.5, "ours": 0.0}
    assert values(metrics, "time_attention") == {"dense_compiled": 2.0, "ours": 2.0}
    updates = [entry for entry in metrics if entry["metric"] == "time_mask_update"]
    assert {entry["provider"] for entry in updates} == {"masked_dense", "ours"}
    for entry in updates:
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert (entry["spread"], entry["n"]) == ("q20-80", breakdown.UPDATES)
    for metric in ("peak_bytes", "activation_bytes"):
        assert set(values(metrics, metric)) == {"dense_compiled", "ours", "masked_dense"}
    entry = metrics[0]
    sequence = 10 if architecture == "vit-tiny" else 16
    assert (entry["batch"], entry["tokens"]) == (64 // sequence, 64 // sequence * sequence)
    rate = values(metrics, "throughput")["ours"]
    assert rate == 1000 * entry["batch"] * (1 if architecture == "vit-tiny" else 16) / 4


def test_sparse_training_stores_values_gradients_and_moments_of_live_blocks_only(fake_gpu):
    metrics = measure(sparsity=0.5)
    parameters, gradients = values(metrics, "parameter_bytes"), values(metrics, "gradient_bytes")
    # Two layers with two matrices of 32 x 64, half of them gone.
    assert parameters["dense_compiled"] - parameters["ours"] == 2 * 2 * 32 * 64 * 4 // 2
    assert gradients == parameters
    assert parameters["masked_dense"] == parameters["dense_compiled"]
    moments = values(metrics, "optimizer_bytes")
    assert moments["dense_compiled"] - moments["ours"] == 2 * (parameters["dense_compiled"] - parameters["ours"])


def test_a_wrong_sparse_model_raises_before_timing(fake_gpu, monkeypatch):
    right = training_setup.sparse_state

    def wrong(model, masks, fused):
        model = right(model, masks, fused)
        with torch.no_grad():
            for layer in sparse_layers(model).values():
                layer.values.mul_(1.05)
        return model

    monkeypatch.setattr(training_step, "sparse_state", wrong)
    with pytest.raises(BlastError, match=r"the gradients of the sparse 'gpt2-tiny' are off by .*; nothing was timed"):
        measure()


def test_models_that_do_not_fit_together_are_timed_one_after_the_other(fake_gpu, monkeypatch):
    right, seen = training_step.StepRun._prepare, []

    def full(run, name):
        made = right(run, name)
        if name == "ours" and run.resident:
            raise torch.OutOfMemoryError("no room beside dense")
        seen.append(name)
        return made

    monkeypatch.setattr(training_step.StepRun, "_prepare", full)
    metrics = measure(masked=False, updates=False)
    assert seen == ["dense_compiled", "ours"]
    # Entries from before the out-of-memory error are not repeated.
    named = [(entry["provider"], entry["metric"]) for entry in metrics]
    assert len(set(named)) == len(named)
    steps = [entry for entry in metrics if entry["metric"] == "step_time"]
    assert {entry["provider"]: entry["setting"]["interleaved"] for entry in steps} == {
        "dense_compiled": False,
        "ours": False,
    }


def test_a_model_that_does_not_fit_has_one_entry_with_the_cause(fake_gpu, monkeypatch):
    def full(run, name):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training_step.StepRun, "_prepare", full)
    metrics = measure(masked=False, updates=False)
    assert [(entry["provider"], entry["status"], entry["value"]) for entry in metrics] == [
        ("dense_compiled", "not run", None),
        ("ours", "not run", None),
    ]
    assert "not even one step fits" in metrics[0]["setting"]["cause"]


@pytest.mark.slow
def test_the_largest_batch_is_found_by_bisection(fake_gpu, monkeypatch):
    tried = []

    def step(setup):
        tried.append(len(setup.inputs))
        if len(setup.inputs) > 21:
            raise torch.OutOfMemoryError("no room")
        return torch.zeros(())

    monkeypatch.setattr(training_setup.TrainingSetup, "step", step)
    metrics = measure(largest_batch=True)
    assert tried[: len(tried) // 2] == [4, 8, 16, 32, 24, 20]
    assert values(metrics, "largest_batch") == {"dense_compiled": 20.0, "ours": 20.0}
    assert metrics[0]["setting"]["searched"]
    assert metrics[0]["tokens"] == 20 * 16


def test_a_step_changes_live_blocks_but_no_mask(fake_gpu):
    work = training_setup.workload_of("llama-tiny", 64, 16, "bfloat16", torch.device("cpu"), False)
    model = training_setup.fresh_model(work, 0)
    masks = training_setup.random_model_masks(model, 0.5, (16, 16), 0, "uniform")
    setup = training_setup.TrainingSetup(work, training_setup.sparse_state(model, masks, True))
    before = {name: layer.values.clone() for name, layer in sparse_layers(model).items()}
    setup.step()
    assert all(torch.equal(masks[name], mask) for name, mask in masks_of(model).items())
    assert all(not torch.equal(before[name], layer.values) for name, layer in sparse_layers(model).items())


@pytest.mark.parametrize("architecture", ["vit-tiny", "gpt2-tiny"])
def test_gradients_reach_every_block_of_a_fresh_model(fake_gpu, architecture):
    """torchvision's ViT head starts at zero; without new weights all gradients of blocks would be zero."""
    work = training_setup.workload_of(architecture, 64, 16, "bfloat16", torch.device("cpu"), False)
    model = training_setup.fresh_model(work, 0)
    masks = training_setup.random_model_masks(model, 0.5, (16, 16), 0, "uniform")
    gradients = training_setup.live_gradients(training_setup.TrainingSetup(work, model), masks)
    assert all(gradient.abs().amax(dim=(1, 2)).min() > 0 for gradient in gradients)


def test_gradients_that_are_all_zero_raise():
    zeros = [torch.zeros(2, 2)]
    with pytest.raises(BlastError, match="all gradients of the dense model are zero and cannot be compared"):
        training_step._distance([torch.ones(2, 2)], zeros)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_mask_update_is_timed_on_steps_that_update(fake_gpu, monkeypatch, execution):
    """Each clock reading adds 1 second; the n-th mask update adds 10 n seconds."""
    seconds, updated, updates = [0.0], MaskUpdate.updated, []

    def update(of_masks, masks, step):
        updates.append(step)
        seconds[0] += 10 * len(updates)
        return updated(of_masks, masks, step)

    def clock():
        seconds[0] += 1
        return seconds[0]

    monkeypatch.setattr(MaskUpdate, "updated", update)
    monkeypatch.setattr(breakdown.time, "perf_counter", clock)
    work = training_setup.workload_of("gpt2-tiny", 64, 16, "bfloat16", torch.device("cpu"), False)
    cost = breakdown.update_cost(work, 0.5, BlockShape(16, 16), 0, execution)
    # The first update is dropped; the others take 20 to 130 seconds.
    assert len(updates) == 1 + breakdown.UPDATES == 13
    assert cost == (75_000, 76_000, 1_000, 1_000, pytest.approx(42_000), pytest.approx(108_000))


def test_every_part_of_the_model_is_found_and_runs(fake_gpu):
    work = training_setup.workload_of("vit-tiny", 64, 16, "bfloat16", torch.device("cpu"), False)
    setup = training_setup.TrainingSetup(work, training_setup.fresh_model(work, 0))
    calls = breakdown.part_calls(setup)
    assert {name: count for name, (_, count) in calls.items()} == {"attention": 2, "mlp": 2, "optimizer": 1}
    for play, _ in calls.values():
        play()


def test_token_ids_come_from_text_and_stay_within_the_vocabulary():
    inputs, targets = batches.token_batch(3, 50, 20, torch.device("cpu"))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.max() == 19
    counts = torch.bincount(batches.token_batch(8, 500, 10_000, torch.device("cpu"))[0].flatten())
    assert counts[0] > 10 * counts[counts > 0].median()


def test_a_point_out_of_time_has_unfinished_entries(fake_gpu):
    late = [entry for entry in measure(seconds=0) if entry.get("unfinished")]
    assert [entry["provider"] for entry in late if entry["metric"] == "step_time"] == [
        "dense_compiled",
        "ours",
        "masked_dense",
    ]
    assert {entry["provider"] for entry in late if entry["metric"] == "time_mask_update"} == {"masked_dense", "ours"}


def test_fewer_tokens_than_one_sequence_raise(fake_gpu):
    with pytest.raises(BlastError, match="8 tokens are less than one sequence of 16 of 'gpt2-tiny'"):
        measure(tokens=[8])
