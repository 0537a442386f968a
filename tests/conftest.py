"""What all tests share: plain surroundings, one thread, Triton's interpreter without a GPU, no limit of time that a
busy machine could miss, and a torch whose settings are those of the start."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import faults
import hypothesis
import pytest
import setuptools  # noqa: F401  before the distutils of Python 3.11, beside which torch's compiler cannot import it
import surroundings
import thorough
import torch
from patience import PATIENCE

from blast.download import sources

surroundings.make_plain(Path(__file__).resolve().parents[1] / ".cache" / "home-of-tests")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch, which is imported by now, has read it before.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# An example may take long where others need the processor.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
# Servers of the tests answer as soon as they get the processor.
sources.ANSWER_S = float(PATIENCE)

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    # Triton reads it when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the thorough tests before `-m` chooses, and skips those marked `gpu` where there is none."""
    thorough.mark(items)
    if ON_GPU:
        return
    reason = "needs a CUDA device, and torch.cuda.is_available() is false here"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test whose `fault` marks promise messages has to compare each of them, with the fixture `reads`."""
    yield
    assert not faults.unread(item), f"no text was compared with {sorted(faults.unread(item))}; call the fixture `reads`"


@pytest.fixture
def reads(request: pytest.FixtureRequest) -> faults.Reads:
    """Asserts that a text has the message that a mark `fault` of the test promises; see `docs/faults.md`."""
    return partial(faults.read, request.node)


def pytest_collection_finish() -> None:
    """What is imported by now stays: without it, each search for garbage (the Trainer asks for one) takes a second."""
    # It imports Triton, which has to see the setting above.
    import torch._dynamo  # noqa: F401

    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Bindings in C++ report what is left at the end of the process."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def torch_settings_come_back() -> Iterator[None]:
    """Takes back what a test changed in the process: a compiled run of the HF Trainer leaves TF32 on, for one."""
    backends = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn)
    precisions = [backend.fp32_precision for backend in backends]
    nested_graph_breaks = torch._dynamo.config.nested_graph_breaks
    yield
    torch._dynamo.config.nested_graph_breaks = nested_graph_breaks
    if [backend.fp32_precision for backend in backends] != precisions:
        # The setting of before these three, which has no name for "as it was".
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision
