"""A whole sparse MLP: fused inference kernels without gradients, training kernels with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.common.quantize import HALVES, quantize_blocks
from blast_kernels.mlp_inference.row_lists import (
    drop_columns,
    gated_row_list,
    live_hidden_rows,
    pack_tied,
    plain_row_list,
)
from blast_kernels.tables.break_even import Ranges, dense_ranges, dense_wins, gpu_name
from torch import Tensor, nn
from torch.nn import functional as F

from blast.errors import BlastError
from blast.layers.block_linear import HOOKS, BlockLinear
from blast.layers.mlp_autograd import MlpLists, can_train, run_training

# Storage of the weights for the fused kernels: in the dtype of the model, or in fp8 with a scale for each block.
WEIGHTS = ("same", "fp8")
# Number of random tokens that `quantization_error` measures with.
ERROR_TOKENS = 64


class Packed(NamedTuple):
    """The weights and index lists that the fused kernels read.

    Attributes:
        gate_up: Blocks of the gate (if any) and up projections, in the order of the kernels.
        gate_up_row_list: Their row row_list, int32.
        down: Blocks of the down projection.
        down_row_list: Their row row_list, int32.
        gate_up_scales: A scale for each fp8 block; None without fp8.
        down_scales: Likewise for the down projection.
    """

    gate_up: Tensor
    gate_up_row_list: Tensor
    down: Tensor
    down_row_list: Tensor
    gate_up_scales: Tensor | None = None
    down_scales: Tensor | None = None


class Roles(NamedTuple):
    """Names of the matrices of an MLP among its children; `gate` is None for an MLP without a gate."""

    up: str
    down: str
    gate: str | None = None


class SparseMlp(nn.Module):
    """Replaces an MLP whose matrices are `BlockLinear`. It has the same children under the same names.

    Without gradients the whole MLP is one call of `torch.ops.blast.block_sparse_mlp`. With gradients or under autocast
    it is one call of `block_sparse_mlp_training`. The original MLP runs layer by layer with active dropout, and if the
    block sides of the up and down projections do not match. The state dict, checkpoints and the optimizer use the
    parameters of the layers only. The packed gate and up blocks and the fp8 weights are copies of these parameters.
    They are made again after a parameter was changed, moved or loaded.

    Args:
        original: The MLP; its children are shared, not copied.
        roles: Which children are its matrices.
        activation: `silu`, `gelu`, `gelu_tanh` or `none`.
        skip_dead: Whether to skip hidden blocks that are always zero, or that no block reads. The result is the
            same for finite inputs.
        dense_fallback: Whether to run dense where `blast_kernels.tables.break_even` says that dense is faster for this
            number of tokens. Then the dense weights are stored as well.
        weights: `same`, or `fp8`: half the bytes to read, with the error that `quantization_error` measures. An MLP
            that is cast to float32 or float64 runs with its own weights.
    """

    original: nn.Module

    def __init__(
        self,
        original: nn.Module,
        roles: Roles,
        activation: str,
        skip_dead: bool = True,
        dense_fallback: bool = False,
        weights: str = "same",
    ) -> None:
        super().__init__()
        self.roles, self.activation, self.skip_dead = roles, activation, skip_dead
        self.dense_fallback, self.weights = dense_fallback, weights
        # nn.Module.__setattr__ would register it as a child. It is none, but both have the same children.
        object.__setattr__(self, "original", original)
        self._modules = original._modules
        self.training, self._version = original.training, original._version
        for hooks in HOOKS:
            setattr(self, hooks, getattr(original, hooks))
        self._dropout = any(isinstance(child, nn.Dropout) and child.p > 0 for child in original.children())
        self.lists = MlpLists()
        self._packed: Packed | None = None
        self._dense: list[Tensor] | None = None
        self._ranges: Ranges = ()
        self._versions: tuple[tuple[int, int], ...] = ()
        self.pack()

    @property
    def gate(self) -> str:
        """`none`, `tied` (gate and up share one index) or `untied`."""
        if self.roles.gate is None:
            return "none"
        return "tied" if self._layer(self.roles.gate).index is self._layer(self.roles.up).index else "untied"

    @property
    def layers(self) -> list[BlockLinear]:
        """Its matrices: gate (if any), up, down."""
        return [self._layer(name) for name in (self.roles.gate, self.roles.up, self.roles.down) if name is not None]

    @property
    def extra_tensors(self) -> list[Tensor]:
        """The packed, dense and index tensors; some may be tensors of its layers."""
        own: tuple[Tensor | None, ...] = (*(self._packed or ()), *(self._dense or ()), *self.lists.tensors)
        return [tensor for tensor in own if tensor is not None]

    @property
    def packed(self) -> Packed | None:
        """What the kernels read, packed again if a parameter changed; None on the meta device."""
        if self._packed is None or self._versions != self._current():
            self.pack()
        return self._packed

    def pack(self) -> None:
        """Packs the current parameters for the kernels."""
        with torch.no_grad():
            if any(layer.values.is_meta for layer in self.layers):
                self._packed = self._dense = None
                return
            packed = _pack(self.layers, self.gate, self.skip_dead)
            quantized = self.weights == "fp8" and packed.gate_up.dtype in HALVES
            self._packed = _in_fp8(packed) if quantized else packed
            self._dense = None
            if self.dense_fallback:
                self._choose_dense()
        self._versions = self._current()

    def quantization_error(self, x: Tensor | None = None) -> float:
        """The relative error of the output with the packed weights: `‖out − full‖ / ‖full‖`.

        Args:
            x: Activations `[..., in]` in the dtype of the MLP; 64 normally distributed tokens if left out.

        Returns:
            The error; 0 if the weights are not quantized.

        Raises:
            BlastError: if the weights are on the meta device.
        """
        packed, values = self.packed, self.layers[0].values
        if packed is None:
            raise BlastError("weights on the meta device have no values to compare; load the model first.")
        if packed.gate_up_scales is None:
            return 0.0
        if x is None:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(ERROR_TOKENS, self.layers[0].in_features, generator=generator).to(values)
        with torch.no_grad():
            full = self._run(x, _pack(self.layers, self.gate, self.skip_dead)).float()
            return ((self._run(x, packed).float() - full).norm() / full.norm()).item()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, as the MLP it replaces."""
        if self.training and self._dropout:
            return self.original.forward(x)
        if not self._can_fuse(x):
            return self._train(x)
        packed = self._packed if torch.compiler.is_compiling() else self.packed
        if packed is None:
            raise BlastError("the weights are on the meta device; load the model first.")
        if self._dense is not None and dense_wins(x.numel() // x.shape[-1], self._ranges):
            return self._run_dense(x, self._dense)
        return self._run(x, packed)

    def _train(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self._layer(self.roles.down).masks_fixed:
            if torch.is_autocast_enabled(x.device.type):
                # Cast inside the graph, so that it is fused with the operation that computes `x`.
                x = x.to(torch.get_autocast_dtype(x.device.type))
            return self._train_outside_graph(x)
        layers = self.layers
        if not can_train(layers):
            return self.original.forward(x)
        return self._run_training(x, layers)

    def _run_training(self, x: Tensor, layers: list[BlockLinear]) -> Tensor:
        return run_training(x, layers, self.lists, self.activation)

    @torch.compiler.disable
    def _train_outside_graph(self, x: Tensor) -> Tensor:
        return self._train(x)

    def _run(self, x: Tensor, packed: Packed) -> Tensor:
        up, down = self._layer(self.roles.up), self._layer(self.roles.down)
        return torch.ops.blast.block_sparse_mlp(
            x,
            packed.gate_up,
            packed.gate_up_row_list,
            up.bias,
            packed.down,
            packed.down_row_list,
            down.bias,
            up.out_features,
            down.out_features,
            self.activation,
            self.gate,
            packed.gate_up_scales,
            packed.down_scales,
        )

    def train(self, mode: bool = True) -> SparseMlp:
        self.original.training = mode
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"gate={self.gate}, activation={self.activation}, skip_dead={self.skip_dead}, weights={self.weights}"

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseMlp:
        super()._apply(function, recurse)
        self.pack()
        return self

    def _layer(self, name: str) -> BlockLinear:
        layer: Any = self._modules[name]
        return layer

    def _can_fuse(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled(x.device.type):
            return False
        if not torch.is_grad_enabled():
            return True
        tensors = [x, *(p for layer in self.layers for p in (layer.values, layer.bias) if p is not None)]
        return not any(tensor.requires_grad for tensor in tensors)

    def _run_dense(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        *gate, up, down = weights
        act = ACTIVATIONS[self.activation]
        biases = [layer.bias for layer in self.layers]
        hidden = F.linear(x, up, biases[-2])
        hidden = act(F.linear(x, gate[0], biases[0])) * hidden if gate else act(hidden)
        return F.linear(hidden, down, biases[-1])

    def _choose_dense(self) -> None:
        up, values = self._layer(self.roles.up), self.layers[0].values
        total = sum(layer.in_features * layer.out_features for layer in self.layers)
        sparsity = 1 - sum(layer.values.numel() for layer in self.layers) / total
        shape, gpu = (up.out_features, up.in_features), gpu_name(values.device)
        self._ranges = dense_ranges(sparsity, up.block, self.gate, shape, values.dtype, gpu)
        # Dense weights are stored only if the table uses them for some number of tokens.
        if any(dense for _, dense in self._ranges):
            self._dense = [layer.matrix().to_dense() for layer in self.layers]

    def _current(self) -> tuple[tuple[int, int], ...]:
        tensors = [tensor for layer in self.layers for tensor in (layer.values, layer.row_offsets, layer.col_indices)]
        # An inference tensor has no version counter. It cannot be changed in place outside inference mode.
        return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


def _in_fp8(packed: Packed) -> Packed:
    gate_up, gate_up_scales = quantize_blocks(packed.gate_up)
    down, down_scales = quantize_blocks(packed.down)
    return packed._replace(gate_up=gate_up, down=down, gate_up_scales=gate_up_scales, down_scales=down_scales)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "none": lambda x: x,
}


def _pack(layers: list[BlockLinear], gate: str, skip_dead: bool) -> Packed:
    *_, up, down = layers
    live = None
    # The up and down projections have the same hidden blocks only if their block sides agree.
    if skip_dead and up.block.rows == down.block.cols:
        read = torch.zeros(up.row_offsets.numel() - 1, dtype=torch.bool, device=up.values.device)
        read[down.col_indices.long()] = True
        live = read if gate == "none" else live_hidden_rows(layers[0].row_offsets, up.row_offsets, down.col_indices)
    if gate == "untied":
        first = layers[0]
        row_list, order = gated_row_list(first.row_offsets, first.col_indices, up.row_offsets, up.col_indices, live)
        gate_up = torch.cat([first.values, up.values])[order]
    else:
        row_list = plain_row_list(up.row_offsets, up.col_indices, live)
        gate_up = pack_tied(layers[0].values, up.values) if gate == "tied" else up.values
    offsets, columns = down.row_offsets, down.col_indices
    values: Tensor = down.values
    if live is not None and not bool(live.all()):
        offsets, columns, kept = drop_columns(offsets, columns, live)
        # If nothing was dropped, the values of the layer are used without a copy.
        values = values if kept.numel() == values.shape[0] else values[kept]
    return Packed(gate_up.detach().contiguous(), row_list, values.detach(), plain_row_list(offsets, columns))
