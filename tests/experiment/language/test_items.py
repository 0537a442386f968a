"""Scores of single items are those that lm-eval's metrics are made of."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from blast.datasets._text.tokenizer import train_tokenizer
from blast.evaluation.item_scores import read_item_scores
from blast.evaluation.requests import read_requests
from blast.evaluation.scores import Score, write_scores
from blast.experiment.language.metrics import LmEvalMetrics, build_requests
from blast.experiment.language.stage import compute_language_metrics
from blast.experiment.plan.paths import GridFolder

ROWS = {
    "lambada": [{"text": f"a passage of {n} that ends in word{n}"} for n in range(4)],
    "piqa": [{"goal": f"Do {n}", "sol1": "one way", "sol2": "the other", "label": n % 2} for n in range(6)],
    "winogrande": [
        {"sentence": f"Ann thanked Bea as _ helped {n}.", "option1": "Ann", "option2": "Bea", "answer": str(1 + n % 2)}
        for n in range(5)
    ],
    "boolq": [{"passage": f"It is {n}.", "question": "is it", "label": int(n < 5)} for n in range(7)],
    "heldout": [{"name": str(n), "text": f"text {n} ünd more\n" * (n + 1)} for n in range(3)],
}
TASKS = ["text_heldout", "lambada", "piqa", "winogrande", "boolq"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> SimpleNamespace:
    """A point whose requests have random scores; its metrics and its items."""
    folder = tmp_path_factory.mktemp("items")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_tokenizer(["x"], 257, folder / "tokenizer")
    grid = GridFolder(folder / "grid")
    build_requests(folder, TASKS, folder / "tokenizer", grid.requests("text"))
    requests, random = read_requests(grid.requests("text")), np.random.default_rng(0)
    scores = [Score(-float(random.gamma(3, 3)), bool(random.random() < 0.5)) for _ in requests]
    grid.work("p").mkdir(parents=True)
    write_scores(grid.work("p") / "scores.json", requests, scores)
    record = {"status": "ok", "point": {"dataset": "text"}, "record_digest": "sha256:1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blast.experiment.language.stage.read_record", lambda file: record)
        compute_language_metrics(grid, ["p"])
    made = json.loads(grid.language("p").read_text())
    assert made["status"] == "ok", made["cause"]
    metrics = {(entry["task"], entry["metric"]): entry for entry in made["metrics"]}
    items, facts = read_item_scores(grid.item_scores("p"))
    by_key = dict(zip([request.key for request in requests], scores, strict=True))
    return SimpleNamespace(grid=grid, metrics=metrics, items=items, facts=facts, requests=requests, scores=by_key)


def test_the_mean_over_items_is_the_metric_of_the_set(scored):
    for task in TASKS[1:]:
        for name, right in scored.items[task].correct.items():
            assert right.mean() == pytest.approx(scored.metrics[task, name]["value"])
    assert {task: scored.items[task].metric for task in TASKS} == {
        "text_heldout": None, "lambada": "acc", "piqa": "acc_norm", "winogrande": "acc", "boolq": "acc",
    }  # fmt: skip
    text = scored.items["text_heldout"]
    bits = text.nats.sum() / text.bytes.sum() / math.log(2)
    assert bits == pytest.approx(scored.metrics["text_heldout", "bits_per_byte"]["value"], rel=1e-3)
    assert list(text.bytes) == [len(row["text"].encode()) for row in ROWS["heldout"]]


def test_the_log_likelihood_of_an_item_is_that_of_its_right_answer(scored):
    asked = {task: [r for r in scored.requests if r.task == task] for task in TASKS}
    golds = {"piqa": [n % 2 for n in range(6)], "winogrande": [n % 2 for n in range(5)], "boolq": [1] * 5 + [0] * 2}
    for task, gold in golds.items():
        wanted = [-scored.scores[asked[task][2 * n + right].key].logprob for n, right in enumerate(gold)]
        assert scored.items[task].nats == pytest.approx(wanted, abs=0.006)
    wanted = [-scored.scores[request.key].logprob for request in asked["lambada"]]
    assert scored.items["lambada"].nats == pytest.approx(wanted, abs=0.006)
    assert list(scored.items["lambada"].bytes) == [len(" word0")] * 4
    assert scored.items["lambada"].tokens == sum(len(request.continuation) for request in asked["lambada"])
    assert list(scored.items["winogrande"].bytes) == [len(" helped 0.")] * 5


def test_chance_is_the_most_frequent_answer_where_all_items_have_the_same_choices(scored):
    assert scored.metrics["boolq", "acc"]["setting"]["chance"] == pytest.approx(5 / 7)
    assert scored.items["boolq"].chance == {"acc": pytest.approx(5 / 7)}
    # Here the answers stand in any order, so the number of the right one says nothing.
    assert scored.items["winogrande"].chance == {"acc": 0.5}
    assert scored.items["lambada"].chance == {}


def test_the_file_names_its_record_and_its_requests(scored):
    assert scored.facts == {"point": "p", "record": "sha256:1", "requests": scored.requests.digest}


def test_evaluating_twice_gives_the_same_items(scored):
    with LmEvalMetrics(scored.grid.requests("text")) as lm_eval:
        first, again = (lm_eval.items(lm_eval.evaluate(scored.grid.work("p") / "scores.json")) for _ in range(2))
    assert {task: list(items.nats) for task, items in first.items()} == {
        task: list(items.nats) for task, items in again.items()
    }
