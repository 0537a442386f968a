"""How many GPUs of a memory a model needs for inference, and what they cost. Computed; nothing is run.

The rule: a model is split over `n` GPUs by tensor parallelism. `n` divides the query heads and the block columns of the
hidden MLP width. It divides the heads of the cache, or is a multiple of them (then several GPUs hold the same head).
All `n` GPUs are alike. What one of them needs fits in `USABLE` of its memory. The rest is left to the GPU's context,
workspaces, CUDA graphs, buffers of the communication and fragments.
"""

from __future__ import annotations

from dataclasses import dataclass

from blast.architectures.architecture import Architecture
from blast.architectures.inference_memory import InferenceMemory, Sparse, inference_memory
from blast.block_sparse.blocks import as_block

# The share of its memory that a serving program gives to a model; a common default.
USABLE = 0.9
MOST_GPUS = 128
GB = 1e9
# Weights of dense models are split like sparse ones of this block.
DENSE_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is served.

    Attributes:
        batch: Sequences in the cache at one time.
        context: Tokens of each.
        tokens_at_once: Tokens of the largest forward pass; longer prompts run in pieces.
    """

    batch: int = 1
    context: int = 8192
    tokens_at_once: int = 2048

    def __str__(self) -> str:
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True, kw_only=True)
class GpusNeeded:
    """The fewest GPUs of one memory.

    Attributes:
        gpus: How many.
        each: What one of them holds.
    """

    gpus: int
    each: InferenceMemory


def degrees(architecture: Architecture, sparse: Sparse | None = None) -> list[int]:
    """The numbers of GPUs that a model can be split over, ascending."""
    shape = architecture.shape
    block = as_block(DENSE_BLOCK if sparse is None else sparse.block)
    columns = max(1, shape.ffn // block.rows)
    return [
        n
        for n in range(1, MOST_GPUS + 1)
        if not shape.heads % n and not columns % n and (not shape.kv_heads % n or not n % shape.kv_heads)
    ]


def gpus_needed(
    architecture: Architecture, serving: Serving, memory_gb: float, sparse: Sparse | None = None
) -> GpusNeeded | None:
    """The fewest GPUs that hold a model with its cache, in 16 bits.

    Args:
        architecture: A model that `inference_memory` knows.
        serving: What is served.
        memory_gb: Memory of one GPU in 10⁹ bytes.
        sparse: How its MLPs are sparse; None for the dense model.

    Returns:
        None if even the largest number of GPUs is too few.

    Example:
        >>> from blast import architectures
        >>> from blast.architectures.gpus_needed import Serving, gpus_needed
        >>> gpus_needed(architectures.get("llama-3.1-8b"), Serving(), 80).gpus
        1
    """
    for number in degrees(architecture, sparse):
        each = inference_memory(
            architecture, sparse, batch=serving.batch, context=serving.context,
            tokens_at_once=min(serving.tokens_at_once, serving.batch * serving.context), gpus=number,
        )  # fmt: skip
        if each.total <= USABLE * memory_gb * GB:
            return GpusNeeded(gpus=number, each=each)
    return None
