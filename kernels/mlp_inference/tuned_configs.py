"""The kernel config of a product: from the tuned table of the GPU, or from the rules if no near row was measured.

Between two measured token counts, and without a table, `token_counts` decides with an estimate of the time. A Hopper
without a near row in its own table takes those of the H100's.

`tuned/<gpu>.json` holds `"plans": {"3.6": {"run": {…}, "rows": [row, …]}, …}` beside the break-even points. There is
one entry for each minor version of Triton it was tuned with; `earlier` lists the runs of older rows. A row `{"block":
[128, 128], "gate": "none", "dtype": "bfloat16", "tokens": 128, "records": 64, "row_blocks": 11.2, "plan": ["tiles", 64,
…]}` is the fastest config of a product of 64 block rows with 11.2 blocks on average.
If the installed version was never tuned, the nearest tuned version is used. The device decides most of the speed, and a
config of another version is still better than the rules, which know blocks of 128 only.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blast_kernels.common.constants import GATES
from blast_kernels.common.gpu_limits import gpu_limits
from blast_kernels.common.quantize import HALVES
from blast_kernels.mlp_inference.cost_model import Product
from blast_kernels.mlp_inference.heuristics import KERNELS, KernelConfig, heuristic_config
from blast_kernels.mlp_inference.other_gpus import fitted
from blast_kernels.mlp_inference.token_counts import choose_between, rules_config
from blast_kernels.tables.break_even import TUNED, gpu_name

KEYS = ("block", "gate", "dtype", "tokens", "records", "row_blocks", "plan")
# Largest distance of a row: the root of the squared distances in tokens, rows and row length, in powers of two. Rows
# of a sweep are factors of two to four apart, so products between them find a row. Twice as far is a different product.
LIMIT = 1.6
# Above MANY_TOKENS, the number of tokens does not matter. Up to FEW_TOKENS, the tile that holds all tokens decides.
MANY_TOKENS, FEW_TOKENS = 8192, 128
SMALLEST_TILE = 16
# Between two measured token counts, the farther one may be four octaves away (128 and 2048).
FURTHEST = 4.0
# A Hopper without a near row in its own table takes those of this GPU: H100 and H200 differ in their memory alone.
HOPPER_TABLE = "nvidia-h100-80gb-hbm3"
FIELDS_AT_FIRST = 9


class Tuned(NamedTuple):
    """A row of the table: where it was measured, as powers of two, and the config that was fastest."""

    tokens: float
    row_count: float
    row_blocks: float
    config: KernelConfig

    def product(self, like: Product) -> Product:
        """The product that was measured; block and gate are those of another."""
        tokens, row_count = round(2**self.tokens), round(2**self.row_count)
        return like._replace(tokens=tokens, row_count=row_count, row_blocks=2**self.row_blocks)


def kernel_config(
    tokens: int, row_count: int, blocks: int, b_out: int, b_in: int, gate: str, dtype: torch.dtype, device: torch.device
) -> KernelConfig:
    """The config of a product on a device: from the GPU's table, else from the H100's on a Hopper, else by the rules.

    Reads no device memory.

    Args:
        tokens: Rows of the activations.
        row_count: Block rows that are computed, at least one.
        blocks: Stored blocks of the matrix; a packed pair of gate and up counts once.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: One of `GATES`.
        dtype: Of the stored blocks.
        device: Where it runs.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    return _kernel_config(tokens, row_count, blocks, b_out, b_in, gate, dtype, device)


# A decode step asks for the same few configs again and again. A prefill of a new length adds two entries.
@lru_cache(maxsize=4096)
def _kernel_config(tokens, row_count, blocks, b_out, b_in, gate, dtype, device) -> KernelConfig:
    row_blocks = blocks / max(1, row_count)
    place = (tokens, row_count, row_blocks, b_out, b_in, gate, dtype)
    limits = gpu_limits(device)
    tables = [gpu_name(device)] if limits.has_tma else []
    tables += [HOPPER_TABLE] if limits.is_hopper and device.type == "cuda" else []
    found = next((found for table in tables if (found := tuned_config(*place, table))), None)
    return found or config_without_table(*place, device)


def config_without_table(
    tokens: int, row_count: int, row_blocks: float, b_out: int, b_in: int, gate: str, dtype: torch.dtype,
    device: torch.device,
) -> KernelConfig:  # fmt: skip
    """The config of a product on a device by the rules, made to fit the device; arguments as `kernel_config`.

    `row_blocks` is the mean number of blocks of a row, gate and up together.
    """
    wide, float8, on_gpu = dtype == torch.float32, dtype == torch.float8_e4m3fn, device.type == "cuda"
    limits = gpu_limits(device)
    if limits.is_hopper and dtype in HALVES:
        return rules_config(Product(tokens, row_count, row_blocks, b_out, b_in, gate), on_gpu)
    place, has_gluon = (tokens, row_count, b_out, b_in, gate), on_gpu and limits.is_hopper
    config = heuristic_config(*place, wide, limits.has_tma, row_blocks, float8, has_gluon)
    return fitted(config, b_in, gate, limits, 4 if wide else 2, 4 if wide else 1 if float8 else 2)


