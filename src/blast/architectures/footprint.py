"""Parameters and memory of an architecture, dense and block-sparse, counted from its shape without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from blast.errors import BlastError

# A block-CSR index is held in 32-bit numbers, and its transpose for gradients beside it: an offset a block row and a
# block column and one more of each, and by block its column, its row, and its place in the other order.
INDEX_BYTES, NUMBERS_A_BLOCK = 4, 3


@dataclass(frozen=True)
class Footprint:
    """What an architecture weighs.

    Attributes:
        parameters: All of them, tied ones once.
        mlp_parameters: Weights in the matrices of MLPs, biases left out.
        dense_bytes: All parameters.
        dense_mlp_bytes: The matrices of MLPs.
        sparse_bytes: All parameters with those matrices block-sparse, their index included.
        sparse_mlp_bytes: Values and index of those matrices.
    """

    parameters: int
    mlp_parameters: int
    dense_bytes: int
    dense_mlp_bytes: int
    sparse_bytes: int
    sparse_mlp_bytes: int

    @property
    def mlp_share(self) -> float:
        """Share of the parameters in the matrices of MLPs."""
        return self.mlp_parameters / self.parameters


def footprint(name: str, sparsity: float = 0.0, block: int | None = None, bytes_a_weight: int = 2) -> Footprint:
    """Counts an architecture on the meta device: no weight takes memory.

    Args:
        name: One of `blast.architectures.names()` that fixes all its sizes.
        sparsity: Share of empty blocks in each matrix.
        block: Side of the square blocks; needed where `sparsity` is above 0.
        bytes_a_weight: 2 for bfloat16, 4 for float32.

    Raises:
        BlastError: for an unknown name, or blocks that do not divide the matrices.
    """
    import torch

    from blast import architectures

    shape = architectures.get(name).shape
    with torch.device("meta"):
        model = architectures.build(name)
    parameters = sum(weight.numel() for weight in model.parameters())
    dense_mlp = shape.mlp_weights * bytes_a_weight
    sparse_mlp = dense_mlp
    if sparsity:
        listed = ", ".join(map(str, architectures.legal_blocks(name)))
        if block is None or any(side % block for _, *sides in shape.mlp_matrices for side in sides):
            raise BlastError(f"blocks of {block} do not divide the MLP matrices of {name}; sides that do: {listed}.")
        sparse_mlp = shape.layers * sum(
            _matrix_bytes(rows // block, cols // block, block, sparsity, bytes_a_weight)
            for _, rows, cols in shape.mlp_matrices
        )
    return Footprint(
        parameters=parameters,
        mlp_parameters=shape.mlp_weights,
        dense_bytes=parameters * bytes_a_weight,
        dense_mlp_bytes=dense_mlp,
        sparse_bytes=parameters * bytes_a_weight - dense_mlp + sparse_mlp,
        sparse_mlp_bytes=sparse_mlp,
    )


def _matrix_bytes(rows: int, cols: int, block: int, sparsity: float, bytes_a_weight: int) -> int:
    """Bytes of one block-CSR matrix of `rows × cols` blocks."""
    live = round((1 - sparsity) * rows * cols)
    index = live * NUMBERS_A_BLOCK + rows + 1 + cols + 1
    return live * block * block * bytes_a_weight + index * INDEX_BYTES
