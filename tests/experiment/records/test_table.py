"""One table of local and recorded rows, and what is derived from it."""

from __future__ import annotations

import dataclasses
import math

import fake_records as fake
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.analysis.comparison import at_chance, missing, relative_loss, summarise
from blast.experiment.analysis.ratio import ratios
from blast.experiment.analysis.recipe import accuracy_scores
from blast.experiment.plan.point import Point
from blast.experiment.records.export import export
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import COLUMNS, read_rows, record_rows, write_rows
from blast.experiment.records.table import FileMap, as_table, load_table, one_machine


def point(method="dense", sparsity=0.0, seed=0, model="vit-nano", dataset="digits"):
    return fake.make_point(model, dataset, method, sparsity, seed)


def scored(value, error=0.001, hardware=fake.HARDWARE, metric="top1", **which):
    """A record with one score."""
    record, _ = fake.make_training_record(point(**which), hardware)
    entry = {"metric": metric, "task": None, "unit": "fraction", "value": value, "n": 360, "better": "higher"}
    entry |= {"low": value - error, "high": value + error, "spread": "stderr"}
    entry["setting"] = {"chance": 0.1} if metric == "top1" else {}
    record["result"] = {"metrics": [entry], "sparsity": {"achieved": record["point"]["sparsity"]}}
    return record


def table_of(*records):
    return as_table([row for record in records for row in record_rows(record)])


def line(summary, **which):
    for key, value in which.items():
        summary = summary[summary[key] == value]
    (row,) = summary.itertuples(index=False)
    return row


def write(grid, record):
    fake.write_json(grid / "records" / f"{record['point']['id']}.json", resealed(record))


def resealed(record):
    return make_record(
        Point.from_dict(record["point"]), status=record["status"], result=record["result"], run=record["run"]
    )


ODD_TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(
    ["NA", "nan", "None", " ", "1", "1e3", "true", "0x1f", '"', "a,b", "#"]
)  # fmt: skip


@given(
    rows=st.lists(
        st.fixed_dictionaries({
            "value": st.none() | st.floats(allow_nan=False), "n": st.none() | st.integers(0, 2**53),
            "tied": st.none() | st.booleans(), "unit": ODD_TEXT, "model": ODD_TEXT, "date": ODD_TEXT,
            "setting": st.sampled_from([None, "{}", '{"point":"a,\\"b"}']),
        }),
        max_size=5,
    )
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_recorded_file_is_read_as_its_rows_are(tmp_path_factory, rows):
    """The table reads columns, everything else rows: both must see the same."""
    folder = tmp_path_factory.mktemp("recorded")
    rows = [dict.fromkeys(COLUMNS) | row for row in rows]
    (folder / "machine").mkdir()
    write_rows(folder / "machine" / "rows.csv", rows)
    read = read_rows(folder / "machine" / "rows.csv")
    assert read == rows
    table = load_table(folder / "nothing", folder)
    pd.testing.assert_frame_equal(table, as_table(read, source="recorded"), check_exact=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [lines[0].replace("suite,", "suit,"), *lines[1:]], "columns differ"),
        (lambda lines: [*lines[:-1], lines[-1].rsplit(",", 3)[0]], "line 3 is damaged"),
        (lambda lines: [*lines, lines[-1] + ",more"], "line 4 is damaged"),
        (lambda lines: [*lines, ",".join(["x"] * len(COLUMNS))], "line 4 is damaged"),
        (lambda lines: [*lines, "," * COLUMNS.index("setting") + "[3]" + "," * 4], "line 4 is damaged"),
        (lambda lines: [], "columns differ"),
    ],
    ids=["header", "short", "long", "no number", "setting", "empty"],
)
def test_a_damaged_recorded_file_is_refused_with_its_line(damage, said, tmp_path):
    export([scored(0.5), scored(0.6, seed=1)], tmp_path)
    (file,) = tmp_path.glob("*/accuracy.csv")
    file.write_text("".join(f"{line}\n" for line in damage(file.read_text().splitlines()[:3])))
    with pytest.raises(BlastError, match=f"accuracy.csv.*{said}"):
        load_table(tmp_path / "nothing", tmp_path)


def test_local_rows_replace_recorded_ones_of_the_same_point_and_machine(tmp_path):
    export([scored(0.5), scored(0.6, seed=1), scored(0.7, hardware="cpu-other")], tmp_path / "recorded")
    write(tmp_path / "default", scored(0.9))
    table = load_table(tmp_path / "default", tmp_path / "recorded")
    found = {(row.point[-5:], row.hardware, row.source, row.value) for row in table.itertuples()}
    assert found == {
        ("seed0", fake.HARDWARE, "local", 0.9),
        ("seed1", fake.HARDWARE, "recorded", 0.6),
        ("seed0", "cpu-other", "recorded", 0.7),
    }


