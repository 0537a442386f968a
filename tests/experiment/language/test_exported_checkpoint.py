"""Stock lm-eval gives the suite's own numbers for a checkpoint that was exported with its tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from language_case import WINDOW, trained_model, trained_tokenizer, write_documents
from patience import PATIENCE

import blast
from blast.evaluation.scoring import score_requests
from blast.experiment.language.metrics import LmEvalMetrics, build_requests
from blast.experiment.language.tasks_of_lm_eval import read_documents, write_tasks

TASKS = ["pystdlib_heldout", "pystdlib_next_line"]


@pytest.mark.slow
def test_lm_eval_gives_the_suites_numbers_for_an_export(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    tokenizer = trained_tokenizer(write_documents(data))
    torch.manual_seed(0)
    masks = {f"transformer.h.0.mlp.{name}": torch.rand(shape) < 0.6 for name, shape in MASKS.items()}
    sparse = blast.to_sparse(trained_model(tokenizer), masks, drop=True)
    blast.save(sparse, tmp_path / "sparse", processing_class=data / "tokenizer")
    build_requests(data, TASKS, tmp_path / "sparse", tmp_path / "requests.jsonl.gz")
    score_requests(
        blast.load(tmp_path / "sparse"), tmp_path / "requests.jsonl.gz", tmp_path / "scores.json", batch_size=8
    )
    with LmEvalMetrics(tmp_path / "requests.jsonl.gz") as lm_eval:
        ours = {(entry["task"], entry["metric"]): entry["value"] for entry in lm_eval.compute(tmp_path / "scores.json")}

    blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", read_documents(data, TASKS))
    # lm-eval's cache of logits confuses windows with the same input.
    settings = f"pretrained={tmp_path / 'dense'},max_length={WINDOW},dtype=float32,logits_cache=False"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", settings, "--include_path",
        str(tmp_path / "tasks"), "--tasks", ",".join(TASKS), "--batch_size", "8", "--device", "cpu",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=offline)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    assert {task for task, _ in ours} == set(TASKS)
    for (task, metric), value in ours.items():
        assert theirs[task][f"{metric},none"] == pytest.approx(value, rel=1e-6), (task, metric)


MASKS = {"c_fc": (8, 2), "c_proj": (2, 8)}
