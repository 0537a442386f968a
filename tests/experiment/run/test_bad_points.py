"""A point that ran and is bad all the same is never called good: a case for each way to be bad."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_records import make_benchmark_record, make_point, make_training_record

from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records.record import make_record, read_record, write_record
from blast.experiment.run.bad_points import GUESSING, bad_points
from blast.experiment.run.progress import Progress
from blast.experiment.run.worker import outcome_of
from blast.experiment.run.wrecked_points import UNIGRAM
from blast.files import write_json

TASKS = ["pystdlib_heldout", "pystdlib_next_line"]
DENSE = replace(make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0), evaluation={"tasks": TASKS})
PRUNED = replace(make_point("gpt2-nano", "pystdlib", "blast", 0.95, 0), evaluation={"tasks": TASKS})
IMAGES = make_point("vit-nano", "fashion_mnist", "dense", 0.0, 0)
TIMED = Point.from_dict(make_benchmark_record("gpt2", 0.9, 3.0)["point"])


def grid(folder: Path, change: Any = None, of: str = "", lm_eval: Any = None) -> GridFolder:
    """A grid of good points, of which one is changed.

    Args:
        folder: Where it is made.
        change: Takes the `result` of the point and changes it.
        of: Id of the point.
        lm_eval: Takes its metrics of lm-eval and changes them; `False` leaves the file away.
    """
    place = GridFolder(folder)
    write_json(place.plan, [point.to_dict() for point in (DENSE, PRUNED, IMAGES, TIMED)])
    for name in ("pystdlib", "fashion_mnist"):
        write_json(place.data(name), {"status": "ok", "cause": None})
    for point in (DENSE, PRUNED, IMAGES, TIMED):
        if point is TIMED:
            record, language = make_benchmark_record("gpt2", 0.9, 3.0), None
        else:
            record, language = make_training_record(point)
        result = copy.deepcopy(record["result"])
        if point.dataset == "pystdlib":
            result |= {GUESSING: 7.6, UNIGRAM: 6.2}
        if point.id == of and change:
            change(result)
        made = make_record(point, status="ok", result=result, run=record["run"])
        write_record(place, made)
        if language is not None:
            language["record_digest"] = made["record_digest"]
            if point.id == of and callable(lm_eval):
                lm_eval(language)
            if not (point.id == of and lm_eval is False):
                write_json(place.language(point.id), language)
    return place


def said_of(place: GridFolder) -> dict[str, list[str]]:
    return dict(bad_points(read_plan(place.plan).values(), place))


def entry(result: dict, name: str) -> dict:
    return next(found for found in result["metrics"] if found["metric"] == name)


def with_loss(value: float) -> Any:
    return lambda result: entry(result, "loss").update(value=value, low=None, high=None)


def with_curve(*losses: float) -> Any:
    def change(result: dict) -> None:
        steps = [round(899 * (number + 1) / len(losses)) for number in range(len(losses))]
        result["curves"]["validation_loss"] = {"unit": "nats/token", "step": steps, "value": list(losses)}

    return change


def sparsity(**facts: Any) -> Any:
    return lambda result: result["sparsity"].update(facts)


def without_curves(result: dict) -> None:
    result["curves"] = {}


def ended_early(result: dict) -> None:
    for curve in result["curves"].values():
        curve["step"] = [step // 3 for step in curve["step"]]


def at_chance(result: dict) -> None:
    entry(result, "top1").update(value=0.104, low=0.101, high=0.107)


def ours_failed(result: dict) -> None:
    result["metrics"][0] |= {"value": None, "low": None, "high": None, "status": "failed",
                             "setting": {"cause": "its output is wrong."}}  # fmt: skip


def no_metrics(result: dict) -> None:
    result["metrics"] = []


def same_loss(result: dict) -> None:
    record, _ = make_training_record(DENSE)
    entry(result, "loss")["value"] = entry(record["result"], "loss")["value"]


CASES = {
    "worse than guessing": (PRUNED, with_loss(16.3), "its loss of 16.30 nats a token is no better than the 7.60 of gu"),
    "did not learn": (DENSE, with_loss(6.4), "it did not learn: its loss of 6.40 nats a token is no better than the"),
    "diverged": (DENSE, with_curve(5.0, 16.0, 18.0), "is 18.00 nats at step 899, after 5.00 at step 300, no better"),
    "spiked": (PRUNED, with_curve(4.2, 6.9, 6.8), "rose from 4.20 nats at step 300 to 6.80 at step 899 and did not co"),
    "ended early": (PRUNED, ended_early, "its training ended at step 301 of 900"),
    "no curve": (DENSE, without_curves, "it has no learning curve"),
    "not a number": (DENSE, lambda result: entry(result, "bits_per_byte").update(value=None), "bits per byte: no fini"),
    "no item": (DENSE, lambda result: entry(result, "loss").update(n=0), "loss: measured on no item"),
    "no metric": (IMAGES, no_metrics, "it has no metric at all"),
    "accuracy at chance": (IMAGES, at_chance, "its top1 of 10.4 % is no better than the 10 % of guessing"),
    "sparsity not reached": (PRUNED, sparsity(achieved=0.91), "it reached a sparsity of 91.0 % instead of 95 %"),
    "fell back to dense": (PRUNED, sparsity(achieved=0.0), "it reached a sparsity of 0.0 % instead of 95 %"),
    "sparsity unknown": (PRUNED, sparsity(achieved=None), "does not say which sparsity it reached"),
    "the dense model again": (PRUNED, same_loss, "to the last digit, so nothing was pruned"),
    "other data": (
        PRUNED,
        lambda result: result["dataset"].update(digest=f"sha256:{'e' * 64}"),
        "are not those of its dense model 'gpt2-nano.pystdlib.dense.seed0' (d), so the two are not compared; remove ",
    ),
    "no time of ours": (
        TIMED,
        ours_failed,
        "ours has no number in 1 of 3 cases (ours latency of 16 tokens: its",
    ),
}


# A row of docs/faults.md for each way that a user may meet.
FAULTS = {
    "diverged": pytest.mark.fault(
        fault="The loss ended no better than guessing, and was better before.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads=(
            "BAD point …: the loss on held-out data is … nats at step …, after … at step …, no "
            "better than the … of guessing; lower 'learning_rate' or 'clip' under 'training' in the "
            "config."
        ),
        lost="nothing",
    ),
    "no curve": pytest.mark.fault(
        fault="A record has no learning curve.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: it has no learning curve, so nothing says that it was trained; run this point again.",
        lost="nothing",
    ),
    "no metric": pytest.mark.fault(
        fault="A record has no metric.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: it has no metric at all; look at its log.",
        lost="nothing",
    ),
    "worse than guessing": pytest.mark.fault(
        fault="A model is worse than guessing.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads=(
            "BAD point …: its loss of … nats a token is no better than the … of guessing among all "
            "tokens; lower 'learning_rate' or 'clip' under 'training' in the config."
        ),
        lost="nothing",
    ),
    "did not learn": pytest.mark.fault(
        fault="A language model learned no more than how often each token comes.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads=(
            "BAD point …: it did not learn: its loss of … nats a token is no better than the … of "
            "the frequency of each token; train for more steps or change 'learning_rate'."
        ),
        lost="nothing",
    ),
    "spiked": pytest.mark.fault(
        fault="The loss rose and did not come back.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads=(
            "BAD point …: the loss on held-out data rose from … nats at step … to … at step … and "
            "did not come back; lower 'learning_rate' or 'clip' under 'training' in the config."
        ),
        lost="nothing",
    ),
    "ended early": pytest.mark.fault(
        fault="A training ended early.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: its training ended at step … of …; run this point again.",
        lost="nothing",
    ),
    "not a number": pytest.mark.fault(
        fault="A metric is not a number.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: bits per byte: no finite number; look at its log.",
        lost="nothing",
    ),
    "no item": pytest.mark.fault(
        fault="A metric is over no item.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: loss: measured on no item; look at 'limit' and 'items' under 'evaluation' in the config.",
        lost="nothing",
    ),
    "accuracy at chance": pytest.mark.fault(
        fault="An accuracy is that of guessing.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: its top1 of … % is no better than the … % of guessing.",
        lost="nothing",
    ),
    "sparsity not reached": pytest.mark.fault(
        fault="A model did not reach its sparsity.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads=(
            "BAD point …: it reached a sparsity of … % instead of … %; give it more mask updates "
            "('update_every', 'steps') or a smaller 'hold'."
        ),
        lost="nothing",
    ),
    "the dense model again": pytest.mark.fault(
        fault="A pruned model has the very loss of its dense model.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: its loss is that of its dense model '…' to the last digit, so nothing was pruned.",
        lost="nothing",
    ),
    "other data": pytest.mark.fault(
        fault="The source of a dataset changed between a model and its dense model.",
        topic="What the verdict says",
        happens="The point is done and bad. No view compares the two.",
        reads=(
            "BAD point …: its data (…, …) are not those of its dense model '…' (…), so the two are not compared; "
            "remove … and run again."
        ),
        lost="nothing",
    ),
    "no time of ours": pytest.mark.fault(
        fault="A benchmark has no time of ours.",
        topic="What the verdict says",
        happens="The point is done and bad.",
        reads="BAD point …: ours has no number in … of … cases (…)",
        lost="nothing",
    ),
}


def test_good_points_are_called_good(tmp_path, capsys):
    place = grid(tmp_path)
    assert said_of(place) == {}
    assert main(["verdict", "--grid-dir", str(tmp_path), "--out", str(tmp_path / "verdict.txt")]) == 0
    assert capsys.readouterr().out == "all 4 points are good\n"


@pytest.mark.parametrize("case", [pytest.param(case, marks=FAULTS.get(case, ())) for case in CASES])
def test_a_bad_point_is_never_called_good(tmp_path, capsys, reads, case):
    point, change, sentence = CASES[case]
    place = grid(tmp_path, change, point.id)
    said = said_of(place)
    assert list(said) == [point.id]
    assert any(sentence in line for line in said[point.id]), said
    out = tmp_path / "verdict.txt"
    assert main(["verdict", "--grid-dir", str(tmp_path), "--out", str(out)]) == 0
    printed, text = capsys.readouterr(), out.read_text()
    assert printed.out == "all 4 points are done; 1 of them is bad\n"
    for line in said[point.id]:
        assert f"BAD point {point.id}: {line}" in printed.err.splitlines()
        assert f"BAD point {point.id}: {line}" in text.splitlines()
    reads(text)
    # And while the grid runs.
    Progress(place, 1, None, 1).tell(read_record(place.record(point.id)))
    assert f"BAD point {point.id}: " in capsys.readouterr().out


@pytest.mark.fault(
    fault="A model that was meant to run sparse ran dense.",
    topic="What the verdict says",
    happens="The point is done and bad.",
    reads="it was to run sparse ('execution: sparse') and its last step ran masked-dense; its log says why.",
    lost="nothing",
)
def test_a_model_that_was_to_run_sparse_and_ran_dense_is_told(tmp_path, reads):
    sparse = replace(PRUNED, sparsify=PRUNED.sparsify | {"execution": "sparse"})
    record, _ = make_training_record(sparse)
    result = record["result"] | {"sparsity": {"achieved": 0.95, "matrices": {}}}
    place = GridFolder(tmp_path)
    for last, bad in ((1.0, False), (0.0, True)):
        result["curves"] |= {"sparse_execution": {"unit": "fraction", "step": [0, 899], "value": [0.0, last]}}
        write_record(place, make_record(sparse, status="ok", result=result, run=record["run"]))
        sentences = dict(bad_points([replace(sparse, evaluation={})], place)).get(sparse.id, [])
        if bad:
            reads(" ".join(sentences))
        assert any("its last step ran masked-dense" in sentence for sentence in sentences) == bad


@pytest.mark.parametrize("day", [20, 24])
def test_of_two_points_on_other_data_the_older_one_is_to_be_removed(tmp_path, day):
    place = grid(tmp_path, lambda result: result["dataset"].update(digest=f"sha256:{'e' * 64}"), PRUNED.id)
    record = read_record(place.record(PRUNED.id))
    run = record["run"] | {"started": f"2026-11-{day}T10:00:00+00:00"}
    write_record(place, make_record(PRUNED, status="ok", result=record["result"], run=run))
    older = PRUNED.id if day < 22 else PRUNED.parent
    assert f"remove {place.record(older)} and run again" in " ".join(said_of(place)[PRUNED.id])


def test_a_block_that_is_a_large_share_of_a_matrix_may_be_rounded(tmp_path):
    few, many = ({"a": {"blocks": blocks, "live": blocks // 16}} for blocks in (32, 3200))
    assert said_of(grid(tmp_path / "a", sparsity(achieved=0.9375, matrices=few), PRUNED.id)) == {}
    assert list(said_of(grid(tmp_path / "b", sparsity(achieved=0.9375, matrices=many), PRUNED.id))) == [PRUNED.id]


def lose_a_task(language: dict) -> None:
    language["metrics"] = [found for found in language["metrics"] if found["task"] != TASKS[1]]
    language["left_out"] = {TASKS[1]: "its set is out of reach."}


def fall_to_chance(language: dict) -> None:
    for found in language["metrics"]:
        if found["metric"] == "acc":
            found.update(value=0.26, low=0.24, high=0.28)


@pytest.mark.parametrize(
    ("lm_eval", "sentence"),
    [
        pytest.param(
            lose_a_task,
            "it has no metric of the task 'pystdlib_next_line': its set is out of reach.",
            marks=pytest.mark.fault(
                fault="A task of lm-eval has no metric.",
                topic="What the verdict says",
                happens="The point is done and bad.",
                reads="it has no metric of the task '…': …",
                lost="nothing",
            ),
        ),
        pytest.param(
            fall_to_chance,
            "pystdlib_next_line acc: at chance, where its dense model is not.",
            marks=pytest.mark.fault(
                fault="A pruned model is at chance on a task, and its dense model is not.",
                topic="What the verdict says",
                happens="The point is done and bad.",
                reads="…: at chance, where its dense model is not.",
                lost="nothing",
            ),
        ),
        (False, "its metrics of pystdlib_heldout, pystdlib_next_line are missing"),
    ],
)
def test_a_point_without_the_scores_it_should_have_is_told(tmp_path, lm_eval, sentence, reads):
    said = said_of(grid(tmp_path, None, PRUNED.id, lm_eval))
    assert list(said) == [PRUNED.id]
    assert sentence in said[PRUNED.id][0]
    reads(said[PRUNED.id][0])


def test_a_dense_model_at_chance_on_a_task_is_not_bad_for_that(tmp_path):
    assert said_of(grid(tmp_path, None, DENSE.id, fall_to_chance)) == {}


def test_an_older_record_is_judged_by_the_vocabulary_of_its_data(tmp_path):
    point = replace(make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0), data={"vocab_size": 512})
    record, _ = make_training_record(point)
    result = copy.deepcopy(record["result"])
    entry(result, "loss")["value"] = math.log(512) + 0.01
    write_record(GridFolder(tmp_path), make_record(point, status="ok", result=result, run=record["run"]))
    (sentence,) = dict(bad_points([point], GridFolder(tmp_path)))[point.id]
    assert "no better than the 6.24 of guessing" in sentence


@pytest.mark.parametrize(("rate", "status", "said"), [(0.2, "ok", "no better than the 2.30 of"), (1.0, "failed", None)])
def test_a_real_training_of_30_steps_that_goes_wrong_never_passes(tmp_path, capsys, rate, status, said):
    """It diverges and fails, or learns nothing and is bad; the log tells the spike."""
    training = {"steps": 30, "batch": 32, "learning_rate": rate, "evaluate_every": 10}
    point = replace(make_point("vit-nano", "digits", "dense", 0.0, 0), training=training)
    outcome = outcome_of(point, GridFolder(tmp_path))
    log = capsys.readouterr().out
    assert outcome["status"] == status
    assert "SPIKE: the loss is" in log
    if status == "failed":
        assert re.search(
            r"the loss is \d+(\.\d)? nats at step 10, after .* above the 2.3 of guessing", outcome["cause"]
        )
        return
    assert "BAD: the loss on held-out data is" in log
    record = make_record(point, status="ok", result=outcome["result"], run={})
    write_record(GridFolder(tmp_path), record)
    sentences = dict(bad_points([point], GridFolder(tmp_path)))[point.id]
    assert any(said in sentence for sentence in sentences)
    assert any("top1" in sentence for sentence in sentences)
