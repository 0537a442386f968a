"""A training tells its steps while it runs; nothing that goes wrong with the telling reaches the training."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run import system_metrics
from blast.experiment.run.step_file import read_lines, tell_steps
from blast.experiment.run.system_metrics import SystemMetrics, readers_of_this_machine

POINT = Point(id="p1", grid="tiny", stage="train", architecture="gpt2-nano", dataset="pystdlib", training={"steps": 9})


def test_each_step_can_be_read_while_the_training_runs_and_stays_after_it(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    folder.work("p1").mkdir(parents=True)
    with tell_steps(POINT, folder) as watch:
        watch(1, {"loss": 2.5, "train_loss": 2.5})
        first, offset = read_lines(folder.live("p1"))
        watch(2, {"loss": 2.0})
        second, end = read_lines(folder.live("p1"), offset)
    begin = first[0]["begin"]
    assert (begin["point"], begin["digest"], begin["steps"]) == ("p1", POINT.digest, 9)
    assert (first[1]["step"], first[1]["loss"], first[1]["curves"]) == (1, 2.5, {"train_loss": 2.5})
    assert [(line["step"], line["loss"], "curves" in line) for line in second] == [(2, 2.0, False)]
    assert end > offset
    assert not folder.live("p1").exists()
    assert len(read_lines(folder.told("p1"))[0]) >= 3


def test_the_file_of_a_training_that_failed_stays_where_live_ones_are(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), tell_steps(POINT, folder):
        raise ZeroDivisionError
    assert folder.live("p1").is_file()


@pytest.mark.fault(
    fault="The file with the steps of a training cannot be written.",
    topic="Disks, outputs and commands",
    happens="The training goes on, and nobody sees its steps before its end.",
    reads="cannot be written (…), so nobody sees the steps of this training; it goes on.",
    lost="nothing",
)
def test_a_file_that_cannot_be_written_ends_the_telling_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reads
) -> None:
    (tmp_path / "live").write_text("in the way")
    with tell_steps(POINT, GridFolder(tmp_path)) as watch:
        watch(1, {"loss": 1.0})
        watch(2, {"loss": 1.0})
    said = capsys.readouterr().out
    reads(said)
    assert said.count("\n") == 1


def test_of_several_processes_the_others_tell_nothing(tmp_path: Path) -> None:
    with tell_steps(POINT, GridFolder(tmp_path), tells=False) as watch:
        assert watch is None
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "live.jsonl"
    file.write_text('{"step": 1}\nno json\n[1]\n{"step": ')
    found, offset = read_lines(file)
    assert found == [{"step": 1}]
    with file.open("a") as stream:
        stream.write("2}\n")
    assert read_lines(file, offset)[0] == [{"step": 2}]
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(OSError):
        read_lines(tmp_path / "link")


def test_processor_and_memory_are_sampled_under_the_names_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setattr(system_metrics, "FIRST", 0.01)
    samples: list[dict[str, float]] = []
    with SystemMetrics(samples.append):
        wait_until(lambda: samples)
    assert 0 < samples[0]["system_memory_usage_percentage"] <= 100
    assert samples[0]["process_memory_megabytes"] > 10
    assert json.dumps(samples[0])


def test_without_psutil_nothing_is_sampled_and_that_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    monkeypatch.setattr(system_metrics, "_said", set())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert readers_of_this_machine() == []
    assert readers_of_this_machine() == []
    said = capsys.readouterr().out
    assert said == "system metrics: the package psutil is not installed, so processor and memory are not sampled.\n"


def test_a_gpu_without_nvml_is_told_and_not_sampled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("psutil", "pynvml"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.setattr(system_metrics, "_said", set())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert readers_of_this_machine() == []
    assert "nvidia-ml-py is not installed, so the GPU is not sampled" in capsys.readouterr().out


def test_a_reader_that_fails_is_told_once_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_metrics, "FIRST", 0.01)
    monkeypatch.setattr(system_metrics, "EVERY", 0.01)
    monkeypatch.setattr(system_metrics, "_said", set())
    samples: list[dict[str, float]] = []
    asked = threading.Event()

    def broken() -> dict[str, float]:
        asked.set()
        raise RuntimeError("no driver")

    with SystemMetrics(samples.append, [broken, lambda: {"a": 1.0}]):
        assert asked.wait(PATIENCE)
        wait_until(lambda: len(samples) > 2)
    assert samples[-1] == {"a": 1.0}
    assert capsys.readouterr().out.count("RuntimeError: no driver") == 1


def test_each_gpu_that_the_process_sees_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"device_count": 2, "utilization": 50, "device_memory_used": 2_000_000_000, "power_draw": 300_000}
    for name, answer in answers.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, answer=answer: answer)
    found = system_metrics._gpus()
    assert len(found) == 6
    assert found["gpu_1_utilization_percentage"] == 50.0
    assert found["gpu_0_memory_usage_megabytes"] == 2000.0
    assert found["gpu_0_power_usage_watts"] == 300.0
