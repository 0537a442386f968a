"""A point keeps its tokenizer with its checkpoint, and is not scored or pruned with another one."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from blast.datasets._text.tokenizer import train_tokenizer
from blast.errors import BlastError
from blast.evaluation.requests import RequestFile
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run import prune
from blast.experiment.run.point_models import load_model, save_model
from blast.experiment.run.point_run import PointRun
from blast.files import folder_digest, write_json


@pytest.fixture
def run(tmp_path: Path) -> PointRun:
    """A point whose dataset has a tokenizer of its own."""
    train_tokenizer(["a b c " * 50], 260, tmp_path / "tokenizer")
    point = Point(
        id="gpt2-nano.pystdlib.dense.seed0",
        grid="t",
        stage="train",
        architecture="gpt2-nano",
        dataset="pystdlib",
        training={"steps": 1, "batch": 1, "length": 8, "learning_rate": 1e-3},
        evaluation={"tasks": ["pystdlib_heldout"]},
    )
    data = SimpleNamespace(tokenizer_dir=tmp_path / "tokenizer", digest="sha256:data")
    return PointRun(point, GridFolder(tmp_path / "grid"), data, torch.device("cpu"), time.monotonic())


def requests_of(run: PointRun, tokenizer: str) -> None:
    RequestFile(["pystdlib_heldout"], [], {}, {"tokenizer": tokenizer}).write(run.folder.requests("pystdlib"))


def test_requests_of_another_tokenizer_are_refused_before_training(run: PointRun) -> None:
    run.check_requests()
    requests_of(run, folder_digest(run.data.tokenizer_dir))
    run.check_requests()
    requests_of(run, "sha256:another")
    with pytest.raises(BlastError, match=r"made with another tokenizer than that of the dataset 'pystdlib' here"):
        run.check_requests()


def test_the_checkpoint_of_a_point_holds_its_tokenizer(run: PointRun) -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=260, n_positions=8)
    save_model(run, transformers.GPT2LMHeadModel(config))
    checkpoint = run.folder.work(run.point.id) / "checkpoint"
    found = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    expected = transformers.AutoTokenizer.from_pretrained(run.data.tokenizer_dir, local_files_only=True)
    assert found("a b c").input_ids == expected("a b c").input_ids
    assert type(load_model(run)) is transformers.GPT2LMHeadModel


def test_a_parent_that_was_trained_on_other_data_is_not_pruned(run: PointRun, monkeypatch) -> None:
    monkeypatch.setattr(prune.PointRun, "begin", lambda *_: run)
    point = SimpleNamespace(parent="dense", sparsify={})
    record = {"status": "ok", "cause": None, "result": {"dataset": {"digest": "sha256:other"}}}
    write_json(run.folder.record("dense"), record)
    with pytest.raises(BlastError, match=r"'dense' was trained on other data or with another tokenizer"):
        prune.run_one_shot_point(point, run.folder)
