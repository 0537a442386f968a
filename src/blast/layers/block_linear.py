"""A linear layer in its sparse state: only the live blocks are held."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.errors import BlastError
from blast.layers.dense_gradient import DenseGradient


class IndexBuffers(nn.Module):
    """The index of a `BlockLinear` as buffers, with that of the transposed matrix for the gradient.

    Layers with equal masks hold one and the same `IndexBuffers`, and keep doing so through `.to()`, `deepcopy` and
    `load_state_dict`; that two layers share their mask is `a.index is b.index`.

    Args:
        index: Where the blocks are.
        transposed: Offsets, indices and order of the transposed matrix (`BlockIndex.transpose`); made if left out.
    """

    def __init__(self, index: BlockIndex, transposed: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.shape, self.block = index.shape, index.block
        self.register_buffer("row_offsets", index.row_offsets)
        self.register_buffer("col_indices", index.col_indices)
        # These follow from the two above, so that they are not saved.
        for name in ("t_offsets", "t_indices", "t_order"):
            self.register_buffer(name, None, persistent=False)
        self._known: BlockIndex | None = index
        if transposed is None:
            self._transpose(index)
        else:
            self.t_offsets, self.t_indices, self.t_order = transposed

    @property
    def index(self) -> BlockIndex:
        """The buffers as a `BlockIndex`, checked when they are new (a GPU has to be waited for)."""
        known = self._known
        if known is None or known.row_offsets is not self.row_offsets or known.col_indices is not self.col_indices:
            known = self._known = BlockIndex(self.row_offsets, self.col_indices, self.shape, self.block)
        return known

    def extra_repr(self) -> str:
        return f"blocks={self.col_indices.numel()}"

    def _transpose(self, index: BlockIndex) -> None:
        transposed, self.t_order = index.transpose()
        self.t_offsets, self.t_indices = transposed.row_offsets, transposed.col_indices

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._known = None
        # Another mask of as many blocks fits the buffers; gradients would be wrong with the old transposed index.
        self._transpose(self.index)


class BlockLinear(nn.Module):
    """`y = x · Wᵀ + bias`, where `W [out, in]` is block-sparse and only its live blocks exist.

    Takes the place of an `nn.Linear` or of a transformers `Conv1D`. The gradient of `values` is the dense gradient at
    the live blocks. Under autocast the product is made in the autocast dtype, as with `nn.Linear`.

    Args:
        matrix: Index and values `[nnz, b_out, b_in]`; the values are used as they are, not copied.
        bias: `[out]` or None.
        index: Buffers of the same mask to be shared with another layer; made from `matrix` if left out.

    Raises:
        BlastError: if the bias does not fit, or the shared index is that of another mask.

    Example:
        >>> matrix = blast.BlockCSR.from_dense(torch.randn(32, 64), mask=torch.eye(2, dtype=torch.bool))
        >>> blast.BlockLinear(matrix)(torch.randn(8, 64)).shape
        torch.Size([8, 32])
    """

    def __init__(self, matrix: BlockCSR, bias: Tensor | None = None, index: IndexBuffers | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.index.shape
        if bias is not None and list(bias.shape) != [self.out_features]:
            raise BlastError(f"the bias must be [{self.out_features}], but is {list(bias.shape)}.")
        if index is not None and index.row_offsets is not matrix.index.row_offsets:
            raise BlastError("a shared index must be the very index of the matrix; build both from one BlockIndex.")
        self.values = _parameter(matrix.values)
        self.bias = None if bias is None else _parameter(bias)
        self.index = IndexBuffers(matrix.index) if index is None else index
        # Whether the dense layer stores its weight as [in, out] (transformers Conv1D).
        self.transposed = False
        # Accumulates the dense gradient of the next backward passes; set for mask updates only.
        self.dense_gradient: DenseGradient | None = None
        # False while mask updates replace the values. A compiled graph then breaks at this layer, so that a new number
        # of blocks needs no recompilation.
        self.masks_fixed = True
        self._template: nn.Module | None = None

    @classmethod
    def replacing(cls, module: nn.Module, matrix: BlockCSR, index: IndexBuffers | None = None) -> BlockLinear:
        """The sparse state of a dense layer: same bias (the very parameter), training flag, hooks and gradient flags.

        Args:
            module: `nn.Linear` or transformers `Conv1D`; what it is made of besides weight and bias is kept, so that
                `dense_module` gives the same layer back.
            matrix: The live blocks of its weight.
            index: Buffers of the same mask to be shared.
        """
        weight = module._parameters["weight"]
        values = _parameter(matrix.values, weight.requires_grad)
        layer = cls(BlockCSR(matrix.index, values), module.bias, index)
        layer.training, layer.transposed = module.training, is_conv1d(module)
        template = _without_parameters(module)
        # Around torch's own setattr, which would make it a child of this layer.
        object.__setattr__(layer, "_template", template)
        for hooks in HOOKS:
            setattr(layer, hooks, getattr(module, hooks))
        return layer

    @property
    def block(self) -> BlockShape:
        """Rows and columns of a block."""
        return self.index.block

    @property
    def row_offsets(self) -> Tensor:
        """`[out / b_out + 1]`, int32."""
        return self.index.row_offsets

    @property
    def col_indices(self) -> Tensor:
        """`[nnz]`, int32."""
        return self.index.col_indices

    @property
    def weight(self) -> Tensor:
        """The dense weight as the dense layer stores it, *made anew at each access*: for code that looks at it."""
        dense = self.matrix().to_dense()
        return dense.t() if self.transposed else dense

    def matrix(self) -> BlockCSR:
        """Index and values; the values are the live parameter."""
        return BlockCSR(self.index.index, self.values)

    def mask(self) -> Tensor:
        """The mask `[out / b_out, in / b_in]`, bool."""
        return self.index.index.mask()

    def dense_module(self) -> nn.Module:
        """The dense layer this one stands for, with the type it had (`nn.Linear` if it never was dense)."""
        if self._template is None:
            module = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        else:
            module = _without_parameters(self._template)
            for hooks in HOOKS:
                setattr(module, hooks, getattr(self, hooks))
        dense = self.matrix().to_dense().detach()
        dense = dense.t().contiguous() if self.transposed else dense
        module._parameters["weight"] = _parameter(dense, self.values.requires_grad)
        module._parameters["bias"] = self.bias
        return module.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`.

        Raises:
            ValueError: if the dtype, device or last dimension of `x` does not fit.
        """
        if torch.compiler.is_compiling() and not self.masks_fixed:
            return self._outside_graph(x)
        return self._product(x)

    @torch.compiler.disable
    def _outside_graph(self, x: Tensor) -> Tensor:
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        values, bias = self.values, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, values, bias = x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
        index = self.index
        y = torch.ops.blast.block_sparse_linear(
            x, values, index.row_offsets, index.col_indices, index.t_offsets, index.t_indices, index.t_order, bias
        )
        return y if self.dense_gradient is None else self.dense_gradient.record(x, y)

    def extra_repr(self) -> str:
        rows, cols = self.out_features // self.block.rows, self.in_features // self.block.cols
        live = self.col_indices.numel()
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"block={self.block.rows}x{self.block.cols}, live={live} of {rows * cols} blocks, "
            f"sparsity={1 - live / (rows * cols):.1%}"
        )


# Dictionaries of hooks, handed over as they are so that the handles their owners hold still remove them.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def _without_parameters(module: nn.Module) -> nn.Module:
    """A shallow copy of a layer whose weight and bias are gone."""
    shell = copy.copy(module)
    shell._parameters = dict.fromkeys(module._parameters)
    return shell


def _parameter(tensor: Tensor, requires_grad: bool = True) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=requires_grad)
