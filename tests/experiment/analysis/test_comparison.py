"""Scores of pruned models beside dense, in the cases where a ratio means nothing."""

from __future__ import annotations

import math

import fake_records as fake

from blast.experiment.analysis.comparison import summarise
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table


def words_given(point, value: float):
    """Rows of a point that gives this share of LAMBADA's words, which has no level of chance."""
    record, _ = fake.make_training_record(point)
    error = math.sqrt(value * (1 - value) / 5153)
    entry = {
        "metric": "acc", "task": "lambada", "unit": "fraction", "value": value, "low": value - error,
        "high": value + error, "spread": "stderr", "n": 5153, "better": "higher", "setting": {},
    }  # fmt: skip
    record["result"] = record["result"] | {"metrics": [entry], "curves": {}}
    return record_rows(record)


def test_a_dense_model_without_any_right_answer_has_no_relative_loss():
    dense, pruned = (fake.make_point("gpt2-nano", "pystdlib", *rest, 0) for rest in (("dense", 0.0), ("blast", 0.95)))
    for theirs, ours in ((0.0, 0.0), (0.0, 0.1)):
        table = as_table([*words_given(dense, theirs), *words_given(pruned, ours)])
        row = summarise(table).set_index("method").loc["blast"]
        assert (row["value"], row["dense"]) == (ours, theirs)
        assert math.isnan(row["relative"])
