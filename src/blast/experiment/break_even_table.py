"""From kernel benchmarks to the table that tells the kernels where dense is faster: `kernels/tuned/<gpu>.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast.experiment.gpu_table import break_even, good_records, latencies, run_of, update_table
from blast.experiment.rows import Record


def break_even_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The sparsity from which on ours was faster than eager dense, by block, gate, dtype, shape and number of tokens.

    Of architectures that share a shape the slowest decides; see `gpu_table.break_even`.

    Args:
        records: Good records of the suite `kernels`, of one GPU; uniform masks are looked at.
    """
    ratios: dict[tuple, dict[float, list[float]]] = {}
    for record in records:
        point, timed = record["point"], list(latencies(record))
        dense = {entry["tokens"]: entry["value"] for entry, _ in timed if entry["provider"] == "dense_eager"}
        for entry, gate in timed:
            if entry["provider"] != "ours" or entry["setting"].get("mask") != "uniform":
                continue
            size = entry["setting"]["hidden"], entry["setting"]["ffn"]
            place = (tuple(point["block"]), gate, entry["dtype"], *size, entry["tokens"])
            results = ratios.setdefault(place, {}).setdefault(point["sparsity"], [])
            results.append(dense[entry["tokens"]] / entry["value"])
    rows = []
    for (block, *place), results in sorted(ratios.items()):
        limit = break_even({sparsity: min(found) for sparsity, found in results.items()})
        facts = zip(("gate", "dtype", "in", "hidden", "tokens"), place, strict=True)
        rows.append({"block": list(block), **dict(facts), "sparsity": limit})
    return rows


def write_table(records: Iterable[Record], folder: Path) -> Path:
    """Writes the table of the GPU that the records were made on.

    Args:
        records: Records of a grid; those of other suites and failed ones are passed over.
        folder: `kernels/tuned`.

    Returns:
        The file.

    Raises:
        BlastError: if no good record of the suite was made on a GPU, or they come from several.
    """
    gpu, good = good_records(records, "kernels")
    return update_table(folder, gpu, {"break_even_run": run_of(good[0]), "break_even": break_even_rows(good)})
