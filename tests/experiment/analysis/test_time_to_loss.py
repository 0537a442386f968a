"""Time until a run reaches a loss, and pairs of runs that differ in execution alone."""

from __future__ import annotations

import fake_runs as fake
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.experiment.analysis.comparison import missing, summarise, without_execution_variants
from blast.experiment.analysis.execution_pairs import execution_pairs
from blast.experiment.analysis.time_to_loss import dense_of, reference_dense, time_to, timed_runs
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table, load_table

POINTS = fake.points()
DENSE, MASKED = POINTS[0], POINTS[-1]
SPARSEST = fake.make_point("blast", 0.95)


def table_of(*points, **more):
    return as_table([row for point in points for row in record_rows(fake.make_record_of(point, **more))])


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=9), st.floats(0, 10))
@settings(deadline=None, max_examples=100)
def test_a_loss_is_reached_no_later_than_the_first_evaluation_below_it(losses, loss):
    seconds = [10.0 * (place + 1) for place in range(len(losses))]
    found = time_to(seconds, losses, loss)
    below = [second for second, value in zip(seconds, losses, strict=True) if value <= loss]
    assert (found is None) == (not below)
    if below:
        assert below[0] - 10 <= found <= below[0] or found == seconds[0]
        assert time_to(seconds, losses, loss + 0.5) <= found


def test_the_loss_is_interpolated_linearly_between_evaluations():
    assert time_to([10, 20, 30], [5, 4, 2], 3) == pytest.approx(25)
    assert time_to([10, 20, 30], [5, 4, 2], 4) == 20
    assert time_to([10, 20, 30], [5, 4, 2], 6) == 10
    assert time_to([10, 20, 30], [5, 4, 2], 1.9) is None


def test_timed_runs_have_the_recorded_seconds_and_their_own_dense_run():
    (group,) = timed_runs(table_of(*POINTS))
    assert group[0].point.point == DENSE.id
    assert {run.point.point for run in group} == {point.id for point in POINTS}
    by_name = {run.point.point: run for run in group}
    run = by_name[SPARSEST.id]
    assert run.total == pytest.approx(fake.seconds_at(SPARSEST, fake.STEPS - 1))
    assert len(run.seconds) == fake.STEPS // fake.EVERY
    assert dense_of(run, group) is by_name[DENSE.id]
    assert run.time_to(by_name[DENSE.id].final) is None
    assert by_name[DENSE.id].time_to(run.final) < by_name[DENSE.id].total


def test_runs_without_times_are_ignored_in_favour_of_another_machine():
    assert timed_runs(table_of(*POINTS, timed=False)) == []
    here, there = table_of(*POINTS, timed=False), table_of(DENSE, hardware="nvidia-other")
    (group,) = timed_runs(pd.concat([here, there], ignore_index=True))
    assert [(run.point.point, run.point.hardware) for run in group] == [(DENSE.id, "nvidia-other")]


def test_a_pair_gives_its_first_sparse_step_and_its_curves():
    (pair,) = execution_pairs(table_of(*POINTS))
    assert pair.point.point == SPARSEST.id
    assert (pair.state_recorded, pair.first_sparse_step) == (True, fake.SWITCH)
    found = pair.curves("train_loss")
    assert found.largest_gap(0, fake.SWITCH) == 0
    assert 0 < found.largest_gap(fake.SWITCH) <= 1.01 * fake.ROUNDING
    assert len(pair.curves("validation_loss").steps) == fake.STEPS // fake.EVERY


def test_runs_that_differ_in_seed_method_or_machine_are_no_pair():
    other_seed = fake.make_point("blast", 0.95, execution="masked", seed=1)
    swap = fake.make_point("rigl_swap", 0.95, execution="masked")
    assert execution_pairs(table_of(SPARSEST, other_seed, swap)) == []
    here, there = table_of(SPARSEST), table_of(MASKED, hardware="nvidia-other")
    assert execution_pairs(pd.concat([here, there], ignore_index=True)) == []


def test_views_of_quality_use_only_the_auto_run_of_a_pair():
    table = table_of(*POINTS)
    assert set(table["point"]) - set(without_execution_variants(table)["point"]) == {MASKED.id}
    found = summarise(table, ("loss",))
    assert MASKED.id not in " ".join(found["config"])
    assert len(found[found["sparsity"] == 0.95]) == 2
    alone = table_of(DENSE, MASKED)
    assert len(without_execution_variants(alone)) == len(alone)


def test_execution_variants_are_missing_only_on_request(tmp_path):
    fake.write_runs(tmp_path / "study", skip=MASKED.id, models=("gpt2",))
    table = load_table(tmp_path / "study", tmp_path / "none")
    assert missing(table).empty
    assert list(missing(table, execution_variants=True)["point"]) == [MASKED.id]


def test_levers_teachers_and_lost_trials_are_left_out_and_small_dense_models_are_in():
    import fake_study

    records = [fake_study.make_record_of(point) for point in fake_study.points().values()]
    table = as_table([row for record in records for row in record_rows(record)])
    groups = {group[0].point.model: group for group in timed_runs(table)}
    names = {run.point.point.split("technical_text.")[1] for run in groups["gpt2"] if run.point.sparsity == 0.95}
    seeds = range(3)
    wanted = {f"blast.s95.b64.seed{seed}" for seed in seeds} | {"blast.s95.b64.seed0.steps1200"}
    wanted |= {f"small_dense.s95.ffn160.seed{seed}" for seed in seeds} | {"small_dense.s95.ffn448.seed0.live-width"}
    assert names == wanted | {"rigl_swap.s95.b64.seed0"}
    dense = reference_dense(groups["gpt2"])
    assert dense.point.point == "gpt2.technical_text.dense.seed0"
    short = next(run for run in groups["gpt2"] if run.point.point.endswith("blast.s95.b64.seed0.steps1200"))
    assert dense_of(short, groups["gpt2"]).point.point == "gpt2.technical_text.dense.seed0.steps1200"
