"""Whatever is in `blast.json`, loading gives the saved model or one sentence, and leaves a given model as it was."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sparse_pairs import Plain, pair, plain

import blast
from blast.checkpoint.manifest import MANIFEST, WEIGHTS, _digest, write_manifest
from blast.errors import BlastError

NAMES = ("up", "down", "up.values", "up.bias", "up.weight", "down.bias", "count", "", "../x", "/etc/passwd", "nul\0")
NUMBERS = (-1, 0, 1, 2, 4, 8, 16, 32, 2**31, 2**63, 10**30, 1.5, float("nan"), True)
leaves = st.none() | st.sampled_from(NUMBERS) | st.sampled_from(NAMES) | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all fields of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))] if path else [
        found for key, item in inner for found in paths(item, (key,))
    ]  # fmt: skip


def replaced(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A manifest with another value at a path; `...` removes it. Its digest fits, as an attacker would make it."""
    changed = copy.deepcopy(manifest)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    if path != ("digest",):
        changed["digest"] = _digest(changed)
    return changed


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, Any], torch.nn.Module]:
    """A checkpoint of a model of no library, its manifest, and the model."""
    folder, model = tmp_path_factory.mktemp("fuzz") / "model", plain()
    blast.save(model, folder)
    return folder, json.loads((folder / MANIFEST).read_text()), model


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_value_in_any_field_is_harmless_or_refused(saved, data) -> None:
    folder, manifest, model = saved
    path = data.draw(st.sampled_from(paths(manifest)))
    value = data.draw(values | st.just(...))
    (folder / MANIFEST).write_text(json.dumps(replaced(manifest, path, value)))
    target = Plain()
    before, message = state_of(target), None
    try:
        blast.load(folder, model=target)
    except BlastError as error:
        message = str(error)
    if message is None:
        assert equal(state_of(target), state_of(model))
    else:
        assert equal(state_of(target), before)
        assert "\n" not in message
        assert len(message) < 500


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(cut=st.integers(0, 3000), put=st.binary(max_size=4))
def test_any_bytes_in_the_manifest_are_refused_in_one_sentence(saved, cut: int, put: bytes) -> None:
    folder, manifest, model = saved
    text = json.dumps(manifest).encode()
    cut = min(cut, len(text) - 1)
    (folder / MANIFEST).write_bytes(text[:cut] + put + text[cut + 1 :])
    message = None
    try:
        loaded = blast.load(folder, model=Plain())
    except BlastError as error:
        message = str(error)
    assert message is not None or equal(state_of(loaded), state_of(model))
    assert message is None or "\n" not in message


CONFIG_VALUES = (None, -1, 0, 3, 1.5, "x", [], {}, [1, 2], True)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_value_in_the_description_of_a_model_is_harmless_or_refused(gpt2, data) -> None:
    folder, manifest = gpt2
    path = data.draw(st.sampled_from(paths(manifest["base"])))
    value = data.draw(st.sampled_from(CONFIG_VALUES))
    (folder / MANIFEST).write_text(json.dumps(replaced(manifest, ("base", *path), value)))
    message = ""
    try:
        blast.load(folder)
    except BlastError as error:
        message = str(error)
    assert "\n" not in message


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fuzz") / "gpt2"
    blast.save(pair("gpt2")[1], folder)
    return folder, json.loads((folder / MANIFEST).read_text())


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the weights of a checkpoint, with digests that fit."""
    manifest = json.loads((folder / MANIFEST).read_text())
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    write_manifest(folder, {key: manifest[key] for key in manifest.keys() - {"format", "weights", "digest"}})


def wrong(tensors: dict[str, torch.Tensor], name: str, change) -> dict[str, torch.Tensor]:
    return {**tensors, name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "up.values"}, r"'up.values' is only in the model"),
        (lambda t: {k: v for k, v in t.items() if k != "down.bias"}, r"'down.bias' is only in the model"),
        (lambda t: {**t, "more": torch.ones(1)}, r"'more' is only in the checkpoint"),
        (lambda t: wrong(t, "up.values", lambda v: v[:-1].clone()), r"'up.values' is \[3, 8, 2\] .* in its manifest"),
        (
            lambda t: wrong(t, "up.values", lambda v: torch.cat([v, v[:1]])),
            r"'up.values' is \[5, 8, 2\] .* in its manifest",
        ),
        (lambda t: wrong(t, "up.col_indices", lambda v: v[:-1].clone()), r"'up.col_indices' is \[3\] .* its manifest"),
        (lambda t: wrong(t, "up.col_indices", lambda v: v + 9), r"'up' of the checkpoint is damaged"),
        (lambda t: wrong(t, "up.col_indices", lambda v: v.long()), r"'up' of the checkpoint is damaged: .*int32"),
        (lambda t: wrong(t, "up.row_offsets", lambda v: v.flip(0)), r"'up' of the checkpoint is damaged"),
        (lambda t: wrong(t, "up.values", lambda v: v.long()), r"'up.values' is torch.int64 .* no gradient"),
        (lambda t: wrong(t, "up.bias", lambda v: v.long()), r"'up.bias' is torch.int64 .* no gradient"),
    ],
)
def test_weights_that_do_not_fit_their_manifest_are_refused(change, message: str, tmp_path: Path) -> None:
    blast.save(plain_with_two_masks(), tmp_path)
    written(tmp_path, change(load_file(tmp_path / WEIGHTS)))
    target = Plain()
    before = state_of(target)
    with pytest.raises(BlastError, match=message):
        blast.load(tmp_path, model=target)
    assert equal(state_of(target), before)


def plain_with_two_masks() -> torch.nn.Module:
    """A model whose matrices have indices of their own."""
    masks = {"up": torch.eye(4, dtype=torch.bool), "down": torch.eye(4, dtype=torch.bool).flip(0)}
    return blast.to_sparse(Plain(), masks, drop=True)


def test_weights_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        blast.save(plain(), tmp_path / name)
    shutil.copyfile(tmp_path / "two" / WEIGHTS, tmp_path / "one" / WEIGHTS)
    with pytest.raises(BlastError, match="was altered after it was written"):
        blast.load(tmp_path / "one", model=Plain())


def test_a_file_of_weights_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    blast.save(plain(), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / WEIGHTS).write_bytes(b"\x80\x04pickle")
    write_manifest(tmp_path, {key: manifest[key] for key in manifest.keys() - {"format", "weights", "digest"}})
    with pytest.raises(BlastError, match="is not a safetensors file"):
        blast.load(tmp_path, model=Plain())


@pytest.mark.parametrize(
    "text", ["", "null", "[" * 100_000, '{"format": 2, "format": 2}', '{"format": "2"}', "\ufeff{}"]
)
def test_a_manifest_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    blast.save(plain(), tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BlastError, match=r"is unfinished or not JSON|has format version"):
        blast.load(tmp_path, model=Plain())
