"""`blast scan`: which layers and which kinds of matrices of a model can be pruned, and what each costs.

One part of the model at a time is pruned once, by the norm of its blocks, and the loss on held-out text is measured.
Nothing is trained, so the losses are far above those after training. They compare the parts of one model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blast.experiment.own_model.choice import chosen_block, chosen_matrices
from blast.experiment.own_model.layer_cost import (
    KINDS,
    LAYERS,
    OUTLIER,
    Sample,
    parts_of,
    pruned_once,
    recommended,
)
from blast.experiment.own_model.memory import check_memory, free_bytes
from blast.experiment.own_model.opening import find_model
from blast.experiment.own_model.step_time import PROGRESS_S, as_time
from blast.experiment.own_model.text import read_text
from blast.files import write_json
from blast.model.convert import to_dense

FORMAT = 1


@dataclass(frozen=True)
class ScanOptions:
    """What the user asked for.

    Attributes:
        model: See `find_model`.
        text: See `read_text`.
        sparsities: At which each part is pruned.
        block: Side of a block; None for the largest that fits.
        length: Tokens a sequence.
        sequences: Held-out sequences that the loss is measured on.
        json: File for the table; None for none.
    """

    model: str
    text: tuple[str, ...]
    sparsities: tuple[float, ...] = (0.5, 0.8)
    block: int | None = None
    length: int = 256
    sequences: int = 8
    json: Path | None = None


def scan(options: ScanOptions, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Measures what pruning each layer, and each kind of matrix, costs; says a table and a recommendation.

    Args:
        options: What the user asked for.
        say: Prints a line.

    Returns:
        `dense` (bits a byte), `layers` and `kinds` (by part and sparsity, the rise in bits a byte), `dense_layers` (the
        recommendation), and how it was measured.

    Raises:
        BlastError: if something does not exist or fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model(options.model, say)
    check_memory(f"scanning {source.name}", 5 * source.parameters, free_bytes(device), "choose a smaller model")
    data = read_text(options.text, source, options.length, say)
    model = to_dense(source.load()).to(device)
    matrices = chosen_matrices(model, source.name)
    block = chosen_block(matrices, options.block)
    sample = Sample.of(model, data, options.length, options.sequences, device)
    parts = list(parts_of(matrices))
    runs = len(parts) * len(options.sparsities)
    say(
        f"{source.name}: {len(matrices)} matrices in blocks of {block}; {runs} measurements of {len(sample.chunks)} x "
        f"{options.length} tokens, about {as_time(runs * sample.seconds)} in {sample.dtype}"
    )
    bits = sample.bits(model)
    found: dict[str, dict[str, dict[str, float]]] = {LAYERS: {}, KINDS: {}}
    done, said = 0, time.monotonic()
    for group, part, chosen in parts:
        for sparsity in options.sparsities:
            with pruned_once(model, chosen, block, sparsity):
                rise = sample.bits(model) - bits
            found[group].setdefault(part, {})[f"{sparsity:g}"] = rise
            done += 1
            if time.monotonic() - said > PROGRESS_S:
                say(f"{done} of {runs} measured, {as_time((runs - done) * sample.seconds)} left")
                said = time.monotonic()
    report = {
        "format": FORMAT,
        "model": source.name,
        "text": list(options.text),
        "block": list(block),
        "sparsities": list(options.sparsities),
        "sample": {"sequences": len(sample.chunks), "length": options.length, "dtype": sample.dtype},
        "dense": bits,
        **found,
        "dense_layers": recommended(found[LAYERS]),
    }
    for line in describe(report):
        say(line)
    if options.json:
        write_json(options.json, report)
        say(f"written: {options.json}")
    return report


def describe(report: Mapping[str, Any]) -> Iterator[str]:
    """The table and the recommendation as lines of text."""
    columns = [f"{sparsity:g}" for sparsity in report["sparsities"]]
    yield f"dense: {report['dense']:.3f} bits a byte. By how much that rises if one part alone is pruned, untrained:"
    yield f"{'':<10}" + "".join(f"{100 * float(column):>9g} %" for column in columns)
    for group, name in (("layers", "layer"), ("kinds", "all")):
        for part, rises in report[group].items():
            mark = "  *" if group == "layers" and int(part) in report["dense_layers"] else ""
            yield f"{name + ' ' + part:<10}" + "".join(f"{rises[column]:>+11.3f}" for column in columns) + mark
    if report["dense_layers"]:
        listed = ",".join(map(str, report["dense_layers"]))
        yield f"* costs more than {OUTLIER:g} times the median layer: leave it dense, with --dense-layers {listed}"
    else:
        yield f"no layer costs more than {OUTLIER:g} times the median layer: prune them all"
