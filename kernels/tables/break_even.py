"""From which sparsity on the sparse kernels beat dense cuBLAS: read from a table of the GPU, or judged without one.

`tuned/<gpu>.json` holds `{"gpu": …, "break_even_run": {…}, "break_even": [row, …]}`, and beside it what `tuned_plans`
reads; either part may be missing. A row `{"block": [64, 64], "gate": "untied", "dtype": "bfloat16", "in": 2048,
"hidden": 8192, "tokens": 16, "sparsity": 0.42}` says that in an MLP of that size, at so many tokens, sparse wins from
that sparsity on. The shape nearest by its number of weights counts, and between listed numbers of tokens the nearer
one, by ratio.
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
# Without a table, by the shorter side of a block: judged from the measurements in NOTES.md, on the safe side.
JUDGED = {128: 0.6, 64: 0.65, 32: 0.8, 16: 0.9}
KEYS = ("block", "gate", "dtype", "in", "hidden", "tokens", "sparsity")

# Ranges of tokens, each up to a limit (None: no end) with whether dense is faster there.
Ranges = tuple[tuple[int | None, bool], ...]


def gpu_name(device: torch.device) -> str | None:
    """Name of the table of a device, `nvidia-h100-80gb-hbm3`; None for one that is no GPU."""
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
    """For which numbers of tokens dense is faster than a matrix of this sparsity.

    Args:
        sparsity: Share of empty blocks.
        block: `[b_out, b_in]` of the front.
        gate: `none`, `untied` or `tied`.
        shape: `(hidden, in)` of the front.
        dtype: Of weights and activations.
        gpu: As `gpu_name` gives it; None (no GPU) means sparse always.
        folder: Where the tables are.

    Returns:
        Ranges of tokens, ascending; the last has no end.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    if gpu is None:
        return ((None, False),)
    wanted = {"block": list(block), "gate": gate, "dtype": str(dtype).removeprefix("torch.")}
    rows = [row for row in read_table(gpu, folder) if all(row[key] == value for key, value in wanted.items())]
    if not rows:
        side = min(block)
        limit = min((known for known in JUDGED if known >= side), default=128)
        return ((None, sparsity < JUDGED[limit]),)
    rows = rows_of_nearest_shape(rows, shape)
    rows.sort(key=lambda row: row["tokens"])
    ranges: list[tuple[int | None, bool]] = []
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        end = None if following is None else math.isqrt(row["tokens"] * following["tokens"])
        ranges.append((end, sparsity < row["sparsity"]))
    return tuple(ranges)


def rows_of_nearest_shape(rows: Sequence[dict[str, Any]], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Those rows whose shape is nearest by its number of weights; of two as near, the first.

    Args:
        rows: At least one, each with `in` and `hidden`.
        shape: `(hidden, in)`.
    """
    nearest = min(rows, key=lambda row: abs(math.log(row["in"] * row["hidden"] / math.prod(shape))))
    return [row for row in rows if (row["in"], row["hidden"]) == (nearest["in"], nearest["hidden"])]


def dense_wins(tokens: int, ranges: Ranges) -> bool:
    """Whether dense is faster for so many tokens."""
    for limit, dense in ranges:
        if limit is None or tokens <= limit:
            return dense
    return False


def read_table(gpu: str, folder: Path = TUNED) -> tuple[dict[str, Any], ...]:
    """The break-even rows of a GPU; none if it was never tuned.

    Raises:
        ValueError: if the file is no such table; one sentence with its name.
    """
    return read_part(gpu, "break_even", KEYS, folder)


@cache
def read_part(gpu: str, part: str, keys: tuple[str, ...], folder: Path = TUNED) -> tuple[dict[str, Any], ...]:
    """The rows of a part of a GPU's table; none if that was never measured.

    Args:
        gpu: As `gpu_name` gives it.
        part: Name of the part.
        keys: What each row of it has to have.
        folder: Where the tables are.

    Raises:
        ValueError: if the file is no such table; one sentence with its name.
    """
    file = folder / f"{gpu}.json"
    if not file.is_file():
        return ()
    try:
        rows = json.loads(file.read_text()).get(part, [])
        complete = all(set(keys) <= row.keys() for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: is no table of break-even points ({error}); measure it again or delete it") from None
    if not complete:
        raise ValueError(f"{file}: a row lacks one of {', '.join(keys)}; measure it again or delete it")
    return tuple(rows)
