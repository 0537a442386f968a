"""The configs worth trying: each fits its block and the device, and they differ in speed alone."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.common.constants import BLOCK_SIDES
from blast_kernels.mlp_inference import reference
from blast_kernels.mlp_inference.heuristics import SHARED_MEMORY, KernelConfig, heuristic_config, shared_memory
from blast_kernels.mlp_inference.launch import product
from blast_kernels.mlp_inference.search_space import candidates, fits
from hypothesis import given
from hypothesis import strategies as st
from inference_cases import gate_up_of, mask_of, relative_error

GATES = ("none", "untied", "tied")
sides = st.sampled_from(BLOCK_SIDES)
places = st.tuples(st.integers(1, 20_000), st.integers(1, 2000), sides, sides, st.sampled_from(GATES))
lengths = st.floats(0.05, 400)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@given(places, lengths, st.sampled_from([(2, 2), (2, 1), (4, 4)]))
def test_every_candidate_fits_its_block_and_the_device(place, row_blocks, items):
    tokens, _, b_out, b_in, gate = place
    found = candidates(*place, row_blocks, *items)
    # The most in a search over all block shapes: 44 up to 256 tokens, 71 up to 512 with few long rows, 26 beyond.
    assert 1 <= len(found) <= (48 if tokens <= 256 or tokens > 512 else 80)
    assert len(set(found)) == len(found)
    for config in found:
        assert b_out % config.slice == 0
        assert config.k % b_in == 0 if config.kernel == "stream" else b_in % config.k == 0
        assert all(map(is_power_of_two, (config.tile, config.slice, config.k, config.warps, config.split)))
        assert (
            config.stages * config.k * config.slice * items[1] <= shared_memory(config, gate, *items) <= SHARED_MEMORY
        )
        assert config.split == 1 or tokens <= 512
        if config.kernel == "tiles":
            rows = config.slice * (2 if gate == "tied" else 1)
            assert items[0] < 4
            assert (rows if config.weights_first else config.tile) >= 64
            assert max(rows, config.tile) <= 256


@given(places, lengths, st.booleans(), st.booleans(), st.booleans())
def test_the_rules_always_give_a_config_that_fits(place, row_blocks, wide_float, has_tma, has_gluon):
    config = heuristic_config(*place, wide_float, has_tma, row_blocks, has_gluon=has_gluon)
    item = 4 if wide_float else 2
    assert fits(config, *place[2:], item, item)
    assert has_tma or config.kernel == "stream"


@given(places, lengths)
def test_the_rules_give_float8_a_config_that_fits(place, row_blocks):
    config = heuristic_config(*place, row_blocks=row_blocks, float8=True)
    assert fits(config, *place[2:], 2, 1)


@given(places, lengths)
def test_the_pick_of_the_rules_is_tried_first(place, row_blocks):
    assert candidates(*place, row_blocks)[0] == heuristic_config(*place, row_blocks=row_blocks)


def test_block_lists_are_split_where_programs_are_few_and_lists_long():
    def splits(tokens: int, row_list: int, row_blocks: float) -> set[int]:
        return {config.split for config in candidates(tokens, row_list, 128, 128, "none", row_blocks)}

    assert splits(16, 16, 12) == splits(128, 64, 12) == {1, 2, 4}
    assert splits(16, 16, 1) == {1}
    assert splits(16, 1000, 50) == splits(2048, 16, 50) == {1}
    # A step that takes a part of a block leaves lists as long as they are; one of several blocks makes them shorter.
    parts = {(config.kernel, config.split) for config in candidates(128, 64, 128, 128, "none", 12) if config.k == 64}
    assert parts == {("tiles", 1), ("tiles", 2), ("tiles", 4)}
    steps = [config for config in candidates(16, 16, 32, 32, "none", 12) if config.kernel == "stream"]
    assert {config.split for config in steps if config.k == 128} == {1, 2}
    assert {config.split for config in steps if config.k == 32} == {1, 2, 4}


# The interpreter takes seconds for many tokens in large blocks.
LARGE = [pytest.param(257, (128, 128), gate, marks=() if gate == "none" else pytest.mark.slow) for gate in GATES]


@pytest.mark.parametrize(
    ("tokens", "block", "gate"),
    [*((*case, gate) for case in ((9, (128, 128)), (100, (64, 64)), (20, (32, 32))) for gate in GATES), *LARGE],
)
def test_candidates_differ_in_speed_alone(tokens, block, gate, device):
    masks = [mask_of("skewed_rows", 2, 3, seed) for seed in ((0, 1) if gate == "untied" else (0,))]
    gate_up = gate_up_of(gate, masks, *block, torch.float16, device)
    row_list = gate_up.row_list.shape[0]
    x = torch.randn(tokens, gate_up.dense[0].shape[1]).to(device, torch.float16)
    out_features = gate_up.dense[0].shape[0]
    wide = None if gate_up.up is None else gate_up.up.float()
    arguments = (gate_up.row_list, None, out_features, "silu", gate)
    expected = reference.product(x.float(), gate_up.values.float(), *arguments, up=wide)
    found = candidates(tokens, row_list, *block, gate, gate_up.values.shape[0] / row_list)
    if device == "cpu":
        # Gluon has no interpreter.
        found = [config for config in found if config.kernel != "persistent"]
    # One of each kernel, split and order of the operands is enough for the interpreter.
    kinds = {(config.kernel, config.split, config.weights_first, config.tile): config for config in reversed(found)}
    assert len(kinds) >= 2
    for config in found if x.is_cuda else kinds.values():
        y = torch.full((tokens, out_features), float("nan"), dtype=torch.float16, device=device)
        product(x, gate_up.values, gate_up.row_list, None, y, "silu", gate, config, up=gate_up.up)
        assert relative_error(y, expected) < 1e-3, config


def test_a_config_that_wants_more_memory_than_there_is_does_not_fit():
    assert fits(KernelConfig("tiles", 64, 64, 128, 4, 4), 128, 128, "tied")
    assert not fits(KernelConfig("tiles", 64, 64, 128, 6, 4), 128, 128, "tied")
    assert not fits(KernelConfig("tiles", 32, 64, 128, 6, 4), 128, 128, "tied")
    assert not fits(KernelConfig("tiles", 128, 128, 64, 3, 4), 64, 128, "none")
    assert not fits(KernelConfig("tiles", 64, 32, 64, 3, 4), 128, 128, "none")


def test_fronts_of_many_tiles_run_in_one_program_a_multiprocessor_where_gluon_does():
    for place in ((2048, 448, 64, 64, "tied"), (8192, 112, 128, 128, "untied"), (2048, 832, 64, 128, "untied")):
        assert heuristic_config(*place).kernel == "persistent"
        # The interpreter, float32, float8 and other devices have no such kernel.
        for without in ({"has_gluon": False}, {"wide_float": True}, {"float8": True}, {"has_tma": False}):
            assert heuristic_config(*place, **without).kernel != "persistent"
        assert heuristic_config(place[0] // 16, *place[1:]).kernel != "persistent"
    assert (
        heuristic_config(2048, 448, 64, 64, "none").kernel
        == heuristic_config(2048, 24, 64, 64, "tied").kernel
        == "tiles"
    )
    assert heuristic_config(2048, 448, 32, 128, "tied", row_blocks=2).kernel == "persistent"
    assert heuristic_config(2048, 448, 32, 128, "tied", row_blocks=1).kernel == "tiles"


def test_long_rows_of_32_take_wide_tiles_of_tokens_one_at_a_time():
    """Those of 405B had taken 2.5 times as long with tiles of 128 tokens, eight side by side."""
    for b_in, row_blocks in ((32, 83), (128, 21)):
        config = heuristic_config(8192, 512, 32, b_in, "none", row_blocks=row_blocks)
        assert (config.kernel, config.tile, config.group) == ("tiles", 256, 1)
        assert heuristic_config(8192, 512, 32, b_in, "none", row_blocks=row_blocks / 4).tile == 128


@pytest.mark.parametrize(("rows", "tile"), [(32, 64), (33, 128)])
def test_more_than_64_programs_of_128_tokens_take_them_whole(rows, tile):
    """A row of 128 gives two programs."""
    assert heuristic_config(128, rows, 128, 128, "none").tile == tile


def test_few_long_rows_are_shared_by_programs_and_small_blocks_pipelined_deeply():
    """50 rows of 60 blocks of 32 columns once took ten times as long as 40 blocks, for which a sweep had split them."""
    assert heuristic_config(1, 50, 32, 32, "none", row_blocks=60) == KernelConfig("stream", 16, 32, 32, 4, 4, split=4)
    assert heuristic_config(1, 16, 64, 128, "none", row_blocks=8) == KernelConfig("stream", 16, 64, 128, 4, 4, split=4)
    assert heuristic_config(128, 50, 32, 32, "none", row_blocks=60).split == 4
    for place in ((1, 500, 32, 32), (1, 50, 64, 64)):
        assert heuristic_config(*place, "none", row_blocks=4).split == 1
    assert heuristic_config(16, 48, 64, 64, "none", row_blocks=2) == KernelConfig("stream", 16, 64, 64, 6, 4)
    assert heuristic_config(16, 200, 32, 32, "none", row_blocks=10) == KernelConfig("stream", 16, 32, 128, 6, 4)
    # Without the tensor memory accelerator nothing of this was measured.
    assert heuristic_config(1, 50, 32, 32, "none", has_tma=False, row_blocks=60) == KernelConfig(
        "stream", 16, 32, 128, 4, 4
    )
