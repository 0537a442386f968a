"""Trials of a learning rate: validation chooses, the test metric judges."""

from __future__ import annotations

import dataclasses

import fake_study as fake
import pandas as pd
import pytest

from blast.experiment.analysis.comparison import summarise
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table

ID = "gpt2.technical_text.{}.seed{}{}"


def table_of(*records):
    return as_table([row for record in records for row in record_rows(record)])


def dense(rate, seed=0, validation=1.0, test=1.0, curve=3.0, status="ok", variant=None):
    """A record of a dense trial with these scores."""
    base = fake.points()[ID.format("dense", 0, "")]
    suffix = f".lr{rate:g}" if variant is None else variant
    point = dataclasses.replace(base, id=ID.format("dense", seed, suffix), seed=seed,
                                training={**base.training, "learning_rate": rate})  # fmt: skip
    record = fake.make_record_of(point)
    if status != "ok":
        return make_record(point, status=status, result={}, run=record["run"], cause="the loss became NaN.")
    values = {"bits_per_byte": test, "validation_bits_per_byte": validation}
    metrics = [m | {"value": values[m["metric"]]} for m in record["result"]["metrics"] if values.get(m["metric"])]
    curves = record["result"]["curves"]
    curves["validation_loss"]["value"] = [curve] * len(curves["validation_loss"]["step"])
    return record | {"result": record["result"] | {"metrics": metrics, "curves": curves}}


def summary_of(*records):
    (row,) = summarise(table_of(*records), ("bits_per_byte",)).itertuples(index=False)
    return row


def test_validation_chooses_and_the_test_metric_judges_even_if_another_trial_tests_better():
    row = summary_of(dense(6e-4, validation=1.2, test=0.9), dense(9e-4, validation=1.1, test=1.0))
    assert (row.value, row.learning_rate, row.trials) == (1.0, 9e-4, 2)
    assert (row.chosen_by, row.choice) == ("validation_bits_per_byte", 1.1)


def test_trials_are_compared_over_the_seeds_that_all_of_them_have():
    more = [dense(9e-4, seed, validation=2.0, test=1.5) for seed in (1, 2)]
    row = summary_of(dense(6e-4, validation=1.2), dense(9e-4, validation=1.1, test=1.0), *more)
    assert (row.learning_rate, row.seeds, row.choice) == (9e-4, 3, 1.1)
    assert row.value == pytest.approx(4 / 3)


def test_a_failed_trial_counts_and_is_left_out():
    table = chosen_trials(table_of(dense(6e-4), dense(2.4e-3, status="failed")))
    assert set(table["status"]) == {"ok"}
    assert set(table["trials"]) == {2}


def test_where_every_trial_failed_the_failures_stay():
    table = chosen_trials(table_of(dense(6e-4, status="failed"), dense(9e-4, status="failed")))
    assert list(table["status"]) == ["failed", "failed"]


def test_without_validation_scores_the_last_value_of_the_curve_chooses():
    row = summary_of(dense(6e-4, validation=None, curve=2.5), dense(9e-4, validation=None, curve=2.6))
    assert (row.learning_rate, row.chosen_by, row.choice) == (6e-4, "validation_loss", 2.5)


def test_a_run_that_has_two_names_is_one_seed():
    row = summary_of(dense(6e-4, variant=""), dense(6e-4, test=5.0))
    assert (row.seeds, row.value, row.trials) == (1, 1.0, 1)


def test_choosing_twice_changes_nothing():
    once = chosen_trials(table_of(dense(6e-4), dense(9e-4, validation=0.9)))
    pd.testing.assert_frame_equal(chosen_trials(once), once)


def test_levers_teachers_and_lengths_are_no_trials(study_summary):
    blast = study_summary[(study_summary["method"] == "blast") & (study_summary["model"] == "gpt2")]
    at_95 = blast[blast["sparsity"] == 0.95]
    assert sorted(zip(at_95["trials"], at_95["config"], strict=True)) == [
        (1, "gpt2.technical_text.blast.s95.b64.constant-growth"),
        (1, "gpt2.technical_text.blast.s95.b64.cosine"),
        (1, "gpt2.technical_text.blast.s95.b64.dense-start"),
        (1, "gpt2.technical_text.blast.s95.b64.steps1200"),
        (1, "gpt2.technical_text.blast.s95.b64.taught"),
        (3, "gpt2.technical_text.blast.s95.b64"),
    ]


def test_a_pruned_model_is_compared_with_the_best_dense_and_not_with_its_parent(study_summary):
    """The best without a teacher, of as many tokens: not the one of a cosine, which is the parent of a lever."""
    (row,) = study_summary[study_summary["config"] == "gpt2.technical_text.blast.s95.b64.cosine"].itertuples()
    assert row.dense_config == "gpt2.technical_text.dense"
    assert row.relative == pytest.approx(4 + 2.6, abs=0.5)
    (row,) = study_summary[study_summary["config"] == "gpt2.technical_text.dense.cosine"].itertuples()
    assert row.relative == pytest.approx(4, abs=0.5)
    (row,) = study_summary[study_summary["config"] == "gpt2.technical_text.blast.s95.b64.steps1200"].itertuples()
    assert row.dense_config == "gpt2.technical_text.dense.steps1200"


def test_what_prunes_a_trained_model_started_where_that_one_started(study_summary):
    one_shot = study_summary[study_summary["method"] == "one_shot"]
    assert set(one_shot["start"]) == {"scratch"}
    assert one_shot["relative"].notna().all()


@pytest.fixture(scope="module")
def study_summary():
    records = [fake.make_record_of(point) for point in fake.points().values()]
    return summarise(table_of(*records), ("bits_per_byte",))
