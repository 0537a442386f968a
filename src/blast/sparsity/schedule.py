"""The target sparsity at each step: Zhu & Gupta's cubic schedule (arXiv 1710.01878, eq. 1), linear, or constant."""

from __future__ import annotations

import math

from blast.sparsity.config import SparsifyConfig


def target_sparsity(config: SparsifyConfig, step: int) -> float:
    """The target sparsity of a step.

    With `T` steps of which the last `hold` have a fixed mask, cubic means
    `s(t) = s_final + (s_init - s_final) * (1 - t / (T - hold))^3` while `t < T - hold`, then `s_final`. With a
    `dense_start` of `D` steps, `s(t)` is 0 before step `D`, and `t` and `T` count from there.

    Args:
        config: `schedule`, `sparsity`, `initial_sparsity`, `steps`, `dense_start` and `hold` are used.
        step: Optimization step, counted from 0.

    Returns:
        Share of empty blocks, between the initial and the final sparsity.
    """
    if step >= config.final_step:
        return config.sparsity
    if step < config.first_step:
        return 0.0
    if config.schedule == "constant":
        return config.sparsity
    left = 1 - (step - config.first_step) / (config.steps - config.hold_steps - config.first_step)
    power = 3 if config.schedule == "cubic" else 1
    return config.sparsity + (config.initial_sparsity - config.sparsity) * left**power


def swap_limit(config: SparsifyConfig, step: int) -> float:
    """Largest share of the budget that `swap` may exchange in a step.

    It falls along a half cosine to zero (as in RigL) or stays constant, by `swap_decay`.
    """
    return config.swap_share * _left(config.swap_decay, config, step)


def grow_share(config: SparsifyConfig, step: int) -> float:
    """Share of the budget that `union` fills by grow score in a step: `grow_share`, times what `grow_decay` leaves."""
    return config.grow_share * _left(config.grow_decay, config, step)


def _left(decay: str, config: SparsifyConfig, step: int) -> float:
    """What a decay leaves at a step: 1 at the first, 0 where the mask is fixed."""
    progress = min(1.0, step / max(1, config.final_step))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[decay]
