from __future__ import annotations

from pathlib import Path

import pytest

from blast.experiment.plan import resources
from blast.experiment.plan.config import parse
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.progress import duration, progress_line
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


def test_a_progress_line_says_seconds_result_and_what_is_left(tmp_path):
    folder = GridFolder(tmp_path)
    for name in "ab":
        metrics = [{"metric": "top1", "value": 0.925}]
        record = {"point": {"id": name}, "status": "ok", "result": {"metrics": metrics}, "run": {"wall_s": 30.0}}
        write_json(folder.record(name), record)
    assert progress_line(folder, record, 6) == "b: 30 s, 92.5% top-1; 2 of 6 points, about 2 min of work left"
    failed = record | {"status": "failed", "cause": "out of memory."}
    assert "FAILED: out of memory." in progress_line(folder, failed, None)
