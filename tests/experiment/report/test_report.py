"""The report says what a grid came to, whatever happened to its points and whatever their records say."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import fake_records as fake
import pytest
import report_case
from report_case import FAILED, SKIPPED, draw_everything, mixed_grid, reported

from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.report.places import places_of, recorded_places
from blast.experiment.report.points import PointState, states_of, verdict_of
from blast.experiment.report.views import CATEGORIES, Table, as_html, read_picture, read_table, shown_views
from blast.files import write_json


def text_of(page: str) -> str:
    """The words of a page, as a reader sees them, without the links to its parts."""
    body = re.sub(r"<(head|nav)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    return reported(root, mixed_grid(root / "default"))


def test_the_first_page_tells_grid_verdict_claims_and_what_ran_where(page: str) -> None:
    words = text_of(page)
    order = ["default", "Failed points:", "1 failed", "1 not run", "Claims of the paper", "What ran where"]
    places = [words.index(each) for each in order]
    assert places == sorted(places)
    assert "inference-speed-up met up to 16.7 20.0 405B | 1 token" in words
    assert "cpu-imaginary-processor imaginary 0123abc" in words
    assert "2026-11-22 10:00" in words


def test_a_failed_point_has_its_cause_and_a_point_that_was_not_run_is_named(page: str) -> None:
    faults = text_of(page).partition("What is not good")[2].partition("Claims of the paper")[0]
    assert f"failed {FAILED} the loss became NaN at step 40; lower the learning rate." in faults
    assert f"1 points: {SKIPPED}" in faults
    assert "runs the failed points again" in faults


def test_every_figure_and_table_is_in_the_page_with_its_caption(page: str) -> None:
    words = text_of(page)
    captions = sorted((CHECKOUT / "workflow" / "report").glob("[!_]*.rst"))
    assert len(captions) > 25
    for caption in captions:
        first = re.sub(r"[`*]", "", caption.read_text()).partition(". ")[0]
        if caption.stem != "energy":
            assert " ".join(first.split()) in words, caption.stem
    assert page.count('src="data:image/png;base64,') == len(re.findall(r"<figure", page)) > 15


def test_tables_are_shown_with_all_their_cells(page: str) -> None:
    words = text_of(page)
    assert all(f"results_table {row} {row}.5 %" in words for row in range(100))
    assert "40 more rows are on the screen" in words


def test_a_figure_with_nothing_measured_is_named_and_not_shown(page: str) -> None:
    assert "Figures without anything measured yet: Energy of a token." in text_of(page)
    assert 'id="energy"' not in page


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    assert "default-src 'none'; img-src data:" in page
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:image/png|#)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_data_and_origin_have_digests_versions_and_the_lock(page: str) -> None:
    words = text_of(page).partition("Data and origin")[2]
    for each in ("pystdlib", "fashion_mnist", "sha256:d", "sha256:l", "torch 2.15.0"):
        assert each in words


@pytest.mark.slow
def test_the_same_files_give_the_same_report(tmp_path: Path) -> None:
    folder = mixed_grid(tmp_path / "default")
    assert reported(tmp_path, folder) == reported(tmp_path, folder)


def good_grid(folder: Path, *records: dict) -> Path:
    write_json(folder / "plan.json", [record["point"] for record in records])
    for record in records:
        write_json(folder / "records" / f"{record['point']['id']}.json", record)
    return folder


def test_a_grid_of_benchmarks_alone_has_a_report(tmp_path: Path) -> None:
    timed = [fake.make_benchmark_record("gpt2", sparsity, 3.0) for sparsity in (0.8, 0.9)]
    words = text_of(reported(tmp_path, good_grid(tmp_path / "default", *timed)))
    assert "All 2 points are good." in words
    assert "This grid uses no dataset." in words
    assert "What is not good" not in words


def test_a_report_without_a_table_of_claims_says_how_to_draw_it(tmp_path: Path) -> None:
    timed = fake.make_benchmark_record("gpt2", 0.8, 3.0)
    page = reported(tmp_path, good_grid(tmp_path / "default", timed), without=("claims", "pareto"))
    words = text_of(page)
    assert "The table of claims is not drawn. Run snakemake --cores 1 tables figures" in words
    assert "Not drawn, so not in this report: Claims of the paper, Quality by measured time." in words


def test_text_of_records_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> [here](javascript:alert(3)) `code`"
    point = fake.make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0)
    run = fake.run_part() | {"host": evil, "gpu": evil, "commit": evil, "lock": evil, "versions": {evil: evil}}
    record = make_record(point, status="failed", result={}, run=run, cause=evil)
    folder = good_grid(tmp_path / "default", record)
    draw_everything(tmp_path / "drawn")
    (tmp_path / "drawn" / "results_table.md").write_text(f"{evil}\n\n| {evil} |\n|---|\n| {evil} |\n")
    page = reported(tmp_path, folder, without=("results_table",))
    assert not re.findall(r"<(?:script|img src=x)", page)
    assert 'href="javascript' not in page
    assert "<script>alert(1)</script><img src=x onerror=alert(2)> [here](javascript:alert(3))" in html.unescape(page)


def test_a_dataset_name_of_a_record_leads_to_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    write_json(secret, {"status": "ok", "facts": {}, "settings": {"told": "a secret"}})
    point = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
    dataset = {"name": "../../secret", "digest": "sha256:d", "counts": {}}
    metrics = [{"metric": "top1", "unit": "fraction", "value": 0.9}]
    result = {"metrics": metrics, "dataset": dataset}
    record = make_record(point, status="ok", result=result, run=fake.run_part())
    assert "a secret" not in reported(tmp_path, good_grid(tmp_path / "default", record))


def test_a_bad_point_is_told_with_its_reason(tmp_path: Path) -> None:
    record, _ = fake.make_training_record(fake.make_point("vit-nano", "digits", "dense", 0.0, 0))
    metrics = [entry | {"value": 0.1} if entry["metric"] == "top1" else entry for entry in record["result"]["metrics"]]
    bad = make_record(
        Point.from_dict(record["point"]), status="ok", result=record["result"] | {"metrics": metrics}, run=record["run"]
    )
    (state,) = states_of(GridFolder(good_grid(tmp_path / "default", bad)))
    assert state.state == "bad"
    assert "guessing" in " ".join(state.causes)


def test_a_damaged_record_is_a_failure_and_nothing_is_moved(tmp_path: Path) -> None:
    folder = mixed_grid(tmp_path / "default")
    damaged = folder / "records" / "gpt2-nano.pystdlib.dense.seed0.json"
    damaged.write_text(damaged.read_text()[:100])
    before = sorted(file.relative_to(folder) for file in folder.rglob("*"))
    found = {each.point.id: each for each in states_of(GridFolder(folder))}
    assert found[damaged.stem].state == "failed"
    assert "damaged or half-written" in found[damaged.stem].causes[0]
    assert sorted(file.relative_to(folder) for file in folder.rglob("*")) == before


def test_a_failure_that_the_verdict_moved_aside_is_still_told(tmp_path: Path) -> None:
    folder = mixed_grid(tmp_path / "default")
    (folder / "failed").mkdir()
    (folder / "records" / f"{FAILED}.json").rename(folder / "failed" / f"{FAILED}.json")
    found = {each.point.id: each for each in states_of(GridFolder(folder))}
    assert (found[FAILED].state, found[SKIPPED].state) == ("failed", "not run")


def test_a_verdict_counts_each_state() -> None:
    point = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
    good, bad, failed = (PointState(point, state) for state in ("good", "bad", "failed"))
    assert verdict_of([good]) == ("good", "the only point is good")
    assert verdict_of([good, bad, good]) == ("bad", "of 3 points: 1 bad, 2 good")
    assert verdict_of([good, bad, failed]) == ("failed", "of 3 points: 1 failed, 1 bad, 1 good")


def test_points_are_grouped_by_machine_and_commit() -> None:
    point = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
    first, other = fake.run_part(), fake.run_part() | {"commit": "fed", "dirty": True, "wall_s": 7200}
    later = first | {"started": "2026-11-23T08:00:00+00:00", "finished": "2026-11-23T09:00:00+00:00", "wall_s": 3600}
    runs = [first, later, other, None]
    found = places_of([PointState(point, "good", run=run) for run in runs])
    assert [(place.code, place.points) for place in found] == [("0123abc", 2), ("fed with changes", 1)]
    assert (found[0].first, found[0].last) == ("2026-11-22 10:00", "2026-11-23 09:00")
    assert [place.work for place in found] == ["1 h 00 min", "2 h 00 min"]


def test_recorded_machines_are_told_and_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "runs.json", {"1": {"commit": "c", "date": "2026-11-23", "gpu": "G"}, "2": "?"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "runs.json").write_text("{")
    (place,) = recorded_places(tmp_path)
    assert (place.machine, place.gpu, place.runs, place.code, place.first) == ("a", "G", 1, "c", "2026-11-23")


def test_every_view_has_a_category(tmp_path: Path) -> None:
    views = shown_views(report_case.VIEWS, CHECKOUT / "workflow" / "report", tmp_path)
    assert {view.category for view in views} == set(CATEGORIES)
    assert all(view.caption for view in views)
    order = [CATEGORIES.index(view.category) for view in views]
    assert order == sorted(order)


def test_columns_of_numbers_are_set_to_the_right() -> None:
    table = Table("t", "T", "Quality", "", (), ("name", "value", "share"), (("a", "1.25×", "+3.1 %"), ("b", "–", "2")))
    assert table.kinds == ("", "number", "number")
    assert replace(table, rows=()).kinds == ("", "", "")


def test_a_table_in_markdown_is_read_as_plain_text() -> None:
    remarks, columns, rows = read_table("A *remark*.\n\n| a | b |\n|---|---|\n| x \\| y | **z** |\n| 1 | |\n")
    assert (remarks, columns) == (("A *remark*.",), ("a", "b"))
    assert rows == (("x | y", "**z**"), ("1", ""))
    assert read_table("") == ((), (), ())


def test_a_caption_becomes_html_and_includes_no_file() -> None:
    assert as_html("*Met* means `all` and ``None``.").count("<") == 8
    assert "root:" not in as_html(".. include:: /etc/passwd\n")


def test_what_is_no_picture_is_left_out() -> None:
    assert read_picture(b"<svg onload=alert(1)>") == (b"", (0, 0), "")


def test_the_verb_writes_the_report_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = fake.make_benchmark_record("gpt2", 0.8, 3.0)
    folder = good_grid(tmp_path / "grid", timed)
    draw_everything(tmp_path / "drawn")
    out = tmp_path / "sent" / "report.html"
    given = ["--grid-dir", str(folder), "--figures", str(tmp_path / "drawn"), "--out", str(out)]
    assert main(["report", str(CHECKOUT / "config" / "smoke.yaml"), *given]) == 0
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert f"written: {out}" in capsys.readouterr().out


def test_a_grid_that_was_never_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(BlastError, match=r"plan\.json: this plan does not exist; run the workflow again"):
        reported(tmp_path, tmp_path / "nothing")
