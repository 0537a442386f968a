"""The table of tuned configs; every row in these tables is made up."""

from __future__ import annotations

import json
import math

import pytest
import torch
from blast_kernels.common.gpu_limits import KNOWN
from blast_kernels.mlp_inference import tuned_configs
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.search_space import fits
from blast_kernels.mlp_inference.tuned_configs import LIMIT, kernel_config, read_tuned_configs, tuned_config
from blast_kernels.tables import break_even
from hypothesis import given
from hypothesis import strategies as st

GPU = "imaginary-gpu"
FIRST, SECOND = KernelConfig("tiles", 128, 64, 64, 3, 4), KernelConfig("stream", 16, 64, 128, 4, 4, split=2)


def row(tokens, row_list, row_blocks, config, **more):
    fixed = {"block": [128, 128], "gate": "none", "dtype": "bfloat16"}
    place = {"tokens": tokens, "records": row_list, "row_blocks": row_blocks}
    return fixed | place | {"plan": list(config)} | more


def table(folder, rows, **others):
    versions = {"3.6": rows} | {name.replace("v", "").replace("_", "."): part for name, part in others.items()}
    configs = {name: {"run": {}, "rows": part} for name, part in versions.items()}
    (folder / f"{GPU}.json").write_text(json.dumps({"gpu": GPU, "plans": configs}))
    tuned_configs.read_tuned_configs.cache_clear()
    tuned_configs._indexed.cache_clear()


def look_up(folder, tokens, row_list, row_blocks, gate="none", dtype=torch.bfloat16, triton="3.6", block=(128, 128)):
    return tuned_config(tokens, row_list, row_blocks, *block, gate, dtype, GPU, triton, folder)


def test_the_nearest_row_counts_by_ratio(tmp_path):
    table(tmp_path, [row(512, 64, 10.0, FIRST), row(512, 256, 10.0, SECOND)])
    assert look_up(tmp_path, 512, 110, 10.0) == FIRST
    assert look_up(tmp_path, 512, 150, 10.0) == SECOND
    # Beyond all measured token counts, and between two rows of one side, the nearest row decides as well.
    assert look_up(tmp_path, 600, 70, 11.0) == FIRST
    assert look_up(tmp_path, 600, 240, 9.0) == SECOND


def test_between_two_measured_token_counts_the_estimate_chooses_one_of_their_configs(tmp_path):
    small, large = KernelConfig("tiles", 64, 64, 128, 4, 4), KernelConfig("tiles", 128, 128, 64, 3, 4, True, 8)
    table(tmp_path, [row(512, 32, 5.6, small), row(2048, 32, 5.6, large)])
    assert look_up(tmp_path, 512, 32, 5.6) == small
    assert look_up(tmp_path, 2047, 32, 5.6) == large
    # By ratio, 1000 tokens are nearer to 512. But the small tiles are estimated to take half as long again.
    assert look_up(tmp_path, 1000, 32, 5.6) == large
    # A row that is far away in shape is no neighbour.
    table(tmp_path, [row(512, 32, 5.6, small), row(2048, 512, 80.0, large)])
    assert look_up(tmp_path, 1000, 32, 5.6) == small


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_beyond_the_limit_the_rules_decide(tmp_path_factory, tokens, row_list, row_blocks):
    folder = tmp_path_factory.getbasetemp()
    table(folder, [row(1024, 1024, 32.0, FIRST)])
    place = round(1024 * 2**tokens), round(1024 * 2**row_list), 32.0 * 2**row_blocks
    away = math.dist([math.log2(value) for value in place], (10, 10, 5))
    if place[0] <= 128 or abs(away - LIMIT) < 1e-6:
        return
    assert look_up(folder, *place) == (FIRST if away < LIMIT else None)


def test_few_tokens_share_the_tile_that_holds_them(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, SECOND), row(64, 64, 10.0, FIRST)])
    assert {look_up(tmp_path, tokens, 64, 10.0) for tokens in (1, 7, 16)} == {SECOND}
    assert {look_up(tmp_path, tokens, 64, 10.0) for tokens in (17, 32, 33, 64, 128)} == {FIRST}


def test_more_than_many_tokens_are_like_many(tmp_path):
    table(tmp_path, [row(8192, 64, 10.0, FIRST)])
    assert look_up(tmp_path, 10**6, 64, 10.0) == FIRST


def test_another_block_or_gate_has_no_row_and_float16_takes_those_of_bfloat16(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, FIRST)])
    assert look_up(tmp_path, 16, 64, 10.0, dtype=torch.float16) == FIRST
    assert look_up(tmp_path, 16, 64, 10.0, dtype=torch.float32) is None
    assert look_up(tmp_path, 16, 64, 10.0, dtype=torch.float8_e4m3fn) is None
    assert look_up(tmp_path, 16, 64, 10.0, gate="tied") is None
    assert look_up(tmp_path, 16, 64, 10.0, block=(64, 64)) is None


