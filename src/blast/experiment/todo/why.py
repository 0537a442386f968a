"""Why a point runs: it is new, keys or modules changed (which ones), it failed, or a file is missing or damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from blast.errors import one_line
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.code_notes import changed_modules
from blast.experiment.records.record import retry_reason
from blast.experiment.records.state import Left
from blast.experiment.run.needs import needs_to_run_again
from blast.experiment.todo.todo import PointLeft
from blast.files import read_json

# Keys and modules that a sentence names, and characters of a value.
NAMED, SHOWN = 4, 40
# Keys of a point that are no setting of a user.
NO_SETTINGS = ("grid", "format")


class Kind(Enum):
    """Kinds of reasons, in the order in which they are told; the value is what a count of points says."""

    NEW = "new"
    SETTINGS = "with changed settings"
    CODE = "of changed code"
    FAILED = "that failed or were not finished"
    FILE = "with a missing or damaged file"


class Why(NamedTuple):
    """Why a point runs."""

    kind: Kind
    sentence: str


def reasons(found: Iterable[PointLeft], folder: GridFolder) -> dict[str, Why]:
    """Why points run, by id, points whose checkpoints are missing included.

    Args:
        found: What is left for each point of a plan.
        folder: Folder of the grid.
    """
    runs = [left for left in found if left.runs]
    told = {left.point.id: why_of(left, folder) for left in runs}
    for other, fault in needs_to_run_again([left.point for left in runs], folder):
        told[other.id] = Why(Kind.FILE, f"{fault}, and points that run need it")
    return told


def why_of(left: PointLeft, folder: GridFolder) -> Why:
    """Why a point runs, by its record or the lack of one."""
    point, state = left.point, left.state
    what = "only its evaluation is made again: " if state.left is Left.EVALUATION else ""
    if state.found is None:
        return _without_record(point, state.reason, folder)
    if cause := retry_reason(state.found):
        return Why(Kind.FAILED, f"{what}{_first_sentence(cause)}")
    if state.found["point_digest"] != point.digest:
        changed = list(changed_keys(state.found["point"], point.values))
        return Why(Kind.SETTINGS, f"{what}{_some(changed)}")
    if state.reason.startswith("its code"):
        modules = changed_modules(state.found, point, folder)
        named = f"changed: {_some(modules)}" if modules else "its code changed since its record was made"
        return Why(Kind.CODE, f"{what}{named}")
    return Why(Kind.FILE, f"{what}{state.reason}")


def _without_record(point: Point, reason: str, folder: GridFolder) -> Why:
    if "damaged" in reason or folder.damaged(point.id).is_file():
        return Why(Kind.FILE, "its record is damaged")
    failed = folder.failed(point.id)
    if failed.is_file():
        try:
            cause = read_json(failed, "record", "run again.", ("cause",))["cause"]
        except ValueError:
            cause = None
        return Why(Kind.FAILED, f"it failed: {_first_sentence(str(cause))}" if cause else "it failed")
    return Why(Kind.NEW, "new")


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The settings by which two points differ, such as `training.steps 60 → 80`."""
    old, new = dict(flat(then)), dict(flat(now))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key) and key.partition(".")[0] not in NO_SETTINGS:
            yield f"{key} {_shown(old, key)} → {_shown(new, key)}"


def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The values within mappings, each by its keys with dots between them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "(none)"
    text = "null" if values[key] is None else one_line(values[key])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _first_sentence(cause: str) -> str:
    line = (cause.splitlines() or [""])[0]
    return line if len(line) <= 160 else f"{line[:160]}…"