def test_without_records_the_table_is_empty_but_has_its_columns(tmp_path):
    table = load_table(tmp_path / "missing", tmp_path / "also missing")
    assert table.empty
    assert {"metric", "source", "grid", "point", "config"} <= set(table.columns)
    assert summarise(table).empty
    assert ratios(table, "latency").empty
    assert missing(table).empty
    assert one_machine(table).empty


def plan(grid, *points):
    fake.write_json(grid / "plan.json", [planned.to_dict() for planned in points])


def test_failed_and_unrun_points_are_rows_of_their_own(tmp_path):
    grid = tmp_path / "default"
    plan(grid, *(point(seed=seed) for seed in (0, 1, 2)))
    write(grid, scored(0.9, seed=0))
    fake.write_json(grid / "records" / f"{point(seed=1).id}.json", fake.make_failed_record(point(seed=1)))
    lost = missing(load_table(grid, tmp_path / "recorded"))
    assert dict(zip(lost["seed"], lost["status"], strict=True)) == {1: "failed", 2: "not run"}
    assert "NaN" in line(lost, seed=1).cause


def test_a_record_moved_to_failed_is_shown_until_there_is_a_newer_one(tmp_path):
    grid = tmp_path / "default"
    plan(grid, point())
    fake.write_json(grid / "failed" / f"{point().id}.json", fake.make_failed_record(point()))
    assert list(load_table(grid, tmp_path)["status"]) == ["failed"]
    write(grid, scored(0.9))
    assert list(load_table(grid, tmp_path)["status"]) == ["ok"]


def test_records_of_an_earlier_plan_are_skipped(tmp_path):
    grid = tmp_path / "default"
    write(grid, scored(0.9))
    write(grid, scored(0.8, seed=1))
    assert len(load_table(grid, tmp_path)) == 2
    longer = dataclasses.replace(point(), training={**point().training, "steps": 1800})
    plan(grid, longer, point(seed=2))
    assert set(load_table(grid, tmp_path)["status"]) == {"not run"}
    assert len(load_table(grid, tmp_path)) == 2


def test_a_point_recorded_on_another_machine_is_not_called_not_run(tmp_path):
    plan(tmp_path / "default", point())
    export([scored(0.9, hardware="cpu-other")], tmp_path / "recorded")
    assert set(load_table(tmp_path / "default", tmp_path / "recorded")["status"]) == {"ok"}


@pytest.mark.parametrize(("start", "tokens"), [("published", 0), ("pretrained", fake.STEPS * 32)])
def test_what_is_pruned_at_once_was_trained_on_the_tokens_of_its_parent(start, tokens):
    dense, *pruned = scored(0.9), *(scored(0.8, method="one_shot", sparsity=sparsity) for sparsity in (0.5, 0.8))
    dense["point"]["start"] = start
    for record in pruned:
        record["point"]["start"] = "parent"
    scores = accuracy_scores(table_of(dense, *pruned))
    assert {(row.start, row.trained) for row in scores.itertuples()} == {(start, tokens)}
    # So a figure draws them and their dense model in one panel.
    assert list(scores["usual"]) == [True] * 3


def test_a_curve_never_mixes_two_machines():
    here, there = scored(0.9), [scored(0.8, hardware="cpu-other", seed=seed) for seed in (0, 1)]
    recorded = as_table([row for record in there for row in record_rows(record)], source="recorded")
    both = pd.concat([recorded, table_of(here)], ignore_index=True)
    assert set(one_machine(both)["hardware"]) == {fake.HARDWARE}
    assert set(one_machine(recorded)["hardware"]) == {"cpu-other"}


def test_relative_loss_is_of_the_seeds_own_parent_and_positive_when_worse():
    table = table_of(scored(0.90), scored(0.80, seed=1), scored(0.81, method="blast", sparsity=0.95),
                     scored(0.76, method="blast", sparsity=0.95, seed=1))  # fmt: skip
    row = line(summarise(table), method="blast")
    assert (row.relative_lowest, row.relative_highest) == (pytest.approx(5.0), pytest.approx(10.0))
    assert row.relative == pytest.approx(7.5)
    assert row.seeds == 2


def test_more_bits_per_byte_are_a_loss():
    dense = scored(2.0, metric="bits_per_byte") | {}
    dense["result"]["metrics"][0]["better"] = "lower"
    pruned = scored(2.1, metric="bits_per_byte", method="blast", sparsity=0.95)
    pruned["result"]["metrics"][0]["better"] = "lower"
    assert line(summarise(table_of(dense, pruned)), method="blast").relative == pytest.approx(5.0)


