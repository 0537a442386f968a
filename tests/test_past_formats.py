"""Files of past versions still load: the code of its date wrote each folder of `fixtures/`, and it stays as it is.

When a format changes, keep the old folder and its test, and add a folder that the new code wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import blast
from blast.experiment.plan.point import Point
from blast.experiment.records.record import read_record
from blast.experiment.records.rows import record_rows

FIXTURES = Path(__file__).parent / "fixtures"
FOLDER = FIXTURES / "formats-2026-11"
# The same models in each format of checkpoints.
CHECKPOINTS = [FOLDER, FIXTURES / "checkpoints-format-2"]


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_checkpoint_loads_with_its_masks_and_computes_what_it_computed(name, folder):
    model = blast.load(folder / f"checkpoint-{name}")
    expected = {key.partition(":")[2]: mask for key, mask in load_file(FOLDER / f"masks-{name}.safetensors").items()}
    masks = blast.masks_of(model)
    assert set(masks) == set(expected)
    assert all(torch.equal(masks[key], mask) for key, mask in expected.items())
    with torch.no_grad():
        if name == "vit":
            answer = model(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8))
        else:
            answer = model(torch.arange(8).reshape(1, 8)).logits
    torch.testing.assert_close(answer, load_file(FOLDER / "answers.safetensors")[name], rtol=1e-5, atol=1e-6)


def test_a_training_goes_on_from_a_saved_state():
    saved = torch.load(FOLDER / "training-state.pt", weights_only=True)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = blast.SparsifyConfig(sparsity=0.75, block=16, steps=10, update_every=2, targets=["0", "2"])
    sparsifier = blast.Sparsifier(model, optimizer, config)
    sparsifier.load_state_dict(saved["sparsifier"])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert sparsifier.step_count == 5
    assert all(torch.equal(mask, saved["sparsifier"]["masks"][name]) for name, mask in sparsifier.masks.items())
    while not sparsifier.finished:
        model(torch.ones(4, 32)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    assert sparsifier.sparsity_achieved == 0.75


@pytest.mark.parametrize("name", ["gpt2-nano", "vit-nano"])
def test_a_point_file_reads(name):
    point = Point.read(FOLDER / f"point-{name}.json")
    assert point.architecture == name


@pytest.mark.parametrize("name", ["gpt2-nano", "vit-nano", "benchmark"])
def test_a_record_reads_with_its_digest_and_becomes_rows(name):
    file = FOLDER / f"record-{name}.json"
    record = read_record(file, named=json.loads(file.read_text())["point"]["id"])
    rows = list(record_rows(record))
    assert rows
    assert {row["status"] for row in rows} == {"ok"}
