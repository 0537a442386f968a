"""What `blast compare` compares: a run, a grid, a commit or a machine, as points with their results."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.records.data_versions import DIGEST, short_digest
from blast.experiment.records.item_scores import item_scores_of, recorded_item_scores
from blast.experiment.records.record import read_language, read_record
from blast.experiment.records.rows import Row, read_rows, read_setting, record_rows
from blast.files import read_json

RECORDED = "recorded"
# Columns of a row that are settings of its point.
SETTINGS = ("suite", "model", "dataset", "method", "sparsity", "block", "tied", "dtype", "seed")
# Keys of `setting` that name a point or what was measured; they are no settings.
NO_SETTINGS = frozenset({
    "grid", "point", "parent", "digest", "better", "chance", "classes", "cause", "gpu", "gpus", "parameters",
    "prunable", "same_but_execution", "same_but_rate", "choices",
})  # fmt: skip


# Both sides may read the same file, and reading takes two seconds for all there are.
_rows = cache(read_rows)


@dataclass
class Entry:
    """One point of a side.

    Attributes:
        grid: Name of its grid.
        id: Its id.
        status: `ok` or `failed`.
        cause: Why it failed, or None.
        settings: Its settings, flat: `training.steps`, … Of a recorded point only those that its rows hold.
        whole: Whether `settings` has all settings.
        digest: Begin of the digest of its settings, 12 digits; None if unknown.
        run: Commit, fingerprint, versions, machine, … as far as they are known.
        rows: Its results without curves, in long form.
        items: Files with the scores of its items.
        point: The whole point, for records; None for recorded rows.
    """

    grid: str
    id: str
    status: str
    cause: str | None
    settings: Mapping[str, Any]
    whole: bool
    digest: str | None
    run: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    items: list[Path] = field(default_factory=list)
    point: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        name: As it was given.
        kind: `run`, `grid`, `commit` or `machine`.
        entries: Its points, by id; of a commit or a machine by grid and id.
    """

    name: str
    kind: str
    entries: Mapping[str, Entry]


