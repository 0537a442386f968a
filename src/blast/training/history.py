"""The history of a training run: learning curves, masks, and wall time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blast.training.triton_compile_time import TritonCompileTime

MASK_SNAPSHOTS = 8
# Wall time: all of it, the part for compilation, and the part for mask updates.
PARTS = ("value", "compiling", "updating")


@dataclass
class History:
    """Curves, masks and times of a run. It is part of the training state, so that a resumed run has all of it.

    Attributes:
        curves: By name, the steps and values of each learning curve.
        masks: By step, the mask of every pruned matrix, at `MASK_SNAPSHOTS` steps at most.
        seconds: Wall time of all steps up to each point of the curve `validation_loss` (`value`), the part for
            compilation (`compiling`), and the update cost (`updating`). Evaluation and saving do not count.
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

    def at(self, step: int) -> dict[str, float]:
        """The values of the curves that have one at a step, the last step that was added."""
        last = ((name, curve) for name, curve in self.curves.items() if curve["step"][-1:] == [step])
        return {name: curve["value"][-1] for name, curve in last}


class Stopwatch:
    """Adds up the wall time of steps, also over a resume.

    Update cost = the update step and the next step, each minus the preceding ordinary step. The next step may capture
    new CUDA graphs. A step in which `torch.compile` compiled counts as compilation whole; in other steps the Triton
    compile time does.

    Args:
        history: The history to add to.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._ordinary: float | None = None
        self._updating = self._next = False
        self._triton = TritonCompileTime()

    def of_step(self, updates: bool) -> Stopwatch:
        """Returns itself, as the context for one step.

        Args:
            updates: Whether the step updates masks.
        """
        self._updating, self._next = updates or self._next, updates
        return self

    def __enter__(self) -> None:
        self._graphs = _compiled_graphs()
        self._triton.start()
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        took, triton = time.perf_counter() - self._started, self._triton.stop()
        spent = self._history.spent
        spent["value"] += took
        if _compiled_graphs() != self._graphs:
            spent["compiling"] += took
            return
        spent["compiling"] += triton
        took -= triton
        if not self._updating:
            self._ordinary = took
        elif self._ordinary is not None:
            spent["updating"] += took - self._ordinary

    def note(self, step: int) -> None:
        """Adds the times up to a step to the history."""
        for key, value in {"step": step, **self._history.spent}.items():
            self._history.seconds[key].append(value)


def _compiled_graphs() -> int:
    """Number of graphs that torch.compile has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] if "torch._dynamo" in sys.modules else 0
