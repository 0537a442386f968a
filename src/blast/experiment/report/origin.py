"""What the results of a grid were made of: datasets with their digests, versions, lock files, and the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.report.points import PointState
from blast.files import canonical_json, read_json
from blast.untrusted import MIB, NotPlainFileError, read_bytes


@dataclass(frozen=True)
class Dataset:
    """A dataset that points of the grid were trained or scored on."""

    name: str
    digest: str
    counts: str
    settings: str
    points: int


@dataclass(frozen=True)
class Environment:
    """Packages, and the lock file they come from, that points ran with."""

    lock: str
    versions: str
    points: int


def datasets_of(folder: GridFolder, states: Iterable[PointState]) -> list[Dataset]:
    """The datasets that the records name, a line for each digest; those of no record come from the prepared data."""
    found: dict[tuple[str, str], tuple[Mapping[str, Any], int]] = {}
    planned = set()
    for each in states:
        if each.point.dataset is None:
            continue
        planned.add(each.point.dataset)
        if each.dataset:
            # Not the name in the record, which may come from anywhere: a file is read under this name.
            key = each.point.dataset, str(each.dataset.get("digest", ""))
            found[key] = (each.dataset, found.get(key, ({}, 0))[1] + 1)
    for name in planned - {name for name, _ in found}:
        facts = _prepared(folder, name).get("facts") or {}
        found[name, str(facts.get("digest", "not prepared"))] = (facts, 0)
    return [
        Dataset(name, digest, _counts(facts), _settings(folder, name), points)
        for (name, digest), (facts, points) in sorted(found.items())
    ]


def _prepared(folder: GridFolder, name: str) -> Mapping[str, Any]:
    """The file about a prepared dataset; empty if it cannot be read."""
    try:
        values = read_json(folder.data(name), "dataset file", "run again.", ("status",))
    except BlastError:
        return {}
    facts: Mapping[str, Any] = values if isinstance(values.get("facts") or {}, dict) else {}
    return facts


def _counts(facts: Mapping[str, Any]) -> str:
    counts = facts.get("counts") or {}
    return ", ".join(f"{str(key).replace('_', ' ')} {value:,}" for key, value in counts.items() if type(value) is int)


def _settings(folder: GridFolder, name: str) -> str:
    settings = _prepared(folder, name).get("settings")
    return canonical_json(settings) if settings else "as by default"


def environments_of(states: Iterable[PointState]) -> list[Environment]:
    """The environments that points ran in, that of most points first."""
    count: dict[tuple[str, str], int] = {}
    for run in (each.run for each in states):
        if run is not None:
            versions = ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())
            key = str(run.get("lock") or "no lock file"), versions
            count[key] = count.get(key, 0) + 1
    found = [Environment(lock, versions, points) for (lock, versions), points in count.items()]
    return sorted(found, key=lambda each: (-each.points, each.lock, each.versions))


def config_of(folder: GridFolder) -> str:
    """The config with every default filled in, as the last run wrote it; empty without one."""
    try:
        return read_bytes(folder.config, MIB).decode("utf-8", "replace")
    except (OSError, NotPlainFileError):
        return ""
