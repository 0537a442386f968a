"""The config of a product at token counts that were not measured, by the estimate of `cost_model`.

The rules (`heuristics`) were measured at 16, 128 and 2048 tokens, a table at a few counts. Between those, what matters
is how many programs there are and how full their last wave is: 8B at 333 tokens has 96 programs of 128 × 128 in its
down product, for 132 multiprocessors. So here

- a config of the rules gives way to one that is estimated to be a tenth faster;
- no count gets a config that is estimated to be slower than what a larger count gets: it takes that one, padded;
- between two measured counts of a table, the estimate says which of their two configs to take.

For half precision on a Hopper. Up to 64 tokens one tile holds all tokens, and the rules stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from blast_kernels.mlp_inference.cost_model import Product, estimate
from blast_kernels.mlp_inference.heuristics import KernelConfig, fills_persistent, heuristic_config, persistent_group
from blast_kernels.mlp_inference.search_space import candidates

# The rules stay up to this many tokens.
ONE_TILE = 64
# The rules give way to a config of less than this share of their estimate. Where they did at 128 to 8192 tokens in the
# recorded sweeps, three quarters of them were indeed more than 2 % slower than the best config.
MARGIN = 0.9
# From these counts on, larger and larger steps of the token count make the same choice.
STEPS = ((128, 64), (512, 128), (2048, 256), (8192, 1024))
# How far a larger count is looked for: its estimate is larger than that of all smaller counts from there on.
AHEAD = 2
# Mean row lengths are rounded to so many significant bits, so that layers of about the same length share a choice.
BITS = 4


def rules_config(product: Product, has_gluon: bool = True) -> KernelConfig:
    """The config of a product by rules and estimate, without a table; half precision on a Hopper.

    Args:
        product: The product.
        has_gluon: Whether kernels written in Gluon can run; Triton's interpreter cannot run them.
    """
    if product.tokens <= ONE_TILE or max(product.b_out, product.b_in) < 32:
        return _rules(product, has_gluon)
    place = product._replace(tokens=_rounded(product.tokens), row_blocks=_short(product.row_blocks))
    return _not_slower_than_larger(place, has_gluon)


def choose_between(product: Product, low: tuple[Product, KernelConfig], high: tuple[Product, KernelConfig]) -> bool:
    """Whether the config measured at the higher of two token counts is the better one for a product between them.

    The estimate of both is compared. It is shifted, if need be, so that each wins where it was measured to win; if the
    estimate contradicts both measurements, the nearer one wins.

    Args:
        product: A product with a token count between the two.
        low: A product with fewer tokens, and the fastest config there.
        high: A product with more tokens, and the fastest config there.
    """

    def lead(at: Product) -> float:
        # Below zero: the config of the lower count is faster.
        return math.log(estimate(low[1], at) / estimate(high[1], at))

    at_low, at_high = lead(low[0]), lead(high[0])
    if at_low > 0 > at_high:
        return product.tokens**2 > low[0].tokens * high[0].tokens
    return lead(product) - max(0.0, at_low) - min(0.0, at_high) > 0


def _rounded(tokens: int) -> int:
    step = next((step for least, step in reversed(STEPS) if tokens > least), STEPS[0][0])
    return -(-tokens // step) * step


def _short(row_blocks: float) -> float:
    unit = 2.0 ** (math.floor(math.log2(row_blocks)) + 1 - BITS) if row_blocks > 0 else 1.0
    return round(row_blocks / unit) * unit


@lru_cache(maxsize=4096)
def _not_slower_than_larger(product: Product, has_gluon: bool) -> KernelConfig:
    own = _overruled(product, has_gluon)
    least, chosen, tokens = estimate(own, product), own, product.tokens
    while (tokens := _rounded(tokens + 1)) <= AHEAD * product.tokens:
        larger = product._replace(tokens=tokens)
        config = _overruled(larger, has_gluon)
        if (time := estimate(config, larger)) < least:
            least, chosen = time, config
    return chosen


@lru_cache(maxsize=4096)
def _overruled(product: Product, has_gluon: bool) -> KernelConfig:
    ruled = _rules(product, has_gluon)
    best = min(_options(product, has_gluon), key=lambda config: estimate(config, product), default=ruled)
    return best if estimate(best, product) < MARGIN * estimate(ruled, product) else ruled


def _rules(product: Product, has_gluon: bool) -> KernelConfig:
    place = (product.tokens, product.row_count, product.b_out, product.b_in, product.gate)
    return heuristic_config(*place, row_blocks=product.row_blocks, has_gluon=has_gluon)


def _options(product: Product, has_gluon: bool) -> Iterator[KernelConfig]:
    """Configs that differ in more than their group, which the estimate does not know; the first group of each."""
    _, row_count, row_blocks, b_out, b_in, gate = product
    # Down products were seldom faster with the persistent kernel, and tiles of 256 tokens seldom the fastest. The
    # estimate does not tell when they were.
    persistent = has_gluon and fills_persistent(b_out, b_in, gate, row_blocks)
    seen = set()
    for config in candidates(product.tokens, row_count, b_out, b_in, gate, row_blocks):
        if config.split > 1 and gate != "none":
            # The counters of a split gate-up product take a launch of their own.
            continue
        if config.kernel == "persistent":
            # With a gate of 128 rows in the buffer of the result, four stages do not fit.
            stages = 3 if gate == "untied" and b_out == 128 else 4
            config = config._replace(stages=stages, group=persistent_group(b_out, row_count))
        fits = persistent if config.kernel == "persistent" else config.kernel == "tiles" and config.tile < 256
        alike = config._replace(group=1)
        if fits and alike not in seen:
            seen.add(alike)
            yield config
