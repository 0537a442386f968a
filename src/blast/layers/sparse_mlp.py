"""A whole MLP in its sparse state: fused inference kernels where no gradient is asked for, else those for training."""

from __future__ import annotations

from typing import NamedTuple

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.common.quantize import HALVES, quantize_blocks
from blast_kernels.mlp_inference.row_lists import (
    drop_columns,
    gated_records,
    live_hidden_rows,
    pack_tied,
    plain_records,
)
from blast_kernels.tables.break_even import Ranges, dense_ranges, dense_wins, gpu_name
from torch import Tensor, nn
from torch.nn import functional as F

from blast.errors import BlastError
from blast.layers.block_linear import HOOKS, BlockLinear
from blast.layers.mlp_autograd import MlpLists, can_train, run_training

# How the fused kernels hold the weights: in the dtype of the model, or in fp8 with a scale for each block.
WEIGHTS = ("same", "fp8")
# Tokens of random input that the error of fp8 weights is stated for.
ERROR_TOKENS = 64


class Packed(NamedTuple):
    """What the fused kernels read; made from the blocks of an MLP, and made anew when they change.

    The scales are those of fp8 blocks, else None.
    """

    front: Tensor
    front_records: Tensor
    down: Tensor
    down_records: Tensor
    front_scales: Tensor | None = None
    down_scales: Tensor | None = None


class Roles(NamedTuple):
    """Names of the matrices of an MLP among its children; `gate` is None if it has none."""

    up: str
    down: str
    gate: str | None = None


