"""The time that Triton takes to compile kernels, by its hooks."""

from __future__ import annotations

import time

import pytest
import torch

from blast.training import triton_compile_time as module
from blast.training.triton_compile_time import TritonCompileTime

triton = pytest.importorskip("triton")


@pytest.fixture
def runtime(monkeypatch):
    """Triton's hooks, none of which is set, in a process that has a GPU; and a clock that is set by hand."""
    now = {"seconds": 0.0}
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now["seconds"])
    runtime = triton.knobs.runtime
    monkeypatch.setattr(runtime, "jit_cache_hook", None)
    monkeypatch.setattr(runtime, "jit_post_compile_hook", None)
    return runtime, now


def compile_kernel(runtime, now, seconds):
    """What Triton does: nothing at all if the first hook says so."""
    if runtime.jit_cache_hook(key="k"):
        return
    now["seconds"] += seconds
    if runtime.jit_post_compile_hook is not None:
        runtime.jit_post_compile_hook(key="k")


def test_kernels_are_counted_between_start_and_stop(runtime):
    runtime, now = runtime
    counted = TritonCompileTime()
    counted.start()
    now["seconds"] += 5
    compile_kernel(runtime, now, 2)
    now["seconds"] += 5
    compile_kernel(runtime, now, 1)
    now["seconds"] += 5
    # As torch does after it compiled one of its own.
    runtime.jit_post_compile_hook(key="k")
    assert counted.stop() == 3
    assert (runtime.jit_cache_hook, runtime.jit_post_compile_hook) == (None, None)
    counted.start()
    assert counted.stop() == 0


def test_hooks_of_others_are_called_and_come_back(runtime):
    runtime, now = runtime
    calls = []
    mine = runtime.jit_cache_hook, runtime.jit_post_compile_hook = (
        lambda key: calls.append(("before", key)),
        lambda key: calls.append(("after", key)),
    )
    counted = TritonCompileTime()
    counted.start()
    compile_kernel(runtime, now, 2)
    assert calls == [("before", "k"), ("after", "k")]
    assert counted.stop() == 2
    assert (runtime.jit_cache_hook, runtime.jit_post_compile_hook) == mine


def test_a_hook_that_is_set_in_between_stays(runtime):
    runtime, now = runtime
    counted = TritonCompileTime()
    counted.start()
    calls = []
    runtime.jit_post_compile_hook = calls.append
    counted.stop()
    assert (runtime.jit_cache_hook, runtime.jit_post_compile_hook) == (None, calls.append)
    counted.start()
    runtime.jit_cache_hook(key="k")
    now["seconds"] += 2
    runtime.jit_post_compile_hook("k")
    assert (counted.stop(), calls) == (2, ["k"])


def test_what_another_hook_stops_is_not_counted(runtime):
    runtime, now = runtime
    runtime.jit_cache_hook = lambda key: True
    counted = TritonCompileTime()
    counted.start()
    compile_kernel(runtime, now, 2)
    # One that failed has no end.
    runtime.jit_cache_hook = None
    now["seconds"] += 7
    runtime.jit_post_compile_hook(key="k")
    assert counted.stop() == 0


def test_nothing_is_counted_without_a_gpu(runtime, monkeypatch):
    runtime, _ = runtime
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    counted = TritonCompileTime()
    counted.start()
    assert (runtime.jit_cache_hook, runtime.jit_post_compile_hook) == (None, None)
    assert counted.stop() == 0


@pytest.mark.gpu
def test_a_kernel_is_counted_when_it_is_launched_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton.language as tl

    @triton.jit
    def fill(x, n: tl.constexpr):
        tl.store(x + tl.arange(0, n), tl.arange(0, n) * 1.0)

    counted, seconds = TritonCompileTime(), []
    for _ in range(2):
        counted.start()
        started = time.perf_counter()
        fill[(1,)](torch.empty(64, device="cuda"), 64)
        took = time.perf_counter() - started
        seconds.append(counted.stop())
        assert seconds[-1] <= took
    assert seconds[0] > 0
    assert seconds[1] == 0
