"""`blast compare`: what differs between two sides, each key and each value once, with a test that says its name."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import fake_records as fake
import numpy as np
import pytest

import paper_figures
from blast.evaluation.item_scores import HELD_OUT, ItemScores, write_item_scores
from blast.experiment.cli import main
from blast.experiment.compare import code
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.records.export import export_grid
from blast.experiment.records.record import make_record, write_record
from blast.files import file_digest

POINT = fake.make_point("vit-nano", "digits", "blast", 0.8, 0)


def write(folder: Path, nats, seed: int = 0, steps: int = 900, data: str | None = None, **run) -> Path:
    """A record with the scores of its items, in a grid of its own."""
    grid = GridFolder(folder)
    point = fake.make_point("gpt2-nano", "pystdlib", "blast", 0.8, seed)
    point.training["steps"] = steps
    nats = np.asarray(nats, dtype=float)
    items = grid.work(point.id) / "items.npz"
    write_item_scores(items, {HELD_OUT: ItemScores.of_texts(nats, [10] * len(nats), 4 * len(nats), "sha256:1")}, {})
    metrics = [{"metric": "bits_per_byte", "value": nats.sum() / np.log(2) / 10 / len(nats), "unit": "bits/byte"},
               {"metric": "weights_bytes", "value": 1000, "unit": "bytes"}]  # fmt: skip
    result = {"metrics": metrics, "artifacts": {"items": {"path": "items.npz", "digest": file_digest(items)}}}
    if data:
        result["dataset"] = {"name": "pystdlib", "digest": data}
    write_record(grid, make_record(point, status="ok", result=result, run=fake.run_part() | run))
    return grid.record(point.id)


def compare(capsys, *arguments) -> str:
    assert main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_two_runs_differ_in_a_key_and_in_their_items(tmp_path, capsys):
    random = np.random.default_rng(1)
    nats = random.normal(20, 3, 64)
    first = write(tmp_path / "a", nats)
    second = write(tmp_path / "b", nats + random.normal(0.6, 0.5, 64), steps=450)
    out = compare(capsys, first, second, "--json", tmp_path / "found.json")
    assert "training.steps  900  450  1 of 1" in out
    assert "Machine and packages: no difference" in out
    assert "paired t-test over items, n = 64" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["key"] for each in found["settings"]] == ["training.steps"]
    bits, weights = found["results"]
    assert bits["metric"] == "bits_per_byte"
    assert bits["significant"]
    assert bits["n"] == 64
    assert weights["test"] == "equal"
    assert weights["p"] is None


def test_two_runs_on_two_versions_of_a_dataset_say_so(tmp_path, capsys):
    first, second = (write(tmp_path / name, [1.0] * 40, data=f"sha256:{name * 64}") for name in "ab")
    assert "dataset_digest  aaaaaaaaaaaa  bbbbbbbbbbbb  1 of 1" in compare(capsys, first, second)
    assert "dataset_digest" not in compare(capsys, first, first)
    export_grid(first.parent.parent, tmp_path / "recorded")
    (recorded,) = (tmp_path / "recorded").iterdir()
    assert "dataset_digest  aaaaaaaaaaaa  bbbbbbbbbbbb  1 of 1" in compare(capsys, recorded, second.parent.parent)


def test_without_items_and_with_one_seed_there_is_too_little_to_test(tmp_path, capsys):
    first, second = write(tmp_path / "a", [1.0] * 40), write(tmp_path / "b", [2.0] * 40)
    for file in (tmp_path).rglob("items.npz"):
        file.unlink()
    assert "too few to test (1 seed; 3 are needed)" in compare(capsys, first, second)


def test_a_grid_equals_its_copy(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    shutil.copytree(grid, tmp_path / "copy")
    out = compare(capsys, "default", "copy", "--results", tmp_path)
    assert "48 pairs of points, of the same id; 0 only in A, 0 only in B" in out
    assert "Settings: no difference" in out
    assert "Code: no difference" in out
    assert "values are equal" in out
    assert "too few" not in out
    assert "p =" not in out


def test_seeds_of_a_configuration_are_tested_together(tmp_path, capsys):
    for seed, gap in ((0, 1.0), (1, 1.5), (2, 1.2)):
        write(tmp_path / "a", [10.0 + seed] * 40, seed)
        write(tmp_path / "b", [10.0 + seed + gap] * 40, seed)
    for file in tmp_path.rglob("items.npz"):
        file.unlink()
    out = compare(capsys, tmp_path / "a", tmp_path / "b")
    assert "(paired t-test over seeds, n = 3; 95 %: +" in out


def test_points_that_only_one_grid_has_are_counted(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    shutil.copytree(grid, tmp_path / "copy")
    sorted((tmp_path / "copy" / "records").glob("*.json"))[0].unlink()
    assert "47 pairs of points, of the same id; 1 only in A, 0 only in B" in compare(capsys, grid, tmp_path / "copy")


def test_a_failed_point_is_told_with_its_cause(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    shutil.copytree(grid, tmp_path / "copy")
    record = fake.make_failed_record(POINT)
    write_record(GridFolder(tmp_path / "copy"), record)
    out = compare(capsys, grid, tmp_path / "copy")
    assert f"{POINT.id}: A ok, B failed; the loss became NaN at step 40" in out


def test_a_recorded_machine_is_compared_with_a_grid(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    export_grid(grid, tmp_path / "recorded")
    out = compare(capsys, grid, tmp_path / "recorded" / fake.HARDWARE)
    assert "48 pairs of points, of the same id" in out
    assert "by their digests all settings are equal in 48 of 48 pairs" in out
    assert "Settings: no difference" in out


def test_a_commit_stands_for_what_it_measured(tmp_path, capsys):
    write(tmp_path / "a", [1.0] * 40, commit="0123abc0")
    write(tmp_path / "b", [2.0] * 40, commit="4567def0")
    out = compare(capsys, "0123abc0", "4567def0", "--results", tmp_path)
    assert "A: commit 0123abc0 (1 point)" in out
    assert "1 pair of points" in out
    assert "0123abc0  4567def0" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["defalt", "default"], "unknown run, grid, commit or machine 'defalt'; did you mean 'default'?"),
        (["default"], "'default' is compared with what? Give two: `blast compare A B`, or `paper`."),
    ],
)
def test_a_side_that_is_not_there_is_one_sentence(arguments, words, tmp_path, capsys):
    fake.write_grid(tmp_path / "default")
    assert main(["compare", *arguments, "--results", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_an_id_in_two_grids_asks_for_the_file(tmp_path, capsys):
    write(tmp_path / "a", [1.0])
    name = write(tmp_path / "b", [1.0]).stem
    assert main(["compare", name, name, "--results", str(tmp_path)]) == 2
    assert f"'{name}' has a record in 2 grids; give the file" in capsys.readouterr().err


def git(folder: Path, *arguments: str) -> str:
    given = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(given, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_the_definitions_that_changed_between_two_commits_are_named(tmp_path, monkeypatch):
    """In a copy of the sources with a history of its own: an edit of the schedule, and one of a comment."""
    for path in code.PACKAGES.values():
        shutil.copytree(CHECKOUT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "CHECKOUT", tmp_path)
    git(tmp_path, "init", "-q")
    commits = []
    schedule = tmp_path / "src" / "blast" / "sparsity" / "schedule.py"
    for old, new in (("", ""), ("power = 3 if", "power = 4 if"), ("power = 4 if", "# A comment.\n    power = 4 if")):
        schedule.write_text(schedule.read_text().replace(old, new, 1) if old else schedule.read_text())
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", new or "first")
        commits.append(git(tmp_path, "rev-parse", "HEAD"))
    first, second, third = commits
    assert code.changed_definitions(first, second, POINT.to_dict()) == {"blast.sparsity.schedule": ["target_sparsity"]}
    assert code.changed_definitions(second, third, POINT.to_dict()) == {}
    assert code.changed_definitions(first, first, POINT.to_dict()) == {}
    assert code.changed_definitions(first, "0" * 40, POINT.to_dict()) is None


def test_the_paper_is_compared_once_and_then_remembered(tmp_path, capsys, monkeypatch):
    from blast.experiment.analysis import judged_claims

    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    grid = fake.write_grid(tmp_path / "default")
    empty = tmp_path / "recorded"
    out = compare(capsys, "paper", grid, "--recorded", empty)
    assert "memory_v2: Inference memory below dense; paper: 4.45x" in out
    assert "12 claims" in out
    monkeypatch.setattr(judged_claims, "_judge", lambda *_: pytest.fail("judged again"))
    assert compare(capsys, "paper", grid, "--recorded", empty) == out
    next((grid / "records").glob("*.json")).unlink()
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        main(["compare", "paper", str(grid), "--recorded", str(empty)])


def test_the_table_of_claims_and_the_command_judge_once(tmp_path, capsys, monkeypatch):
    """After a grid has drawn its tables, the command answers at once."""
    from blast.experiment.analysis import judged_claims
    from blast.experiment.records.table import load_table

    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    grid, empty = fake.write_grid(tmp_path / "default"), tmp_path / "recorded"
    rows = paper_figures.load("claims").rows(load_table(grid, empty))
    monkeypatch.setattr(judged_claims, "_judge", lambda *_: pytest.fail("judged again"))
    out = compare(capsys, "paper", grid, "--recorded", empty)
    assert f"12 claims, {len(rows)} findings" in out
