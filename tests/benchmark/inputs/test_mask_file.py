"""Mask files of trained models: writing, reading, search by the suite `kernels`, errors for damaged files."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kernel_suite_case import SMALL, latencies, masks_of, measure, use_fake_gpu
from safetensors.numpy import load_file, save_file

from blast import architectures
from blast.benchmark.inputs.mask_file import FACTS, read_facts, read_mask_file, write_mask_file
from blast.benchmark.inputs.masks import masks_folder, trained_masks
from blast.errors import BlastError
from blast.files import file_digest
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import one_shot_masks

RUN = {
    "grid": "study", "point": "p", "model": "llama-nano", "dataset": "pystdlib", "method": "blast", "sparsity": 0.7,
    "block": [16, 16], "step": 99, "record": "sha256:r", "date": "2026-11-24T00:00:00+00:00",
}  # fmt: skip
MASKS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter("__metadata__".__ne__),
    arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    min_size=1,
    max_size=4,
)


def write(folder, name="p", seed=0, **facts):
    """Writes a file with two layers of masks of the small MLP and returns the masks of one layer."""
    masks, _ = masks_of(SMALL[True], seed=seed)
    by_name = {"gate_proj": masks.gate, "up_proj": masks.up, "down_proj": masks.down}
    named = {f"model.layers.{n}.mlp.{key}": mask.numpy() for n in (0, 1) for key, mask in by_name.items()}
    write_mask_file(folder / f"{name}.safetensors", named, RUN | {"point": name} | facts)
    return masks


def found_in(folder, sparsity=0.7, block=(16, 16), model="llama-nano"):
    return trained_masks(folder, model, sparsity, block, False, "cpu")


@given(masks=MASKS, sparsity=st.floats(0, 0.99))
@settings(deadline=None, max_examples=60)
def test_masks_and_facts_are_read_back_exactly_and_give_equal_bytes(tmp_path_factory, masks, sparsity):
    file = tmp_path_factory.mktemp("masks") / "deep" / "a.safetensors"
    write_mask_file(file, masks, RUN | {"sparsity": sparsity})
    found = read_mask_file(file)
    assert found.facts == read_facts(file) == RUN | {"sparsity": sparsity}
    assert set(found.masks) == set(masks)
    assert all(np.array_equal(found.masks[name], mask) for name, mask in masks.items())
    before = file.read_bytes()
    write_mask_file(file, found.masks, found.facts)
    assert file.read_bytes() == before


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_a_changed_bit_raises_or_changes_nothing(tmp_path_factory, place, bit):
    file = tmp_path_factory.mktemp("masks") / "p.safetensors"
    write(file.parent)
    good, data = read_mask_file(file), bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with contextlib.suppress(BlastError):
        found = read_mask_file(file)
        assert found.facts == good.facts
        assert all(np.array_equal(found.masks[name], mask) for name, mask in good.masks.items())


@pytest.mark.parametrize("data", [b"", b"half", b"\xff" * 200])
def test_the_error_for_a_damaged_file_gives_its_name_and_what_to_do(tmp_path, data):
    (tmp_path / "p.safetensors").write_bytes(data)
    for read in (read_mask_file, read_facts, lambda file: found_in(file.parent)):
        with pytest.raises(BlastError, match=r"p\.safetensors: these masks are damaged .*; restore the file from git"):
            read(tmp_path / "p.safetensors")


def test_masks_in_the_format_of_training_raise(tmp_path):
    save_file({"step000001/a": np.ones((2, 2), np.uint8)}, tmp_path / "p.safetensors")
    with pytest.raises(BlastError, match="another format"):
        read_mask_file(tmp_path / "p.safetensors")


def test_many_blocks_use_int32_offsets_and_int16_indices(tmp_path):
    masks = {"m": np.ones((300, 300), bool)}
    write_mask_file(tmp_path / "a.safetensors", masks, RUN)
    stored = load_file(tmp_path / "a.safetensors")
    assert (stored["m.offsets"].dtype, stored["m.indices"].dtype) == (np.int32, np.int16)
    assert read_mask_file(tmp_path / "a.safetensors").masks["m"].all()


@pytest.mark.parametrize("lost", FACTS)
def test_a_missing_fact_raises_and_writes_no_file(tmp_path, lost):
    facts = {key: value for key, value in RUN.items() if key != lost}
    with pytest.raises(BlastError, match=lost):
        write_mask_file(tmp_path / "a.safetensors", {"m": np.ones((2, 2), bool)}, facts)
    assert not list(tmp_path.iterdir())


def test_trained_masks_are_found_by_model_sparsity_and_block_at_any_depth(tmp_path):
    masks = write(tmp_path / "nvidia-h100" / "masks" / "study")
    found = found_in(tmp_path)
    assert len(found.layers) == 2
    for layer in found.layers:
        assert all(torch.equal(left, right) for left, right in zip(layer, masks, strict=True))
    file = tmp_path / "nvidia-h100" / "masks" / "study" / "p.safetensors"
    assert found.facts == {"masks_of": "p", "masks_digest": file_digest(file)}
    tied = trained_masks(tmp_path, "llama-nano", 0.7, (16, 16), True, "cpu").layers[0]
    assert torch.equal(tied.gate, masks.up)
    for other in ({"sparsity": 0.8}, {"block": (16, 32)}, {"model": "gpt2"}):
        assert found_in(tmp_path, **other) is None
    assert found_in(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("gpt2-nano", {"vocab_size": 64, "context": 16}), ("llama-nano", {"vocab_size": 64, "context": 16}),
     ("vit-nano", {"num_classes": 10, "image_size": 8, "channels": 1})],
)  # fmt: skip
def test_masks_of_every_family_are_assigned_to_up_down_and_gate(tmp_path, name, sizes):
    model = architectures.build(name, **sizes)
    masks = one_shot_masks(model, SparsifyConfig(sparsity=0.7, block=(16, 16), steps=1))
    write_mask_file(
        tmp_path / "p.safetensors", {key: mask.numpy() for key, mask in masks.items()}, RUN | {"model": name}
    )
    shape = architectures.get(name).shape
    found = found_in(tmp_path, model=name)
    assert len(found.layers) == shape.layers
    for layer in found.layers:
        assert layer.up.shape == (shape.ffn // 16, shape.hidden // 16)
        assert layer.down.shape == (shape.hidden // 16, shape.ffn // 16)
        assert (layer.gate is not None) == shape.gated


def test_among_several_models_blast_comes_first_and_then_the_newest(tmp_path):
    write(tmp_path, "old")
    write(tmp_path, "swap", method="rigl_swap", date="2026-11-26T00:00:00+00:00")
    assert found_in(tmp_path).facts["masks_of"] == "old"
    write(tmp_path, "a-newer-one", date="2026-11-25T00:00:00+00:00", dataset="technical_text")
    assert found_in(tmp_path).facts["masks_of"] == "a-newer-one"


def test_masks_that_are_not_of_an_mlp_raise(tmp_path):
    write_mask_file(tmp_path / "a.safetensors", {"attention.q_proj": np.ones((2, 2), bool)}, RUN)
    with pytest.raises(BlastError, match=r"a\.safetensors.*masks_folder"):
        found_in(tmp_path)


def test_recorded_masks_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded = masks_folder("results/recorded")
    assert (recorded / "nvidia-h100-80gb-hbm3" / "kernels.csv").is_file()
    (tmp_path / "results" / "recorded").mkdir(parents=True)
    assert masks_folder("results/recorded").resolve() == tmp_path / "results" / "recorded"


def test_rows_of_the_kernel_suite_have_the_digest_of_trained_masks(tmp_path, monkeypatch):
    use_fake_gpu(monkeypatch)
    write(tmp_path / "masks", sparsity=0.8)
    metrics = measure(masks=["uniform", "trained"], masks_folder=str(tmp_path))
    digests = {}
    for entry in latencies(metrics):
        if entry["provider"].startswith("ours"):
            assert entry["value"] is not None
            digests.setdefault(entry["setting"]["mask"], set()).add(entry["setting"].get("masks_digest"))
    assert digests == {"uniform": {None}, "trained": {file_digest(tmp_path / "masks" / "p.safetensors")}}
    assert json.dumps(metrics)
