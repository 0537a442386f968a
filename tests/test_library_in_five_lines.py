"""Five more lines in a user's own training loop sparsify a transformers model."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from sparsity_models import VOCABULARY, tiny_gpt2, tiny_llama

import blast

STEPS = 60


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (2, 16), generator=generator) for _ in range(STEPS)]


def ordinary_loop(model, folder):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for tokens in batches():
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def sparsifying_loop(model, folder):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(sparsity=0.8, block=16, steps=STEPS))
    for tokens in batches():
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        sparsifier.step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    blast.to_sparse(model, sparsifier.masks)
    blast.save(model, folder)
    return model


def body_of(function) -> list[str]:
    return inspect.getsource(function).splitlines()[1:]


def test_the_sparsifying_loop_is_the_ordinary_one_and_at_most_five_lines_more() -> None:
    added = [line for line in body_of(sparsifying_loop) if line not in body_of(ordinary_loop)]
    kept = [line for line in body_of(sparsifying_loop) if line in body_of(ordinary_loop)]
    assert kept == body_of(ordinary_loop)
    assert len(["import blast", *added]) <= 5


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_those_five_lines_train_sparsify_save_and_load(build, tmp_path) -> None:
    model = sparsifying_loop(build(), tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    masks = blast.masks_of(loaded)
    assert masks
    for name, mask in masks.items():
        assert int(mask.sum()) == max(1, round(0.2 * mask.numel())), name
    tokens = batches()[0]
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)
    dense = blast.to_dense(loaded)
    torch.testing.assert_close(dense(tokens).logits, model(tokens).logits)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_blast_loads_neither_torch_nor_numpy_and_knows_its_names() -> None:
    found = python(
        "import sys, blast; known = dir(blast); version = blast.__version__;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'blast.layers') if m in sys.modules],"
        " set(blast.__all__) <= set(known), bool(version))"
    )
    assert found == "[] True True"


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error() -> None:
    assert all(getattr(blast, name) is not None for name in blast.__all__)
    with pytest.raises(AttributeError, match="module 'blast' has no attribute 'sparsify'"):
        _ = blast.sparsify