@given(dense=st.floats(0.1, 10), lost=st.floats(-0.5, 0.5))
@settings(deadline=None, max_examples=40)
def test_relative_loss_gives_back_the_share_that_was_lost(dense, lost):
    assert relative_loss(dense * (1 - lost), dense, higher=True) == pytest.approx(100 * lost, abs=1e-6)
    assert relative_loss(dense * (1 + lost), dense, higher=False) == pytest.approx(100 * lost, abs=1e-6)


def test_a_score_within_two_standard_errors_of_chance_is_at_chance():
    assert at_chance(0.28, 0.02, 0.25)
    assert not at_chance(0.30, 0.02, 0.25)
    assert at_chance(0.10, 0.02, 0.25)
    assert not at_chance(2.1, 0.02, math.nan)


def test_a_score_at_chance_enters_no_relative_loss():
    table = table_of(
        scored(0.9), scored(0.11, 0.01, method="one_shot", sparsity=0.95), scored(0.5, method="blast", sparsity=0.95)
    )
    summary = summarise(table)
    assert line(summary, method="one_shot").at_chance
    assert math.isnan(line(summary, method="one_shot").relative)
    assert not math.isnan(line(summary, method="blast").relative)
    # The same where the dense model itself has learnt nothing.
    summary = summarise(table_of(scored(0.11, 0.01), scored(0.5, method="blast", sparsity=0.95)))
    assert math.isnan(line(summary, method="blast").relative)


def test_a_gap_smaller_than_the_seed_spread_is_within_noise():
    dense = [scored(0.90), scored(0.92, seed=1)]
    close, far = scored(0.90, method="blast", sparsity=0.7), scored(0.88, method="blast", sparsity=0.9)
    summary = summarise(table_of(*dense, close, far))
    assert line(summary, sparsity=0.7).within_noise is True
    assert line(summary, sparsity=0.9).within_noise is False
    alone = summarise(table_of(dense[0], close))
    assert line(alone, sparsity=0.7).within_noise is None


def test_bits_per_byte_of_lm_eval_are_taken_before_ours():
    record, language = fake.make_training_record(point("blast", 0.95, model="gpt2-nano", dataset="pystdlib"))
    summary = summarise(as_table(record_rows(record, language)), ("bits_per_byte",))
    assert list(summary["task"]) == ["pystdlib_heldout"]
    summary = summarise(as_table(record_rows(record)), ("bits_per_byte",))
    assert list(summary["task"].isna()) == [True]


def test_speed_ups_divide_timings_of_the_same_record_and_tokens():
    slow = fake.make_benchmark_record("gpt2", 0.95, 2.0)
    fast = fake.make_benchmark_record("gpt2", 0.95, 8.0, "nvidia-h100", gpu="NVIDIA H100")
    found = ratios(table_of(slow, fast), "latency")
    assert len(found) == 6
    at_512 = {row.hardware: (row.ratio, bool(row.gpu)) for row in found.itertuples() if row.tokens == 512}
    assert at_512 == {fake.HARDWARE: (pytest.approx(2.0), False), "nvidia-h100": (pytest.approx(8.0), True)}
    assert ((found["low"] < found["ratio"]) & (found["ratio"] < found["high"])).all()


def test_an_interpreted_kernel_has_no_speed_up():
    record = fake.make_benchmark_record("gpt2", 0.95, 2.0, "nvidia-h100", gpu="NVIDIA H100")
    for metric in record["result"]["metrics"]:
        metric["setting"] = {"interpreter": True}
    assert ratios(table_of(record), "latency").empty


def test_memory_is_divided_into_that_of_the_dense_parent():
    dense, pruned = fake.make_training_record(point())[0], fake.make_training_record(point("blast", 0.95))[0]
    (row,) = ratios(table_of(dense, pruned), "mlp_bytes").itertuples()
    assert row.ratio == pytest.approx(1 / (0.05 * 1.02), rel=1e-3)
    assert ratios(table_of(pruned), "mlp_bytes").empty


def test_the_files_of_a_table_are_not_copied_with_it(tmp_path):
    """pandas copies `attrs` at each operation, which took most of the time of a table with many points."""
    table = load_table(tmp_path / "grid", tmp_path / "recorded")
    assert set(table.attrs) == {"masks", "items", "last_masks", "folders"}
    for name, files in table.attrs.items():
        assert table.copy()[:0].attrs[name] is files
        with pytest.raises(TypeError):
            files["point"] = "file"


def test_a_map_of_files_is_one_of_its_entries():
    files = FileMap({("grid", "point"): "a file"})
    assert dict(files) == {("grid", "point"): "a file"}
    assert (len(files), files["grid", "point"], files.get("none", 3)) == (1, "a file", 3)
