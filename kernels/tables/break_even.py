"""The sparsity from which the sparse inference kernels beat dense cuBLAS: from the GPU's table, or by a heuristic.

`tuned/<gpu>.json` holds `{"gpu": …, "break_even_run": {…}, "break_even": [row, …]}`, and the part that
`mlp_inference.tuned_configs` reads. Either part may be missing. A row `{"block": [64, 64], "gate": "untied", "dtype":
"bfloat16", "in": 2048, "hidden": 8192, "tokens": 16, "sparsity": 0.42}` means: in an MLP of that size, with that many
tokens, sparse is faster from that sparsity on. Of several shapes, the one with the nearest number of weights is used.
Then, of several token counts, the one that is nearest by ratio.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

TUNED = Path(__file__).resolve().parents[1] / "tuned"
# Used without a table: break-even by the shorter side of a block, from the measurements in NOTES.md, on the safe side.
HEURISTIC = {128: 0.6, 64: 0.65, 32: 0.8, 16: 0.9}
KEYS = ("block", "gate", "dtype", "in", "hidden", "tokens", "sparsity")

# Ranges of token counts: the upper limit of each (None: no limit), and whether dense is faster in it.
Ranges = tuple[tuple[int | None, bool], ...]


def gpu_name(device: torch.device) -> str | None:
    """Name of the table of a device, such as `nvidia-h100-80gb-hbm3`; None if the device is no GPU."""
    if device.type != "cuda":
        return None
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def dense_ranges(
    sparsity: float,
    block: Sequence[int],
    gate: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    gpu: str | None,
    folder: Path = TUNED,
) -> Ranges:
    """The token counts at which dense is faster than an MLP of this sparsity.

    Args:
        sparsity: Share of empty blocks.
        block: `[b_out, b_in]` of the up projection.
        gate: One of `constants.GATES`.
        shape: `(hidden, in)` of the up projection.
        dtype: Dtype of weights and activations.
        gpu: Result of `gpu_name`. None (no GPU): sparse is used for any number of tokens.
        folder: Folder of the tables.

    Returns:
        Ranges of token counts, ascending; the last has no limit.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    if gpu is None:
        return ((None, False),)
    wanted = {"block": list(block), "gate": gate, "dtype": str(dtype).removeprefix("torch.")}
    rows = [row for row in read_table(gpu, folder) if all(row[key] == value for key, value in wanted.items())]
    if not rows:
        side = min(block)
        limit = min((known for known in HEURISTIC if known >= side), default=128)
        return ((None, sparsity < HEURISTIC[limit]),)
    rows = rows_of_nearest_shape(rows, shape)
    rows.sort(key=lambda row: row["tokens"])
    ranges: list[tuple[int | None, bool]] = []
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        end = None if following is None else math.isqrt(row["tokens"] * following["tokens"])
        ranges.append((end, sparsity < row["sparsity"]))
    return tuple(ranges)


def rows_of_nearest_shape(rows: Sequence[dict[str, Any]], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows of the shape with the nearest number of weights. If two are equally near, the first.

    Args:
        rows: At least one row, each with `in` and `hidden`.
        shape: `(hidden, in)`.
    """
    nearest = min(rows, key=lambda row: abs(math.log(row["in"] * row["hidden"] / math.prod(shape))))
    return [row for row in rows if (row["in"], row["hidden"]) == (nearest["in"], nearest["hidden"])]


def dense_wins(tokens: int, ranges: Ranges) -> bool:
    """Whether dense is faster for this number of tokens."""
    for limit, dense in ranges:
        if limit is None or tokens <= limit:
            return dense
    return False


def read_table(gpu: str, folder: Path = TUNED) -> tuple[dict[str, Any], ...]:
    """The break-even rows of a GPU; none if it was never measured.

    Raises:
        ValueError: if the file is no valid table; the message names the file.
    """
    return read_part(gpu, "break_even", KEYS, folder)


@cache
def read_part(gpu: str, part: str, keys: tuple[str, ...], folder: Path = TUNED) -> tuple[dict[str, Any], ...]:
    """The rows of one part of a GPU's table; none if that part was never measured.

    Args:
        gpu: Result of `gpu_name`.
        part: Name of the part.
        keys: Keys that each row must have.
        folder: Folder of the tables.

    Raises:
        ValueError: if the file is no valid table; the message names the file.
    """
    file = folder / f"{gpu}.json"
    if not file.is_file():
        return ()
    try:
        rows = json.loads(file.read_text()).get(part, [])
        complete = all(set(keys) <= row.keys() for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a valid table ({error}); measure it again or delete it") from None
    if not complete:
        raise ValueError(f"{file}: a row of {part} lacks one of {', '.join(keys)}; measure it again or delete it")
    return tuple(rows)
