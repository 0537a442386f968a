"""Points of one job that run side by side, one a GPU. The GPUs are names, and the children sleep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fake_worker
import pytest
from patience import PATIENCE

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records import state
from blast.experiment.records.record import read_record
from blast.experiment.run import child, job
from blast.experiment.run.gpus import GpuHold, visible_gpus
from blast.experiment.run.job import run_points
from blast.experiment.run.schedule import Schedule, needs_first
from blast.files import write_json


def point(name: str, processes: int = 1, **values) -> Point:
    data = {key: values.pop(key) for key in ("seconds", "meets", "fails", "dies") if key in values}
    values = {"stage": "train", "dataset": "digits", "training": {"processes": processes}} | values
    return Point(id=name, grid="t", architecture="vit-nano", data=data, **values)


def benchmark(name: str) -> Point:
    return point(name, stage="benchmark", dataset=None, benchmark={"suite": "kernels"})


@pytest.fixture
def machine(monkeypatch, tmp_path) -> GridFolder:
    """A machine with two GPUs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    monkeypatch.setattr(child, "worker_command", fake_worker.command)
    for module in (job, state):
        monkeypatch.setattr(module, "fingerprint", lambda point: "code")
    folder = GridFolder(tmp_path / "grid")
    folder.root.mkdir()
    return folder


def spans(folder: GridFolder) -> dict[str, tuple[float, float, str]]:
    """Start, end and GPUs of each point."""
    found: dict[str, list] = {}
    for line in (folder.root / "journal.txt").read_text().splitlines():
        what, name, when, gpus = line.split()
        found.setdefault(name, [None, None, gpus])[what == "end"] = float(when)
    return {name: tuple(span) for name, span in found.items()}


def overlap(one: tuple, two: tuple) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def test_points_run_side_by_side_and_no_gpu_is_used_twice_at_once(machine, capsys):
    points = [point("p0", meets="p1"), point("p1", meets="p0"), *(point(f"p{n}", seconds=0.05) for n in (2, 3, 4))]
    assert run_points(points, machine, machine.root / "log", total=5) == 0
    ran = spans(machine)
    assert {gpus for _, _, gpus in ran.values()} == {"5", "GPU-7"}
    names = sorted(ran)
    for one in names:
        for two in names:
            assert one == two or ran[one][2] != ran[two][2] or not overlap(ran[one], ran[two])
    for name in names:
        record = read_record(machine.record(name))
        assert record["run"]["gpus_held"] == ran[name][2]
        # The last ones may run alone.
        assert record["run"].get("side_by_side", 1) in ((2,) if name in ("p0", "p1") else (1, 2))
        assert "side_by_side" not in record["result"]
        log = machine.root / record["log"]
        assert log.read_text() == f"== {name}\n"
        assert f" {name}: starts on GPU {ran[name][2]}, log {log}\n" in (machine.root / "log").read_text()
    # The fake points have no metric, so each of them is bad, which is told too.
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("BAD point ")]
    assert sorted(line.partition(":")[0] for line in lines) == names
    assert "3 of 5 points" in lines[2]
    assert lines[2].endswith("with 2 at once")
    assert lines[4].endswith("5 of 5 points, none left")


def test_a_point_runs_after_those_that_it_needs(machine):
    points = [
        point("learner", teacher="dense"),
        point("once", start="parent", parent="dense"),
        point("dense", meets="other", seconds=0.1),
        point("other", meets="dense"),
    ]
    assert run_points(points, machine, machine.root / "log") == 0
    ran = spans(machine)
    assert min(ran["learner"][0], ran["once"][0]) > ran["dense"][1]


def test_one_job_at_once_runs_points_in_one_process_in_the_order_of_their_needs(machine):
    points = [point("once", start="parent", parent="dense"), point("dense")]
    assert run_points(points, machine, machine.root / "log", jobs=1) == 0
    assert (machine.root / "log").read_text() == "== dense\n== once\n"
    run = read_record(machine.record("once"))["run"]
    assert not {"side_by_side", "gpus_held"} & set(run)
    assert spans(machine)["once"][2] == "5,GPU-7"


@pytest.mark.fault(
    fault="The process of a point is killed (`kill -9`, or by the system).",
    topic="Signals and processes",
    happens="The point has a failed record. Others run, and the next run repeats it.",
    reads="the process was killed (signal 9), often for lack of memory; run fewer jobs at once or lower 'batch'.",
    lost="nothing of the other points",
)
def test_a_failed_point_fails_those_that_need_it_and_no_other(machine, reads):
    learner = point("learner", teacher="dense")
    points = [learner, point("dense", fails="no data."), point("killed", dies=9), point("good")]
    assert run_points(points, machine, machine.root / "log") == 3
    records = {one.id: read_record(machine.record(one.id)) for one in points}
    assert records["dense"]["cause"] == "no data."
    assert records["learner"]["cause"] == "its parent 'dense' failed."
    assert records["killed"]["cause"].startswith("the process was killed (signal 9)")
    reads(records["killed"]["cause"])
    assert records["good"]["status"] == "ok"
    # The next run repeats the failed ones alone.
    again = [learner, point("dense"), point("killed"), point("good")]
    done = machine.record("good").read_bytes()
    assert run_points(again, machine, machine.root / "log") == 0
    assert machine.record("good").read_bytes() == done


