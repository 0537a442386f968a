"""GPUs that a model needs for inference and their price, computed from its sizes and a table of prices."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from blast import architectures
from blast.architectures.gpus_needed import Serving, gpus_needed
from blast.architectures.inference_memory import InferenceMemory, Sparse, inference_memory
from blast.errors import BlastError

FILE = Path(__file__).resolve().parents[4] / "config" / "gpu_prices.csv"
MODELS = ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
SPARSITIES = (0.0, 0.8, 0.9, 0.95)
BLOCK = 128
# One user with a long text, and as many as fill a batch. `config/inference.yaml` measures the same.
SERVINGS = (Serving(batch=1, context=8192), Serving(batch=32, context=8192))
# GB of one GPU: an H100, an H200, a B200.
MEMORIES = (80, 141, 192)


@dataclass(frozen=True)
class GpuPrice:
    """What an hour of one GPU costs.

    Attributes:
        gpu: Its name.
        memory_gb: Its memory in 10⁹ bytes.
        dollars_per_hour: US dollars.
        source: Where the price is published.
        date: When it was read there.
        how_known: What kind of price it is, and how we know it.
    """

    gpu: str
    memory_gb: float
    dollars_per_hour: float
    source: str
    date: str
    how_known: str


@dataclass(frozen=True)
class Need:
    """What a model needs of GPUs of one memory.

    Attributes:
        gpus: The fewest; None if no number is enough.
        dollars: What they cost an hour at the lowest known price; None without one.
    """

    gpus: int | None
    dollars: float | None


def read_gpu_prices(file: Path = FILE) -> list[GpuPrice]:
    """Reads the table of prices.

    Raises:
        BlastError: if the file cannot be read, or a line lacks a column, a source or a number above 0.
    """
    try:
        with Path(file).open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
    except OSError as error:
        raise BlastError(f"{file}: cannot be read ({error.strerror}); restore it from git.") from error
    prices = []
    for number, line in enumerate(lines, start=2):
        try:
            numbers = {"memory_gb": float(line["memory_gb"]), "dollars_per_hour": float(line["dollars_per_hour"])}
            prices.append(GpuPrice(**(line | numbers)))
        except (KeyError, TypeError, ValueError) as error:
            raise BlastError(f"{file}: line {number} is not a valid price ({error}); correct it.") from error
        if not all(0 < value < 1e6 for value in numbers.values()) or not (line["source"] and line["date"]):
            raise BlastError(f"{file}: line {number} needs numbers above 0, a source and a date; correct it.")
    return prices


def lowest_price(prices: Sequence[GpuPrice], memory_gb: float) -> GpuPrice | None:
    """The cheapest GPU of exactly this memory; None if no price is known."""
    found = [price for price in prices if price.memory_gb == memory_gb]
    return min(found, key=lambda price: price.dollars_per_hour, default=None)


def sparse_of(sparsity: float, block: int = BLOCK) -> Sparse | None:
    """How MLPs of this sparsity are stored; None for a dense model."""
    return Sparse(sparsity=sparsity, block=block) if sparsity else None


def computed_memory(model: str, sparsity: float, serving: Serving) -> InferenceMemory:
    """Memory of a model on one GPU that is large enough, in bfloat16."""
    return inference_memory(
        architectures.get(model), sparse_of(sparsity), batch=serving.batch, context=serving.context,
        tokens_at_once=min(serving.tokens_at_once, serving.batch * serving.context),
    )  # fmt: skip


@cache
def fewest_gpus(model: str, sparsity: float, serving: Serving, memory_gb: float) -> int | None:
    """The fewest GPUs of a memory; None if no number is enough."""
    found = gpus_needed(architectures.get(model), serving, memory_gb, sparse_of(sparsity))
    return None if found is None else found.gpus


def need(model: str, sparsity: float, serving: Serving, memory_gb: float, prices: Sequence[GpuPrice]) -> Need:
    """GPUs of one memory that a model needs, and their price."""
    gpus, price = fewest_gpus(model, sparsity, serving, memory_gb), lowest_price(prices, memory_gb)
    return Need(gpus, None if gpus is None or price is None else gpus * price.dollars_per_hour)


def lowest_cost(model: str, sparsity: float, serving: Serving, prices: Sequence[GpuPrice]) -> float | None:
    """Dollars an hour on the GPUs that are cheapest for this model; None if no price is known."""
    costs = [need(model, sparsity, serving, memory, prices).dollars for memory in MEMORIES]
    return min((cost for cost in costs if cost is not None), default=None)
