"""Whether the suite's scores of a point agree with those of stock lm-eval on its exported checkpoint.

Both sides compute in float32, with the same tasks, documents, window and batch size. A multiple-choice question is
answered alike if the choice is the same, with and without division by its length. A word to predict is answered alike
if greedy decoding gives it on both sides or on none.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blast.checkpoint.export import export_dense
from blast.errors import BlastError
from blast.evaluation.scores import read_scores
from blast.experiment.language.items import YES_OR_NO
from blast.experiment.language.metrics import LmEvalMetrics
from blast.experiment.language.stock import greedy_flags, log_likelihoods, run_stock
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.records import provenance
from blast.experiment.records.record import read_record
from blast.files import write_json

FORMAT = 1
# Wanted: at least this share of equal answers, and scores at most so far apart: absolute for fractions, else relative.
ALIKE = 0.995
APART = 0.002
PUBLISHED = CHECKOUT / "config" / "published_scores.csv"

Sample = Mapping[str, Any]


def alike(ours: Sample, theirs: Sample) -> bool | None:
    """Whether two samples of a question have the same answer; None for a text, which has none."""
    metrics = [name for name in YES_OR_NO if name in ours]
    if not metrics:
        return None
    if any(ours[name] != theirs[name] for name in metrics):
        return False
    if len(ours["resps"]) > 1:
        return int(np.argmax(log_likelihoods(ours))) == int(np.argmax(log_likelihoods(theirs)))
    return greedy_flags(ours) == greedy_flags(theirs)


def compare_sets(
    ours: Mapping[str, Sequence[Sample]], theirs: Mapping[str, Mapping[int, Sample]]
) -> dict[str, dict[str, Any]]:
    """By task: how many items there are, how many of them are answered alike, and the largest difference in nats.

    Args:
        ours: By task, the suite's samples.
        theirs: By task, the samples of stock lm-eval by number of the document.

    Raises:
        BlastError: if the two sides have other documents.
    """
    found = {}
    for task, samples in ours.items():
        if sorted(sample["doc_id"] for sample in samples) != sorted(theirs[task]):
            raise BlastError(
                f"the task '{task}' has {len(samples)} items here and {len(theirs[task])} in stock lm-eval; "
                "build and score the requests again."
            )
        answers = [alike(sample, theirs[task][sample["doc_id"]]) for sample in samples]
        questions = [answer for answer in answers if answer is not None]
        apart = [
            abs(a - b)
            for sample in samples
            for a, b in zip(log_likelihoods(sample), log_likelihoods(theirs[task][sample["doc_id"]]), strict=True)
        ]
        found[task] = {
            "items": len(samples),
            "questions": len(questions),
            "alike": sum(questions),
            "largest_difference_nats": max(apart, default=0.0),
        }
    return found


def compare_scores(
    ours: Sequence[Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]], model: str
) -> list[dict[str, Any]]:
    """One entry for each metric of each task: both scores, whether they agree, and a published score if one is known.

    Args:
        ours: Metrics as entries of a record.
        theirs: lm-eval's `results`.
        model: Name of the architecture, for the published scores; they are shown and decide nothing.
    """
    known = published_scores()
    entries = []
    for entry in ours:
        stock = float(theirs[entry["task"]][f"{entry['metric']},{entry['setting'].get('filter', 'none')}"])
        difference = entry["value"] - stock
        wide = abs(difference) if entry["unit"] == "fraction" else abs(difference) / abs(stock)
        entries.append(
            {
                "task": entry["task"],
                "metric": entry["metric"],
                "ours": entry["value"],
                "stock": stock,
                "agree": wide <= APART,
                "published": known.get((model, entry["task"], entry["metric"])),
            }
        )
    return entries


def published_scores(file: Path = PUBLISHED) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Scores that others published, by model, task and metric, with their source.

    Raises:
        BlastError: if the file cannot be read.
    """
    try:
        with Path(file).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {
            (row["model"], row["task"], row["metric"]): {
                "value": float(row["value"]), **{key: row[key] for key in ("split", "known", "source")},
            }
            for row in rows
        }  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BlastError(
            f"{file}: these published scores cannot be read ({error}); restore the file from git."
        ) from error


def check_agreement(folder: GridFolder, point: str, items: int | None = None) -> dict[str, Any]:
    """Compares a point with stock lm-eval and writes `agreement/<id>.json`.

    The model runs on a GPU if there is one. No network is needed, only lm-eval.

    Args:
        folder: Folder of its grid, with the checkpoint, the requests and the scores of the point.
        point: Its id.
        items: Compare the first so many items of each task; None for all.

    Returns:
        What was written: `passed`, `alike` (share of equal answers), `sets`, `scores`, and how it was made.

    Raises:
        BlastError: if the point failed or has no scores in float32, or stock lm-eval fails.
    """
    import torch

    record = read_record(folder.record(point))
    if record["status"] != "ok":
        raise BlastError(f"the point '{point}' failed ({record['cause']}); run it again first.")
    scores_file = folder.work(point) / "scores.json"
    settings = read_scores(scores_file).settings
    if settings["dtype"] != "float32":
        raise BlastError(
            f"{scores_file}: these scores were computed in {settings['dtype']}, and stock lm-eval is run in float32; "
            "score a point whose weights are float32."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="blast-agreement-") as temporary:
        place = Path(temporary)
        export_dense(folder.work(point) / "checkpoint", place / "dense")
        with LmEvalMetrics(folder.requests(record["point"]["dataset"])) as lm_eval:
            limits = [limit for limit in (items, lm_eval.requests.settings["limit"]) if limit is not None]
            limit = min(limits, default=None)
            ours = lm_eval.evaluate(scores_file, limit)
            stock = run_stock(
                place / "dense", lm_eval.requests, place, window=settings["window"], batch=settings["batch"],
                device=device, limit=limit,
            )  # fmt: skip
    sets = compare_sets(ours.samples, stock.samples)
    scores = compare_scores(ours.metrics, stock.results, record["point"]["architecture"])
    questions = sum(found["questions"] for found in sets.values())
    share = sum(found["alike"] for found in sets.values()) / questions if questions else None
    found = {
        "format": FORMAT,
        "point": point,
        "record_digest": record["record_digest"],
        "passed": (share is None or share >= ALIKE) and all(entry["agree"] for entry in scores),
        "alike": share,
        "wanted": {"alike": ALIKE, "apart": APART},
        "sets": sets,
        "scores": scores,
        "limit": limit,
        "command": stock.command,
        "commit": provenance.commit()[0],
        "date": provenance.now(),
        "versions": provenance.versions(),
        **provenance.hardware(),
    }
    write_json(folder.agreement(point), found)
    return found


def describe(found: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    lines = []
    for entry in found["scores"]:
        known = found["sets"][entry["task"]]
        equal = f"{known['alike']} of {known['questions']} alike" if known["questions"] else f"{known['items']} texts"
        beside = f"; published {entry['published']['value']:.4f}" if entry["published"] else ""
        mark = "" if entry["agree"] else "  DIFFERS"
        lines.append(
            f"{entry['task']:<14} {entry['metric']:<16} ours {entry['ours']:.5g}, stock {entry['stock']:.5g}; "
            f"{equal}{beside}{mark}"
        )
    share = "no questions" if found["alike"] is None else f"{100 * found['alike']:.2f} % of the answers are alike"
    verdict = "agrees with stock lm-eval" if found["passed"] else "DOES NOT agree with stock lm-eval"
    return [*lines, f"{found['point']} {verdict}: {share} ({100 * ALIKE:g} % wanted)"]
