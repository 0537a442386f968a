"""Which points of a grid ran to their end and are bad all the same: each check says it in one sentence.

A bad point is a result: the next run would give it again, so it is told, and nothing is repeated. `run.wrecked_points`
has the check for models that are pruned from published weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.data_versions import short_digest
from blast.experiment.records.record import read_record
from blast.experiment.run.wrecked_points import UNIGRAM, vocabulary_of, wrecked_point
from blast.files import read_json
from blast.training.divergence import REMEDY, lost_what_it_learned

# The name, in the result of a record, of the loss of guessing among all tokens or classes, nats.
GUESSING = "guessing_loss"
# Largest difference between target and reached sparsity; more where a block is a larger share of a matrix.
ROUNDING = 0.005
TOLD = 3

Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A point that ran well, as its record has it.

    Attributes:
        record: Its record.
        folder: Folder of its grid.
        language: The metrics that lm-eval computed of it; None while there are none.
    """

    record: Mapping[str, Any]
    folder: GridFolder
    language: Mapping[str, Any] | None = None

    @property
    def point(self) -> Mapping[str, Any]:
        """The settings."""
        point: Mapping[str, Any] = self.record["point"]
        return point

    @property
    def result(self) -> Mapping[str, Any]:
        """What was measured."""
        result: Mapping[str, Any] = self.record["result"]
        return result

    @property
    def trained(self) -> bool:
        """Whether it was trained, rather than pruned once, or loaded."""
        return self.point["stage"] == "train" and self.point.get("start", "scratch") in ("scratch", "pretrained")

    @cached_property
    def metrics(self) -> list[Metric]:
        """Those of the record and those of lm-eval."""
        return [*self.result.get("metrics", ()), *((self.language or {}).get("metrics") or ())]

    def own(self, *names: str) -> Metric | None:
        """The first of these metrics on the held-out data that there is."""
        own = {entry["metric"]: entry for entry in self.result.get("metrics", ()) if not entry.get("task")}
        return next((own[name] for name in names if name in own), None)

    @cached_property
    def dense(self) -> Case | None:
        """The dense point that it is compared with, if that ran well and its record can be read."""
        if (name := self.point.get("parent")) is None:
            return None
        try:
            record = read_record(self.folder.record(name))
        except BlastError:
            return None
        return Case(record, self.folder) if record["status"] == "ok" else None

    @property
    def loss(self) -> float | None:
        """Loss of a language model on the held-out text, nats a token."""
        found = self.own("loss")
        return found["value"] if found and found["unit"] == "nats/token" else None

    @property
    def guessing(self) -> float | None:
        """Loss of guessing among all tokens or classes, nats; None where an older record does not tell."""
        if (known := self.result.get(GUESSING)) is not None:
            return float(known)
        if self.loss is not None:
            words = vocabulary_of(self.point["architecture"]) or self.point.get("data", {}).get("vocab_size")
            return math.log(words) if words else None
        chance = ((self.own("top1") or {}).get("setting") or {}).get("chance")
        return -math.log(chance) if chance else None


def bad_sentences(
    record: Mapping[str, Any], folder: GridFolder, language: Mapping[str, Any] | None = None
) -> list[str]:
    """A sentence for everything that is bad about a point that ran; none for a good one, or one that failed.

    Args:
        record: Its record.
        folder: Folder of its grid.
        language: The metrics that lm-eval computed of it; None if they are not there yet.
    """
    if record["status"] != "ok":
        return []
    if wrecked := wrecked_point(record, folder):
        return [wrecked]
    case = Case(record, folder, language)
    return [sentence for check in CHECKS for sentence in check(case)]


def bad_points(points: Iterable[Point], folder: GridFolder) -> Iterator[tuple[str, list[str]]]:
    """The id of each bad point of a grid that is done, and its sentences; points without a record have none."""
    for point in points:
        try:
            record = read_record(folder.record(point.id))
        except BlastError:
            continue  # the verdict names it
        language = None
        if folder.language(point.id).is_file():
            language = read_json(folder.language(point.id), "file of language metrics", "run again.", ("status",))
        sentences = bad_sentences(record, folder, language)
        if language is None and point.evaluation.get("tasks"):
            sentences.append(f"its metrics of {_some(point.evaluation['tasks'])} are missing; run again.")
        if sentences:
            yield point.id, sentences


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def _label(entry: Metric) -> str:
    words = [entry.get("task"), entry.get("provider"), entry["metric"].replace("_", " ")]
    tokens = f" of {entry['tokens']} tokens" if entry.get("tokens") else ""
    return " ".join(word for word in words if word) + tokens


def _numbers(case: Case) -> Iterator[str]:
    """Numbers that are none, and numbers over nothing."""
    if not case.metrics:
        yield "it has no metric at all; look at its log."
    measured = [entry for entry in case.metrics if entry.get("status", "ok") == "ok"]
    lost = [_label(entry) for entry in measured if entry["value"] is None or not math.isfinite(entry["value"])]
    if lost:
        yield f"{_some(lost)}: no finite number; look at its log."
    empty = [_label(entry) for entry in measured if entry.get("n") is not None and entry["n"] < 1]
    if empty:
        yield f"{_some(empty)}: measured on no item; look at 'limit' and 'items' under 'evaluation' in the config."


def _training(case: Case) -> Iterator[str]:
    """A training that ended early, learned nothing, or lost what it had learned."""
    if not case.trained:
        return
    curve = (case.result.get("curves") or {}).get("validation_loss")
    if not curve or not curve["step"]:
        yield "it has no learning curve, so nothing says that it was trained; run this point again."
        return
    last, steps = curve["step"][-1], case.point["training"]["steps"]
    if last < steps - 1:
        yield f"its training ended at step {last + 1} of {steps}; run this point again."
    if lost := lost_what_it_learned(curve["step"], curve["value"], case.guessing):
        yield f"{lost}; {REMEDY}."


def _guessing(case: Case) -> Iterator[str]:
    """A model that is no better than one that reads nothing."""
    top = case.own("top1", "acc")
    chance = ((top or {}).get("setting") or {}).get("chance")
    if top and chance and _at_chance(top, chance):
        yield f"its {_label(top)} of {100 * top['value']:.1f} % is no better than the {100 * chance:.3g} % of guessing."
    if case.loss is None:
        return
    unigram = case.result.get(UNIGRAM)
    if case.guessing is not None and not case.loss < case.guessing:
        yield (
            f"its loss of {case.loss:.2f} nats a token is no better than the {case.guessing:.2f} of guessing among all "
            f"tokens; {REMEDY}."
        )
    elif case.trained and unigram is not None and not case.loss < unigram:
        yield (
            f"it did not learn: its loss of {case.loss:.2f} nats a token is no better than the {unigram:.2f} of the "
            "frequency of each token; train for more steps or change 'learning_rate'."
        )


def _at_chance(entry: Metric, chance: float) -> bool:
    """Whether a score is below chance, or within two standard errors above it."""
    error = (entry["high"] - entry["low"]) / 2 if entry.get("spread") == "stderr" else 0.0
    return bool(entry["value"] <= chance + 2 * error)


def _sparsity(case: Case) -> Iterator[str]:
    """A sparsity that was not reached, and a model that was meant to run sparse and ran dense."""
    point, found = case.point, case.result.get("sparsity") or {}
    if point["stage"] != "train" or point.get("sparsify") is None:
        return
    target, reached = point["sparsity"], found.get("achieved")
    if reached is None:
        yield "its record does not say which sparsity it reached; run this point again."
        return
    matrices = (found.get("matrices") or {}).values()
    blocks = sum(entry["blocks"] for entry in matrices)
    rounding = max(ROUNDING, len(matrices) / blocks if blocks else 0.0)
    if abs(reached - target) > rounding:
        yield (
            f"it reached a sparsity of {100 * reached:.1f} % instead of {100 * target:g} %; give it more mask updates "
            "('update_every', 'steps') or a smaller 'hold'."
        )
    executed = (case.result.get("curves") or {}).get("sparse_execution") or {}
    if point["sparsify"].get("execution") == "sparse" and executed.get("value") and not executed["value"][-1]:
        yield "it was to run sparse ('execution: sparse') and its last step ran masked-dense; its log says why."


def _same_as_dense(case: Case) -> Iterator[str]:
    """A pruned model with the very numbers of its dense model: nothing was pruned."""
    if case.point.get("sparsify") is None or case.dense is None:
        return
    # An accuracy over few items is often the same.
    ours, dense = case.own("loss"), case.dense.own("loss")
    if ours and dense and ours["value"] == dense["value"]:
        parent = case.point["parent"]
        yield f"its loss is that of its dense model '{parent}' to the last digit, so nothing was pruned."


def _other_data(case: Case) -> Iterator[str]:
    """A model whose dense model was trained on another version of the data, so that no view compares the two."""
    ours, theirs = ((each.result.get("dataset") or {}).get("digest") if each else None for each in (case, case.dense))
    if case.dense and ours and theirs and ours != theirs:
        older = min(case, case.dense, key=lambda each: each.record["run"].get("started") or "")
        yield (
            f"its data ({case.point['dataset']}, {short_digest(ours)}) are not those of its dense model "
            f"'{case.point['parent']}' ({short_digest(theirs)}), so the two are not compared; remove "
            f"{case.folder.record(older.point['id'])} and run again."
        )


def _tasks(case: Case) -> Iterator[str]:
    """Tasks without a metric, and tasks on which a pruned model fell to chance."""
    if case.language is None or case.language.get("status") != "ok":
        return
    known = {entry.get("task") for entry in case.language.get("metrics") or ()}
    left_out = case.language.get("left_out") or {}
    for name in case.point.get("evaluation", {}).get("tasks") or ():
        if name not in known:
            yield f"it has no metric of the task '{name}': {left_out.get(name, 'nothing says why; run again.')}"
    if dense := _language_of(case, case.point.get("parent")):
        theirs = {(entry.get("task"), entry["metric"]): entry for entry in dense.get("metrics") or ()}
        fell = [
            _label(entry)
            for entry in case.language.get("metrics") or ()
            if (chance := (entry.get("setting") or {}).get("chance"))
            and _at_chance(entry, chance)
            and (other := theirs.get((entry.get("task"), entry["metric"])))
            and not _at_chance(other, chance)
        ]
        if fell:
            yield f"{_some(fell)}: at chance, where its dense model is not."


def _language_of(case: Case, other: str | None) -> Mapping[str, Any] | None:
    file = case.folder.language(other) if other else None
    if file is None or not file.is_file():
        return None
    try:
        values: Mapping[str, Any] = read_json(file, "file of language metrics", "run again.", ("status",))
    except BlastError:
        return None
    return values if values["status"] == "ok" else None


def _benchmark(case: Case) -> Iterator[str]:
    """A benchmark without a number of ours."""
    if case.point["stage"] != "benchmark":
        return
    ours = [entry for entry in case.metrics if entry.get("provider", "ours") == "ours"]
    lost = [entry for entry in ours if entry.get("status", "ok") != "ok"]
    if lost:
        cause = (lost[0].get("setting") or {}).get("cause") or "its log says why"
        yield f"ours has no number in {len(lost)} of {len(ours)} cases ({_label(lost[0])}: {cause})"


CHECKS = (_numbers, _training, _guessing, _sparsity, _same_as_dense, _other_data, _tasks, _benchmark)
