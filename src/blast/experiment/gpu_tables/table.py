"""The table of a GPU, `kernels/tuned/<gpu>.json`: all measured parts in one file, each with the run it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.records.rows import Record, describe_run
from blast.files import write_atomically


def good_records(records: Iterable[Record], suite: str) -> tuple[str, list[Record]]:
    """The GPU on which a suite was run, and the good records of the suite.

    Raises:
        BlastError: if the good records do not come from exactly one GPU.
    """
    good = [
        record
        for record in records
        if record["status"] == "ok" and (record["point"].get("benchmark") or {}).get("suite") == suite
    ]
    machines = sorted({record["run"]["hardware"] for record in good if record["run"].get("gpu")})
    if len(machines) != 1:
        found = f"come from {', '.join(machines)}" if machines else "are missing"
        raise BlastError(
            f"a table needs good records of the suite '{suite}' from one GPU, but they {found}; "
            "give the folder of a grid that ran this suite on one GPU."
        )
    return machines[0], good


def run_of(record: Record) -> dict[str, Any]:
    """Versions, commit and date of the run that made a record."""
    run = describe_run(record)
    return {key: run.get(key) for key in ("versions", "commit", "date")}


def update_table(folder: Path, gpu: str, parts: Mapping[str, Any]) -> Path:
    """Replaces parts of a GPU's table and keeps the others.

    Args:
        folder: `kernels/tuned`.
        gpu: Name of the GPU, which is also the name of the file.
        parts: New parts by name. A part that is a mapping replaces only the keys it has.

    Returns:
        The file.

    Raises:
        BlastError: if the present file is damaged.
    """
    file = Path(folder, f"{gpu}.json")
    with _damage_reported(file):
        table = json.loads(file.read_text()) if file.is_file() else {}
        for name, part in parts.items():
            table[name] = {**table.get(name, {}), **part} if isinstance(part, Mapping) else part
    write_atomically(file, _text({"gpu": gpu, **table}) + "\n")
    return file


def tuned_configs_of(folder: Path, gpu: str, triton: str) -> dict[str, Any]:
    """The tuned configs in the table of a GPU for a minor version of Triton; empty if there are none.

    Raises:
        BlastError: if the file is damaged.
    """
    file = Path(folder, f"{gpu}.json")
    if not file.is_file():
        return {}
    with _damage_reported(file):
        return json.loads(file.read_text()).get("plans", {}).get(triton, {})


@contextmanager
def _damage_reported(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise BlastError(f"{file}: damaged table of a GPU ({error}); restore it from git or delete it.") from None


def _text(value: Any, indent: str = "") -> str:
    """JSON with one row per line, so that a diff shows which rows changed."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        inside = [f"{deeper}{json.dumps(key)}: {_text(part, deeper)}" for key, part in value.items()]
        return "{\n" + ",\n".join(inside) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(f"{deeper}{json.dumps(row)}" for row in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
