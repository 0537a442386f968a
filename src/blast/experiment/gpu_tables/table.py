"""The table of a GPU, `kernels/tuned/<gpu>.json`: one file for all that was measured for it, each part with its run."""

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
    """The GPU that a suite was run on, and its good records.

    Raises:
        BlastError: if there are none of a GPU, or of several.
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
            f"good records of the suite '{suite}' of one GPU are needed, but they {found}; give the folder of one grid."
        )
    return machines[0], good


def run_of(record: Record) -> dict[str, Any]:
    """With which versions and commit a record was made, and when."""
    run = describe_run(record)
    return {key: run.get(key) for key in ("versions", "commit", "date")}


def latencies(record: Record) -> Iterator[tuple[dict[str, Any], str]]:
    """The entries of a record that were timed, each with the kind of its gate: `none`, `untied` or `tied`."""
    for entry in record["result"]["metrics"]:
        if entry["metric"] == "latency" and entry["value"] is not None:
            yield entry, {None: "none", False: "untied", True: "tied"}[entry.get("tied")]


def update_table(folder: Path, gpu: str, parts: Mapping[str, Any]) -> Path:
    """Replaces parts of a GPU's table and keeps the others.

    Args:
        folder: `kernels/tuned`.
        gpu: Name of the GPU, and of the file.
        parts: By name; a mapping takes the place of its own keys alone.

    Returns:
        The file.

    Raises:
        BlastError: if the file that is there is damaged.
    """
    file = Path(folder, f"{gpu}.json")
    with _undamaged(file):
        table = json.loads(file.read_text()) if file.is_file() else {}
        for name, part in parts.items():
            table[name] = {**table.get(name, {}), **part} if isinstance(part, Mapping) else part
    write_atomically(file, _text({"gpu": gpu, **table}) + "\n")
    return file


def plans_of_table(folder: Path, gpu: str, triton: str) -> dict[str, Any]:
    """What the table of a GPU holds on plans for a minor version of Triton; nothing if there is no table.

    Raises:
        BlastError: if the file is damaged.
    """
    file = Path(folder, f"{gpu}.json")
    if not file.is_file():
        return {}
    with _undamaged(file):
        return json.loads(file.read_text()).get("plans", {}).get(triton, {})


@contextmanager
def _undamaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise BlastError(f"{file}: is no table of a GPU ({error}); restore or delete it.") from None


def _text(value: Any, indent: str = "") -> str:
    """JSON with one row a line, so that a change of a table can be read as a difference."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        inside = [f"{deeper}{json.dumps(key)}: {_text(part, deeper)}" for key, part in value.items()]
        return "{\n" + ",\n".join(inside) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(f"{deeper}{json.dumps(row)}" for row in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def break_even(ratios: Mapping[float, float]) -> float:
    """The sparsity from which on ours is faster than dense.

    It is the lowest measured one such that ours won there and at every higher one; where ours never won it is 1. Where
    ours never lost, it lies below all that was measured: there the time of sparse is taken to grow in proportion to the
    live blocks. It grows less, launches being a part of it, so that ours wins from that sparsity on; below, dense is
    taken.

    Args:
        ratios: By sparsity, how many times faster than dense ours was.
    """
    limit = 1.0
    for sparsity in sorted(ratios, reverse=True):
        if ratios[sparsity] <= 1:
            return limit
        limit = sparsity
    return round(max(0.0, 1 - ratios[limit] * (1 - limit)), 4) if ratios else limit
