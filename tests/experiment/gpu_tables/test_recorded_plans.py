"""The recorded sweeps of plans back what the notes say of the table that the kernels run with."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import torch
from blast_kernels.mlp_inference.heuristics import heuristic_config
from blast_kernels.mlp_inference.tuned_configs import tuned_config
from blast_kernels.tables.break_even import dense_ranges, dense_wins

ROOT = Path(__file__).parents[3]
GPU = "nvidia-h100-80gb-hbm3"


@cache
def swept() -> dict[tuple, dict[tuple, float]]:
    """Milliseconds by plan, of each product of each point; of a sweep the picks and the best are kept."""
    times: dict[tuple, dict[tuple, float]] = {}
    with (ROOT / "results/recorded" / GPU / "kernels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["suite"] == "kernel_plans" and row["metric"] == "latency" and row["status"] == "ok":
                facts = json.loads(row["setting"])
                place = (*facts["block"], facts["gate"], int(row["tokens"]), facts["records"], facts["row_blocks"])
                times.setdefault((facts["point"], facts["part"], *place), {})[tuple(facts["plan"])] = float(
                    row["value"]
                )
    return times


def test_the_rules_alone_cost_a_few_percent_of_the_best_plan_at_decode():
    costs = []
    for (_, _, b_out, b_in, gate, tokens, records, row_blocks), plans in swept().items():
        rules = heuristic_config(tokens, records, b_out, b_in, gate, row_blocks=row_blocks)
        # What was neither best nor picked nor of the rules of that time was not kept.
        if tokens == 16 and tuple(rules) in plans:
            costs.append(plans[tuple(rules)] / min(plans.values()) - 1)
    assert len(costs) >= 90
    assert max(costs) < 0.06


def test_the_rules_cost_little_for_fronts_of_many_tiles_and_long_rows_of_32():
    costs = []
    for (_, _, b_out, b_in, gate, tokens, records, row_blocks), plans in swept().items():
        rules = heuristic_config(tokens, records, b_out, b_in, gate, row_blocks=row_blocks)
        alone = rules.kernel == "persistent" or (rules.tile, rules.slice, rules.group) == (256, 32, 1)
        if alone and tuple(rules) in plans:
            costs.append(plans[tuple(rules)] / min(plans.values()) - 1)
    assert len(costs) >= 80
    assert max(costs) < 0.06


def test_a_pick_from_the_table_costs_a_few_percent_of_the_best_plan_at_most():
    costs = []
    for (_, _, b_out, b_in, gate, tokens, records, row_blocks), plans in swept().items():
        pick = tuned_config(tokens, records, row_blocks, b_out, b_in, gate, torch.bfloat16, GPU, "3.6")
        # Where two shapes share a product, the plan that is best for both may have been kept for neither.
        if tuple(pick) in plans:
            costs.append(plans[tuple(pick)] / min(plans.values()) - 1)
    assert len(costs) >= 350
    assert max(costs) < 0.0201


def test_the_choice_between_sparse_and_dense_costs_little_wherever_both_were_timed():
    times: dict[tuple, dict[str, float]] = {}
    with (ROOT / "results/recorded" / GPU / "kernels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            facts = json.loads(row["setting"])
            timed = row["suite"] == "kernels" and row["metric"] == "latency" and row["status"] == "ok"
            if timed and (row["provider"] == "dense_eager" or facts.get("mask") == "uniform"):
                gate = {"": "none", "false": "untied", "true": "tied"}[row["tied"]]
                shape, block = (facts["ffn"], facts["hidden"]), tuple(map(int, row["block"].split("x")))
                place = facts["point"], int(row["tokens"]), block, shape, float(row["sparsity"])
                times.setdefault(place, {})[row["provider"] if row["provider"] != "ours" else gate] = float(
                    row["value"]
                )
    costs = []
    for (_, tokens, block, shape, sparsity), found in times.items():
        for gate in found.keys() & {"none", "untied", "tied"}:
            ranges = dense_ranges(sparsity, block, gate, shape, torch.bfloat16, GPU)
            picked = found["dense_eager" if dense_wins(tokens, ranges) else gate]
            costs.append(picked / min(found["dense_eager"], found[gate]))
    assert len(costs) >= 2000
    assert max(costs) < 1.1
