"""Verdicts follow their rules, and small models never meet a claim about large ones."""

from __future__ import annotations

import math
from typing import get_args

import fake_records as fake
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.analysis.claims import Verdict, compare, judge, majority
from blast.experiment.analysis.paper_values import FILE, read_paper_values
from blast.experiment.analysis.recipe import weight_ratio
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table

VALUES = {value.id: value for value in read_paper_values()}


@pytest.fixture(scope="module")
def nano():
    rows = []
    for point in fake.default_points():
        rows += record_rows(*fake.make_training_record(point))
    for model in ("gpt2", "llama-3.2-1b"):
        rows += record_rows(fake.make_benchmark_record(model, 0.95, 30.0))
    return as_table(rows)


def timed(model, speed, suite, gpu="NVIDIA H100"):
    hardware = "nvidia-h100" if gpu else fake.HARDWARE
    return as_table(record_rows(fake.make_benchmark_record(model, 0.95, speed, hardware, gpu, suite)))


def test_an_interval_decides_only_when_it_lies_on_one_side():
    assert compare(1.7, 1.9, 1.6, at_least=True) == "met"
    assert compare(1.2, 1.5, 1.6, at_least=True) == "not met"
    assert compare(1.5, 1.7, 1.6, at_least=True) == "undecided"
    assert compare(math.nan, math.nan, 1.6, at_least=True) == "undecided"
    assert compare(1.0, 2.0, 2.25, at_least=False) == "met"
    assert compare(2.5, 3.0, 2.25, at_least=False) == "not met"


def test_a_majority_needs_more_than_half_beyond_the_noise():
    sure, over, close = (1.0, 0.2), (4.0, 0.2), (2.2, 0.3)
    assert majority([sure, sure, over], 2.25) == "met"
    assert majority([sure, over], 2.25) == "not met"
    assert majority([sure, close, over], 2.25) == "undecided"
    assert majority([sure, sure, over], 2.25, unknown=1) == "undecided"
    assert majority([(1.0, math.nan)] * 3, 2.25) == "undecided"
    assert majority([], 2.25, unknown=3) == "not run"