def test_the_own_version_of_triton_is_read_and_else_the_nearest(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, FIRST)], v3_9=[row(16, 64, 10.0, SECOND)])
    found = {version: look_up(tmp_path, 16, 64, 10.0, triton=version) for version in ("3.6", "3.7", "3.9", "3.10")}
    assert found == {"3.6": FIRST, "3.7": FIRST, "3.9": SECOND, "3.10": SECOND}


def test_a_config_of_fewer_fields_than_today_is_read(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, FIRST[:9])])
    assert look_up(tmp_path, 16, 64, 10.0) == FIRST


def test_an_empty_matrix_is_left_to_the_rules(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, FIRST)])
    assert look_up(tmp_path, 16, 64, 0.0) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"plans": {"3.6": {"rows": [{"tokens": 16}]}}}', "a row lacks one of block"),
        ('{"plans": {"3.6": 7}}', "holds no table of configs"),
        ('{"plans": {"three": {"rows": []}}}', "holds no table of configs"),
        ('{"plans": ', "holds no table of configs"),
        (json.dumps({"plans": {"3.6": {"rows": [row(16, 64, 1.0, ["spiral", *FIRST[1:]])]}}}), "is no config"),
        (json.dumps({"plans": {"3.6": {"rows": [row(16, 64, 0.0, FIRST)]}}}), "is not positive"),
    ],
)
def test_a_damaged_table_is_named_in_one_sentence(tmp_path, text, said):
    (tmp_path / f"{GPU}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{GPU}.json: .*{said}.*; tune again or delete it") as caught:
        look_up(tmp_path, 16, 64, 10.0)
    assert "\n" not in str(caught.value)


def test_a_table_of_plans_alone_has_no_break_even_points(tmp_path):
    table(tmp_path, [row(16, 64, 10.0, FIRST)])
    assert break_even.read_table(GPU, tmp_path) == ()


def test_without_a_gpu_the_rules_decide():
    device = torch.device("cpu")
    config = kernel_config(16, 64, 320, 128, 128, "untied", torch.bfloat16, device)
    assert config == heuristic_config(16, 64, 128, 128, "untied", row_blocks=5.0)
    assert kernel_config(16, 64, 320, 128, 128, "untied", torch.float32, device).kernel == "stream"
    # The interpreter knows no Gluon.
    assert kernel_config(2048, 448, 2867, 64, 64, "tied", torch.bfloat16, device).kernel == "tiles"


def test_on_a_tuned_gpu_the_table_decides_and_elsewhere_on_it_the_rules(tmp_path, monkeypatch):
    table(tmp_path, [row(16, 64, 10.0, FIRST)])
    monkeypatch.setattr(tuned_configs, "gpu_name", lambda device: GPU)
    monkeypatch.setattr(tuned_configs.tuned_config, "__defaults__", (None, tmp_path))
    tuned_configs._kernel_config.cache_clear()
    device = torch.device("cpu")
    assert kernel_config(16, 64, 640, 128, 128, "none", torch.bfloat16, device) == FIRST
    assert kernel_config(16, 640, 6400, 128, 128, "none", torch.bfloat16, device) == heuristic_config(
        16, 640, 128, 128, "none", row_blocks=10.0
    )
    tuned_configs._kernel_config.cache_clear()


@pytest.mark.parametrize(("gpu", "borrows"), [("H100", True), ("B200", False), ("A100", False)])
def test_a_hopper_without_a_table_takes_that_of_the_h100_and_other_gpus_do_not(monkeypatch, gpu, borrows):
    monkeypatch.setattr(tuned_configs, "gpu_limits", lambda device: KNOWN[gpu])
    monkeypatch.setattr(tuned_configs, "gpu_name", lambda device: "a-gpu-without-a-table")
    tuned_configs._kernel_config.cache_clear()
    # The down product of 8B at 80 %, 16 tokens: the table splits its rows over two programs, the rules do not.
    place = (16, 32, 32 * 22.4062, 128, 128, "none", torch.bfloat16)
    found = kernel_config(*place, torch.device("cuda"))
    assert (found.split == 2) == borrows
    expected = tuned_config(16, 32, 22.4062, 128, 128, "none", torch.bfloat16, tuned_configs.HOPPER_TABLE)
    assert (found == expected) == borrows
    tuned_configs._kernel_config.cache_clear()


def test_every_config_of_the_repository_fits_its_block():
    for file in break_even.TUNED.glob("*.json"):
        for rows in read_tuned_configs(file.stem).values():
            for entry in rows:
                assert fits(KernelConfig(*entry["plan"]), *entry["block"], entry["gate"]), entry
