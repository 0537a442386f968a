"""The estimate of a product's time, and the configs that it chooses between measured token counts."""

from __future__ import annotations

import itertools

import pytest
from blast_kernels.mlp_inference.cost_model import Product, estimate
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.search_space import candidates, fits
from blast_kernels.mlp_inference.token_counts import choose_between, rules_config

COUNTS = [1, 17, 33, 65, 96, 128, 129, 160, 192, 200, 256, 257, 300, 333, 384, 400, 512, 513, 640, 700, 768, 900, 1024,
          1025, 1300, 1500, 2048, 3000, 4096, 6000, 8192]  # fmt: skip
# Hidden and inner width, side of a block, sparsity: 8B, 1B, a shape in no table, small blocks.
SHAPES = [
    (4096, 14336, 128, 0.95),
    (2048, 8192, 128, 0.95),
    (3072, 8192, 128, 0.95),
    (4096, 14336, 64, 0.8),
    (4096, 14336, 32, 0.9),
]


def products(hidden: int, inner: int, block: int, sparsity: float, tokens: int) -> list[Product]:
    live = 1 - sparsity
    gate_up, down = inner // block, hidden // block
    return [
        Product(tokens, gate_up, 2 * down * live, block, block, "untied"),
        Product(tokens, gate_up, down * live, block, block, "tied"),
        Product(tokens, down, gate_up * live, block, block, "none"),
    ]


def config_of(product: Product) -> KernelConfig:
    return rules_config(product)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_count_is_estimated_to_take_longer_than_a_larger_one(shape):
    for kind in range(3):
        times = {}
        for tokens in COUNTS:
            if tokens > 64:
                product = products(*shape, tokens)[kind]
                times[tokens] = estimate(config_of(product), product)
        slow = {
            (here, there): times[here] / times[there]
            for here, there in itertools.combinations(times, 2)
            if there <= 2 * here and times[here] > 1.02 * times[there]
        }
        assert not slow


@pytest.mark.parametrize("shape", SHAPES)
def test_every_choice_fits_the_block_and_the_device(shape):
    for tokens in COUNTS:
        for product in products(*shape, tokens):
            config = config_of(product)
            assert fits(config, product.b_out, product.b_in, product.gate), (product, config)
            assert config.kernel != "persistent" or product.gate != "none"
            assert config.split == 1 or product.gate == "none"


def test_without_gluon_the_persistent_kernel_is_never_chosen():
    for tokens, shape in itertools.product(COUNTS, SHAPES):
        for product in products(*shape, tokens):
            assert rules_config(product, has_gluon=False).kernel != "persistent"


def test_up_to_64_tokens_the_rules_stay():
    for tokens in (1, 16, 33, 64):
        for product in products(*SHAPES[0], tokens):
            place = (product.row_count, product.b_out, product.b_in, product.gate)
            assert rules_config(product) == heuristic_config(tokens, *place, row_blocks=product.row_blocks)


def test_the_rules_give_way_only_to_a_config_that_is_estimated_to_be_a_tenth_faster():
    gave_way = 0
    for tokens, shape in itertools.product((128, 256, 512, 1024, 2048), SHAPES):
        for product in products(*shape, tokens):
            place = (product.row_count, product.b_out, product.b_in, product.gate)
            ruled = heuristic_config(tokens, *place, row_blocks=product.row_blocks)
            chosen = rules_config(product)
            if chosen != ruled:
                gave_way += 1
                assert estimate(chosen, product) < 0.91 * estimate(ruled, product), (product, chosen)
    assert gave_way > 5


@pytest.mark.parametrize("gate", ["none", "untied", "tied"])
def test_the_estimate_never_falls_with_more_tokens_or_longer_rows(gate):
    for config in candidates(512, 64, 128, 128, gate, 6.0):
        by_tokens = [estimate(config, Product(tokens, 64, 6.0, 128, 128, gate)) for tokens in COUNTS]
        assert by_tokens == sorted(by_tokens), config
        by_length = [estimate(config, Product(512, 64, float(blocks), 128, 128, gate)) for blocks in range(1, 40)]
        assert by_length == sorted(by_length), config


def test_a_last_wave_with_few_programs_costs_a_whole_wave():
    config = KernelConfig("persistent", 256, 128, 64, 3, 4, False, 8)
    # One program a multiprocessor: 132 tiles are one wave, 133 two.
    one, two = (estimate(config, Product(256, rows, 40.0, 128, 128, "untied")) for rows in (132, 133))
    assert 1.6 < two / one < 2.0


def test_between_two_measured_counts_each_config_keeps_the_side_where_it_won():
    shape = (32, 5.6, 128, 128, "none")
    small, large = KernelConfig("tiles", 64, 64, 128, 4, 4), KernelConfig("tiles", 128, 128, 64, 3, 4)
    low, high = (Product(128, *shape), small), (Product(2048, *shape), large)
    assert not choose_between(Product(129, *shape), low, high)
    assert choose_between(Product(1900, *shape), low, high)
    # The estimate takes the large tiles from 300 tokens on. Small ones that won at 512 shift that.
    at_300, low = Product(300, *shape), (Product(512, *shape), small)
    assert estimate(large, at_300) < estimate(small, at_300)
    assert not choose_between(Product(513, *shape), low, high)


def test_if_the_estimate_contradicts_both_measurements_the_nearer_count_wins():
    shape = (32, 5.6, 128, 128, "none")
    small, large = KernelConfig("tiles", 64, 64, 128, 4, 4), KernelConfig("tiles", 128, 128, 64, 3, 4)
    low, high = (Product(128, *shape), large), (Product(2048, *shape), small)
    assert not choose_between(Product(300, *shape), low, high)
    assert choose_between(Product(1000, *shape), low, high)
