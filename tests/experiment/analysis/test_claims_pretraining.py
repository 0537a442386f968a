"""The claim about pretraining: derived from step times of published models on a GPU, and measured on whole runs."""

from __future__ import annotations

import dataclasses
import math

import fake_runs
import fake_training
import pytest

import paper_figures
from blast.experiment.analysis import pretraining
from blast.experiment.analysis.claims import judge
from blast.experiment.analysis.paper_values import read_paper_values
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table

(CLAIM,) = [value for value in read_paper_values() if value.id == "pretraining"]


def table_of(*models, sparsities=fake_training.SPARSITIES, **more):
    points = [fake_training.make_point(model, sparsity) for model in models for sparsity in sparsities]
    return as_table([row for point in points for row in record_rows(fake_training.make_record_of(point, **more))])


def claimed(value):
    return dataclasses.replace(CLAIM, value=value)


def test_the_findings_for_swap_and_union_agree_with_the_table():
    table = table_of("gpt2-xl", "gpt2", "llama-3.2-1b")
    swap, union = sorted(judge(CLAIM, table), key=lambda finding: "union" in finding.setting)
    frame = paper_figures.load("pretraining_table").rows(table)
    best = frame[frame["sparsity"] == 0.95].set_index("model")
    for finding, growth, method in ((swap, "swap", "rigl_swap"), (union, "union", "blast")):
        speed_ups = best[f"{growth}_speed_up"]
        assert finding.verdict == "met"
        assert finding.ours.startswith(f"{speed_ups.max():.2f}x (")
        assert f"best of 3: {speed_ups.idxmax()}, 95 %, {method} ({growth})" in finding.setting
        assert "derived from step times" in finding.setting
        assert fake_training.GPU in finding.setting
        for model, share in best[f"{growth}_passes_at"].items():
            assert f"{model} (block {best.loc[model, 'block']}) from {100 * share:g} %" in finding.setting


def test_the_interval_contains_the_speed_up_and_is_as_wide_as_the_quantiles():
    table = table_of("gpt2-xl")
    rows = pretraining.step_rows(table)
    rows = pretraining.of_case(rows, pretraining.cases(rows)[0])
    for growth in pretraining.GROWTH:
        low, high = pretraining.interval(rows, 0.95, growth)
        middle = pretraining.whole_run(pretraining.step_times(rows), 0.95, growth).speed_up
        # Quantiles of steps differ by 1 %; mask updates have none.
        assert low == pytest.approx(middle * 0.99 / 1.01, rel=0.003)
        assert high == pytest.approx(middle * 1.01 / 0.99, rel=0.003)


def test_the_interval_includes_the_variation_of_mask_updates():
    rows = pretraining.step_rows(table_of("gpt2-xl"))
    rows = pretraining.of_case(rows, pretraining.cases(rows)[0])
    low, high = pretraining.interval(rows, 0.95, "swap")
    slower_updates, updates = rows.copy(), rows["metric"] == "time_mask_update"
    slower_updates.loc[updates, "low"] = slower_updates.loc[updates, "value"]
    slower_updates.loc[updates, "high"] = 11 * slower_updates.loc[updates, "value"]
    slower, as_fast = pretraining.interval(slower_updates, 0.95, "swap")
    assert as_fast == high
    # Each step gets ten hundredths of an update more; an update takes 0.2 or 0.6 of a dense step.
    assert 0.8 * low < slower < 0.98 * low


def test_a_mask_update_that_was_not_timed_takes_as_long_as_a_masked_dense_step():
    rows = pretraining.step_rows(table_of("gpt2-xl"))
    rows = pretraining.of_case(rows, pretraining.cases(rows)[0])
    times = pretraining.step_times(rows)
    free = pretraining.step_times(rows[rows["metric"] != "time_mask_update"])
    assert free == times._replace(update=0.0, sparse_update=None)
    # Such an update still costs the difference between a masked-dense and a sparse step.
    share = pretraining.whole_run(free, 0.95, "swap").update_share
    assert 0 < share < pretraining.whole_run(times, 0.95, "swap").update_share