def tuned_config(
    tokens: int,
    row_count: int,
    row_blocks: float,
    b_out: int,
    b_in: int,
    gate: str,
    dtype: torch.dtype,
    gpu: str | None,
    triton: str | None = None,
    folder: Path = TUNED,
) -> KernelConfig | None:
    """The config of the nearest row of the same block, gate and dtype.

    Args:
        tokens: Rows of the activations.
        row_count: Block rows that are computed.
        row_blocks: Mean number of blocks of a row, gate and up together.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: One of `GATES`.
        dtype: Of the stored blocks.
        gpu: Result of `break_even.gpu_name`; None: there is no GPU.
        triton: Version of Triton whose table to use; the installed one if left out.
        folder: Folder of the tables.

    Returns:
        The config; None if no row is within `LIMIT`. Between two measured token counts, `token_counts` chooses one of
        their configs.

    Raises:
        ValueError: if the table of this GPU is damaged.
    """
    if gpu is None or row_blocks <= 0:
        return None
    index = _indexed(gpu, triton or installed_triton(), folder)
    # Both half-precision dtypes take the same time.
    dtypes = (dtype, torch.bfloat16) if dtype == torch.float16 else (dtype,)
    rows = next((rows for name in dtypes if (rows := index.get((b_out, b_in, gate, str(name))))), ())
    place = _place(tokens, row_count, row_blocks)
    near = min(rows, key=lambda row: (math.dist(row[:3], place), -row.tokens), default=None)
    if near is None or math.dist(near[:3], place) > LIMIT:
        return None
    if tokens <= FEW_TOKENS or near.tokens == place[0] or dtype not in HALVES:
        return near.config
    other = _on_the_other_side(rows, near, place)
    if other is None:
        return near.config
    product = Product(min(tokens, MANY_TOKENS), row_count, row_blocks, b_out, b_in, gate)
    low, high = sorted((near, other), key=lambda row: row.tokens)
    of_high = choose_between(product, (low.product(product), low.config), (high.product(product), high.config))
    return (high if of_high else low).config


def _on_the_other_side(rows: Sequence[Tuned], near: Tuned, place: tuple[float, float, float]) -> Tuned | None:
    """The nearest row whose token count lies on the other side of a place than that of the nearest row."""
    above = near.tokens < place[0]
    beyond = [
        row
        for row in rows
        if (row.tokens >= place[0]) == above
        and math.dist(row[1:3], place[1:]) <= LIMIT
        and abs(row.tokens - place[0]) <= FURTHEST
    ]
    return min(beyond, key=lambda row: math.dist(row[:3], place), default=None)


@cache
def installed_triton() -> str:
    """The minor version of Triton that is installed, `3.6`; empty if there is none."""
    try:
        return minor(version("triton"))
    except PackageNotFoundError:
        return ""


def minor(full: str) -> str:
    """`3.6` of `3.6.0` or `3.6.0+git`."""
    return ".".join(full.split(".")[:2])


@cache
def read_tuned_configs(gpu: str, folder: Path = TUNED) -> dict[str, tuple[dict[str, Any], ...]]:
    """The rows of a GPU's table by version of Triton; nothing if it was never tuned.

    Raises:
        ValueError: if the file is no valid table; the message names the file.
    """
    file = Path(folder, f"{gpu}.json")
    if not file.is_file():
        return {}
    try:
        tables = {name: tuple(part["rows"]) for name, part in json.loads(file.read_text()).get("plans", {}).items()}
        fault = next((fault for rows in tables.values() for row in rows if (fault := _fault(row))), None)
        [_version(name) for name in tables]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: holds no table of configs ({error}); tune again or delete it") from None
    if fault:
        raise ValueError(f"{file}: {fault}; tune again or delete it")
    return tables


def _fault(row: dict[str, Any]) -> str | None:
    if not set(KEYS) <= row.keys():
        return f"a row lacks one of {', '.join(KEYS)}"
    config = row["plan"]
    # Fields that were added to KernelConfig later have defaults.
    if (
        row["gate"] not in GATES
        or config[0] not in KERNELS
        or not FIELDS_AT_FIRST <= len(config) <= len(KernelConfig._fields)
    ):
        return f"{row['gate']} {config} is no config of this version"
    if not all(row[key] > 0 for key in ("tokens", "records", "row_blocks")):
        return f"the place of {config} is not positive"
    return None


@cache
def _indexed(gpu: str, triton: str, folder: Path) -> dict[tuple, list[Tuned]]:
    """Rows by block, gate and dtype, of this version of Triton or else of the nearest."""
    tables = read_tuned_configs(gpu, folder)
    index: dict[tuple, list[Tuned]] = defaultdict(list)
    for row in tables[_nearest_version(triton, tables)] if tables else ():
        place = _place(row["tokens"], row["records"], row["row_blocks"])
        index[(*row["block"], row["gate"], f"torch.{row['dtype']}")].append(Tuned(*place, KernelConfig(*row["plan"])))
    return dict(index)


def _nearest_version(wanted: str, known: Iterable[str]) -> str:
    major, least = _version(wanted) if wanted else (0, 0)

    def distance(name: str) -> tuple[int, int, str]:
        other = _version(name)
        return abs(other[0] - major), abs(other[1] - least), name

    return min(known, key=distance)


def _version(name: str) -> tuple[int, int]:
    major, least = name.split(".")
    return int(major), int(least)


def _place(tokens: int, row_count: int, row_blocks: float) -> tuple[float, float, float]:
    tokens = min(max(tokens, SMALLEST_TILE), MANY_TOKENS)
    # 33 tokens need the tile of 64, which costs what it costs with 64.
    log_tokens = math.ceil(math.log2(tokens)) if tokens <= FEW_TOKENS else math.log2(tokens)
    return float(log_tokens), math.log2(max(1, row_count)), math.log2(row_blocks)
