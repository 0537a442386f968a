"""The verbs that jobs of the workflow call, one a stage; they serve also where one runs a stage by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.options import AddVerb, count, grid_option, ids_option, mapping, plan_of, point_id
from blast.experiment.plan.paths import GridFolder


def fetch(options: argparse.Namespace) -> int:
    """Downloads one dataset, or all that a config needs, into the cache, and prints the sizes first.

    Example: blast fetch config/config.yaml --sizes
    """
    if options.what.endswith((".yaml", ".yml")):
        from blast.experiment.data.fetch import fetch_all

        return 1 if fetch_all(plan_of(Path(options.what)), options.sizes) else 0
    if options.out is None:
        raise BlastError("the facts about a dataset are written to a file; add --out FILE, or give a config file.")
    from blast.experiment.data.prepare import fetch_dataset

    fetch_dataset(options.what, options.out)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Tokenises or unpacks a dataset that was fetched.

    Example: blast prepare digits --out digits.json
    """
    from blast.experiment.data.prepare import prepare_dataset

    prepare_dataset(options.dataset, options.settings, options.fetched, options.out)
    return 0


def requests(options: argparse.Namespace) -> int:
    """Builds the evaluation requests of a prepared dataset with lm-eval.

    Example: blast requests pystdlib --tasks pystdlib_heldout --grid-dir results/default
    """
    from blast.experiment.data.prepare import build_dataset_requests

    build_dataset_requests(
        options.dataset, options.tasks, GridFolder(options.grid_dir), options.items, options.separate_test
    )
    return 0


def language(options: argparse.Namespace) -> int:
    """Computes the metrics of lm-eval from the scores of points.

    Example: blast language gpt2-nano.pystdlib.dense.seed0 --grid-dir results/default
    """
    from blast.experiment.language.stage import compute_language_metrics

    compute_language_metrics(GridFolder(options.grid_dir), options.ids)
    return 0


def agreement(options: argparse.Namespace) -> int:
    """Compares the scores of a point with those of stock lm-eval on its exported checkpoint, in float32.

    Example: blast agreement gpt2-nano.pystdlib.dense.seed0 --grid-dir results/default --items 500
    """
    from blast.experiment.language.agreement import check_agreement, describe

    folder = GridFolder(options.grid_dir)
    found = check_agreement(folder, options.id, options.items)
    for line in describe(found):
        print(line)
    print(f"written: {folder.agreement(options.id)}")
    return 0 if found["passed"] else 1


def verdict(options: argparse.Namespace) -> int:
    """Lists the points that failed and moves their records aside, so that the next run repeats them.

    Example: blast verdict --grid-dir results/default --out results/default/verdict.txt
    """
    from blast.experiment.run.verdict import judge_grid, verdict_on
    from blast.files import write_atomically

    folder = GridFolder(options.grid_dir)
    _, sentences = judge_grid(folder)
    message, bad = verdict_on(folder)
    for line in bad:
        print(line, file=sys.stderr)
    for sentence in sentences:
        print(f"FAILED {sentence}", file=sys.stderr)
    if sentences:
        print(
            f"{len(sentences)} failures, all other points are done; remove the cause and run again: "
            "only the failed points are repeated.",
            file=sys.stderr,
        )
        return 1
    write_atomically(options.out, "".join(f"{line}\n" for line in [message, *bad]))
    print(message)
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs of the stages.

    Args:
        verb: Adds one verb.
    """
    made = verb("fetch", fetch)
    made.add_argument("what", metavar="CONFIG.yaml|DATASET", help="a config file, or the name of a dataset")
    made.add_argument("--sizes", action="store_true", help="only print what a config needs; download nothing")
    made.add_argument(
        "--out", type=Path, help="for a dataset: file for the facts, or for the reason why there are none"
    )
    made = verb("prepare", prepare)
    made.add_argument("dataset", help="name of a dataset, see `blast list datasets`")
    made.add_argument(
        "--settings", type=mapping, default={}, metavar="JSON", help="settings of the dataset (default: {})"
    )
    made.add_argument("--fetched", type=Path, help="the file that `blast fetch` wrote")
    made.add_argument("--out", type=Path, required=True, help="file for its facts, or for the reason of a failure")
    made = verb("requests", requests)
    made.add_argument("dataset", help="name of a dataset that is prepared")
    made.add_argument("--tasks", nargs="+", required=True, help="names of lm-eval tasks")
    made.add_argument("--items", type=count, help="use the first ITEMS documents of each task (default: all)")
    made.add_argument(
        "--separate-test", action="store_true", help="leave out what comes from held-out documents of even number"
    )
    made.add_argument("--grid-dir", **grid_option())
    made = verb("language", language)
    made.add_argument("ids", **ids_option())
    made.add_argument("--grid-dir", **grid_option())
    made = verb("agreement", agreement)
    made.add_argument("id", metavar="ID", type=point_id, help="id of a point with scores")
    made.add_argument("--items", type=count, help="compare the first ITEMS items of each task (default: all)")
    made.add_argument("--grid-dir", **grid_option())
    made = verb("verdict", verdict)
    made.add_argument("--grid-dir", **grid_option())
    made.add_argument("--out", type=Path, required=True, help="file to write if no point failed")