class SparseMlp(nn.Module):
    """Takes the place of an MLP whose matrices are `BlockLinear`; it has the same children under the same names.

    Without gradients the whole MLP is one call of `torch.ops.blast.block_sparse_mlp`; with gradients or under autocast
    it is one of `block_sparse_mlp_training`. With active dropout, or where hidden blocks of the up projection are not
    those of the down projection, the MLP it replaces runs as before, layer by layer. The parameters of the layers
    stay the only truth (state dict, checkpoints, optimizer); the packed blocks of the front are a copy of them, made
    again whenever they were changed, moved or loaded. So are fp8 weights: these are held besides the layers' own.

    Args:
        original: The MLP; its children are shared, not copied.
        roles: Which children are its matrices.
        activation: `silu`, `gelu`, `gelu_tanh` or `none`.
        skip_dead: Whether hidden blocks that are provably zero, or that nobody reads, are left out. The result is the
            same for finite inputs.
        dense_fallback: Whether to run dense where `blast_kernels.tables.break_even` says that dense is faster for so
            many tokens. Holds the dense weights as well.
        weights: `same`, or `fp8`: half the bytes to read, at the price that `quantization_error` states. An MLP that is
            cast to float32 or float64 runs with its own weights.
    """

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
        # Around torch's own setattr: what it replaces is no child, but both have the same children.
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
        self._versions: tuple = ()
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
        """Tensors that it holds besides those of its layers, some of which may be the layers' own."""
        own = (*(self._packed or ()), *(self._dense or ()), *self.lists.tensors)
        return [tensor for tensor in own if tensor is not None]

    @property
    def packed(self) -> Packed:
        """What the kernels read; made anew if a parameter changed."""
        if self._packed is None or self._versions != self._current():
            self.pack()
        return self._packed

    def pack(self) -> None:
        """Makes the packed form of the present parameters."""
        with torch.no_grad():
            if any(layer.values.is_meta for layer in self.layers):
                self._packed = self._dense = None
                return
            self._packed = _pack(self.layers, self.gate, self.skip_dead)
            if self.weights == "fp8" and self._packed.front.dtype in HALVES:
                self._packed = _in_fp8(self._packed)
            self._dense = None
            if self.dense_fallback:
                self._choose_dense()
        self._versions = self._current()

    def quantization_error(self, x: Tensor | None = None) -> float:
        """`‖out − full‖ / ‖full‖` of the fused kernels with the weights they hold, against those of the layers.

        Args:
            x: Activations `[..., in]` in the dtype of the MLP; normally distributed ones if left out.

        Returns:
            0 if the kernels hold the weights of the layers as they are.

        Raises:
            BlastError: if the weights are on the meta device.
        """
        packed, values = self.packed, self.layers[0].values
        if packed is None:
            raise BlastError("weights on the meta device have no values to compare; load the model first.")
        if packed.front_scales is None:
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
        if self._dense is not None and dense_wins(x.numel() // x.shape[-1], self._ranges):
            return self._run_dense(x)
        return self._run(x, packed)

    def _train(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self._layer(self.roles.down).masks_fixed:
            if torch.is_autocast_enabled(x.device.type):
                # By the graph, which fuses it with what made `x`.
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
            packed.front,
            packed.front_records,
            up.bias,
            packed.down,
            packed.down_records,
            down.bias,
            up.out_features,
            down.out_features,
            self.activation,
            self.gate,
            packed.front_scales,
            packed.down_scales,
        )

    def train(self, mode: bool = True) -> SparseMlp:
        self.original.training = mode
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"gate={self.gate}, activation={self.activation}, skip_dead={self.skip_dead}, weights={self.weights}"

    def _apply(self, function, recurse: bool = True) -> SparseMlp:
        super()._apply(function, recurse)
        self.pack()
        return self

    def _layer(self, name: str) -> BlockLinear:
        return self._modules[name]

    def _can_fuse(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled(x.device.type):
            return False
        if not torch.is_grad_enabled():
            return True
        wanted = [x, *(p for layer in self.layers for p in (layer.values, layer.bias) if p is not None)]
        return not any(tensor.requires_grad for tensor in wanted)

    def _run_dense(self, x: Tensor) -> Tensor:
        *gate, up, down = self._dense
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
        # No dense weights are held where the table never calls for them.
        if any(dense for _, dense in self._ranges):
            self._dense = [layer.matrix().to_dense() for layer in self.layers]

    def _current(self) -> tuple:
        tensors = [tensor for layer in self.layers for tensor in (layer.values, layer.row_offsets, layer.col_indices)]
        # An inference tensor has no version: it cannot be changed in place outside inference mode.
        return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


def _in_fp8(packed: Packed) -> Packed:
    front, front_scales = quantize_blocks(packed.front)
    down, down_scales = quantize_blocks(packed.down)
    return packed._replace(front=front, down=down, front_scales=front_scales, down_scales=down_scales)


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "none": lambda x: x,
}


def _pack(layers: list[BlockLinear], gate: str, skip_dead: bool) -> Packed:
    *_, up, down = layers
    live = None
    # Hidden blocks of the front are those of the down projection only where their sides agree.
    if skip_dead and up.block.rows == down.block.cols:
        read = torch.zeros(up.row_offsets.numel() - 1, dtype=torch.bool, device=up.values.device)
        read[down.col_indices.long()] = True
        live = read if gate == "none" else live_hidden_rows(layers[0].row_offsets, up.row_offsets, down.col_indices)
    if gate == "untied":
        parts = [tensor for layer in layers[:2] for tensor in (layer.row_offsets, layer.col_indices)]
        front_records, order = gated_records(*parts, live)
        front = torch.cat([layers[0].values, up.values])[order]
    else:
        front_records = plain_records(up.row_offsets, up.col_indices, live)
        front = pack_tied(layers[0].values, up.values) if gate == "tied" else up.values
    offsets, columns, values = down.row_offsets, down.col_indices, down.values
    if live is not None and not bool(live.all()):
        offsets, columns, kept = drop_columns(offsets, columns, live)
        # Of the same number, nothing was dropped, and the layer's own values serve.
        values = values if kept.numel() == values.shape[0] else values[kept]
    return Packed(front.detach().contiguous(), front_records, values.detach(), plain_records(offsets, columns))
