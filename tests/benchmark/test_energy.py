"""Energy of work: from a counter, from sampled power, or not available."""

from __future__ import annotations

import time

import pytest
import torch

from blast.benchmark.timing import energy
from blast.benchmark.timing.energy import EnergyMeter

CPU = torch.device("cpu")


def meter(monkeypatch, read, source):
    monkeypatch.setattr(energy, "_reader", lambda device: (read, source))
    monkeypatch.setattr(energy, "IDLE", 0.05)
    monkeypatch.setattr(energy, "SAMPLE", 0.005)
    return EnergyMeter(CPU)


def test_the_counter_gives_joules_and_idle_power(monkeypatch):
    busy = {"watts": 50.0}
    start = time.perf_counter()
    state = {"at": start, "joules": 0.0}

    def read():
        now = time.perf_counter()
        state["joules"] += busy["watts"] * (now - state["at"])
        state["at"] = now
        return state["joules"]

    def work():
        read()
        busy["watts"] = 400.0
        time.sleep(0.01)
        read()
        busy["watts"] = 50.0

    found, runs = meter(monkeypatch, read, "counter").measure(work, seconds=0.1)
    assert runs >= 5
    assert found.idle_watts == pytest.approx(50, rel=0.2)
    assert 100 < found.joules / found.seconds < 420
    assert found.source == "counter"


def test_sampled_power_is_averaged(monkeypatch):
    readings = iter(range(10**6))
    found, runs = meter(monkeypatch, lambda: 100.0 + next(readings) % 2, "sampled").measure(
        lambda: time.sleep(0.01), seconds=0.1
    )
    assert runs >= 1
    assert 100 <= found.joules / found.seconds <= 101
    assert 100 <= found.idle_watts <= 101


def test_without_a_way_to_read_there_is_no_energy():
    assert EnergyMeter(CPU).source is None
    assert EnergyMeter(CPU).measure(lambda: None) is None


def test_the_command_of_the_driver_is_asked_where_the_library_is_missing(monkeypatch):
    class Said:
        stdout = "123.5\n"

    monkeypatch.setattr(energy.subprocess, "run", lambda *_, **__: Said)
    read, source = energy._reader_by_command("GPU-x")
    assert (read(), source) == (123.5, "sampled")

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(energy.subprocess, "run", missing)
    assert energy._reader_by_command("GPU-x") == (None, None)
