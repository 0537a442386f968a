from __future__ import annotations

from pathlib import Path

import pytest

from blast.experiment.plan import resources
from blast.experiment.plan.config import parse
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.progress import Progress, duration, progress_line
from blast.files import write_json


def config(**changes):
    benchmark = {"suite": "mlp", "shapes": ["gpt2"], "sparsity": [0.9], "blocks": [64], "tokens": [1]}
    return parse({"name": "m1", "benchmarks": [benchmark], **changes}, Path("m.yaml"))


@pytest.mark.parametrize(
    ("cores", "memory", "threads", "gb", "jobs"),
    [(8, 64.0, 1, 1.5, 8), (8, 4.0, 1, 1.5, 2), (2, 64.0, 1, 1.5, 2), (8, 64.0, 4, 1.5, 2), (1, 0.5, 4, 1.5, 1)],
)
def test_as_many_jobs_run_as_processors_and_memory_carry(monkeypatch, cores, memory, threads, gb, jobs):
    monkeypatch.setattr(resources, "usable_cores", lambda: cores)
    monkeypatch.setattr(resources, "usable_memory", lambda: memory)
    assert resources.jobs_at_once(config(threads=threads, memory_gb=gb)) == jobs


def test_the_machine_is_read_as_it_is():
    assert resources.usable_cores() >= 1
    assert 0.1 < resources.usable_memory() < 100_000


def test_durations_are_readable():
    assert [duration(s) for s in (41, 200, 3600 * 2 + 300)] == ["41 s", "3 min", "2 h 05 min"]


def finished(name: str, seconds: float = 30.0) -> dict:
    metrics = [{"metric": "top1", "value": 0.925}]
    return {
        "point": {"id": name, "stage": "train"},
        "status": "ok",
        "result": {"metrics": metrics},
        "run": {"wall_s": seconds},
    }


def test_a_progress_line_says_seconds_result_and_what_is_left():
    record = finished("b")
    assert progress_line(record, [30, 30], 6) == "b: 30 s, 92.5% top-1; 2 of 6 points, about 2 min of work left"
    assert progress_line(record, [30, 30], 6, at_once=2).endswith("about 2 min of work left, 60 s with 2 at once")
    assert progress_line(record, [30, 30], 3, at_once=2).endswith("about 30 s of work left")
    failed = record | {"status": "failed", "cause": "out of memory."}
    assert "FAILED: out of memory." in progress_line(failed, [], None)


def test_progress_counts_the_records_of_a_grid_or_the_points_of_a_job(tmp_path, capsys):
    folder = GridFolder(tmp_path)
    for name in ("other", "a"):
        write_json(folder.record(name), finished(name))
    for points, total in ((3, 6), (3, None), (1, None)):
        Progress(folder, points, total, at_once=1).tell(finished("a"), again=True)
    # A trained point of this kind is bad, which is told too.
    lines = capsys.readouterr().out.splitlines()
    grid, job, single = (line for line in lines if not line.startswith("BAD point a: "))
    assert len(lines) > 3
    assert grid.endswith("; 2 of 6 points, about 2 min of work left")
    assert job.endswith("; 1 of 3 points, about 60 s of work left")
    assert single == "a: already done, 92.5% top-1"
