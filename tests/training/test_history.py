"""The time that training takes, and what of it goes into compiling and into mask updates."""

from __future__ import annotations

import pytest

from blast.training import history as module
from blast.training.history import History, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, the number of compiled graphs, and the Triton compile time of a step."""
    now = {"seconds": 0.0, "graphs": 0, "kernels": 0.0}
    monkeypatch.setattr(module.time, "perf_counter", lambda: now["seconds"])
    monkeypatch.setattr(module, "_compiled_graphs", lambda: now["graphs"])
    monkeypatch.setattr(module.TritonCompileTime, "stop", lambda _: now["kernels"])
    return now


def run(stopwatch, clock, steps):
    for updates, seconds, graphs in steps:
        with stopwatch.of_step(updates):
            clock["seconds"] += seconds
            clock["graphs"] += graphs
        clock["seconds"] += 100  # what lies between steps does not count


def test_a_mask_update_adds_what_its_step_and_the_next_take_beyond_the_one_before(clock):
    history = History()
    stopwatch = Stopwatch(history)
    run(stopwatch, clock, [(True, 9, 1), (False, 5, 0), (False, 2, 0), (False, 2, 0), (True, 7, 0), (False, 4, 0)])
    # The first update compiled, and what follows it has no step before it.
    assert history.spent == {"value": 29, "compiling": 9, "updating": 7}
    stopwatch.note(5)
    run(stopwatch, clock, [(False, 3, 0), (True, 6, 0), (True, 8, 0), (False, 3, 0)])
    assert history.spent == {"value": 49, "compiling": 9, "updating": 7 + 3 + 5}
    stopwatch.note(9)
    assert history.seconds == {"step": [5, 9], "value": [29, 49], "compiling": [9, 9], "updating": [7, 15]}


def test_a_resumed_run_goes_on_counting(clock):
    history = History()
    run(Stopwatch(history), clock, [(False, 2, 0), (True, 5, 0)])
    run(Stopwatch(history), clock, [(False, 2, 0), (True, 4, 0)])
    assert history.spent == {"value": 13, "compiling": 0, "updating": 5}


def test_what_kernels_took_to_compile_is_neither_usual_nor_of_a_mask_update(clock):
    history = History()
    stopwatch = Stopwatch(history)
    clock["kernels"] = 3
    run(stopwatch, clock, [(False, 5, 0)])
    clock["kernels"] = 4
    run(stopwatch, clock, [(True, 10, 0)])
    # Usual are 2 seconds, and the update took 6.
    assert history.spent == {"value": 15, "compiling": 7, "updating": 4}
    # Of a step with a compiled graph all is counted already.
    run(stopwatch, clock, [(False, 20, 1)])
    assert history.spent == {"value": 35, "compiling": 27, "updating": 4}