@given(
    losses=st.lists(st.tuples(st.floats(-5, 20), st.floats(0, 2)), min_size=1, max_size=9),
    unknown=st.integers(0, 4), revealed=st.lists(st.floats(-5, 20), min_size=4, max_size=4),
    shifts=st.lists(st.floats(-1, 1), min_size=9, max_size=9),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_noise_and_missing_points_cannot_reverse_a_decided_majority(losses, unknown, revealed, shifts):
    verdict = majority(losses, 2.25, unknown)
    # Strictly inside the noise, to avoid rounding at its ends.
    true = [loss + 0.99 * shift * noise for (loss, noise), shift in zip(losses, shifts, strict=False)] + revealed[
        :unknown
    ]
    holds = 2 * sum(loss < 2.25 for loss in true) > len(true)
    assert verdict in ("met", "not met", "undecided")
    if verdict != "undecided":
        assert holds == (verdict == "met")


LARGE = ("mlp_kernel", "inference", "inference_many_gpus", "pretraining", "energy", "gpt2_xl", "qwen3")


@pytest.mark.parametrize("name", LARGE)
def test_nano_models_and_cpu_timings_leave_the_large_claims_not_run(nano, name):
    (finding,) = judge(VALUES[name], nano)
    assert finding.verdict == "not run"
    assert finding.ours == "–"


def test_a_claim_about_gpus_says_that_cpu_timings_do_not_count(nano):
    (finding,) = judge(VALUES["mlp_kernel"], nano)
    assert "CPU timings" in finding.setting


def test_the_majority_claim_is_judged_on_our_grid_and_says_so(nano):
    (finding,) = judge(VALUES["loss"], nano)
    assert "of 16 under 2.25 %" in finding.ours
    assert "at 95 %: 0 of 4" in finding.ours
    assert "grid default" in finding.setting
    assert "gpt2-nano" in finding.setting


def test_failed_points_can_make_a_majority_undecided(nano):
    pruned = nano[(nano["method"] == "dense") | (nano["sparsity"] < 0.85)]
    assert judge(VALUES["loss"], pruned)[0].verdict == "met"
    failed = nano[(nano["method"] == "blast") & (nano["sparsity"] > 0.85)].drop_duplicates("point")
    failed = failed.assign(status="failed", metric=None)
    finding = judge(VALUES["loss"], pd.concat([pruned, failed]))[0]
    assert finding.verdict == "undecided"
    assert "8 more without a loss" in finding.ours


@pytest.mark.parametrize(("speed", "verdict"), [(2.0, "met"), (1.2, "not met"), (1.62, "undecided")])
def test_a_claim_is_judged_on_its_own_model_on_a_gpu(speed, verdict):
    (finding,) = judge(VALUES["inference"], timed("llama-3.2-1b", speed, "inference"))
    assert finding.verdict == verdict
    assert judge(VALUES["inference"], timed("llama-3.1-8b", speed, "inference"))[0].verdict == "not run"
    assert judge(VALUES["inference"], timed("llama-3.2-1b", speed, "mlp"))[0].verdict == "not run"
    assert judge(VALUES["inference"], timed("llama-3.2-1b", speed, "inference", gpu=None))[0].verdict == "not run"


def test_a_sparsity_without_a_target_is_not_run_and_one_below_its_target_is_not_met(nano):
    assert judge(VALUES["sparsity"], nano)[0].verdict == "met"
    assert judge(VALUES["sparsity"], nano[nano["sparsity"] < 0.92])[0].verdict == "not run"
    missed = nano.assign(achieved_sparsity=nano["achieved_sparsity"] * 0.97)
    assert judge(VALUES["sparsity"], missed)[0].verdict == "not met"


def test_one_gpu_does_not_decide_a_claim_about_sixteen():
    assert judge(VALUES["inference_many_gpus"], timed("llama-3.1-405b", 3.0, "inference"))[0].verdict == "not run"


def test_a_calculated_value_is_projected_and_not_met():
    (finding,) = judge(VALUES["memory_v1"], as_table([]))
    assert (finding.verdict, finding.ours) == ("projected", "4.38x")


def test_the_weight_ratio_is_one_for_a_dense_model_and_none_for_an_unknown_one():
    assert weight_ratio("llama-3.1-405b", 0.0) == 1.0
    assert weight_ratio("llama-3.1-405b", 0.95) == pytest.approx(4.38, abs=0.01)
    assert weight_ratio("no-such-model", 0.95) is None


def test_every_value_of_the_paper_gets_a_known_verdict_even_without_results():
    for value in VALUES.values():
        for finding in judge(value, as_table([])):
            assert finding.verdict in get_args(Verdict)
            assert finding.verdict in ("not run", "projected")


def test_a_paper_value_with_an_unknown_rule_is_rejected_with_the_nearest(tmp_path):
    file = tmp_path / "paper_values.csv"
    file.write_text(FILE.read_text().replace(",majority,", ",majorty,"))
    with pytest.raises(BlastError, match=r"line 3.*did you mean 'majority'"):
        read_paper_values(file)


def test_levers_teachers_and_trials_that_lost_do_not_count_for_the_majority():
    import fake_study

    records = [fake_study.make_record_of(point) for point in fake_study.points().values()]
    (finding,) = judge(VALUES["loss"], as_table([row for record in records for row in record_rows(record)]))
    # GPT-2 at three sparsities, ViT at two, and the longest runs of the pretrained model at three.
    assert "of 8 under 2.25 %" in finding.ours
    assert "1 to 3 seeds a point, against the best dense model" in finding.setting


def test_a_point_of_which_one_seed_failed_is_no_point_without_a_loss(nano):
    pruned = nano[(nano["method"] == "dense") | (nano["sparsity"] < 0.85)]
    one = pruned[pruned["method"] == "blast"].head(1)
    failed = one.assign(status="failed", metric=None, point="another seed", seed=1)
    finding = judge(VALUES["loss"], pd.concat([pruned, failed]))[0]
    assert finding.verdict == "met"
    assert "without a loss" not in finding.ours
