"""Repeats the point of a record, and says whether the results are equal (`blast repeat`)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.columns import columns, counted
from blast.experiment.compare.pairs import shown
from blast.experiment.compare.results import Result, results_of, without_seed
from blast.experiment.compare.sides import find_side
from blast.experiment.data.prepare import fetch_dataset, prepare_dataset
from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records import provenance
from blast.experiment.records.artifacts import artifact_fault
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.record import read_record
from blast.experiment.rerun import rerun
from blast.files import read_json

Record = dict[str, Any]
Say = Callable[[str], None]
# Relative differences of this size come from the order in which float32 numbers are added.
FLOAT_NOISE = 1e-5
EQUAL, ROUNDING, SEEDS, BEYOND = "equal", "float noise", "within the spread of seeds", "differs"
UNKNOWN = "differs; no other seed is here to compare with"
TIME = "a time, which is never equal"


@dataclass(frozen=True)
class Check:
    """One thing that a record says of how it was made, and what is here."""

    name: str
    recorded: Any
    here: Any

    @property
    def same(self) -> bool | None:
        """Whether they agree; None if the record does not say."""
        return None if self.recorded is None else self.recorded == self.here

    def __str__(self) -> str:
        if self.same is None:
            return f"{self.name}: not in the record"
        if self.same:
            return f"{self.name}: equal ({shown(self.here)})"
        return f"{self.name}: differs, {shown(self.recorded)} in the record, {shown(self.here)} here"


def find_record(name: str, results: Path) -> tuple[Record, GridFolder]:
    """A record by its file or by the id of its point, and the folder of its grid.

    Raises:
        BlastError: if there is no such record, or only recorded rows, which do not hold the settings.
    """
    side = find_side(name, results)
    entry = next(iter(side.entries.values()))
    if side.kind != "run" or not entry.whole:
        raise BlastError(f"'{name}' is no record; give the file of one, such as results/default/records/<id>.json.")
    file = Path(side.name)
    return read_record(file), GridFolder(file.parent.parent)


def checks(record: Record, folder: GridFolder) -> list[Check]:
    """Compares code, lock file, packages, data and machine of a record with what is here.

    Args:
        record: The record.
        folder: A folder of its own, where facts about the data are written.

    Raises:
        BlastError: if the data cannot be fetched or prepared.
    """
    point, run = Point.from_dict(record["point"]), record["run"]
    found = [
        Check("code", run.get("fingerprint"), fingerprint(point)),
        Check("commit", run.get("commit"), provenance.commit()[0]),
        Check("lock file", run.get("lock"), provenance.lock_digest()),
    ]
    here = provenance.versions()
    recorded = run.get("versions") or {}
    odd = sorted(name for name in recorded if recorded[name] != here.get(name))
    found += [Check(f"package {name}", recorded[name], here.get(name)) for name in odd]
    if recorded and not odd:
        found.append(Check("packages", f"{len(recorded)} versions", f"{len(recorded)} versions"))
    data = (record["result"].get("dataset") or {}).get("digest")
    if point.dataset and data:
        found.append(Check(f"data {point.dataset}", data, _data_digest(point, folder)))
    hardware = provenance.hardware()
    found += [Check(name, run.get(name), hardware[name]) for name in ("hardware", "gpu") if run.get(name)]
    return found


def _data_digest(point: Point, folder: GridFolder) -> str:
    dataset = point.dataset or ""
    fetched, file = folder.fetched(dataset), folder.data(dataset)
    fetch_dataset(dataset, fetched)
    prepare_dataset(dataset, point.data, fetched, file)
    values = read_json(file, "dataset file", "run again.", ("status", "cause"))
    if values["status"] != "ok":
        raise BlastError(values["cause"])
    return str(values["facts"]["digest"])


def run_again(record: Record, source: GridFolder, own: GridFolder, say: Say) -> Record:
    """Runs the point of a record in a folder of its own, and returns the new record.

    The points whose checkpoints it needs come from the grid of the record if they are whole there; else they run too.

    Raises:
        BlastError: if a point that it needs is not known here, or the run failed.
    """
    point = Point.from_dict(record["point"])
    points: dict[str, Point] = {}
    for name in point.needs:
        points[name] = _needed(name, point, source)
        if _bring(name, source, own):
            say(f"{name}: its checkpoint is taken from {source.root}")
        else:
            say(f"{name}: its checkpoint is not in {source.root}, so it runs again first")
    points[point.id] = point
    # What an earlier repetition left would count as done.
    own.record(point.id).unlink(missing_ok=True)
    rerun(Plan(points, ()), [point.id], own)
    again = read_record(own.record(point.id))
    if again["status"] != "ok":
        raise BlastError(f"the repetition of '{point.id}' failed: {again['cause']}")
    return again


def _needed(name: str, point: Point, source: GridFolder) -> Point:
    if source.record(name).is_file():
        return Point.from_dict(read_record(source.record(name))["point"])
    if source.plan.is_file() and (planned := read_plan(source.plan).get(name)):
        return planned
    raise BlastError(
        f"the point '{point.id}' needs the checkpoint of '{name}', which {source.root} does not know; "
        "copy the record of that point there too."
    )


def _bring(name: str, source: GridFolder, own: GridFolder) -> bool:
    """Copies a finished point with its checkpoint, if it is whole. Returns whether it was."""
    if not source.record(name).is_file():
        return False
    record = read_record(source.record(name))
    artifact = (record["result"].get("artifacts") or {}).get("checkpoint")
    if not artifact or artifact_fault(source, record, "checkpoint"):
        return False
    place = own.work(name) / artifact["path"]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source.work(name) / artifact["path"], place, symlinks=True)
    own.record(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.record(name), own.record(name))
    return True


@dataclass(frozen=True)
class Repeated:
    """What a repetition came to.

    Attributes:
        identical: Whether all results of the record are the same to the last bit; times are not among them.
        parts: For curves and files, whether they are the same.
        results: Each metric, the record first.
        verdicts: For each metric, how large its difference is.
    """

    identical: bool
    parts: dict[str, bool]
    results: list[Result]
    verdicts: list[str]

    @property
    def good(self) -> bool:
        """Whether no result differs by more than noise."""
        return self.identical or all(each in (EQUAL, ROUNDING, SEEDS, TIME) for each in self.verdicts)


def judge(record: Record, again: Record, source: GridFolder, own: GridFolder) -> Repeated:
    """Compares a repetition with its record.

    Args:
        record: The record.
        again: That of the repetition.
        source: Grid of the record; its other seeds give the spread.
        own: Folder of the repetition.
    """
    name = record["point"]["id"]
    sides = [find_side(str(folder.record(name)), folder.root.parent) for folder in (source, own)]
    pair = tuple(next(iter(side.entries.values())) for side in sides)
    results = results_of([(pair[0], pair[1])])
    spreads = _spreads(name, source)
    old, new = record["result"], again["result"]
    parts = {
        f"curve {key}": curve == (new.get("curves") or {}).get(key) for key, curve in (old.get("curves") or {}).items()
    }
    parts |= {
        f"file of {key}": artifact["digest"] == (new.get("artifacts") or {}).get(key, {}).get("digest")
        for key, artifact in (old.get("artifacts") or {}).items()
    }
    return Repeated(
        identical=record["record_digest"] == again["record_digest"],
        parts=parts,
        results=results,
        verdicts=[_verdict(result, spreads.get((result.metric, result.detail))) for result in results],
    )


def _spreads(name: str, source: GridFolder) -> dict[tuple[str, str], float]:
    """By metric, the largest minus the smallest value over the seeds of a configuration; without those of one seed."""
    values: dict[tuple[str, str], list[float]] = {}
    for file in sorted((source.root / "records").glob("*.json")):
        if without_seed(file.stem) != without_seed(name):
            continue
        entry = next(iter(find_side(str(file), source.root.parent).entries.values()))
        for result in results_of([(entry, entry)]):
            values.setdefault((result.metric, result.detail), []).append(result.first)
    return {key: max(found) - min(found) for key, found in values.items() if len(found) > 1}


def _verdict(result: Result, spread: float | None) -> str:
    if result.equal:
        return EQUAL
    if result.unit in ("ms", "s", "us", "tokens/s", "J", "W"):
        return TIME
    gap = abs(result.second - result.first)
    if gap <= FLOAT_NOISE * max(abs(result.first), abs(result.second)):
        return ROUNDING
    if spread is None:
        return UNKNOWN
    return SEEDS if gap <= spread else f"{BEYOND}, by more than the spread of seeds ({spread:.3g})"


def describe(found: Repeated) -> Iterator[str]:
    """The lines of a repetition."""
    if found.identical:
        yield "equal: all results are those of the record, to the last bit (times are not compared)"
    odd = [name for name, same in found.parts.items() if not same]
    if found.parts:
        same = len(found.parts) - len(odd)
        yield f"{same} of {counted(len(found.parts), 'curve or file', 'curves and files')} are equal"
        if odd:
            yield f"  others: {', '.join(odd)}"
    rows = [["metric", "record", "again", "difference", ""]]
    for result, verdict in zip(found.results, found.verdicts, strict=True):
        relative = "–" if math.isnan(result.relative) else f"{result.relative:+.3g} %"
        name = " ".join(filter(None, (result.metric, result.detail)))
        rows.append([name, f"{result.first:.7g}", f"{result.second:.7g}", relative, verdict])
    yield from columns(rows, right=[1, 2, 3])
    if not found.identical:
        yield "no result differs by more than noise" if found.good else "NOT equal: see the lines with 'differs'"
