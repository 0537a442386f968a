"""From kernel benchmarks to the table that tells the kernels where dense is faster: `kernels/tuned/<gpu>.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast.experiment.gpu_tables.table import break_even, good_records, latencies, run_of, update_table
from blast.experiment.records.rows import Record


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


SUITE = "training_mlp"


def train_break_even_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The sparsity from which on forward and backward of ours were faster than compiled dense, by block, gate, shape.

    The slowest of the masks that were measured decides; see `gpu_table.break_even`.

    Args:
        records: Good records of the suite, of one GPU.
    """
    ratios: dict[tuple, dict[float, float]] = {}
    for record in records:
        point, timed = record["point"], list(latencies(record))
        # Compiled dense, where it was timed, comes after eager dense.
        dense = {
            entry["tokens"]: entry["value"]
            for name in ("dense_eager", "dense_compiled")
            for entry, _ in timed
            if entry["provider"] == name
        }
        for entry, gate in timed:
            if entry["provider"] != "ours" or entry["dtype"] != "bfloat16" or entry["tokens"] not in dense:
                continue
            setting = entry["setting"]
            found = ratios.setdefault((tuple(point["block"]), gate, setting["hidden"], setting["ffn"]), {})
            ratio = dense[entry["tokens"]] / entry["value"]
            found[point["sparsity"]] = min(ratio, found.get(point["sparsity"], ratio))
    rows = []
    for (block, gate, width, hidden), results in sorted(ratios.items()):
        limit = break_even(results)
        rows.append({"block": list(block), "gate": gate, "in": width, "hidden": hidden, "sparsity": limit})
    return rows


def write_train_table(records: Iterable[Record], folder: Path) -> Path:
    """Writes the part `train_break_even` of the table of the GPU that the records were made on.

    Args:
        records: Records of a grid; those of other suites and failed ones are passed over.
        folder: `kernels/tuned`.

    Returns:
        The file.

    Raises:
        BlastError: if no good record of the suite was made on a GPU, or they come from several.
    """
    gpu, good = good_records(records, SUITE)
    parts = {"train_break_even_run": run_of(good[0]), "train_break_even": train_break_even_rows(good)}
    return update_table(folder, gpu, parts)
