"""The example of the README, as it is printed there, on a small model and for fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import blast
from blast import architectures

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40


def test_the_example_of_the_readme_prunes_and_saves_a_model(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert "steps=1000" in example
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = architectures.build("llama-nano", vocab_size=64, context=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    tokens = torch.randint(0, 64, (STEPS, 2, 16))
    batches = [{"input_ids": batch, "labels": batch} for batch in tokens]
    names = {"model": model, "optimizer": optimizer, "batches": batches, "peak": 1e-3}
    exec(example.replace("steps=1000", f"steps={STEPS}"), names)
    found = blast.masks_of(blast.load("my-sparse-model"))
    assert found
    assert all(abs(1 - mask.float().mean().item() - 0.9) < 0.01 for mask in found.values())
    # The last step, counted from 0, still learns: a tenth of the ten steps over which the rate falls.
    assert {round(group["lr"], 10) for group in optimizer.param_groups} == {1e-4}
