"""`blast prune` on a tiny model: what it says, saves and refuses, and how it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import blast
from blast.evaluation.loss import evaluate_language
from blast.experiment.cli import main
from blast.experiment.own_model import plan as module
from blast.experiment.own_model import prune as command
from blast.experiment.own_model import recipe
from blast.experiment.own_model.opening import find_model
from blast.experiment.own_model.options import PruneOptions
from blast.experiment.own_model.prune import prune
from blast.experiment.own_model.text import read_text
from blast.model.target import Target


def options(model: Path, text: Path, out: Path, **changed) -> PruneOptions:
    given = {"sparsity": 0.5, "block": 16, "steps": 24, "length": 32, "batch": 4, "learning_rate": 1e-3} | changed
    return PruneOptions(model=str(model), text=(str(text),), out=out, **given)


@pytest.fixture(scope="module", autouse=True)
def one_dtype():
    """The dtype is chosen by time, so two runs could differ on a busy machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "faster_dtype", lambda *_: "float32")
        yield


@pytest.fixture(scope="module")
def pruned(model_folder, text_file, tmp_path_factory) -> tuple[Path, list[str]]:
    """A model that was pruned through the command, and what it said."""
    out, lines = tmp_path_factory.mktemp("pruned") / "sparse", []
    prune(options(model_folder, text_file, out), lines.append)
    return out, lines


def test_the_result_is_a_sparse_checkpoint_with_its_tokenizer(pruned):
    out, _ = pruned
    found = blast.masks_of(blast.load(out))
    assert len(found) == 6
    assert all(1 - mask.float().mean().item() == pytest.approx(0.5, abs=0.01) for mask in found.values())
    assert (out / "tokenizer.json").is_file()
    assert not out.with_name("sparse.unfinished").exists()


def test_the_report_says_what_it_was_made_with(pruned):
    run = json.loads((pruned[0] / "prune.json").read_text())["run"]
    assert torch.__version__.startswith(run["versions"]["torch"])
    assert run["threads"] == torch.get_num_threads()
    assert run["hardware"]
    assert run["commit"]


def test_it_says_what_it_takes_before_it_trains_and_what_it_cost_after(pruned):
    out, lines = pruned
    takes = next(number for number, line in enumerate(lines) if line.startswith("pruning "))
    first_step = next(number for number, line in enumerate(lines) if line.startswith("step "))
    assert takes < first_step
    assert "GB of memory" in lines[takes]
    assert any("24 steps of 4 x 32 tokens" in line for line in lines[takes:first_step])
    assert "50 % sparse, 0 s left" in lines[first_step] or "left" in lines[first_step]
    report = json.loads((out / "prune.json").read_text())
    assert any(line.startswith("bits a byte, held out") for line in lines[first_step:])
    assert report["sparsity"]["pruned"] == pytest.approx(0.5, abs=0.01)
    assert report["sparsity"]["all"] < report["sparsity"]["mlp"]
    assert report["sparse"]["mlp_bytes"] < 0.6 * report["dense"]["mlp_bytes"]
    assert report["sparse"]["tokens_per_second"] > 0


