"""The recorded sweeps support what is said of the estimate of a product's time."""

from __future__ import annotations

import math
import statistics

import pytest
from blast_kernels.mlp_inference.cost_model import Product, estimate
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.token_counts import rules_config
from test_recorded_kernel_configs import swept

# The estimate is for products of at least so many tokens, with these kernels.
LEAST_TOKENS, KERNELS = 128, ("tiles", "persistent")


def measured() -> list[tuple[Product, dict[KernelConfig, float]]]:
    """Microseconds by config, for the products that the estimate is for."""
    found = []
    for (_, _, b_out, b_in, gate, tokens, rows, row_blocks), configs in swept().items():
        times = {KernelConfig(*config): 1e3 * time for config, time in configs.items() if config[0] in KERNELS}
        if tokens >= LEAST_TOKENS and times:
            found.append((Product(tokens, rows, row_blocks, b_out, b_in, gate), times))
    return found


def test_the_estimate_is_as_good_as_it_says():
    errors = [
        abs(math.log(estimate(config, product) / time))
        for product, times in measured()
        for config, time in times.items()
    ]
    assert len(errors) > 900
    assert statistics.median(errors) < 0.075
    assert statistics.quantiles(errors, n=10)[-1] < 0.23


@pytest.mark.parametrize("tokens", [128, 512, 2048, 8192])
def test_the_estimate_is_biased_at_no_token_count(tokens):
    """It was fitted to all counts at once, so a bias at one would show that it interpolates badly."""
    errors = [
        math.log(estimate(config, product) / time)
        for product, times in measured()
        for config, time in times.items()
        if product.tokens == tokens
    ]
    assert len(errors) > 100
    assert abs(statistics.fmean(errors)) < 0.08


def test_of_the_recorded_configs_of_a_product_the_estimate_picks_a_good_one():
    costs = []
    for product, times in measured():
        if len(times) > 1:
            picked = min(times, key=lambda config, product=product: estimate(config, product))
            costs.append(times[picked] / min(times.values()) - 1)
    assert len(costs) > 400
    assert statistics.fmean(costs) < 0.016


def test_rules_with_the_estimate_cost_less_than_the_rules_alone():
    """Where both were timed; for the estimate, the fastest record of the same kernel, tile, slice and split."""

    def kind(config: KernelConfig) -> tuple:
        return config.kernel, config.tile, config.slice, config.split

    alone, together = [], []
    for product, times in measured():
        place = (product.tokens, product.row_count, product.b_out, product.b_in, product.gate)
        ruled, chosen = heuristic_config(*place, row_blocks=product.row_blocks), rules_config(product)
        alike = [time for config, time in times.items() if kind(config) == kind(chosen)]
        if ruled in times and alike and chosen != ruled:
            alone.append(times[ruled] / min(times.values()))
            together.append(min(alike) / min(times.values()))
    assert len(alone) > 40
    assert statistics.fmean(together) < 1.01
    assert statistics.fmean(alone) > 1.1
