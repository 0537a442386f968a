"""What the workflow plans of a finished grid: nothing, or what changed. A dry run writes and deletes nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import finished_grid as finished
import pytest
from workflow_place import VIEWS, Place

from blast.experiment.plan.paths import GridFolder

# A dry run takes three seconds, and much longer beside a full load.
pytestmark = pytest.mark.timeout(900)
GRID = GridFolder(Path("results/done"))
DRAWN = Path("drawn")
DENSE = "vit-nano.digits.dense.seed0"
FIGURES = ("accuracy_vs_sparsity", "training_curves")


@pytest.fixture
def done(tmp_path, monkeypatch) -> Place:
    """A folder with the workflow and a finished grid."""
    place = Place(tmp_path / "it's done")
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.STORE)
    values = finished.values("done", figures=str(DRAWN))
    finished.write_finished(values, GRID, Path("paper_figures/views"), DRAWN, Path("results/recorded"))
    place.write(values)
    return place


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Bytes and time of every file of the results and the pictures."""
    files = [file for part in ("results", "drawn") for file in (folder / part).rglob("*") if file.is_file()]
    return {file.relative_to(folder): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def planned(place: Place, *targets: str) -> dict[str, int]:
    """Jobs by rule, as a dry run counts them; it has to leave every file as it was."""
    before = content(place.folder)
    answer = place.run(*(targets or ("all",)), "-n")
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    assert content(place.folder) == before
    if "Nothing to be done" in said:
        return {}
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said.rpartition("Job stats:")[2], re.M)}


@pytest.mark.fault(
    fault="The results were copied.",
    topic="What a run plans",
    happens="Nothing is planned.",
    lost="nothing",
)
def test_a_grid_that_is_finished_or_was_copied_plans_nothing(done, tmp_path, monkeypatch):
    assert planned(done) == {}
    assert planned(done, "points", "drawn/claims.md") == {}
    copy = object.__new__(Place)
    copy.folder, copy.python = tmp_path / "copy", done.python
    shutil.copytree(done.folder, copy.folder, copy_function=shutil.copy, symlinks=True)
    monkeypatch.chdir(copy.folder)
    assert planned(copy) == {}


@pytest.mark.slow
@pytest.mark.fault(
    fault="The config was changed, and `snakemake -n` is asked.",
    topic="What a run plans",
    happens="It counts the jobs of the change. No file is written or deleted.",
    lost="nothing",
)
def test_one_sparsity_more_plans_the_jobs_of_its_points(done):
    values = finished.values("done", figures=str(DRAWN))
    values["grid"][0]["sparsity"] = [0, 0.7, 0.8, 0.9]
    done.write(values)
    views = len(VIEWS)
    assert planned(done) == {
        "used_config": 1, "point": 1, "mlflow": 1, "view_keys": 1, "figure": len(FIGURES),
        "table": views - len(FIGURES), "verdict": 1, "all": 1, "total": 6 + views,
    }  # fmt: skip
    assert planned(done, "points") == {"used_config": 1, "point": 1, "points": 1, "total": 3}


@pytest.mark.slow
@pytest.mark.fault(
    fault="A table or a picture was removed, or is of another grid.",
    topic="What a run plans",
    happens="It alone is drawn again.",
    lost="nothing",
)
def test_what_is_missing_or_damaged_is_planned_and_nothing_else(done):
    (done.folder / "drawn" / "claims.md").unlink()
    (done.folder / "drawn" / "training_curves.png").write_bytes(b"of another grid")
    assert planned(done) == {"view_keys": 1, "table": 1, "figure": 1, "verdict": 1, "all": 1, "total": 5}
    # Asked for by name, one view alone is drawn from the records there are.
    record = done.folder / GRID.record(DENSE)
    record.write_bytes(record.read_bytes()[:100])
    assert planned(done, "drawn/claims.md") == {"view_keys": 1, "table": 1, "total": 2}
    assert planned(done, "points") == {"point": 1, "points": 1, "total": 2}


def test_more_items_of_a_task_plan_the_evaluation(done):
    done.write(finished.values("done", figures=str(DRAWN), evaluation={"items": 30}))
    jobs = planned(done)
    assert {rule: jobs.get(rule) for rule in ("requests", "point", "language", "mlflow", "prepare", "benchmark")} == {
        "requests": 1, "point": 1, "language": 1, "mlflow": 1, "prepare": None, "benchmark": None,
    }  # fmt: skip


@pytest.mark.slow
def test_a_view_that_is_missing_is_drawn_and_the_next_run_has_nothing_to_do(done):
    missing = done.folder / "drawn" / "claims.md"
    missing.unlink()
    before = {file: entry for file, entry in content(done.folder).items() if file.suffix == ".json"}
    answer = done.run("all")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert missing.is_file()
    after = content(done.folder)
    changed = {file for file in before if after.get(file) != before[file]}
    assert changed == {Path("results/done/views/claims.json")}
    assert planned(done) == {}