def test_the_reported_loss_is_that_of_the_saved_model(pruned, text_file, model_folder):
    out, _ = pruned
    data = read_text([str(text_file)], find_model(str(model_folder)), 32)
    metrics = evaluate_language(blast.load(out), data, length=32, limit=128, batch=4)
    bits = next(entry["value"] for entry in metrics if entry["metric"] == "bits_per_byte")
    assert json.loads((out / "prune.json").read_text())["sparse"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_a_stopped_run_goes_on_and_ends_as_an_undisturbed_one(pruned, model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CHECKPOINT_SECONDS", 0.0)
    out, lines = tmp_path / "sparse", []
    step = blast.Sparsifier.step

    def stop(self) -> None:
        if self.step_count == 10:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(blast.Sparsifier, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(options(model_folder, text_file, out), lines.append)
    assert lines[-1] == f"the state of the training is in {out}.unfinished"
    assert not out.exists()
    monkeypatch.setattr(blast.Sparsifier, "step", step)
    lines.clear()
    prune(options(model_folder, text_file, out), lines.append)
    assert "goes on with a run that was stopped" in lines
    assert any(line.startswith("resuming at step 11 of 24") for line in lines)
    theirs, ours = blast.load(pruned[0]).state_dict(), blast.load(out).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_command_says_after_ctrl_c_how_to_go_on(model_folder, text_file, tmp_path, monkeypatch, capsys):
    def interrupted(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blast.Sparsifier, "step", interrupted)
    words = f"prune {model_folder} --text {text_file} --out {tmp_path}/out --steps 8 --length 32 --block 16"
    assert main(words.split()) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_another_command_does_not_take_over_a_stopped_run(model_folder, text_file, tmp_path):
    (tmp_path / "sparse.unfinished").mkdir()
    (tmp_path / "sparse.unfinished" / "plan.json").write_text('{"key": "of another command"}')
    with pytest.raises(blast.BlastError, match=r"sparse\.unfinished is from another command"):
        prune(options(model_folder, text_file, tmp_path / "sparse"))


def test_minutes_become_steps_by_the_time_that_a_step_takes(model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_THE_END", 0.0)
    monkeypatch.setattr(module, "step_seconds", lambda *_, **__: 1.0)
    lines = []

    def train(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prune_while_training", train)
    with pytest.raises(KeyboardInterrupt):
        prune(options(model_folder, text_file, tmp_path / "sparse", steps=None, minutes=2), lines.append)
    steps = json.loads((tmp_path / "sparse.unfinished" / "plan.json").read_text())["steps"]
    # 95 % of two minutes at 1.1 s a step, less what loading and measuring took.
    assert 60 < steps <= 103


def test_a_wrecked_model_is_said_with_what_to_change(model_folder, text_file, tmp_path):
    lines = []
    report = prune(options(model_folder, text_file, tmp_path / "out", learning_rate=3.0, steps=8), lines.append)
    assert lines[-2].startswith("The model is wrecked: ")
    assert "train for more steps" in lines[-2]
    assert report["verdict"]["kept"] < 0.5


def test_the_margin_is_measured_against_the_frequencies_of_tokens(pruned):
    report = json.loads((pruned[0] / "prune.json").read_text())
    unigram, dense, sparse = (report["verdict"]["unigram_loss"], report["dense"]["loss"], report["sparse"]["loss"])
    assert dense < unigram
    assert report["verdict"]["kept"] == pytest.approx((unigram - sparse) / (unigram - dense))


def test_the_layers_that_cost_far_more_stay_dense_by_themselves(model_folder, text_file, tmp_path, monkeypatch):
    """Which they are is measured on the text that is trained on, not on the held-out one."""
    costs = {"0": {"0.5": 5.0}, "1": {"0.5": 0.1}, "2": {"0.5": 0.1}}
    seen = []

    def layer_costs(model, matrices, block, sparsity, sample):
        seen.append(sample)
        return costs.items()

    monkeypatch.setattr(module, "layer_costs", layer_costs)
    lines = []
    report = prune(options(model_folder, text_file, tmp_path / "out", steps=8), lines.append)
    assert list(report["plan"]["dense_layers"]) == [0]
    assert all(".layers.1." in name for name in blast.masks_of(blast.load(tmp_path / "out")))
    assert report["sparsity"]["mlp"] == pytest.approx(report["sparsity"]["pruned"] / 2)
    assert any("layers 0 stay dense" in line for line in lines)
    data = read_text([str(text_file)], find_model(str(model_folder)), 32)
    assert torch.equal(seen[0].chunks, data.training_part(2).validation_chunks(32, 2))


def test_a_short_run_starts_from_one_shot_pruning_and_its_masks_stay(pruned):
    report = json.loads((pruned[0] / "prune.json").read_text())
    assert report["plan"]["start"] == "one_shot"
    first = next(line for line in pruned[1] if line.startswith("step "))
    assert ", 50 % sparse, " in first


def test_a_gradual_start_raises_the_sparsity_step_by_step(model_folder, text_file, tmp_path, monkeypatch):
    seen = []
    step = blast.Sparsifier.step

    def watched(self) -> None:
        step(self)
        seen.append(self.sparsity_achieved)

    monkeypatch.setattr(blast.Sparsifier, "step", watched)
    given = options(model_folder, text_file, tmp_path / "out", start="gradual", dense_layers=())
    report = prune(given, lambda line: None)
    assert report["plan"]["start"] == "gradual"
    assert seen[0] < 0.2 < seen[8] < seen[-1] == pytest.approx(0.5, abs=0.01)
    # The masks are fixed when the decay of the learning rate begins.
    assert len(set(seen[-6:])) == 1


def test_where_measuring_the_layers_takes_too_long_the_first_and_the_last_stay_dense():
    class Slow:
        def __init__(self, layers: int, minutes: float | None) -> None:
            self.options = options(Path("m"), Path("t"), Path("o"), steps=None, minutes=minutes)
            self.every = [
                Target(f"model.layers.{n}.mlp.up_proj", torch.nn.Linear(2, 2), "up", None) for n in range(layers)
            ]
            self.model, self.data, self.device, self.said, self.block = None, self, torch.device("cpu"), [], None
            self.say = self.said.append

        def training_part(self, count: int) -> None:
            return None

    with pytest.MonkeyPatch.context() as patch:
        sample = module.Sample(torch.zeros(2, 3), 1, "float32", torch.device("cpu"), seconds=13.0)
        patch.setattr(module.Sample, "of", lambda *_: sample)
        assert module._dense_layers(Slow(10, minutes=10), spare=120.0) == (0, 9)
        assert module._dense_layers(Slow(2, minutes=0.1), spare=1.0) == ()
        # The machine becomes slower while they are measured.
        slow = Slow(10, minutes=10)
        now = iter(range(0, 10_000, 60))
        patch.setattr(module.time, "monotonic", lambda: next(now))
        patch.setattr(module, "layer_costs", lambda *_: ((str(n), {"0.5": 1.0 + 9 * (n == 3)}) for n in range(10)))
        assert module._dense_layers(slow, spare=200.0) == (0, 9)
        assert slow.said[-1] == "measuring the layers takes too long: the first and the last one stay dense"
        assert slow.said[-2] == "5 of 10 layers measured, 5 min 0 s left"
        assert module._dense_layers(slow, spare=None) == (3,)
