"""From the suite `kernel_plans` to the plans that the kernels run with: `kernels/tuned/<gpu>.json`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast_kernels.mlp_inference.tuned_configs import minor

from blast.experiment.gpu_tables.table import good_records, plans_of_table, run_of, update_table
from blast.experiment.records.rows import Record

# The rules keep their plan where no other is this much faster: less is what two runs of one plan differ by.
WORTH = 0.98


def plan_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The fastest plan of each product that was measured, as `blast_kernels.mlp_inference.tuned_configs` reads it.

    A product that several shapes have in common gets the plan with the least mean time. Plans that failed in one of
    them are no choice.

    Args:
        records: Good records of the suite `kernel_plans`, of one GPU.
    """
    times: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[tuple, int] = defaultdict(int)
    ruled: dict[tuple, tuple] = {}
    for record in records:
        for entry in record["result"]["metrics"]:
            facts = entry["setting"]
            if entry["metric"] != "latency" or entry["value"] is None:
                continue
            place = (
                *facts["block"],
                facts["gate"],
                entry["dtype"],
                entry["tokens"],
                facts["records"],
                facts["row_blocks"],
            )
            plan = tuple(facts["plan"])
            times[place][plan].append(entry["value"])
            if facts["rules"]:
                seen[place] += 1
                ruled[place] = plan
    rows = []
    for place, plans in sorted(times.items()):
        whole = {plan: statistics.fmean(taken) for plan, taken in plans.items() if len(taken) >= seen[place]}
        best = min(whole, key=lambda plan: (whole[plan], plan))
        rules = ruled.get(place)
        if rules in whole and whole[best] > WORTH * whole[rules]:
            best = rules
        b_out, b_in, gate, dtype, tokens, count, row_blocks = place
        rows.append(
            {"block": [b_out, b_in], "gate": gate, "dtype": dtype, "tokens": tokens, "records": count,
             "row_blocks": row_blocks, "plan": list(best)}
        )  # fmt: skip
    return rows


def write_plans(records: Iterable[Record], folder: Path) -> Path:
    """Writes the plans of the GPU and the version of Triton that the records were made with.

    Other versions stay, and of this one the plans of products that no record is of; `earlier` then names their runs.

    Args:
        records: Records of a grid; those of other suites and failed ones are passed over.
        folder: `kernels/tuned`.

    Returns:
        The file.

    Raises:
        BlastError: if no good record of the suite was made on a GPU, or they come from several.
    """
    gpu, good = good_records(records, "kernel_plans")
    versions: dict[str, list[Record]] = defaultdict(list)
    for record in good:
        versions[minor(record["run"]["versions"]["triton"])].append(record)
    plans = {}
    for name, made in sorted(versions.items()):
        before, run, swept = plans_of_table(folder, gpu, name), run_of(made[0]), plan_rows(made)
        rows = {_place(row): row for row in (*before.get("rows", ()), *swept)}
        plans[name] = {"run": run, "rows": [row for _, row in sorted(rows.items())]}
        if len(rows) > len(swept):
            earlier = [*before.get("earlier", ()), before["run"]]
            plans[name]["earlier"] = [one for one in earlier if one != run]
    return update_table(folder, gpu, {"plans": plans})


def _place(row: dict[str, Any]) -> tuple:
    """Which product a row of the table is of."""
    return (*row["block"], *(row[key] for key in ("gate", "dtype", "tokens", "records", "row_blocks")))
