"""`blast generate` under `torchrun`: two processes print the text of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from patience import PATIENCE

import blast
from blast.experiment.own_model.generate import GenerateOptions, generate

SOURCES = Path(__file__).resolve().parents[3] / "src"


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in two processes."""
    paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blast", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_two_processes_print_the_text_of_one(model_folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    masks = {
        target.name: torch.rand(target.shape[0] // 32, target.shape[1] // 32) < 0.5
        for mlp in blast.find_mlps(model)
        for target in mlp.targets
    }
    blast.save(blast.to_sparse(model, masks, drop=True), tmp_path, processing_class=str(model_folder))
    run = torchrun("generate", str(tmp_path), "The block 3", "--max-new-tokens", "12")
    assert run.returncode == 0, run.stderr
    alone = generate(GenerateOptions(str(tmp_path), "The block 3", max_new_tokens=12))
    assert run.stdout == f"The block 3{alone}\n"
    assert run.stderr.count("12 tokens, ") == 1


def test_a_folder_of_transformers_is_not_split(model_folder, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        blast.BlastError, match=r"is no checkpoint of blast.save, and only those are split .*; save the"
    ):
        generate(GenerateOptions(str(model_folder), "The block 3"))