def test_a_training_of_several_processes_waits_for_its_gpus_and_benchmarks_run_alone(machine):
    points = [benchmark("b0"), point("t0", meets="t1"), point("wide", 2), benchmark("b1"), point("t1", meets="t0")]
    assert run_points(points, machine, machine.root / "log") == 0
    ran = spans(machine)
    for alone in ("b0", "wide", "b1"):
        assert ran[alone][2] == "5,GPU-7"
        assert not any(overlap(ran[alone], span) for name, span in ran.items() if name != alone)
    # Both benchmarks ran in one process.
    assert read_record(machine.record("b0"))["log"] == read_record(machine.record("b1"))["log"]


def test_points_of_two_jobs_that_run_at_once_are_marked_too(machine):
    other = GpuHold(visible_gpus(), 1)
    assert other.take()
    assert run_points([point("p0"), point("p1")], machine, machine.root / "log", jobs=1, own_gpus=True) == 0
    other.release()
    run = read_record(machine.record("p1"))["run"]
    assert (run["gpus_held"], run["side_by_side"]) == ("GPU-7", 2)


def test_a_job_waits_for_gpus_that_another_one_holds(machine, capsys):
    other = GpuHold(visible_gpus(), 2)
    assert other.take()
    job_of_two = threading.Thread(target=run_points, args=([point("p0"), point("p1")], machine, machine.root / "log"))
    job_of_two.start()
    deadline, said = time.monotonic() + PATIENCE, ""
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
        said = capsys.readouterr().out
    assert said == "waiting for 1 of 1 GPUs, which other jobs hold\n"
    assert not (machine.root / "journal.txt").exists()
    other.release()
    job_of_two.join(PATIENCE)
    assert {gpus for _, _, gpus in spans(machine).values()} <= {"5", "GPU-7"}
    assert len(spans(machine)) == 2


def test_benchmarks_run_side_by_side_if_each_is_told_to_hold_its_own_gpu():
    points = [benchmark("b0"), benchmark("b1")]
    assert Schedule.of(None, 2).next(points, []) == points
    assert Schedule.of(None, 2, own_gpus=True).next(points, []) == points[:1]
    assert Schedule.of(None, 2, own_gpus=True).next(points[1:], [points[:1]]) == points[1:]


def test_jobs_on_the_cpu_run_side_by_side_if_asked_to(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    points = [point("p0", meets="p1"), point("p1", meets="p0")]
    assert run_points(points, machine, machine.root / "log", jobs=2) == 0
    assert read_record(machine.record("p0"))["run"]["side_by_side"] == 2
    assert Schedule.of(None, 0).jobs == 1


def test_more_jobs_than_gpus_and_points_that_need_each_other_are_one_sentence(machine):
    with pytest.raises(BlastError, match="3 jobs at once need 3 GPUs, one each, and 2 can be seen; write '--jobs 2'"):
        run_points([point("p0")], machine, machine.root / "log", jobs=3)
    with pytest.raises(BlastError, match="the points 'a', 'b' need each other's checkpoints"):
        needs_first([point("a", teacher="b"), point("b", teacher="a")])


@pytest.mark.parametrize("needs", [{"teacher": "dense"}, {"start": "parent", "parent": "dense"}])
def test_a_point_whose_parent_or_teacher_is_missing_is_refused_before_anything_runs(machine, needs):
    with pytest.raises(BlastError, match="the point 'p0' needs the checkpoint of 'dense', which has no record in"):
        run_points([point("first"), point("p0", **needs)], machine, machine.root / "log")
    assert not (machine.root / "journal.txt").exists()
    # A parent that is for comparison alone is not needed.
    assert run_points([point("p0", parent="dense")], machine, machine.root / "log") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_children_and_frees_their_gpus(machine, number):
    files = []
    for name in ("p0", "p1", "p2"):
        write_json(machine.root / f"{name}.json", point(name, seconds=900).to_dict())
        files.append(str(machine.root / f"{name}.json"))
    code = (
        "import sys, tempfile\n"
        f"tempfile.tempdir = {tempfile.gettempdir()!r}\n"
        "from test_side_by_side import child, fake_worker, job\n"
        "child.worker_command = fake_worker.command\n"
        "job.fingerprint = lambda point: 'code'\n"
        "from blast.experiment.cli import main\n"
        f"sys.exit(main(['job', *{files!r}, '--out', {str(machine.root)!r}]))\n"
    )
    folders = [str(Path(file).parent) for file in (__file__, fake_worker.__file__)]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    journal, deadline = machine.root / "journal.txt", time.monotonic() + PATIENCE
    while not (journal.is_file() and len(journal.read_text().splitlines()) == 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) == 2
    running.send_signal(number)
    told, said = (text.decode() for text in running.communicate(timeout=PATIENCE))
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert said == ("blast: stopped; what is done is kept, and the same command goes on from there.\n" * (number == 2))
    assert ("stopped by SIGTERM: 3 points left; " in told) == (number == signal.SIGTERM)
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a child outlives its job"
        time.sleep(0.02)
    assert not list(machine.root.glob("records/*"))
    hold = GpuHold(visible_gpus(), 2)
    assert hold.take()
    hold.release()


def test_a_worker_without_the_gpu_that_was_held_for_it_refuses_to_run(machine, monkeypatch):
    from blast.experiment.run.worker import outcome_of

    outcome = outcome_of(point("p0"), machine, gpus=1)
    assert outcome["status"] == "failed"
    assert "torch can use 0 of them; set CUDA_VISIBLE_DEVICES to GPUs that torch can use" in outcome["cause"]
