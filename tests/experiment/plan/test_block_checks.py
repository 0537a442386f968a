"""`blast check` refuses levers that do not fit the methods, models or data of their block: one sentence each."""

from __future__ import annotations

import pytest
import yaml

from blast.experiment.cli import main

TEXT = {"architectures": ["gpt2-nano"], "datasets": ["pystdlib"]}


def said(tmp_path, capsys, block: dict, training: dict) -> tuple[int, str]:
    values = {
        "name": "tiny",
        "training": {"default": {"steps": 20, "batch": 4, "learning_rate": 1e-3, **training}},
        "grid": [{"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5], "blocks": [16], **block}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return main(["check", str(tmp_path / "tiny.yaml")]), capsys.readouterr().err


def taught_by(teacher: str) -> dict:
    return {"variant": "taught", "distillation": {"teacher": teacher}}


@pytest.mark.parametrize(
    ("block", "training", "sentence"),
    [
        (
            TEXT | taught_by("gpt2"),
            {},
            "the teacher 'gpt2' has a vocabulary of 50257 tokens and 'pystdlib' one of its own; take the dataset in "
            "its tokens: 'pystdlib@gpt2'.",
        ),
        (
            TEXT | {"datasets": ["pystdlib@gpt2"]} | taught_by("smollm2-135m"),
            {},
            "has a vocabulary of 49152 tokens and 'pystdlib@gpt2' 50257; take the dataset in its tokens",
        ),
        (taught_by("gpt2"), {}, "'gpt2' is published as a model of language data, and 'digits' is vision data, which"),
        (
            TEXT | taught_by("vit-b-16"),
            {},
            "'vit-b-16' is published as a model of vision data, and 'pystdlib' is language data, which it cannot teach",
        ),
        (
            TEXT | {"datasets": ["sst2"]} | taught_by("gpt2"),
            {},
            "'gpt2' is published as a model of language data, and 'sst2' is classification data, which it cannot teach",
        ),
        (
            {},
            {"learning_rate_schedule": "wsd", "warmup": 0.6, "decay": 0.5},
            "training of 'vit-nano' on 'digits': the training settings 'warmup' 0.6 and 'decay' 0.5 together exceed "
            "the run; lower one",
        ),
        (
            {"sparsify": {"dense_start": 0.8}},
            {"learning_rate_schedule": "wsd", "decay": 0.3},
            "dense_start 0.8 and hold 0.3 together exceed the run; lower one of them",
        ),
        (
            {"sparsify": {"permute_hidden": True}},
            {},
            "'permute_hidden' is for methods that prune once, and 'blast' prunes while training; set it in a block "
            "whose methods are among: one_shot, one_shot_wanda, one_shot_obs.",
        ),
    ],
)
def test_a_lever_that_does_not_fit_is_refused_with_the_file(tmp_path, capsys, block, training, sentence):
    code, error = said(tmp_path, capsys, block, training)
    assert code == 2
    assert error.startswith(f"blast: {tmp_path / 'tiny.yaml'}: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize(
    "block",
    [
        {"sparsify": {"permute_hidden": True}, "methods": ["dense", "one_shot"]},
        TEXT | {"datasets": ["pystdlib@gpt2"]} | taught_by("gpt2"),
        taught_by("dense"),
    ],
)
def test_levers_that_fit_are_taken(tmp_path, capsys, block):
    assert said(tmp_path, capsys, block, {}) == (0, "")
