"""The target sparsity at each step: Zhu & Gupta's cubic schedule (arXiv 1710.01878, eq. 1), linear, or constant."""

from __future__ import annotations

import math

from blast.sparsity.config import SparsifyConfig


def target_sparsity(config: SparsifyConfig, step: int) -> float:
    """The target sparsity of a step.

    With `T` steps of which the last `hold` have a fixed mask, cubic means
    `s(t) = s_final + (s_init - s_final) * (1 - t / (T - hold))^3` while `t < T - hold`, then `s_final`.

    Args:
        config: `schedule`, `sparsity`, `initial_sparsity`, `steps` and `hold` are used.
        step: Optimization step, counted from 0.

    Returns:
        Share of empty blocks, between the initial and the final sparsity.
    """
    if config.schedule == "constant" or step >= config.final_step:
        return config.sparsity
    left = 1 - step / (config.steps - config.hold_steps)
    power = 3 if config.schedule == "cubic" else 1
    return config.sparsity + (config.initial_sparsity - config.sparsity) * left**power


def swap_limit(config: SparsifyConfig, step: int) -> float:
    """Largest share of the budget that `swap` may exchange in a step.

    It falls along a half cosine to zero (as in RigL) or stays constant, by `swap_decay`.
    """
    if config.swap_decay == "constant":
        return config.swap_share
    progress = min(1.0, step / max(1, config.final_step))
    return config.swap_share * (1 + math.cos(math.pi * progress)) / 2
