"""Which pictures and tables do not show what is there: the records that they read changed, or their own files did."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.language import read_made
from blast.files import file_digest, json_digest, write_json

# Kinds of files, by the function that a view has.
KINDS = {"draw": ("pdf", "png"), "rows": ("csv", "md", "tex")}
# Files of `results/recorded` that views read.
RECORDED = ("csv", "npz", "safetensors")
# Files of the checkout that every view may read.
CONFIG = ("config/*.csv",)
# Modules of the experiment, besides `analysis`, that make a table of records.
TABLE = ("rows", "table", "point_facts", "item_scores", "masks")


@dataclass(frozen=True)
class View:
    """A picture or a table.

    Attributes:
        name: Name of its file in `paper_figures/views`.
        code: That file.
        files: The files that are made of it, under the folder for pictures.
        suites: Suites whose rows it reads, `train` for trained points; None for all.
        reads: Patterns of further files of the checkout that it reads.
    """

    name: str
    code: Path
    files: tuple[Path, ...]
    suites: frozenset[str] | None
    reads: tuple[str, ...] = ()

    @property
    def is_figure(self) -> bool:
        """Whether it is a picture, rather than a table."""
        return self.files[0].suffix == ".pdf"

    def shows_any(self, points: Iterable[Point]) -> bool:
        """Whether it shows one of some points."""
        return any(self.suites is None or suite_of(point) in self.suites for point in points)


def suite_of(point: Point) -> str:
    """The suite of the rows of a point."""
    return str((point.benchmark or {}).get("suite", "train"))


def find_views(folder: Path, drawn: Path) -> list[View]:
    """The views of a folder; its files are parsed, not imported.

    Args:
        folder: `paper_figures/views`. A view reads the suites of its `SUITES`, a tuple of names; without it, all. Its
            `READS` are patterns of further files of the checkout.
        drawn: The folder for pictures and tables.
    """
    found = []
    for code in sorted(folder.glob("[!_]*.py")):
        body = ast.parse(code.read_text(encoding="utf-8")).body
        functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        for function, kinds in KINDS.items():
            if function in functions:
                files = tuple(drawn / f"{code.stem}.{kind}" for kind in kinds)
                suites = _names(body, "SUITES")
                shown = None if suites is None else frozenset(suites)
                found.append(View(code.stem, code, files, shown, _names(body, "READS") or ()))
    return found


def _names(body: Iterable[ast.stmt], constant: str) -> tuple[str, ...] | None:
    """The names that a view gives in a constant; None if it has none."""
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple() as value) if name == constant:
                return tuple(ast.literal_eval(value))
    return None


def constant_of(body: Iterable[ast.stmt], name: str) -> str | None:
    """The text that a view gives in a constant, such as `TITLE`; None if it has none."""
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Constant(value=str(text))) if target == name:
                return text
    return None


def view_keys(
    views: Iterable[View], plan: Mapping[str, Point], folder: GridFolder, recorded: Path | None
) -> dict[str, str]:
    """By view, a digest of all that it is drawn from: its code, the points as planned, their records, recorded ones.

    Args:
        views: The views.
        plan: The points of the grid.
        folder: Folder of the grid.
        recorded: `results/recorded`; None for none.
    """
    shown: dict[str, list[Any]] = {}
    for point in plan.values():
        shown.setdefault(suite_of(point), []).append(_shown(point, folder))
    suites = {suite: json_digest(points) for suite, points in shown.items()}
    files = [file for kind in RECORDED for file in (recorded.rglob(f"*.{kind}") if recorded else ())]
    always = [_digests(files, recorded), _modules()]
    keys = {}
    for view in views:
        root = view.code.parents[2]
        read = {suite: digest for suite, digest in suites.items() if view.suites is None or suite in view.suites}
        texts = [file for pattern in (*CONFIG, *view.reads) for file in root.glob(pattern)]
        own = _digests([view.code, *view.code.parent.glob("_*.py"), *texts], root)
        keys[view.name] = json_digest([always, own, sorted(view.suites or ()), read])
    return keys


def _shown(point: Point, folder: GridFolder) -> list[str | None]:
    """What a view may show of a point: its settings, and the bytes of its record and of its metrics."""
    places = (folder.record(point.id), folder.failed(point.id), folder.language(point.id))
    return [point.id, point.digest, *(file_digest(file) if file.is_file() else None for file in places)]


def _modules() -> dict[str, str]:
    """Digests of the modules that make tables of records and draw conclusions from them."""
    experiment = Path(__file__).resolve().parents[1]
    tables = (experiment / "records" / f"{name}.py" for name in TABLE)
    return _digests([*(experiment / "analysis").glob("*.py"), *tables], experiment)


def _digests(files: Iterable[Path], folder: Path | None = None) -> dict[str, str]:
    """By path within a folder, the digest of each file."""
    root = folder or Path()
    return {file.relative_to(root).as_posix(): file_digest(file) for file in sorted(files) if file.is_file()}


def outdated_views(views: Iterable[View], plan: Plan, folder: GridFolder, recorded: Path | None) -> tuple[str, ...]:
    """Names of the views to draw: one of their files is missing or another's, or what they show changed.

    Args:
        views: All views.
        plan: The points as planned now.
        folder: Folder of the grid.
        recorded: `results/recorded`.
    """
    views = list(views)
    keys = view_keys(views, plan.points, folder, recorded) if views else {}
    return tuple(view.name for view in views if not is_current(view, keys[view.name], folder))


def is_current(view: View, key: str, folder: GridFolder) -> bool:
    """Whether the files of a view are there, and were drawn from what is there now."""
    drawn = read_made(folder.view(view.name))
    return drawn.get("key") == key and drawn.get("files") == _files(view) and all(drawn["files"].values())


def note_drawn(views: Path, name: str, drawn: Path, keys: Path, folder: GridFolder) -> None:
    """Notes what the files of a view were drawn from; nothing where that is not known.

    Args:
        views: `paper_figures/views`.
        name: The view.
        drawn: The folder for pictures and tables.
        keys: The file with the keys of `view_keys`.
        folder: Folder of the grid.
    """
    key = read_made(keys).get(name)
    for view in find_views(views, drawn):
        if view.name == name and key:
            write_json(folder.view(name), {"key": key, "files": _files(view)})


def _files(view: View) -> dict[str, Any]:
    return {file.name: file_digest(file) if file.is_file() else None for file in view.files}
