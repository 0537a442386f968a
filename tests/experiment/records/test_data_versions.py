"""Points that were trained on other data are never compared, whatever the name of their dataset."""

from __future__ import annotations

import fake_records as fake
import pandas as pd
import pytest

from blast.experiment.analysis.comparison import summarise
from blast.experiment.compare.worth import _variant
from blast.experiment.records.data_versions import split_version, with_versions
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table
from paper_figures.views import _style

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def rows(method: str, sparsity: float, seed: int, data: str | None) -> list[dict]:
    record, _ = fake.make_training_record(fake.make_point("gpt2-nano", "pystdlib", method, sparsity, seed))
    record["result"]["dataset"] = {"name": "pystdlib", "digest": data} if data else None
    return record_rows(record)


def table_of(*points: tuple):
    return with_versions(as_table([row for point in points for row in rows(*point)]))


def test_a_pruned_model_is_not_compared_with_dense_of_other_data():
    table = table_of(("dense", 0.0, 0, OLD), ("dense", 0.0, 1, OLD), ("blast", 0.8, 0, OLD), ("blast", 0.95, 0, NEW))
    found = summarise(table)
    found = found[found["method"] == "blast"].drop_duplicates("sparsity").set_index("sparsity")
    assert found.loc[0.8, "dense_config"] == "gpt2-nano.pystdlib.dense"
    assert pd.isna(found.loc[0.95, "dense_config"])
    assert found.loc[0.95, "dataset"] == "pystdlib#bbbbbbbb"


def test_it_is_compared_with_dense_of_its_own_data():
    both = [("dense", 0.0, 0, OLD), ("blast", 0.8, 0, OLD), ("dense", 0.0, 1, NEW), ("blast", 0.8, 1, NEW)]
    found = summarise(table_of(*both))
    pruned = found[found["method"] == "blast"].drop_duplicates("config")
    # Two seeds of one configuration, but of two texts: no mean of them.
    assert sorted(zip(pruned["dataset"], pruned["dense_config"], pruned["seeds"], strict=True)) == [
        ("pystdlib", "gpt2-nano.pystdlib.dense", 1),
        ("pystdlib#bbbbbbbb", "gpt2-nano.pystdlib#bbbbbbbb.dense", 1),
    ]
    assert {_variant(row) for row in pruned.itertuples()} == {""}


@pytest.mark.parametrize("data", [OLD, None])
def test_what_says_nothing_of_its_data_belongs_to_the_version_of_most_points(data):
    table = table_of(("dense", 0.0, 0, OLD), ("blast", 0.8, 0, data), ("blast", 0.9, 0, data))
    assert set(table["dataset"]) == {"pystdlib"}
    assert split_version("pystdlib") == ("pystdlib", "")


def test_a_curve_is_of_the_version_of_its_point():
    table = table_of(("dense", 0.0, 0, OLD), ("blast", 0.8, 0, OLD), ("blast", 0.95, 0, NEW))
    assert table["step"].notna().any()
    assert set(table[table["sparsity"] == 0.95]["dataset"]) == {"pystdlib#bbbbbbbb"}


def test_a_picture_names_the_version():
    assert _style.dataset_label("technical_text#bbbbbbbb") == "technical English, data bbbbbbbb"
    assert _style.dataset_label("technical_text@gpt2#bbbbbbbb") == "technical English, data bbbbbbbb"
