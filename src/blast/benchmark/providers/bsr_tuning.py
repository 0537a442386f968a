"""torch's own tuner of its BSR kernel, held to a time: when that is over, the best that it tried so far is taken."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

# What the tuner keys its tries with, in its order.
NAMES = ("GROUP_SIZE_ROW", "SPLIT_N", "num_stages", "num_warps")
# Milliseconds that a try is warmed up and timed. The tuner's own warm-up of 500 leaves room for few tries.
WARM_UP, TIMED = 50, 50


class TimeUp(BaseException):
    """The time is over; no Exception, as the tuner takes those for parameters that do not work."""


def tuned_parameters(
    matrix: Tensor, operand: Tensor, bias: Tensor | None, seconds: float
) -> tuple[dict[str, int] | None, bool]:
    """What torch's tuner finds best for `bsr_dense_addmm`, and whether it came to its end in the time.

    Args:
        matrix: BSR `[out, in]`.
        operand: `[in, tokens]`.
        bias: `[out, tokens]`, which may be a view of one column, or None.
        seconds: When to stop it; the best until then is taken (None if none worked).
    """
    import triton.testing
    from torch.sparse import _triton_ops_meta as tuner

    tried: dict[tuple[int, ...], Any] = {}

    def search(*arguments, **options):
        return whole_search(*arguments, **options, all_values=tried)

    def shorter(function, **options):
        return bench(function, **options | {"warmup": WARM_UP, "rep": TIMED})

    whole_search, bench = tuner.minimize, triton.testing.do_bench
    out = operand.new_empty(matrix.shape[0], operand.shape[1])
    tune = partial(tuner.tune_bsr_dense_addmm, out if bias is None else bias, matrix, operand, force=True)
    # The tuner keeps what it tried to itself, so that one stopped early would count as not tuned at all.
    with replaced(tuner, "minimize", search), replaced(triton.testing, "do_bench", shorter):
        try:
            with time_limit(seconds):
                return tune(beta=0 if bias is None else 1) or None, True
        except TimeUp:
            times = {key: value for key, value in tried.items() if isinstance(value, float)}
            best = min(times, key=lambda key: times[key], default=None)
            return (None if best is None else dict(zip(NAMES, best, strict=True))), False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUp within after so many seconds; works in the main thread, between two calls of Python."""

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    # Once more each second, should the first be lost in a callback that no exception can leave.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Within, a name of a module means something else."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
