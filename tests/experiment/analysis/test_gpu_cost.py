"""Prices are read with their sources, and costs are counts times prices."""

from __future__ import annotations

import pytest

from blast.architectures.gpus_needed import Serving
from blast.errors import BlastError
from blast.experiment.analysis.claims import judge
from blast.experiment.analysis.gpu_cost import (
    MEMORIES,
    SERVINGS,
    fewest_gpus,
    lowest_cost,
    lowest_price,
    need,
    read_gpu_prices,
)
from blast.experiment.analysis.paper_values import read_paper_values
from blast.experiment.records.table import as_table

HEADER = "gpu,memory_gb,dollars_per_hour,source,date,how_known\n"
MODEL = "llama-3.1-405b"


def test_every_price_has_a_source_and_a_date():
    prices = read_gpu_prices()
    assert {price.memory_gb for price in prices} >= set(MEMORIES)
    for price in prices:
        assert price.source.startswith("https://")
        assert len(price.date) == 10
        assert price.how_known


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A100,80,cheap,https://x,2026-01-01,list", "line 2 is not a valid price"),
        ("A100,80", "line 2 is not a valid price"),
        ("A100,80,0,https://x,2026-01-01,list", "line 2 needs numbers above 0, a source and a date"),
        ("A100,80,1.5,,2026-01-01,list", "line 2 needs numbers above 0, a source and a date"),
        ("A100,nan,1.5,https://x,2026-01-01,list", "line 2 needs numbers above 0, a source and a date"),
    ],
)
def test_a_wrong_price_is_one_sentence(line, message, tmp_path):
    file = tmp_path / "prices.csv"
    file.write_text(HEADER + line + "\n")
    with pytest.raises(BlastError, match=message):
        read_gpu_prices(file)


def test_a_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(BlastError, match=r"prices.csv: cannot be read .*; restore it from git"):
        read_gpu_prices(tmp_path / "prices.csv")


def test_the_lowest_price_of_a_memory_counts(tmp_path):
    file = tmp_path / "prices.csv"
    file.write_text(HEADER + "A,80,3,https://x,2026-01-01,list\nB,80,2,https://y,2026-01-02,list\n")
    prices = read_gpu_prices(file)
    assert lowest_price(prices, 80).gpu == "B"
    assert lowest_price(prices, 141) is None
    serving = Serving(batch=1, context=8192)
    found = need(MODEL, 0.95, serving, 80, prices)
    assert (found.gpus, found.dollars) == (4, 8.0)
    assert need(MODEL, 0.95, serving, 141, prices).dollars is None
    assert lowest_cost(MODEL, 0.0, serving, prices) == 2.0 * fewest_gpus(MODEL, 0.0, serving, 80)
    assert lowest_cost(MODEL, 0.0, serving, []) is None


def test_the_claim_about_gpus_is_computed_for_each_thing_served_and_never_met():
    (value,) = [value for value in read_paper_values() if value.id == "gpus"]
    findings = judge(value, as_table([]))
    assert [finding.verdict for finding in findings] == ["projected"] * len(SERVINGS)
    assert findings[0].ours == "4x GPUs; 4x cost"
    assert "80 GB: 16 to 4" in findings[0].setting
    assert findings[1].ours.startswith("2x to 4x GPUs")
    for finding, serving in zip(findings, SERVINGS, strict=True):
        assert str(serving) in finding.setting
        assert "not run on GPUs" in finding.setting


def test_the_claim_about_memory_names_the_ratio_with_the_cache():
    for value in read_paper_values():
        if value.id in ("memory_v1", "memory_v2"):
            (finding,) = judge(value, as_table([]))
            assert (finding.verdict, finding.ours) == ("projected", "4.38x")
            assert "with their indices" in finding.setting
            assert "2.96x (batch 32, context 8192)" in finding.setting
