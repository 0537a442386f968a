"""`blast scan`: which layers and which kinds of matrices of a model can be pruned, and what each costs.

One part of the model at a time is pruned once, by the norm of its blocks, and the loss on held-out text is measured.
Nothing is trained, so the losses are far above those after training. They compare the parts of one model.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blast.evaluation.loss import chunk_losses
from blast.experiment.own_model.choice import chosen_block, chosen_matrices
from blast.experiment.own_model.memory import check_memory, free_bytes
from blast.experiment.own_model.opening import find_model
from blast.experiment.own_model.step_time import CLEARLY_FASTER, as_time
from blast.experiment.own_model.text import read_text
from blast.files import write_json
from blast.model.convert import to_dense
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_, one_shot_masks

if TYPE_CHECKING:
    from blast.block_sparse.blocks import BlockShape
    from blast.model.target import Target

FORMAT = 1
# A layer should stay dense if pruning it costs so many times what pruning the median layer costs.
OUTLIER = 3.0
# At most this share of the layers is recommended to stay dense.
MOST_DENSE = 0.25
PROGRESS_S = 5.0


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
    chunks = data.validation_chunks(options.length, options.sequences)
    size = sum(data.bytes_of(chunk[1:]) for chunk in chunks) * math.log(2)
    dtype, seconds = _faster(model, chunks, device)
    parts = list(_parts(matrices))
    runs = len(parts) * len(options.sparsities)
    say(
        f"{source.name}: {len(matrices)} matrices in blocks of {block}; {runs} measurements of {chunks.shape[0]} x "
        f"{options.length} tokens, about {as_time(runs * seconds)} in {dtype}"
    )
    bits = _bits(model, chunks, dtype, device, size)
    found: dict[str, dict[str, dict[str, float]]] = {"layers": {}, "kinds": {}}
    done, said = 0, time.monotonic()
    for group, part, chosen in parts:
        for sparsity in options.sparsities:
            with _pruned(model, chosen, block, sparsity):
                rise = _bits(model, chunks, dtype, device, size) - bits
            found[group].setdefault(part, {})[f"{sparsity:g}"] = rise
            done += 1
            if time.monotonic() - said > PROGRESS_S:
                say(f"{done} of {runs} measured, {as_time((runs - done) * seconds)} left")
                said = time.monotonic()
    report = {
        "format": FORMAT,
        "model": source.name,
        "text": list(options.text),
        "block": list(block),
        "sparsities": list(options.sparsities),
        "sample": {"sequences": chunks.shape[0], "length": options.length, "dtype": dtype},
        "dense": bits,
        **found,
        "dense_layers": recommended(found["layers"]),
    }
    for line in describe(report):
        say(line)
    if options.json:
        write_json(options.json, report)
        say(f"written: {options.json}")
    return report


def _parts(matrices: Sequence[Target]) -> Iterator[tuple[str, str, list[Target]]]:
    """Each layer, and each kind of matrix in all layers, with its matrices."""
    for layer in dict.fromkeys(target.layer for target in matrices if target.layer is not None):
        yield "layers", str(layer), [target for target in matrices if target.layer == layer]
    for role in dict.fromkeys(target.role for target in matrices):
        yield "kinds", role, [target for target in matrices if target.role == role]


@contextmanager
def _pruned(model: nn.Module, chosen: Sequence[Target], block: BlockShape, sparsity: float) -> Iterator[None]:
    """A context in which some matrices are pruned once; their weights come back after it."""
    names = tuple(target.name for target in chosen)
    config = SparsifyConfig.from_method("one_shot", sparsity=sparsity, block=block, steps=1, targets=names)
    parameters = {id(target.parameter): target.parameter for target in chosen}.values()
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        apply_masks_(model, one_shot_masks(model, config), block)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def _bits(model: nn.Module, chunks: Tensor, dtype: str, device: torch.device, size: float) -> float:
    """Bits a byte on the sample; `size` is its bytes times ln 2."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return sum(chunk_losses(model, chunks, 4, device)) / size


def _faster(model: nn.Module, chunks: Tensor, device: torch.device) -> tuple[str, float]:
    """The dtype in which the model reads the sample faster here, and the seconds that it takes."""
    seconds = {}
    for dtype in ("bfloat16", "float32"):
        _bits(model, chunks[:1], dtype, device, 1.0)
        start = time.perf_counter()
        _bits(model, chunks[:1], dtype, device, 1.0)
        seconds[dtype] = (time.perf_counter() - start) * len(chunks)
    dtype = "bfloat16" if seconds["bfloat16"] * CLEARLY_FASTER < seconds["float32"] else "float32"
    return dtype, seconds[dtype]


def recommended(layers: Mapping[str, Mapping[str, float]]) -> list[int]:
    """Layers that should stay dense: at the highest sparsity they cost more than three times the median layer.

    At most a quarter of the layers, the most expensive ones.

    Example:
        >>> recommended({"0": {"0.5": 0.9}, "1": {"0.5": 0.1}, "2": {"0.5": 0.1}, "3": {"0.5": 0.2}})
        [0]
    """
    if len(layers) < 3:
        return []
    cost = {int(layer): rises[max(rises, key=float)] for layer, rises in layers.items()}
    limit = OUTLIER * max(statistics.median(cost.values()), 0.0)
    worst = sorted((layer for layer in cost if cost[layer] > limit), key=lambda layer: -cost[layer])
    return sorted(worst[: max(1, int(MOST_DENSE * len(cost)))])


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
