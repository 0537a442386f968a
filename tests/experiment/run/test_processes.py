"""Points trained by two processes over gloo, as a job starts them: the same result, and every fault is reported."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
from patience import PATIENCE, wait_until
from test_job import SPARSIFY, TRAINING, dense, point, start
from workflow_place import Place, grid

from blast.experiment.plan.paths import OUTCOME, TRAINING_STATE, GridFolder
from blast.experiment.records.record import read_record
from blast.experiment.run.job import run_points

TWO = TRAINING | {"processes": 2}
LONG = {"training": TWO | {"steps": 100_000}, "sparsify": SPARSIFY | {"steps": 100_000}}


def short(name: str, processes: int, parallel: str = "average", **sparsify):
    training = TRAINING | {"steps": 20, "processes": processes, "parallel": parallel}
    return point(id=name, training=training, sparsify=SPARSIFY | {"steps": 20} | sparsify)


def ranks_of(job: int) -> dict[int, int]:
    """The processes that train under a job, by rank: children of the torchrun that is its child."""
    found = {}
    for agent in _children(job):
        for worker in _children(agent):
            variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
            found |= {int(v.split(b"=")[1]): worker for v in variables if v.startswith(b"RANK=")}
    return found


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_except_for_rounding(tmp_path):
    folder = GridFolder(tmp_path)
    # DDP, and masked-dense with averaged gradients, differ by a line; tests/training/test_parallel.py has them.
    points = [short("one", 1), short("two", 2, execution="sparse"), short("two-in-parts", 2, "fully_shard")]
    assert run_points(points, folder, tmp_path / "log", total=3) == 0
    one, *others = (read_record(folder.record(p.id))["result"] for p in points)
    for two in others:
        assert two["sparsity"] == one["sparsity"]
        assert two["parameters"] == one["parameters"]
        for name, curve in one["curves"].items():
            if name == "sparse_execution":
                continue
            assert two["curves"][name]["step"] == curve["step"]
            assert two["curves"][name]["value"] == pytest.approx(curve["value"], rel=1e-4)
        ours, theirs = ({m["metric"]: m["value"] for m in result["metrics"]} for result in (two, one))
        # Rounding may move an image or two of the 360 over the edge, and a compressed header by some bytes.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=0.01)
    assert [two["curves"]["sparse_execution"]["value"][-1] for two in others] == [1.0, 0.0]
    assert sorted(f.name for f in folder.work("two").iterdir()) == sorted(f.name for f in folder.work("one").iterdir())
    log = (tmp_path / "log").read_text()
    # The first process alone speaks, and torchrun has nothing to say.
    assert log.count("== two\n") == log.count("== one\n") == 1
    assert log.count("step 20 of 20") == 3
    assert "Error" not in log


@pytest.mark.fault(
    fault="One of several training processes dies.",
    topic="Signals and processes",
    happens="The others end. The point has a failed record, and the next run resumes.",
    reads=(
        "one of the … training processes died (the log names it), often for lack of memory, and "
        "the others were ended; run again, with a smaller 'batch' if memory ran out: it resumes "
        "from its last state."
    ),
    lost="the steps since the last saved state, which are done again",
)
@pytest.mark.slow
def test_a_killed_process_ends_the_training_and_the_next_run_resumes(tmp_path, reads):
    steps = {"training": TWO | {"steps": 250}, "sparsify": SPARSIFY | {"steps": 250}}
    one, other = point(**steps), dense(training=TRAINING | {"steps": 5})
    job = start(tmp_path / "b", one, other)
    folder = GridFolder(tmp_path / "b")
    state = folder.work(one.id) / TRAINING_STATE
    wait_until(state.is_file)
    ranks = ranks_of(job.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait(PATIENCE) == 0
    record = read_record(folder.record(one.id))
    assert record["status"] == "failed"
    assert record["cause"].startswith("one of the 2 training processes died (the log names it)")
    assert "it resumes from its last state" in record["cause"]
    assert "\n" not in record["cause"]
    reads(record["cause"])
    assert "(SIGKILL)" in (tmp_path / "b" / "log").read_text()
    assert not any(map(_alive, ranks.values()))
    assert read_record(folder.record(other.id))["status"] == "ok", "the rest of the job has to run"
    assert state.is_file()

    assert start(tmp_path / "b", one, other).wait(PATIENCE) == 0
    assert "resuming at step" in (tmp_path / "b" / "log").read_text()
    assert start(tmp_path / "a", one).wait(PATIENCE) == 0
    expected = read_record(GridFolder(tmp_path / "a").record(one.id))
    assert expected["status"] == "ok"
    assert read_record(folder.record(one.id))["result"] == expected["result"]
    assert not state.exists()


# What goes wrong in the second process alone, and the sentence that tells it.
FAULTS = {
    "return whole(batch) * float('nan') if batch.is_floating_point() else whole(batch)": "the loss is nan at step 0",
    "raise MemoryError": "out of memory; use a smaller batch",
    "raise RuntimeError('broken')": "RuntimeError: broken (the log holds the traceback).",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_process_stops_all_with_its_own_cause(tmp_path, monkeypatch, fault):
    code = (
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import blast.training.launch as processes\n"
        "    whole = processes.local_batch\n"
        "    def local_batch(batch):\n"
        f"        {fault}\n"
        "    processes.local_batch = local_batch\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    folder = GridFolder(tmp_path / "grid")
    assert run_points([short("faulty", 2)], folder, tmp_path / "log") == 1
    assert FAULTS[fault] in read_record(folder.record("faulty"))["cause"]
    assert not (folder.work("faulty") / OUTCOME).exists()


@pytest.mark.slow
def test_no_process_outlives_a_killed_job_and_one_process_does_not_resume_the_state_of_two(tmp_path):
    folder = GridFolder(tmp_path)
    job = start(tmp_path, point(**LONG))
    state = folder.work(point().id) / TRAINING_STATE
    wait_until(state.is_file)
    everything = [*_children(job.pid), *ranks_of(job.pid).values()]
    assert len(everything) == 3
    os.kill(job.pid, signal.SIGKILL)
    job.wait(PATIENCE)
    wait_until(lambda: not any(map(_alive, everything)))
    assert not folder.record(point().id).exists()

    alone = point(training=TRAINING | {"steps": 20}, sparsify=SPARSIFY | {"steps": 20})
    assert torch.load(state, weights_only=True)["world_size"] == 2
    assert run_points([alone], folder, tmp_path / "log") == 0
    assert "this training state is from 2 processes and this run has 1; starting anew" in (tmp_path / "log").read_text()
    assert read_record(folder.record(alone.id))["result"]["curves"]["train_loss"]["step"][0] == 0


@pytest.mark.parametrize(
    ("gpus", "words", "asked"),
    [
        ("", (), [0]),
        pytest.param("0,1", (), [1, 2], marks=pytest.mark.slow),
        pytest.param("0", (), [0, 1], marks=pytest.mark.slow),
        ("0", ("--resources", "gpus=4"), [1, 2]),
    ],
)
def test_the_workflow_asks_for_gpus_where_there_are_any(tmp_path, gpus, words, asked):
    place = Place(tmp_path / "grid")
    values = grid("two")
    values["training"]["default"]["processes"] = 2
    alone = {**values["grid"][0], "variant": "alone", "training": {"processes": 1}}
    place.write({**values, "grid": [values["grid"][0], alone], "points_per_job": {}})
    said = place.run("points", "--dry-run", "--workflow-profile", "none", *words, CUDA_VISIBLE_DEVICES=gpus)
    assert said.returncode == 0, said.stderr
    assert (
        sorted({int(number) for number in re.findall(r"resources: .*\bgpus=(\d+)", said.stdout + said.stderr)}) == asked
    )
