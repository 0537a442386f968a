"""torch's own tuner of its BSR kernel with a time limit; at the limit the best parameters so far are used."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

# The parameters in the keys of the tuner's results, in its order.
NAMES = ("GROUP_SIZE_ROW", "SPLIT_N", "num_stages", "num_warps")
# Milliseconds of warm-up and of timing for a try. The tuner's own warm-up of 500 ms leaves time for few tries.
WARM_UP, TIMED = 50, 50


class TimeUp(BaseException):
    """The time limit is reached. It is no Exception: the tuner catches those as parameters that do not work."""


def tuned_parameters(
    matrix: Tensor, operand: Tensor, bias: Tensor | None, seconds: float
) -> tuple[dict[str, int] | None, bool]:
    """The best parameters of torch's tuner for `bsr_dense_addmm`, and whether it finished within the limit.

    Args:
        matrix: BSR `[out, in]`.
        operand: `[in, tokens]`.
        bias: `[out, tokens]`, which may be a view of one column, or None.
        seconds: Time limit; the best parameters until then are returned (None if none worked).
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
    # The tuner does not return its tries, so this collects them: a stopped tuner would otherwise give nothing.
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
    """Raises TimeUp in the body after `seconds`. It works in the main thread only, between Python instructions."""

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    # It repeats each second, since a callback that swallows exceptions may lose the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of a module within the body."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