def test_the_verdict_follows_from_the_whole_interval():
    table = table_of("gpt2-xl")
    rows = pretraining.step_rows(table)
    low, high = pretraining.interval(pretraining.of_case(rows, pretraining.cases(rows)[0]), 0.95, "swap")
    verdicts = [judge(claimed(value), table)[0].verdict for value in (low - 0.01, (low + high) / 2, high + 0.01)]
    assert verdicts == ["met", "undecided", "not met"]
    assert "gpt2-xl (block 64x64) never" in judge(claimed(9.0), table)[0].setting


def test_without_quantiles_the_verdict_is_undecided():
    for finding in judge(CLAIM, table_of("gpt2-xl", spread=None)):
        assert finding.verdict == "undecided"
        assert "(" not in finding.ours
    rows = pretraining.step_rows(table_of("gpt2-xl", spread=None))
    assert math.isnan(pretraining.interval(rows, 0.95, "swap")[0])


def test_the_claim_is_judged_at_its_sparsity_or_the_highest_below_it():
    for finding in judge(CLAIM, table_of("gpt2-xl", sparsities=(0.8, 0.9, 0.95, 0.99))):
        assert "gpt2-xl, 95 %" in finding.setting
    for finding in judge(CLAIM, table_of("gpt2-xl", sparsities=(0.8, 0.9))):
        assert "gpt2-xl, 90 %" in finding.setting


def test_cpu_timings_and_our_own_models_do_not_count(monkeypatch):
    monkeypatch.setitem(fake_training.MODELS, "gpt2-nano", (50.0, 40.0, 0.1))
    for table in (table_of("gpt2-xl", hardware="cpu-imaginary-processor"), table_of("gpt2-nano"), as_table([])):
        (finding,) = judge(CLAIM, table)
        assert (finding.verdict, finding.ours) == ("not run", "–")
        assert "of a published architecture" in finding.setting


def test_timed_whole_runs_give_a_finding_for_each_method():
    points = fake_runs.points()
    rows = [row for point in points for row in record_rows(fake_runs.make_record_of(point))]
    not_derived, *found = judge(CLAIM, as_table(rows))
    assert not_derived.verdict == "not run"
    last = fake_runs.STEPS - 1
    seconds = {point.id: fake_runs.seconds_at(point, last) - fake_runs.COMPILING for point in points}
    for finding, method in zip(found, ("rigl_swap", "blast"), strict=True):
        own = {point.id: seconds[points[0].id] / seconds[point.id] for point in points if point.method == method}
        assert finding.verdict == "undecided"
        assert finding.ours == f"{max(own.values()):.2f}x"
        assert f"measured, whole runs of {last + 1} steps, best of {len(own)}: gpt2 on" in finding.setting
        assert f"95 %, {method}, block 64x64" in finding.setting


def test_whole_runs_on_a_cpu_with_other_steps_or_of_our_own_models_do_not_count():
    dense, pruned = fake_runs.make_point(), fake_runs.make_point("blast", 0.95)

    def findings(*records):
        return judge(CLAIM, as_table([row for record in records for row in record_rows(record)]))[1:]

    made = fake_runs.make_record_of
    assert len(findings(made(dense), made(pruned))) == 1
    assert findings(made(dense, hardware="cpu-imaginary"), made(pruned, hardware="cpu-imaginary")) == []
    own = fake_runs.make_point(model="gpt2-nano"), fake_runs.make_point("blast", 0.95, "gpt2-nano")
    assert findings(*map(made, own)) == []
    short = made(pruned)
    for name in short["result"]["curves"].values():
        name["step"], name["value"] = name["step"][:-1], name["value"][:-1]
    for key, values in short["run"]["training_seconds"].items():
        short["run"]["training_seconds"][key] = values[:-1]
    assert findings(made(dense), short) == []
