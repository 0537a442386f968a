"""From the suite `kernel_plans` to the tuned kernel configs in `kernels/tuned/<gpu>.json`.

Stored keys keep their old names: `plan` is a kernel config, `rules` marks the config of the heuristic, and `records`
is the number of block rows.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast_kernels.mlp_inference.tuned_configs import minor

from blast.experiment.gpu_tables.table import good_records, run_of, tuned_configs_of, update_table
from blast.experiment.records.rows import Record

# A config replaces the heuristic one only if it takes less than this share of its time. Two runs of one config differ
# by up to 2 %.
WORTH = 0.98
# With the block, what identifies a product.
PRODUCT = ("gate", "dtype", "tokens", "records", "row_blocks")


def tuned_config_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The fastest config of each measured product, in the form that `blast_kernels.mlp_inference.tuned_configs` reads.

    If several shapes share a product, the config with the smallest mean time wins. It must have run in all of them.

    Args:
        records: Good records of the suite `kernel_plans`, all of one GPU.
    """
    times: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    sweeps: dict[tuple, int] = defaultdict(int)
    heuristic: dict[tuple, tuple] = {}
    for record in records:
        for entry in record["result"]["metrics"]:
            facts = entry["setting"]
            if entry["metric"] != "latency" or entry["value"] is None:
                continue
            timed = facts | entry
            product = (*timed["block"], *(timed[key] for key in PRODUCT))
            config = tuple(facts["plan"])
            times[product][config].append(entry["value"])
            if facts["rules"]:
                sweeps[product] += 1
                heuristic[product] = config
    rows = []
    for product, configs in sorted(times.items()):
        means = {config: statistics.fmean(taken) for config, taken in configs.items() if len(taken) >= sweeps[product]}
        best = min(means, key=lambda config: (means[config], config))
        default = heuristic.get(product)
        if default in means and means[best] > WORTH * means[default]:
            best = default
        b_out, b_in, *facts = product
        rows.append({"block": [b_out, b_in], **dict(zip(PRODUCT, facts, strict=True)), "plan": list(best)})
    return rows


def write_tuned_configs(records: Iterable[Record], folder: Path) -> Path:
    """Writes the tuned configs into a GPU's table, under the version of Triton that the records were made with.

    Configs of other versions stay. So do those of products that the records do not cover; `earlier` names their runs.

    Args:
        records: Records of one grid. Failed ones and those of other suites are ignored.
        folder: `kernels/tuned`.

    Returns:
        The file.

    Raises:
        BlastError: if the good records of the suite do not come from exactly one GPU.
    """
    gpu, good = good_records(records, "kernel_plans")
    versions: dict[str, list[Record]] = defaultdict(list)
    for record in good:
        versions[minor(record["run"]["versions"]["triton"])].append(record)
    tables = {}
    for name, made in sorted(versions.items()):
        before, run, swept = tuned_configs_of(folder, gpu, name), run_of(made[0]), tuned_config_rows(made)
        rows = {_product(row): row for row in (*before.get("rows", ()), *swept)}
        tables[name] = {"run": run, "rows": [row for _, row in sorted(rows.items())]}
        if len(rows) > len(swept):
            earlier = [*before.get("earlier", ()), before["run"]]
            tables[name]["earlier"] = [one for one in earlier if one != run]
    return update_table(folder, gpu, {"plans": tables})


def _product(row: dict[str, Any]) -> tuple:
    """The product that a row of the table is about."""
    return (*row["block"], *(row[key] for key in PRODUCT))
