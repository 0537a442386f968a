"""The list of what a bundle holds. A bundle is a plain tar: `manifest.json`, then each content once as `objects/<hex>`.

A manifest names each file of the grid by its path, with the digest and the size of its content, and holds a digest of
itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blast.errors import BlastError, one_line
from blast.experiment.plan.point import PointId
from blast.files import json_digest
from blast.settings import Place, check
from blast.untrusted import MIB, is_inner_path

FORMAT = 1
KIND = "blast bundle"
NAME = "manifest.json"
OBJECTS = "objects/"
# A manifest of 10,000 points has 20 MB.
LARGEST = 256 * MIB
MOST_FILES = 1_000_000
# Equal files share their content; of real grids few are equal.
LARGEST_RATIO = 10


@dataclass(frozen=True)
class Content:
    """What is in a file: its digest and its size in bytes."""

    digest: str
    size: int

    @property
    def name(self) -> str:
        """Its name in the bundle."""
        return OBJECTS + self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        grid: Name of the grid.
        points: Ids of its points.
        files: By path in the folder of the grid, the content.
    """

    grid: str
    points: tuple[str, ...]
    files: Mapping[str, Content]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with their digest."""
        return self._values() | {"digest": self.digest}

    def _values(self) -> dict[str, Any]:
        files = {path: {"digest": each.digest, "bytes": each.size} for path, each in sorted(self.files.items())}
        return {"kind": KIND, "format": FORMAT, "grid": self.grid, "points": list(self.points), "files": files}

    @property
    def digest(self) -> str:
        """It names everything in the bundle."""
        return json_digest(self._values())

    @property
    def contents(self) -> dict[str, Content]:
        """Each content once, by its name in the bundle."""
        return {each.name: each for each in self.files.values()}

    @classmethod
    def from_dict(cls, values: Any, packed: int) -> Manifest:
        """Checks a manifest that may come from anywhere.

        Args:
            values: The parsed JSON.
            packed: Size of the bundle in bytes; the files cannot be much larger.

        Raises:
            BlastError: the first fault, as the end of a sentence.
        """
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise BlastError("its manifest is not one of a bundle")
        if values.get("format") != FORMAT:
            raise BlastError(
                f"its format {one_line(values.get('format'))[:40]} is not the format {FORMAT} of this version"
            )
        points, files, grid = (values.get(key) for key in ("points", "files", "grid"))
        if not isinstance(points, list) or not isinstance(files, dict) or not isinstance(grid, str):
            raise BlastError("its manifest lacks the grid, the points or the files")
        if len(files) > MOST_FILES:
            raise BlastError(f"it names more than {MOST_FILES:,} files")
        for point in points:
            check(PointId, point, Place("points"))
        made = {path: _content(path, entry, set(points)) for path, entry in files.items()}
        if sum(each.size for each in made.values()) > LARGEST_RATIO * packed + MIB:
            raise BlastError(f"its files have more than {LARGEST_RATIO} times its size")
        sizes: dict[str, int] = {}
        for each in made.values():
            if sizes.setdefault(each.digest, each.size) != each.size:
                raise BlastError("its manifest gives one content two sizes")
        manifest = cls(grid, tuple(points), made)
        # A path that changed would be a file that no record names, and left out in silence.
        if values.get("digest") != manifest.digest:
            raise BlastError("its manifest is not the one of its digest")
        return manifest


def _content(path: Any, entry: Any, points: set[str]) -> Content:
    if not is_inner_path(path) or _point_of(path) not in points:
        raise BlastError(f"it names the file {one_line(path)[:120]}, which belongs to no point of it")
    digest, size = (entry.get("digest"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
    if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise BlastError(f"the digest of {one_line(path)[:120]} is none")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise BlastError(f"the size of {one_line(path)[:120]} is none")
    return Content(digest, size)


def _point_of(path: str) -> str | None:
    """The point that a file of a grid belongs to; None for a file that no bundle holds."""
    first, _, rest = path.partition("/")
    if first == "points" and "/" in rest:
        return rest.partition("/")[0]
    if first in ("records", "language") and "/" not in rest:
        for ending in (".items.npz", ".json") if first == "language" else (".json",):
            if rest.endswith(ending):
                return rest.removesuffix(ending)
    return None
