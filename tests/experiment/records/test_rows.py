"""Records become rows and rows become files, without loss and without surprise."""

from __future__ import annotations

import copy
import json

import fake_records as fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.records.export import CURVE_STEPS, export
from blast.experiment.records.point_facts import execution_facts
from blast.experiment.records.rows import (
    COLUMNS,
    read_grid,
    read_rows,
    record_rows,
    run_id,
    write_rows,
)


def make(method="blast", sparsity=0.95, seed=0, model="gpt2-nano", dataset="pystdlib"):
    return fake.make_training_record(fake.make_point(model, dataset, method, sparsity, seed))


def everything(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_metric_becomes_one_row_with_its_interval_and_its_place():
    record, language = make()
    rows = record_rows(record, language)
    (row,) = [row for row in rows if row["metric"] == "acc"]
    (source,) = [metric for metric in language["metrics"] if metric["metric"] == "acc"]
    assert set(row) == set(COLUMNS)
    assert (row["value"], row["low"], row["high"], row["n"]) == tuple(
        source[key] for key in ("value", "low", "high", "n")
    )
    assert (row["model"], row["method"], row["sparsity"], row["block"]) == ("gpt2-nano", "blast", 0.95, "16x16")
    assert (row["hardware"], row["date"]) == (fake.HARDWARE, record["run"]["started"].partition("T")[0])
    assert json.loads(row["setting"])["parent"] == "gpt2-nano.pystdlib.dense.seed0"


def test_a_curve_becomes_one_row_per_step():
    record, _ = make()
    held = [row for row in record_rows(record) if row["metric"] == "sparsity_achieved"]
    curve = record["result"]["curves"]["sparsity_achieved"]
    assert [(row["step"], row["value"]) for row in held] == list(zip(curve["step"], curve["value"], strict=True))


def test_language_metrics_of_another_record_are_left_out():
    record, language = make()
    with_them, stale = record_rows(record, language), record_rows(record, language | {"record_digest": "sha256:old"})
    assert len(with_them) - len(stale) == len(language["metrics"])


def test_a_failed_record_is_one_row_that_says_why():
    (row,) = record_rows(fake.make_failed_record(fake.make_point("gpt2-nano", "pystdlib", "random", 0.95, 0)))
    assert (row["status"], row["metric"], row["value"]) == ("failed", None, None)
    assert "NaN at step 40" in json.loads(row["setting"])["cause"]


def test_failed_language_metrics_leave_the_others_and_add_a_failed_row():
    record, language = make()
    rows = record_rows(record, language | {"status": "failed", "cause": "the requests are damaged."})
    assert [row["task"] for row in rows if row["status"] == "failed"] == ["language"]
    assert any(row["metric"] == "loss" for row in rows)


def test_run_and_date_are_the_same_for_all_points_of_a_process():
    first, second = make(seed=0)[0], make(seed=1)[0]
    second["run"] = {**second["run"], "wall_s": 99, "started": "2026-11-22T11:00:00+00:00"}
    assert first["point"]["id"] != second["point"]["id"]
    assert run_id(first) == run_id(second)
    second["run"]["commit"] = "another"
    assert run_id(first) != run_id(second)


@given(
    value=st.floats(allow_nan=False), n=st.none() | st.integers(0, 2**40), tied=st.none() | st.booleans(),
    unit=st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_rows_survive_the_file_exactly(tmp_path_factory, value, n, tied, unit):
    row = dict.fromkeys(COLUMNS) | {"value": value, "n": n, "tied": tied, "unit": unit, "setting": '{"a":"b,\\"c"}'}
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    write_rows(file, [row])
    assert read_rows(file) == [row]


def test_an_edited_file_of_rows_is_refused_with_its_name(tmp_path):
    file = tmp_path / "rows.csv"
    write_rows(file, record_rows(make()[0])[:2])
    text = file.read_text()
    file.write_text(text.replace("suite,", "suit,", 1))
    with pytest.raises(BlastError, match=r"rows.csv.*suit"):
        read_rows(file)
    file.write_text(text.rstrip("\n")[:-30])
    with pytest.raises(BlastError, match=r"line 3 is damaged"):
        read_rows(file)
    write_rows(file, [dict.fromkeys(COLUMNS) | {"setting": "[3]"}])
    with pytest.raises(BlastError, match=r"line 2 is damaged \(the setting is no object"):
        read_rows(file)


def test_exporting_twice_changes_nothing_and_order_does_not_matter(tmp_path):
    entries = [make(), make("dense", 0.0), (fake.make_benchmark_record("gpt2", 0.9, 4.0), None)]
    export(entries, tmp_path)
    before = everything(tmp_path)
    assert set(before) == {
        f"{fake.HARDWARE}/{n}" for n in ("accuracy.csv", "kernels.csv", "memory.csv", "training.csv", "runs.json")
    }
    export(reversed(entries), tmp_path)
    assert everything(tmp_path) == before
    for entry in entries:
        export([entry], tmp_path / "one by one")
    assert everything(tmp_path / "one by one") == before


def test_exporting_a_point_again_replaces_its_rows_and_leaves_the_others(tmp_path):
    record, language = make()
    export([(record, language), make("dense", 0.0)], tmp_path)
    folder = tmp_path / fake.HARDWARE
    again = copy.deepcopy(record)
    again["result"]["metrics"][0]["value"] = 9.5
    again["run"]["commit"] = "later"
    export([again], tmp_path)
    rows = [row for row in read_rows(folder / "accuracy.csv") if row["metric"] == "loss"]
    assert sorted(row["value"] for row in rows if row["method"] == "blast") == [9.5]
    assert len([row for row in rows if row["method"] == "dense"]) == 1
    runs = json.loads((folder / "runs.json").read_text())
    assert {run["commit"] for run in runs.values()} == {"later", "0123abc"}
    assert {row["run"] for name in folder.glob("*.csv") for row in read_rows(name)} == set(runs)


def test_a_failure_does_not_erase_what_was_measured(tmp_path):
    record, language = make()
    export([(record, language)], tmp_path)
    before = everything(tmp_path)
    export([fake.make_failed_record(fake.make_point("gpt2-nano", "pystdlib", "blast", 0.95, 0))], tmp_path)
    assert everything(tmp_path) == before


def test_exported_curves_are_thinned_and_keep_their_ends(tmp_path):
    record, language = make()
    steps = list(range(1000))
    record["result"]["curves"]["train_loss"] = {"unit": "nats/token", "step": steps, "value": [float(s) for s in steps]}
    export([(record, language)], tmp_path)
    rows = read_rows(tmp_path / fake.HARDWARE / "training.csv")
    kept = [row["step"] for row in rows if row["metric"] == "train_loss"]
    assert (kept[0], kept[-1]) == (0, 999)
    assert len(kept) <= CURVE_STEPS + 1


def test_a_record_without_hardware_is_refused_by_its_id(tmp_path):
    record, _ = make()
    record["run"]["hardware"] = "../elsewhere"
    with pytest.raises(BlastError, match=record["point"]["id"]):
        export([record], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_half_written_record_is_refused_by_its_file(tmp_path):
    record = make()[0]
    file = tmp_path / "records" / f"{record['point']['id']}.json"
    fake.write_json(file, record)
    assert list(read_grid(tmp_path))
    file.write_text(file.read_text()[:200])
    with pytest.raises(BlastError, match=file.name):
        list(read_grid(tmp_path))


def test_training_times_become_a_curve_and_do_not_change_the_run_id():
    record, _ = make()
    before = run_id(record)
    record["run"]["training_seconds"] = {
        "step": [99, 199],
        "value": [1.5, 2.75],
        "compiling": [0.5, 0.5],
        "updating": [0.1, 0.3],
    }
    assert run_id(record) == before
    found = [row for row in record_rows(record) if row["metric"] == "training_time"]
    assert [(row["step"], row["value"], row["unit"]) for row in found] == [(99, 1.5, "s"), (199, 2.75, "s")]
    compiling = [row["value"] for row in record_rows(record) if row["metric"] == "compile_time"]
    assert compiling == [0.5, 0.5]
    assert [row["value"] for row in record_rows(record) if row["metric"] == "mask_update_time"] == [0.1, 0.3]
    assert not [row for row in record_rows(make()[0]) if row["metric"] in ("training_time", "compile_time")]
    # Other points on the machine took a part of its time.
    record["run"]["side_by_side"] = 2
    assert not [row for row in record_rows(record) if row["metric"].endswith("_time")]


def test_rows_name_the_points_that_differ_only_in_execution():
    def facts(**changes):
        point = fake.make_point("gpt2-nano", "pystdlib", "blast", 0.95, 0).to_dict()
        point["sparsify"] = point["sparsify"] | {"execution": "auto"}
        return execution_facts({**point, **changes, "sparsify": point["sparsify"] | changes.pop("sparsify", {})})

    plain = facts()
    twin = facts(id="other", grid="other", parent="other", sparsify={"execution": "masked"})
    assert (plain["execution"], twin["execution"]) == ("auto", "masked")
    assert plain["same_but_execution"] == twin["same_but_execution"]
    for changes in ({"seed": 1}, {"sparsify": {"hold": 0.5}}, {"training": {"steps": 1}}, {"dataset": "digits"}):
        assert facts(**changes)["same_but_execution"] != plain["same_but_execution"]
    assert execution_facts(fake.make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0).to_dict()) == {}


def test_exported_stepwise_curves_keep_the_steps_of_each_change(tmp_path):
    record, _ = make()
    steps = list(range(0, 1000, 5))
    states = [float(300 <= step < 900) for step in steps]
    record["result"]["curves"]["sparse_execution"] = {"unit": "fraction", "step": steps, "value": states}
    export([record], tmp_path)
    rows = read_rows(tmp_path / fake.HARDWARE / "training.csv")
    kept = [(row["step"], row["value"]) for row in rows if row["metric"] == "sparse_execution"]
    assert kept == [(0, 0.0), (295, 0.0), (300, 1.0), (895, 1.0), (900, 0.0), (995, 0.0)]
