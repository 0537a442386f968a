"""`blast prune` on a tiny model: what it says, saves and refuses, and how it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blast
from blast.experiment.own_model.prune import PruneOptions, prune


def options(model: Path, text: Path, out: Path, **changed) -> PruneOptions:
    given = {"sparsity": 0.5, "block": 16, "steps": 24, "length": 32, "batch": 4, "learning_rate": 1e-3} | changed
    return PruneOptions(model=str(model), text=(str(text),), out=out, **given)


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


def test_it_says_what_it_takes_before_it_trains_and_what_it_cost_after(pruned):
    out, lines = pruned
    takes = next(number for number, line in enumerate(lines) if line.startswith("takes about"))
    first_step = next(number for number, line in enumerate(lines) if line.startswith("step "))
    assert takes < first_step
    assert "24 steps of 4 x 32 tokens" in lines[takes]
    assert "GB of memory" in lines[takes]
    assert "50 % sparse, 0 s left" in lines[first_step] or "left" in lines[first_step]
    report = json.loads((out / "prune.json").read_text())
    assert any(line.startswith("bits a byte, held out") for line in lines[first_step:])
    assert report["sparsity"]["pruned"] == pytest.approx(0.5, abs=0.01)
    assert report["sparsity"]["all"] < report["sparsity"]["mlp"]
    assert report["sparse"]["mlp_bytes"] < 0.6 * report["dense"]["mlp_bytes"]
    assert report["sparse"]["tokens_per_second"] > 0


def test_the_reported_loss_is_that_of_the_saved_model(pruned, text_file, model_folder):
    from blast.evaluation.loss import evaluate_language
    from blast.experiment.own_model.opening import find_model
    from blast.experiment.own_model.text import read_text

    out, _ = pruned
    data = read_text([str(text_file)], find_model(str(model_folder)), 32)
    metrics = evaluate_language(blast.load(out), data, length=32, limit=256, batch=4)
    bits = next(entry["value"] for entry in metrics if entry["metric"] == "bits_per_byte")
    assert json.loads((out / "prune.json").read_text())["sparse"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
