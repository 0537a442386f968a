"""Memory that inference of a model needs, computed from its sizes. Nothing is built, and torch is not imported.

Weights and block indices are exact: what `blast.model_bytes` finds in a built model. The keys and values are exact too.
Activations are a formula that follows transformers' layers; see `activation_bytes`. What a GPU needs besides
(its context, workspaces, CUDA graphs, fragments) is a share of its memory; see `gpus_needed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from blast.architectures.architecture import Architecture
from blast.architectures.shapes import ModelShape
from blast.block_sparse.blocks import BlockShape, as_block, block_grid, keep_count
from blast.errors import BlastError

FAMILIES = ("gpt2", "llama", "qwen3")
INT32 = FLOAT32 = 4
# An entry of the kernels' row lists: a header, the columns and one entry more, up to a whole number of 32.
ROW_HEADER, ROW_ALIGNMENT = 4, 32


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """How the MLPs of a model are block-sparse.

    Attributes:
        sparsity: Share of empty blocks of each MLP matrix.
        block: Rows and columns of a block; a number is a square.
        tied: Whether gate and up share a mask, and so an index.
    """

    sparsity: float
    block: int | tuple[int, int] = 128
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class InferenceMemory:
    """Bytes that inference of a model needs.

    Attributes:
        dense: Embeddings, attention, norms, biases and buffers: what is never block-sparse.
        mlp: MLP matrices, or their live blocks.
        index: Positions of the live blocks, of the matrices and of their transposes.
        row_lists: The positions once more, as the fused kernels read them.
        kv_cache: Keys and values of all tokens.
        activations: The most that is held beside all this at one time.
    """

    dense: int
    mlp: int
    index: int = 0
    row_lists: int = 0
    kv_cache: int = 0
    activations: int = 0

    @property
    def weights(self) -> int:
        """What is held without any tokens: weights with their indices."""
        return self.dense + self.mlp + self.index + self.row_lists

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations


def inference_memory(
    architecture: Architecture,
    sparse: Sparse | None = None,
    *,
    batch: int = 1,
    context: int = 0,
    tokens_at_once: int = 0,
    element: int = 2,
    gpus: int = 1,
) -> InferenceMemory:
    """Memory of a language model in inference; with several GPUs, that of one of them.

    Args:
        architecture: A model of the families in `FAMILIES`.
        sparse: How its MLPs are sparse; None for the dense model.
        batch: Sequences in the cache.
        context: Tokens of each sequence in the cache.
        tokens_at_once: Tokens of the largest forward pass, over all sequences.
        element: Bytes of a weight, an activation, a key and a value: 2 for bfloat16.
        gpus: Tensor-parallel degree. Matrices, embeddings and the cache are split evenly. Norms, the residual stream
            and its copies are held by each GPU.

    Raises:
        BlastError: for a model of another family, or a block that does not divide its MLP matrices.

    Example:
        >>> from blast import architectures
        >>> from blast.architectures.inference_memory import Sparse, inference_memory
        >>> dense = inference_memory(architectures.get("llama-3.1-405b"))
        >>> ours = inference_memory(architectures.get("llama-3.1-405b"), Sparse(sparsity=0.95))
        >>> round(dense.weights / ours.weights, 2)
        4.38
    """
    shape = architecture.shape
    split, whole = _dense_numbers(architecture)
    mlp = shape.mlp_weights if sparse is None else _live_numbers(shape, sparse)
    buffers = FLOAT32 * shape.width_of_head if shape.rope_theta else 0  # frequencies, and the same as they were
    # A cache head is on one GPU, or on several if there are fewer heads than GPUs.
    cache_split = min(gpus, shape.kv_heads)
    return InferenceMemory(
        dense=element * (-(-split // gpus) + whole) + buffers,
        mlp=-(-element * mlp // gpus),
        index=0 if sparse is None else -(-_index_bytes(shape, sparse) // gpus),
        row_lists=0 if sparse is None else -(-_row_list_bytes(shape, sparse) // gpus),
        kv_cache=-(-kv_cache_bytes(shape, batch, context, element) // cache_split),
        activations=activation_bytes(
            shape, batch, tokens_at_once, fused=sparse is not None, element=element, gpus=gpus
        ),
    )


def kv_cache_bytes(shape: ModelShape, batch: int, context: int, element: int = 2) -> int:
    """Keys and values of `batch` sequences of `context` tokens in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.width_of_head * batch * context * element


