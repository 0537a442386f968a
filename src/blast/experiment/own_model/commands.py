"""The verbs `prune`, `scan`, `generate` and `eval`, and their options.

The docstring of a verb is its help text: the first line says what the verb does, the rest gives an example.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from blast.experiment.plan.options import AddVerb

MINUTES = 10.0


def prune(options: argparse.Namespace) -> int:
    """Prunes a pretrained language model on a text and saves it sparse, within a time; a stopped run goes on.

    Example: blast prune smollm2-135m-q4 --sparsity .5 --text pystdlib --minutes 8 --out my-sparse-model
    """
    _wait_without_spinning()
    from blast.experiment.own_model.options import PruneOptions
    from blast.experiment.own_model.prune import prune as run

    minutes = None if options.steps else options.minutes or MINUTES
    run(
        PruneOptions(
            model=options.model,
            text=tuple(options.text),
            out=options.out,
            sparsity=options.sparsity,
            block=options.block,
            minutes=minutes,
            steps=options.steps,
            teacher=options.teacher,
            length=options.length,
            batch=options.batch,
            learning_rate=options.learning_rate,
            seed=options.seed,
            dense_layers=options.dense_layers,
            start=options.start,
        ),
        _say,
    )
    return 0


def scan(options: argparse.Namespace) -> int:
    """Measures what pruning each layer and each kind of matrix costs, untrained, and says which layers to leave dense.

    Example: blast scan smollm2-135m-q4 --text pystdlib --json scan.json
    """
    _wait_without_spinning()
    from blast.experiment.own_model.scan import ScanOptions
    from blast.experiment.own_model.scan import scan as run

    run(
        ScanOptions(
            model=options.model,
            text=tuple(options.text),
            sparsities=tuple(options.sparsity),
            block=options.block,
            length=options.length,
            sequences=options.sequences,
            json=options.json,
        ),
        _say,
    )
    return 0


def generate(options: argparse.Namespace) -> int:
    """Continues a text with a sparse or dense model and prints it while it is made.

    Example: blast generate my-sparse-model "def main(" --max-new-tokens 50
    """
    from blast.experiment.own_model.generate import GenerateOptions
    from blast.experiment.own_model.generate import generate as run

    run(
        GenerateOptions(
            model=options.model,
            prompt=sys.stdin.read() if options.prompt == "-" else options.prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            plain=options.plain,
        )
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Scores a sparse or dense model on tasks of lm-eval.

    Example: blast eval my-sparse-model --tasks hellaswag,piqa --limit 200
    """
    from blast.experiment.own_model.evaluate import EvalOptions
    from blast.experiment.own_model.evaluate import evaluate as run

    run(
        EvalOptions(
            model=options.model, tasks=options.tasks, limit=options.limit, batch=options.batch, json=options.json
        ),
        _say,
    )
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the four verbs to the parser of the command.

    Args:
        verb: Adds one verb, by its name and its function.
    """
    model = {"metavar": "MODEL", "help": "a folder, a name of `blast list architectures` with weights, or owner/name"}
    text = {"nargs": "+", "metavar": "TEXT", "help": "text files, or one dataset of `blast list datasets`"}
    block = {
        "type": whole,
        "metavar": "SIDE",
        "help": "side of a block (default: the largest that fits)",
    }
    made = verb("prune", prune)
    made.add_argument("model", **model)
    made.add_argument("--text", required=True, **text)
    made.add_argument("--out", type=Path, required=True, help="folder for the sparse model")
    made.add_argument("--sparsity", type=share, default=0.5, help="share of empty blocks (default: 0.5)")
    made.add_argument("--block", **block)
    cost = made.add_mutually_exclusive_group()
    cost.add_argument("--minutes", type=positive, help=f"time for the whole command (default: {MINUTES:g})")
    cost.add_argument("--steps", type=whole, help="optimization steps, in place of a time")
    made.add_argument(
        "--teacher",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the dense model teach the sparse one (default)",
    )
    made.add_argument(
        "--dense-layers",
        type=layers,
        default="auto",
        metavar="N,N",
        help="layers that stay dense; none, or auto for the worst (default: auto)",
    )
    made.add_argument(
        "--start",
        choices=("auto", "one_shot", "gradual"),
        default="auto",
        help="find the masks before the training or while it lasts (default: before it in short runs)",
    )
    made.add_argument("--length", type=whole, default=256, help="tokens of a sequence (default: 256)")
    made.add_argument("--batch", type=whole, default=2, help="sequences of a step (default: 2)")
    made.add_argument("--learning-rate", type=positive, default=3e-4, help="its peak (default: 3e-4)")
    made.add_argument("--seed", type=not_negative, default=0, help="seed of the order of the text (default: 0)")
    made = verb("scan", scan)
    made.add_argument("model", **model)
    made.add_argument("--text", default=["pystdlib"], **(text | {"help": f"{text['help']} (default: pystdlib)"}))
    made.add_argument(
        "--sparsity", type=share, nargs="+", default=[0.5, 0.8], help="at which each part is pruned (default: .5 .8)"
    )
    made.add_argument("--block", **block)
    made.add_argument("--length", type=whole, default=256, help="tokens of a sequence (default: 256)")
    made.add_argument("--sequences", type=whole, default=8, help="held-out sequences of a measurement (default: 8)")
    made.add_argument("--json", type=Path, metavar="FILE", help="file for the table")
    made = verb("generate", generate)
    made.add_argument("model", **model)
    made.add_argument("prompt", help="the beginning of the text; - reads the standard input")
    made.add_argument("--max-new-tokens", type=whole, default=64, help="most new tokens (default: 64)")
    made.add_argument(
        "--temperature", type=not_negative_number, default=0.0, help="0 takes the likeliest token (default: 0)"
    )
    made.add_argument("--top-p", type=probability, default=1.0, help="draw from the likeliest tokens (default: 1)")
    made.add_argument("--seed", type=not_negative, default=0, help="seed of the draws (default: 0)")
    made.add_argument(
        "--plain", action="store_true", help="decode with transformers on a GPU too, not with blast.fast_decode"
    )
    made = verb("eval", evaluate)
    made.add_argument("model", **model)
    made.add_argument("--tasks", type=names, required=True, metavar="TASK,TASK", help="names of tasks")
    made.add_argument("--limit", type=whole, help="the first LIMIT questions of each task (default: all)")
    made.add_argument("--batch", type=whole, default=8, help="questions at once (default: 8)")
    made.add_argument("--json", type=Path, metavar="FILE", help="file for the scores")


def _number(text: str, holds: Callable[[float], bool], meaning: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise argparse.ArgumentTypeError(f"'{text}' is no {meaning}")
    return value


def share(text: str) -> float:
    """A sparsity."""
    return _number(text, lambda value: 0 <= value < 1, "number from 0 to below 1")


def probability(text: str) -> float:
    """A number above 0 and at most 1."""
    return _number(text, lambda value: 0 < value <= 1, "number above 0 and at most 1")


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "number above 0")


def not_negative_number(text: str) -> float:
    """A number of at least 0."""
    return _number(text, lambda value: 0 <= value < math.inf, "number of at least 0")


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 0")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def layers(text: str) -> tuple[int, ...] | str:
    """Numbers of layers, with commas between them; or `none` or `auto`."""
    if text in ("auto", "none"):
        return text if text == "auto" else ()
    return tuple(not_negative(part.strip()) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' holds no name")
    return found


def _say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def _wait_without_spinning() -> None:
    """Lets OpenMP threads sleep while they wait, unless the user chose.

    On cores that other programs use too, threads that spin make a training step several times slower. torch reads this
    when it is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
