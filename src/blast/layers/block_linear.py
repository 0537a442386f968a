"""A linear layer in its sparse state: it stores only the live blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.cpu import launch as cpu
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.cpu_index import CpuIndex
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.errors import BlastError, check_argument
from blast.layers.computed_weight import ComputedWeight
from blast.layers.dense_gradient import DenseGradient
from blast.layers.hooked import HOOKS, HookedOutsideGraph


class IndexBuffers(nn.Module):
    """The index of a `BlockLinear` as buffers, with the index of the transposed matrix for the gradient.

    Layers with equal masks share one `IndexBuffers` object, also after `.to()`, `deepcopy` and `load_state_dict`. Two
    layers share their mask if `a.index is b.index`. On the meta device the mask stays known; `to_empty` restores it.

    Args:
        index: Positions of the live blocks.
        transposed: Offsets, columns and order of the transposed matrix (`BlockIndex.transpose`); computed if left out.
    """

    row_offsets: Tensor
    col_indices: Tensor
    t_offsets: Tensor
    t_indices: Tensor
    t_order: Tensor

    def __init__(self, index: BlockIndex, transposed: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.shape, self.block = index.shape, index.block
        self.register_buffer("row_offsets", index.row_offsets)
        self.register_buffer("col_indices", index.col_indices)
        # Computed from the two above, so they are not saved.
        for name in ("t_offsets", "t_indices", "t_order"):
            self.register_buffer(name, None, persistent=False)
        self._checked: BlockIndex | None = index
        if transposed is None:
            self._transpose(index)
        else:
            self.t_offsets, self.t_indices, self.t_order = transposed

    @property
    def index(self) -> BlockIndex:
        """The buffers as a `BlockIndex`. New buffers are checked first, which synchronizes with the GPU."""
        checked = self._checked
        offsets, columns = self.row_offsets, self.col_indices
        if checked is None or checked.row_offsets is not offsets or checked.col_indices is not columns:
            checked = self._checked = BlockIndex(offsets, columns, self.shape, self.block)
        return checked

    def extra_repr(self) -> str:
        return f"blocks={self.col_indices.numel()}"

    def known_index(self) -> BlockIndex | None:
        """The index as it was made or checked last, without reading its tensors; None if its positions are unknown."""
        checked = self._checked
        return checked if checked is not None and checked.is_known else None

    def _transpose(self, index: BlockIndex) -> None:
        transposed, self.t_order = index.transpose()
        self.t_offsets, self.t_indices = transposed.row_offsets, transposed.col_indices

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> IndexBuffers:
        known, before = self.known_index(), dict(self._buffers)
        super()._apply(function, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new is not old and not new.is_meta:
                # `to_empty` leaves any values in new memory. With those as an index, kernels would read out of bounds.
                new.zero_() if old.is_meta else new.copy_(old)
        was_meta = before["row_offsets"] is None or before["row_offsets"].is_meta
        if known is not None and (was_meta or self.row_offsets.is_meta):
            # The mask is known on the meta device too, and only `to_empty` leads away from there.
            made = _on(self.row_offsets.device, known)
            self.row_offsets, self.col_indices, self._checked = made.row_offsets, made.col_indices, made
            self._transpose(made)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        known = self.known_index()
        super()._load_from_state_dict(*args)
        self._checked = None
        index = self.index
        # If it was known before, it is still the same: `BlockLinear.check_state_dict` refuses another.
        if known is None or self.t_order.device != self.row_offsets.device:
            self._transpose(index)


def _on(device: torch.device, index: BlockIndex) -> BlockIndex:
    """A known index with its tensors made anew on a device."""
    offsets, columns = (torch.tensor(array, device=device) for array in index.cpu_index)
    return BlockIndex.unchecked(index.cpu_index, offsets, columns, index.shape, index.block)


class BlockLinear(HookedOutsideGraph):
    """`y = x · Wᵀ + bias`, where `W [out, in]` is block-sparse and only its live blocks are stored.

    Replaces an `nn.Linear` or a transformers `Conv1D`. The gradient of `values` is the dense gradient at the live
    blocks. Under autocast the product uses the autocast dtype, as `nn.Linear` does.

    Args:
        matrix: Index and values `[nnz, b_out, b_in]`; the values are used as they are, not copied.
        bias: `[out]` or None.
        index: The buffers of another layer with the same mask, to be shared; made from `matrix` if left out.

    Raises:
        BlastError: if the bias does not fit, or the shared index belongs to another mask.

    Example:
        >>> matrix = blast.BlockCSR.from_dense(torch.randn(32, 64), mask=torch.eye(2, dtype=torch.bool))
        >>> blast.BlockLinear(matrix)(torch.randn(8, 64)).shape
        torch.Size([8, 32])
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    index: IndexBuffers

    def __init__(self, matrix: BlockCSR, bias: Tensor | None = None, index: IndexBuffers | None = None) -> None:
        super().__init__()
        check_argument("the matrix", matrix, BlockCSR, "a BlockCSR, for instance BlockCSR.from_dense(weight, mask)")
        check_argument("the bias", bias, (Tensor, type(None)), "a tensor [out], or None")
        self.out_features, self.in_features = matrix.index.shape
        if bias is not None and list(bias.shape) != [self.out_features]:
            raise BlastError(f"the bias must be [{self.out_features}], but is {list(bias.shape)}.")
        if index is not None and index.row_offsets is not matrix.index.row_offsets:
            raise BlastError("a shared index must be the index of the matrix itself; build both from one BlockIndex.")
        self.values = _parameter(matrix.values)
        self.bias = None if bias is None else _parameter(bias)
        self.index = IndexBuffers(matrix.index) if index is None else index
        # Whether the dense layer stores its weight as [in, out] (transformers Conv1D).
        self.transposed = False
        # Accumulates the dense gradient of the next backward passes; set for mask updates only.
        self.dense_gradient: DenseGradient | None = None
        # False while mask updates replace the values, or several layers run the same compiled code. A compiled graph
        # then breaks at this layer, so that another number of blocks needs no recompilation.
        self.masks_fixed = True
        self._template: nn.Module | None = None

    @classmethod
    def replacing(cls, module: nn.Module, matrix: BlockCSR, index: IndexBuffers | None = None) -> BlockLinear:
        """The sparse state of a dense layer: with its bias parameter, training flag, hooks and gradient flags.

        Args:
            module: `nn.Linear` or transformers `Conv1D`. `dense_module` restores this layer.
            matrix: The live blocks of its weight.
            index: The buffers of another layer with the same mask, to be shared.
        """
        weight = cast(nn.Parameter, module._parameters["weight"])
        values = _parameter(matrix.values, weight.requires_grad)
        layer = cls(BlockCSR(matrix.index, values), cast("Tensor | None", module.bias), index)
        layer.training, layer.transposed = module.training, is_conv1d(module)
        template = _without_parameters(module)
        # nn.Module.__setattr__ would register it as a child of this layer.
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
        """The dense weight as the dense layer stores it. Each access computes it again; a write to it raises."""
        dense = self.matrix().to_dense()
        dense = dense.t() if self.transposed else dense
        return dense if torch.compiler.is_compiling() else dense.as_subclass(ComputedWeight)

    def check_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Checks that a state dict fits this layer, without loading it. Loading does this first.

        Args:
            state: A state dict; may lack some or all entries of this layer.
            prefix: The name of this layer there, with a dot at its end.

        Raises:
            BlastError: if it has a dense weight for this layer, or live blocks of another mask.
        """
        name = prefix.removesuffix(".") or type(self).__name__
        parts = {part: state.get(f"{prefix}{part}") for part in ("values", "index.row_offsets", "index.col_indices")}
        if f"{prefix}weight" in state and parts["values"] is None:
            raise BlastError(
                f"the state dict has a dense weight for '{name}', which is block-sparse; load it into the dense model, "
                "before blast.to_sparse or after blast.to_dense(model)."
            )
        values, offsets, columns = parts.values()
        known = self.index.known_index()
        if isinstance(offsets, Tensor) and isinstance(columns, Tensor) and known is not None and not columns.is_meta:
            found = CpuIndex(*(tensor.detach().cpu().numpy() for tensor in (offsets, columns)))
            if not found.equals(known.cpu_index):
                raise self._another_mask(name, found.col_indices.size)
        shape = (self.col_indices.numel(), *self.block)
        if isinstance(values, Tensor) and tuple(values.shape) != shape:
            if tuple(values.shape[1:]) != shape[1:]:
                raise BlastError(
                    f"the state dict has values {list(values.shape)} for '{name}', where the model has {list(shape)} "
                    "(live blocks, block rows, block columns); give that of a model with the same blocks."
                )
            raise self._another_mask(name, values.shape[0])

    def _another_mask(self, name: str, blocks: int) -> BlastError:
        return BlastError(
            f"the state dict has another mask for '{name}': {blocks} live blocks, where the model has "
            f"{self.col_indices.numel()}{' at other places' if blocks == self.col_indices.numel() else ''}; "
            "make the model sparse with that mask first, or use blast.save and blast.load."
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.check_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def matrix(self) -> BlockCSR:
        """Index and values; the values are the parameter itself, not a copy."""
        return BlockCSR(self.index.index, self.values)

    def mask(self) -> Tensor:
        """The mask `[out / b_out, in / b_in]`, bool."""
        return self.index.index.mask()

    def dense_module(self) -> nn.Module:
        """The equivalent dense layer, of the type that this layer replaced (`nn.Linear` if it replaced none)."""
        module: nn.Module
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

    def _masks_are_fixed(self) -> bool:
        return self.masks_fixed

    @torch.compiler.disable
    def _outside_graph(self, x: Tensor) -> Tensor:
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, values, bias = x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
        index = self.index
        if self.dense_gradient is None and x.device.type == "cpu" and self._serves_at_once(x, values, bias):
            flat = x.reshape(-1, self.in_features).contiguous()
            y = cpu.linear(flat, values, index.row_offsets, index.col_indices, bias)
            return y.view(*x.shape[:-1], self.out_features)
        y = torch.ops.blast.block_sparse_linear(
            x, values, index.row_offsets, index.col_indices, index.t_offsets, index.t_indices, index.t_order, bias
        )
        return y if self.dense_gradient is None else self.dense_gradient.record(x, y)

    def _serves_at_once(self, x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
        if not values.is_contiguous() or not cpu.serves_at_once(x, self.in_features, values):
            return False
        fits = bias is None or (bias.dtype == x.dtype and bias.is_contiguous())
        return fits and values.shape[0] == self.col_indices.numel()

    def extra_repr(self) -> str:
        rows, cols = self.out_features // self.block.rows, self.in_features // self.block.cols
        live = self.col_indices.numel()
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"block={self.block.rows}x{self.block.cols}, live={live} of {rows * cols} blocks, "
            f"sparsity={1 - live / (rows * cols):.1%}"
        )


def _without_parameters(module: nn.Module) -> nn.Module:
    """A shallow copy of a layer without its parameters."""
    shell = copy.copy(module)
    shell._parameters = dict.fromkeys(module._parameters)
    return shell


def _parameter(tensor: Tensor, requires_grad: bool = True) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=requires_grad)
