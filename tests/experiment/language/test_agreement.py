"""The gate: stock lm-eval on the exported checkpoint answers as the suite's own scores do."""

from __future__ import annotations

import json

import pytest
from language_case import WINDOW, trained_model, trained_tokenizer, write_documents

import blast
from blast.errors import BlastError
from blast.evaluation.scores import ScoreFile
from blast.evaluation.scoring import score_requests
from blast.experiment.cli import main
from blast.experiment.language.agreement import check_agreement, compare_scores, compare_sets, published_scores
from blast.experiment.language.metrics import build_requests
from blast.experiment.plan.paths import GridFolder

TASKS = ["pystdlib_heldout", "pystdlib_next_line"]


@pytest.fixture
def grid(tmp_path, monkeypatch) -> GridFolder:
    """A grid with one point: a model of one layer that was trained for a moment, and its scores."""
    data, folder = tmp_path / "data", GridFolder(tmp_path / "grid")
    data.mkdir()
    model = trained_model(trained_tokenizer(write_documents(data)))
    blast.save(model, folder.work("p") / "checkpoint", processing_class=data / "tokenizer")
    build_requests(data, TASKS, data / "tokenizer", folder.requests("text"))
    score_requests(model, folder.requests("text"), folder.work("p") / "scores.json", batch_size=8, max_length=WINDOW)
    point = {"dataset": "text", "architecture": "gpt2"}
    record = {"status": "ok", "cause": None, "point": point, "record_digest": "sha256:1"}
    monkeypatch.setattr("blast.experiment.language.agreement.read_record", lambda file: record)
    return folder


@pytest.mark.slow
def test_stock_lm_eval_agrees_with_the_scores_of_a_point(grid, capsys):
    command = ["agreement", "p", "--grid-dir", str(grid.root), "--items", "30"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "p agrees with stock lm-eval: 100.00 % of the answers are alike (99.5 % wanted)" in said
    found = json.loads(grid.agreement("p").read_text())
    assert found["passed"]
    assert (found["sets"]["pystdlib_next_line"]["questions"], found["sets"]["pystdlib_heldout"]["questions"]) == (30, 0)
    assert found["sets"]["pystdlib_next_line"]["largest_difference_nats"] < 1e-3
    assert {(entry["task"], entry["metric"]) for entry in found["scores"]} == {
        ("pystdlib_heldout", "bits_per_byte"), ("pystdlib_heldout", "byte_perplexity"),
        ("pystdlib_next_line", "acc"), ("pystdlib_next_line", "acc_norm"),
    }  # fmt: skip
    assert str(grid.root) not in found["command"]


def test_scores_in_another_type_are_refused_before_anything_runs(tmp_path, monkeypatch):
    folder = GridFolder(tmp_path)
    record = {"status": "ok", "cause": None, "point": {"dataset": "text"}, "record_digest": "sha256:1"}
    monkeypatch.setattr("blast.experiment.language.agreement.read_record", lambda file: record)
    settings = {"window": 8, "batch": 2, "dtype": "bfloat16"}
    ScoreFile("sha256:1", [], settings).write(folder.work("p") / "scores.json")
    with pytest.raises(BlastError, match="computed in bfloat16, and stock lm-eval is run in float32"):
        check_agreement(folder, "p")


def sample(doc: int, answers: list[tuple[float, bool]], **metrics: float) -> dict:
    return {"doc_id": doc, "resps": [[answer] for answer in answers], **metrics}


def logged(given: dict) -> dict:
    """As lm-eval writes it: the answers are text."""
    return given | {"resps": [[[str(part) for part in answer]] for (answer,) in given["resps"]]}


def test_items_are_alike_if_the_model_chooses_the_same():
    ours = [
        sample(0, [(-1.0, False), (-2.0, False)], acc=1.0, acc_norm=1.0),
        sample(1, [(-1.0, False), (-1.1, False)], acc=0.0, acc_norm=0.0),
        sample(2, [(-1.0, False), (-1.1, False)], acc=0.0, acc_norm=0.0),
        sample(3, [(-2.0, False), (-1.0, False)], acc=0.0, acc_norm=1.0),
    ]
    theirs = [
        ours[0],
        # Both are wrong, but they choose differently.
        sample(1, [(-1.11, False), (-1.1, False), ], acc=0.0, acc_norm=0.0),
        sample(2, [(-1.01, False), (-1.1, False)], acc=0.0, acc_norm=0.0),
        sample(3, [(-2.0, False), (-1.0, False)], acc=0.0, acc_norm=0.0),
    ]  # fmt: skip
    found = compare_sets({"piqa": ours}, {"piqa": {entry["doc_id"]: logged(entry) for entry in theirs}})["piqa"]
    assert (found["items"], found["questions"], found["alike"]) == (4, 4, 2)
    assert found["largest_difference_nats"] == pytest.approx(0.11)


def test_words_are_alike_if_greedy_decoding_gives_both_or_neither():
    ours = [sample(n, [(-1.0, n == 0)], acc=float(n == 0)) for n in range(3)]
    theirs = {n: logged(sample(n, [(-1.0, n < 2)], acc=float(n < 2))) for n in range(3)}
    assert compare_sets({"lambada": ours}, {"lambada": theirs})["lambada"]["alike"] == 2


def test_other_documents_are_refused():
    ours = [sample(0, [(-1.0, True)], acc=1.0)]
    with pytest.raises(BlastError, match="'lambada' has 1 items here and 2 in stock lm-eval"):
        compare_sets({"lambada": ours}, {"lambada": {n: logged(sample(n, [(-1.0, True)])) for n in range(2)}})


def entry(metric: str, value: float, unit: str) -> dict:
    return {"task": "hellaswag", "metric": metric, "value": value, "unit": unit, "setting": {}}


def test_scores_may_differ_by_a_fifth_of_a_point():
    ours = [entry("acc", 0.3000, "fraction"), entry("acc_norm", 0.3000, "fraction"), entry("b", 1.000, "bits/byte")]
    stock = {"hellaswag": {"acc,none": 0.3019, "acc_norm,none": 0.3021, "b,none": 1.0021}}
    found = compare_scores(ours, stock, "smollm2-135m-q4")
    assert [one["agree"] for one in found] == [True, False, False]
    assert [bool(one["published"]) for one in found] == [False, True, False]


def test_published_scores_name_their_source():
    known = published_scores()
    assert {(task, metric): round(100 * score["value"], 1) for (_, task, metric), score in known.items()} == {
        ("hellaswag", "acc_norm"): 43.0, ("piqa", "acc_norm"): 66.9, ("arc_easy", "acc"): 54.1,
    }  # fmt: skip
    assert all(score["source"] and score["known"] for score in known.values())


def test_published_scores_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "scores.csv").write_text("model,task\na,b\n")
    with pytest.raises(BlastError, match=r"scores\.csv: these published scores cannot be read"):
        published_scores(tmp_path / "scores.csv")