def find_side(name: str, results: Path) -> Side:
    """Finds what a name stands for.

    Args:
        name: The file of a record, the id of a point, a folder or name of a grid or of a machine, or a commit.
        results: The folder with the grids, and with `recorded/`.

    Raises:
        BlastError: if it is nothing of these, or several points have this id.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return _run(path)
    for folder in (path, results / name, results / RECORDED / name, CHECKOUT / "results" / RECORDED / name):
        if (folder / "records").is_dir():
            return Side(name, "grid", {entry.id: entry for entry in _of_grid(folder)})
        if (folder / "runs.json").is_file():
            return Side(name, "machine", {f"{e.grid}/{e.id}": e for e in _of_machine(folder)})
    if found := sorted(results.glob(f"*/records/{name}.json")) if re.fullmatch(r"[\w@.-]+", name) else []:
        if len(found) > 1:
            raise BlastError(f"'{name}' has a record in {len(found)} grids; give the file, such as {found[0]}.")
        return _run(found[0])
    if recorded := [entry for machine in _machines(results) for entry in _of_machine(machine, name)]:
        if len(recorded) > 1:
            where = ", ".join(f"{entry.grid} on {entry.run.get('hardware')}" for entry in recorded)
            raise BlastError(f"'{name}' is recorded {len(recorded)} times ({where}); compare the machines instead.")
        return Side(name, "run", {name: recorded[0]})
    if commit := commit_of(name):
        return Side(name, "commit", {f"{e.grid}/{e.id}": e for e in _of_commit(commit, results)})
    raise unknown_name("run, grid, commit or machine", name, _known(results))


def commit_of(name: str) -> str | None:
    """The whole name of a commit of the checkout; for one that git does not know, its digits; None if it is none."""
    asked = ["git", "-C", str(CHECKOUT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    except (OSError, ValueError):
        return None
    if answer.returncode == 0:
        return answer.stdout.strip()
    return name if re.fullmatch(r"[0-9a-f]{7,40}", name) else None


def _machines(results: Path) -> list[Path]:
    folders = [results / RECORDED]
    if (results / RECORDED).absolute() != CHECKOUT / "results" / RECORDED:
        folders.append(CHECKOUT / "results" / RECORDED)
    return [file.parent for folder in folders for file in sorted(folder.glob("*/runs.json"))]


def _known(results: Path) -> list[str]:
    grids = [file.parent.name for file in results.glob("*/records")]
    points = [file.stem for file in results.glob("*/records/*.json")]
    return [*grids, *(folder.name for folder in _machines(results)), *points]


def flat(values: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in its keys."""
    if not isinstance(values, Mapping):
        return {place: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{place}.{key}" if place else str(key))
    return found


def _entry(record: dict[str, Any], language: dict[str, Any] | None, folder: GridFolder) -> Entry:
    point = record["point"]
    settings = {key: value for key, value in point.items() if key not in ("id", "grid", "parent", "teacher")}
    # The name of a dataset says not all of it: its source may have changed.
    settings[DIGEST] = short_digest(((record["result"] or {}).get("dataset") or {}).get("digest"))
    return Entry(
        grid=point["grid"],
        id=point["id"],
        status=record["status"],
        cause=record["cause"],
        settings=flat(settings),
        whole=True,
        digest=record["point_digest"].removeprefix("sha256:")[:12],
        run=record["run"],
        rows=[row for row in record_rows(record, language) if row["step"] is None and row["metric"]],
        items=item_scores_of(folder, record, language),
        point=point,
    )


def _run(file: Path) -> Side:
    record = read_record(file)
    folder = GridFolder(file.parent.parent)
    entry = _entry(record, _language_of(folder, record["point"]["id"]), folder)
    return Side(str(file), "run", {entry.id: entry})


def _language_of(folder: GridFolder, name: str) -> dict[str, Any] | None:
    file = folder.language(name)
    return read_language(file) if file.is_file() else None


def _of_grid(root: Path) -> Iterator[Entry]:
    folder = GridFolder(root)
    for file in sorted((root / "records").glob("*.json")):
        yield _entry(read_record(file), _language_of(folder, file.stem), folder)


def _of_machine(folder: Path, name: str | None = None) -> list[Entry]:
    """The recorded points of a machine; with a name, those of this id."""
    rows = []
    for file in sorted(folder.glob("*.csv")):
        if name is None or f'""point"":""{name}""' in file.read_text(encoding="utf-8"):
            rows += _rows(file)
    if name is not None:
        rows = [row for row in rows if read_setting(row["setting"]).get("point") == name]
    return _of_rows(rows, folder)


def _of_rows(rows: Iterable[Row], folder: Path) -> list[Entry]:
    runs = read_json(folder / "runs.json", "list of runs", "restore it from git.")
    items = {(grid, point): file for (grid, _, point), file in recorded_item_scores(folder.parent)
             if file.is_relative_to(folder)}  # fmt: skip
    found: dict[tuple[str, str], Entry] = {}
    for row in rows:
        if row["step"] is not None:
            continue
        setting = read_setting(row["setting"])
        key = setting.get("grid") or "", setting.get("point") or ""
        if key not in found:
            more = {name: value for name, value in setting.items() if name not in NO_SETTINGS}
            more |= setting.get("choices") or {}
            run = {"commit": row["commit"], "hardware": row["hardware"], **runs.get(row["run"], {})}
            found[key] = Entry(
                *key, row["status"], setting.get("cause"), {name: row[name] for name in SETTINGS} | flat(more), False,
                setting.get("digest"), run, items=[items[key]] if key in items else [],
            )  # fmt: skip
        if row["metric"]:
            found[key].rows.append(row)
    return list(found.values())


def _of_commit(commit: str, results: Path) -> Iterator[Entry]:
    """The points that a commit measured: recorded ones, and after them records of the grids here."""
    for machine in _machines(results):
        yield from (entry for entry in _of_machine(machine) if (entry.run.get("commit") or "").startswith(commit))
    for folder in sorted(file.parent for file in results.glob("*/records")):
        yield from (entry for entry in _of_grid(folder) if (entry.run.get("commit") or "").startswith(commit))
