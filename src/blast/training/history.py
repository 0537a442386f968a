"""What a training run looked like on the way: learning curves, masks, and the time it took."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blast.training.triton_compile_time import KernelCompiling

MASK_PICTURES = 8
# Of the seconds that are counted: all, and what of them went into compiling and into mask updates.
PARTS = ("value", "compiling", "updating")


@dataclass
class History:
    """What a run looked like on the way; part of the training state, so that a resumed run has all of it.

    Attributes:
        curves: By name, the steps and values of each learning curve.
        masks: By step, the mask of every pruned matrix, at most `MASK_PICTURES` times.
        seconds: Wall time of all steps up to each point of the curve `validation_loss`; how much of it went into
            compiling, and how much mask updates added. Evaluation and saving are left out.
        spent: The same up to now.
    """

    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    masks: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"step": [], **{part: [] for part in PARTS}})
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def add(self, name: str, step: int, value: float) -> None:
        """Adds a point to a curve."""
        curve = self.curves.setdefault(name, {"step": [], "value": []})
        curve["step"].append(step)
        curve["value"].append(value)


class Stopwatch:
    """Adds up the wall time of steps; what a run had taken before it was resumed counts too.

    What a mask update adds is what its step, and the next, which may be captured anew, take beyond the one before. Of
    a step in which `torch.compile` was at work all counts as compiling, of others what kernels of Triton took.

    Args:
        history: Where it is kept.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._usual: float | None = None
        self._updating = self._next = False
        self._kernels = KernelCompiling()

    def of(self, updates: bool) -> Stopwatch:
        """Itself, for a step that updates masks or does not."""
        self._updating, self._next = updates or self._next, updates
        return self

    def __enter__(self) -> None:
        self._graphs = _compiled_graphs()
        self._kernels.start()
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        took, kernels = time.perf_counter() - self._started, self._kernels.stop()
        spent = self._history.spent
        spent["value"] += took
        if _compiled_graphs() != self._graphs:
            spent["compiling"] += took
            return
        spent["compiling"] += kernels
        took -= kernels
        if not self._updating:
            self._usual = took
        elif self._usual is not None:
            spent["updating"] += took - self._usual

    def note(self, step: int) -> None:
        """Writes down what has been taken up to a step."""
        for key, value in {"step": step, **self._history.spent}.items():
            self._history.seconds[key].append(value)


def _compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] if "torch._dynamo" in sys.modules else 0
