"""What the parts of a record may hold: only the keys that something reads are checked, others may be added."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blast.errors import BlastError, one_line
from blast.untrusted import is_inner_path

STATUS = ("ok", "failed")


@dataclass(frozen=True)
class Kind:
    """A kind of value: its name for errors, and whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same kind, or null."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1.7e308


def _is_value_of_curve(value: Any) -> bool:
    # A training that ends in NaN has a curve that does.
    return value is None or _is_number(value) or (type(value) is float and not math.isfinite(value))


def _is_mapping(value: Any) -> bool:
    return type(value) is dict


def _is_time(value: Any) -> bool:
    return type(value) is str and re.fullmatch(r"\d{4}-\d\d-\d\d[T ][\d:.]+([+-]\d\d:\d\d|Z)?", value) is not None


TEXT = Kind("text", lambda value: type(value) is str)
FLAG = Kind("true or false", lambda value: type(value) is bool)
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
MAPPING = Kind("a mapping", _is_mapping)
LIST = Kind("a list", lambda value: type(value) is list)
TIME = Kind("a date and time", _is_time)
DIGEST = Kind(
    "a digest", lambda value: type(value) is str and re.fullmatch(r"sha256:[0-9a-f]{1,64}", value) is not None
)
PATH = Kind("a path inside the folder of the point", is_inner_path)
HARDWARE = Kind(
    "a name of small letters, digits, '.', '_' and '-'",
    lambda value: type(value) is str and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,199}", value) is not None,
)

RECORD = {
    "format": WHOLE,
    "point": MAPPING,
    "point_digest": DIGEST,
    "record_digest": DIGEST,
    "status": Kind("'ok' or 'failed'", lambda value: type(value) is str and value in STATUS),
    "cause": TEXT.or_null(),
    "log": TEXT.or_null(),
    "result": MAPPING,
    "run": MAPPING,
}
METRIC = {
    "metric": TEXT,
    **dict.fromkeys(("task", "unit", "spread", "better", "provider", "dtype", "status"), TEXT.or_null()),
    **dict.fromkeys(("value", "low", "high"), NUMBER.or_null()),
    **dict.fromkeys(("n", "tokens", "batch"), WHOLE.or_null()),
    "tied": FLAG.or_null(),
    "setting": MAPPING.or_null(),
}
RESULT = {
    "metrics": LIST,
    "curves": MAPPING.or_null(),
    "artifacts": MAPPING.or_null(),
    "sparsity": MAPPING.or_null(),
    "dataset": MAPPING.or_null(),
    "parameters": MAPPING.or_null(),
    "unfinished": TEXT.or_null(),
    "unigram_loss": NUMBER.or_null(),
}
PARTS_OF_RESULT = {
    "sparsity": {"target": NUMBER.or_null(), "achieved": NUMBER.or_null(), "matrices": MAPPING.or_null()},
    "dataset": {"name": TEXT, "digest": TEXT, "counts": MAPPING.or_null(), "num_classes": WHOLE.or_null()},
}
ARTIFACT = {"path": PATH, "digest": DIGEST}
CURVE = {"step": LIST, "value": LIST}
RUN = {
    "wall_s": NUMBER,
    **dict.fromkeys(("started", "finished"), TIME.or_null()),
    "hardware": HARDWARE.or_null(),
    **dict.fromkeys(("gpu", "host", "fingerprint", "commit", "lock", "command", "gpus_held"), TEXT.or_null()),
    "dirty": FLAG.or_null(),
    "versions": MAPPING.or_null(),
    "side_by_side": COUNT,
    "training_seconds": MAPPING.or_null(),
    "scoring": MAPPING.or_null(),
}
LANGUAGE = {
    "status": RECORD["status"],
    "cause": TEXT.or_null(),
    "record_digest": TEXT.or_null(),
    "metrics": LIST,
    "left_out": MAPPING,
}


def check_record(values: Any) -> None:
    """Checks all parts of a record but its point.

    Raises:
        BlastError: the first fault, as the end of a sentence.
    """
    _keys("the record", values, RECORD, needed=set(RECORD) - {"log"})
    result, run = values["result"], values["run"]
    _keys("result", result, RESULT)
    _metrics("result.metrics", result.get("metrics", []))
    for part, kinds in PARTS_OF_RESULT.items():
        if result.get(part) is not None:
            _keys(f"result.{part}", result[part], kinds)
    for name, count in (result.get("parameters") or {}).items():
        _check(f"result.parameters.{name}", count, WHOLE.or_null())
    for name, artifact in (result.get("artifacts") or {}).items():
        _keys(f"result.artifacts.{name}", artifact, ARTIFACT, needed=ARTIFACT)
    for name, curve in (result.get("curves") or {}).items():
        _curve(f"result.curves.{name}", curve)
    _keys("run", run, RUN)
    if run.get("training_seconds"):
        for key in run["training_seconds"].keys() - {"step"}:
            _curve("run.training_seconds", {"step": [], **run["training_seconds"]}, key)
    if run.get("scoring"):
        _keys("run.scoring", run["scoring"], {"tokens": WHOLE, "seconds": POSITIVE}, needed=("tokens", "seconds"))


def check_language(values: Any) -> None:
    """Checks the metrics that lm-eval computed for a point.

    Raises:
        BlastError: the first fault, as the end of a sentence.
    """
    _keys("the file", values, LANGUAGE, needed=("status",))
    _metrics("metrics", values.get("metrics", []))
    for task, cause in values.get("left_out", {}).items():
        _keys("left_out", {task: cause}, {task: TEXT})


def _metrics(place: str, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        _keys(f"{place}.{number}", entry, METRIC, needed=("metric",))


def _curve(place: str, curve: Any, value: str = "value") -> None:
    _keys(place, curve, {"step": LIST, value: LIST, "unit": TEXT.or_null()}, needed=("step", value))
    steps, values = curve["step"], curve[value]
    if len(steps) != len(values):
        raise BlastError(f"{place} has {len(steps)} steps and {len(values)} values")
    # A grid of thousands of points has millions of values: what is plainly good is not looked at one by one.
    if not _all_plain(steps, int, 1 << 63):
        for step in steps:
            _check(place, step, WHOLE)
    if not _all_plain(values, float, 1.7e308) and not all(map(_is_value_of_curve, values)):
        raise BlastError(f"{place} holds a value that is no number")


def _all_plain(values: list[Any], kind: type, bound: float) -> bool:
    """Whether all values are of one type of number and below a bound; False says nothing."""
    return not values or (set(map(type, values)) == {kind} and -bound < min(values) and max(values) < bound)


def _keys(place: str, values: Any, kinds: Mapping[str, Kind], needed: Iterable[str] = ()) -> None:
    """Checks the values of known keys; other keys may hold anything."""
    _check(place, values, MAPPING)
    for key in needed:
        if key not in values:
            raise BlastError(f"{place} lacks the key '{key}'")
    for key, kind in kinds.items():
        if key in values and not kind.holds(values[key]):
            _check(f"{place}.{key}" if place != "the record" else key, values[key], kind)


def _check(place: str, value: Any, kind: Kind) -> None:
    if not kind.holds(value):
        shown = one_line(value)
        raise BlastError(f"{place} is {shown[:60]}{'…' if len(shown) > 60 else ''}, not {kind.words}")
