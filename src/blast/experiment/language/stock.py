"""Runs stock lm-eval on a model folder with the suite's own tasks, and reads the samples that it logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.evaluation.requests import RequestFile
from blast.experiment.language.tasks_of_lm_eval import write_tasks

# No look-ups on a hub: model, tokenizer and documents are local. lm-eval starts no process per core.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DISABLE_MULTIPROC": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class StockRun:
    """What stock lm-eval found.

    Attributes:
        command: The command, without the paths of this machine.
        results: By task, its metrics, as `results` of lm-eval.
        samples: By task, its samples by number of the document.
    """

    command: str
    results: dict[str, dict[str, Any]]
    samples: dict[str, dict[int, dict[str, Any]]]


def run_stock(
    model: Path, requests: RequestFile, folder: Path, *, window: int, batch: int, device: str, limit: int | None
) -> StockRun:
    """Runs `lm_eval --model hf` in float32 on the documents of a request file.

    lm-eval's cache of logits is off: it confuses windows that have the same input and other numbers of scored tokens.

    Args:
        model: Folder of a dense model of transformers, with its tokenizer.
        requests: They name the tasks and hold the documents.
        folder: An empty folder for tasks and output.
        window: Longest input in tokens.
        batch: Batch size.
        device: For instance `cuda`.
        limit: Use the first so many documents of each task; None for all.

    Raises:
        BlastError: if lm-eval ends with an error; the message has its last line.
    """
    tasks = folder / "tasks"
    tasks.mkdir()
    write_tasks(tasks, requests.documents)
    arguments = f"max_length={window},dtype=float32,logits_cache=False"
    options = ["--tasks", ",".join(requests.tasks), "--batch_size", str(batch), "--device", device, "--log_samples"]
    options += ["--limit", str(limit)] if limit is not None else []

    def command(model: str, tasks: str, out: str) -> list[str]:
        start = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},{arguments}"]
        return [*start, "--include_path", tasks, *options, "--output_path", out]

    given = [sys.executable, *command(str(model), str(tasks), str(folder / "out"))]
    done = subprocess.run(given, capture_output=True, text=True, env=os.environ | OFFLINE)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BlastError(f"stock lm-eval ended with code {done.returncode} ({last}); correct that and run again.")
    (file,) = (folder / "out").rglob("results_*.json")
    samples = {task: _samples(next(file.parent.glob(f"samples_{task}_2*.jsonl"))) for task in requests.tasks}
    shown = " ".join(["python", *command("FOLDER", "TASKS", "OUT")])
    return StockRun(shown, json.loads(file.read_text())["results"], samples)


def _samples(file: Path) -> dict[int, dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return {sample["doc_id"]: sample for sample in map(json.loads, lines)}


def log_likelihoods(sample: dict[str, Any]) -> list[float]:
    """Log-likelihoods of the requests of a sample; a logged sample has them as text."""
    return [float(answer[0] if isinstance(answer, list | tuple) else answer) for (answer,) in sample["resps"]]


def greedy_flags(sample: dict[str, Any]) -> list[bool]:
    """Whether greedy decoding gives each answer of a sample."""
    return [str(answer[1]) == "True" for (answer,) in sample["resps"]]