def activation_bytes(
    shape: ModelShape, batch: int, tokens: int, *, fused: bool, element: int = 2, gpus: int = 1
) -> int:
    """The most that a forward pass holds at one time, besides weights and cache.

    During an MLP each token has its embedding, the residual stream, and the input of the norm and of the MLP. Layer by
    layer the MLP holds its hidden width three times (activation, up, product), fused once and its output. A norm holds
    the width of the model three times and twice in float32. Attention holds less than the larger of these. The logits
    of one token a sequence follow.

    Args:
        shape: Sizes of the model.
        batch: Sequences.
        tokens: Tokens of the pass, over all sequences.
        fused: Whether MLPs are fused (`blast.fuse`).
        element: Bytes of an element.
        gpus: Tensor-parallel degree; it divides the hidden width of the MLP and the logits.
    """
    hidden = -(-shape.ffn // gpus)
    mlp = element * (5 * shape.hidden + hidden if fused else 4 * shape.hidden + 3 * hidden)
    norm = (3 * element + 2 * FLOAT32) * shape.hidden
    return tokens * max(mlp, norm) + element * batch * -(-(shape.vocab or 0) // gpus)


def _dense_numbers(architecture: Architecture) -> tuple[int, int]:
    """Numbers outside the MLP matrices: those of matrices and embeddings, and those of norms and biases."""
    shape = architecture.shape
    if architecture.family not in FAMILIES or shape.vocab is None or shape.context is None:
        raise BlastError(
            f"the memory of inference is computed for published models of {', '.join(FAMILIES)}, "
            f"not for '{architecture.name}'; choose for instance llama-3.1-8b."
        )
    queries, keys = (heads * shape.width_of_head for heads in (shape.heads, shape.kv_heads))
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
    attention = 2 * shape.hidden * (queries + keys)
    if architecture.family == "gpt2":
        norms_and_biases = 4 * shape.hidden + (queries + 2 * keys + shape.hidden) + (shape.ffn + shape.hidden)
        positions, last_norm = shape.context * shape.hidden, 2 * shape.hidden
    else:
        of_heads = 2 * shape.width_of_head if architecture.family == "qwen3" else 0
        norms_and_biases, positions, last_norm = 2 * shape.hidden + of_heads, 0, shape.hidden
    return embeddings + positions + shape.layers * attention, shape.layers * norms_and_biases + last_norm


def _grids(shape: ModelShape, sparse: Sparse) -> list[tuple[str, int, int, BlockShape]]:
    """Role, block rows, block columns and block of the MLP matrices of a layer."""
    block = as_block(sparse.block)
    return [
        (role, *block_grid((rows, cols), block, f"the {role} projection"), block)
        for role, rows, cols in shape.mlp_matrices
    ]


def _live_numbers(shape: ModelShape, sparse: Sparse) -> int:
    live = sum(
        keep_count(rows * cols, sparse.sparsity) * block.rows * block.cols
        for _, rows, cols, block in _grids(shape, sparse)
    )
    return shape.layers * live


def _index_bytes(shape: ModelShape, sparse: Sparse) -> int:
    """Offsets and columns of each matrix and of its transpose, and the order of the blocks of the transpose."""
    bytes_of_layer = 0
    for role, rows, cols, _ in _grids(shape, sparse):
        if not (role == "gate" and sparse.tied):
            bytes_of_layer += INT32 * (3 * keep_count(rows * cols, sparse.sparsity) + rows + 1 + cols + 1)
    return shape.layers * bytes_of_layer


def _row_list_bytes(shape: ModelShape, sparse: Sparse) -> int:
    """An estimate: as wide as the longest row of uniformly random masks, with an entry for each row."""
    grids = {role: (rows, cols) for role, rows, cols, _ in _grids(shape, sparse)}
    up, down = ("up", "down") if shape.gated else ("fc1", "fc2")
    rows, cols = grids[up]
    together = 2 * cols if shape.gated and not sparse.tied else cols
    lists = ((rows, together), grids[down])
    return shape.layers * sum(INT32 * rows * _list_width(rows, cols, sparse.sparsity) for rows, cols in lists)


def _list_width(rows: int, cols: int, sparsity: float) -> int:
    """Entries of a row of a row list: the longest of `rows` rows of `cols` blocks, padded."""
    spread = math.sqrt(cols * sparsity * (1 - sparsity) * 2 * math.log(max(2, rows)))
    longest = min(cols, round(cols * (1 - sparsity) + spread))
    return -(-(ROW_HEADER + longest + 1) // ROW_ALIGNMENT) * ROW_ALIGNMENT
