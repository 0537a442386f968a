"""From benchmarks to the break-even points in `kernels/tuned/<gpu>.json`: where ours becomes faster than dense.

Two suites give two parts of the table:

- `kernels` gives `break_even`: inference, ours against eager dense, by number of tokens. The kernels read it.
- `training_mlp` gives `train_break_even`: forward and backward, ours against compiled dense. The `Sparsifier` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blast.experiment.gpu_tables.table import good_records, run_of, update_table
from blast.experiment.records.rows import Record

INFERENCE_SUITE, TRAINING_SUITE = "kernels", "training_mlp"
# The `gate` of a row by the `tied` of a benchmark: whether gate and up share masks; None for an MLP without gate.
GATE = {None: "none", False: "untied", True: "tied"}


def write_inference_table(records: Iterable[Record], folder: Path) -> Path:
    """Writes the part `break_even` of a GPU's table, with the run it was measured in.

    Args:
        records: Records of one grid. Failed ones and those of other suites are ignored.
        folder: `kernels/tuned`.

    Returns:
        The file.

    Raises:
        BlastError: if the good records of the suite do not come from exactly one GPU.
    """
    gpu, good = good_records(records, INFERENCE_SUITE)
    return update_table(folder, gpu, {"break_even_run": run_of(good[0]), "break_even": inference_rows(good)})


def write_training_table(records: Iterable[Record], folder: Path) -> Path:
    """Writes the part `train_break_even` of a GPU's table; otherwise as `write_inference_table`."""
    gpu, good = good_records(records, TRAINING_SUITE)
    parts = {"train_break_even_run": run_of(good[0]), "train_break_even": training_rows(good)}
    return update_table(folder, gpu, parts)


def inference_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Break-even sparsities of inference by block, gate, dtype, shape and number of tokens, for uniform masks.

    If several architectures share a shape, the slowest result at each sparsity counts.

    Args:
        records: Good records of the suite `kernels`, all of one GPU.
    """
    speed_ups: dict[tuple, dict[float, list[float]]] = {}
    for record in records:
        point, timed = record["point"], list(_latencies(record))
        dense = {entry["tokens"]: entry["value"] for entry, _ in timed if entry["provider"] == "dense_eager"}
        for entry, gate in timed:
            if entry["provider"] != "ours" or entry["setting"].get("mask") != "uniform":
                continue
            size = entry["setting"]["hidden"], entry["setting"]["ffn"]
            key = (tuple(point["block"]), gate, entry["dtype"], *size, entry["tokens"])
            results = speed_ups.setdefault(key, {}).setdefault(point["sparsity"], [])
            results.append(dense[entry["tokens"]] / entry["value"])
    rows = []
    for (block, *facts), results in sorted(speed_ups.items()):
        limit = break_even_sparsity({sparsity: min(found) for sparsity, found in results.items()})
        named = zip(("gate", "dtype", "in", "hidden", "tokens"), facts, strict=True)
        rows.append({"block": list(block), **dict(named), "sparsity": limit})
    return rows


def training_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Break-even sparsities of training in bf16 by block, gate and shape.

    The slowest result over masks and numbers of tokens counts.

    Args:
        records: Good records of the suite `training_mlp`, all of one GPU.
    """
    speed_ups: dict[tuple, dict[float, float]] = {}
    for record in records:
        point, timed = record["point"], list(_latencies(record))
        # Compiled dense replaces eager dense if it was timed.
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
            results = speed_ups.setdefault((tuple(point["block"]), gate, setting["hidden"], setting["ffn"]), {})
            ratio = dense[entry["tokens"]] / entry["value"]
            results[point["sparsity"]] = min(ratio, results.get(point["sparsity"], ratio))
    rows = []
    for (block, gate, width, hidden), results in sorted(speed_ups.items()):
        limit = break_even_sparsity(results)
        rows.append({"block": list(block), "gate": gate, "in": width, "hidden": hidden, "sparsity": limit})
    return rows


def break_even_sparsity(speed_ups: Mapping[float, float]) -> float:
    """The sparsity from which ours is faster than dense.

    This is the lowest measured sparsity such that ours won there and at every higher one; 1 if ours did not win at the
    highest. If ours won everywhere, the break-even lies below the measured range. It is then extrapolated: the sparse
    time is assumed proportional to the number of live blocks. The actual growth is smaller, because launch overhead
    does not grow, so this bound is conservative.

    Args:
        speed_ups: Time of dense divided by time of ours, by sparsity.
    """
    limit = 1.0
    for sparsity in sorted(speed_ups, reverse=True):
        if speed_ups[sparsity] <= 1:
            return limit
        limit = sparsity
    return round(max(0.0, 1 - speed_ups[limit] * (1 - limit)), 4) if speed_ups else limit


def _latencies(record: Record) -> Iterator[tuple[dict[str, Any], str]]:
    """The timed entries of a record, each with its `gate`."""
    for entry in record["result"]["metrics"]:
        if entry["metric"] == "latency" and entry["value"] is not None:
            yield entry, GATE[entry.get("tied")]
