"""A whole sparse MLP: fused inference kernels without gradients, training kernels with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.common.quantize import HALVES
from blast_kernels.cpu import launch as cpu
from blast_kernels.mlp_inference.ops import run_mlp
from blast_kernels.tables.break_even import Ranges, dense_ranges, dense_wins, gpu_name
from torch import Tensor, nn
from torch.nn import functional as F

from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.layers.fp8_linear import Fp8BlockLinear, from_fp8, to_fp8
from blast.layers.hooked import HOOKS, HookedOutsideGraph
from blast.layers.mlp_autograd import MlpLists, can_train, run_training
from blast.layers.mlp_replays import MlpReplays, may_replay
from blast.layers.mlp_row_lists import IndexState, RowLists, equal, row_lists_of
from blast.layers.stand_in import stand_in_class

# Storage of the weights for the fused kernels: in the dtype of the model, or in fp8 with a scale for each block.
WEIGHTS = ("same", "fp8")
# Number of random tokens that `quantization_error` measures with.
ERROR_TOKENS = 64


class Weights(NamedTuple):
    """The blocks of an MLP as the fused kernels read them.

    Attributes:
        first: Blocks of the gate, or of the up projection if there is no gate.
        up: Blocks of the up projection if there is a gate.
        down: Blocks of the down projection.
        first_scales: A scale for each fp8 block of `first`; None without fp8.
        up_scales: Likewise for `up`; None if gate and up share a mask, because then they share the scales.
        down_scales: Likewise for `down`.
    """

    first: Tensor
    up: Tensor | None
    down: Tensor
    first_scales: Tensor | None = None
    up_scales: Tensor | None = None
    down_scales: Tensor | None = None


class Roles(NamedTuple):
    """Names of the matrices of an MLP among its children; `gate` is None for an MLP without a gate."""

    up: str
    down: str
    gate: str | None = None


class SparseMlp(HookedOutsideGraph):
    """Replaces an MLP whose matrices are `BlockLinear`. It has the same children under the same names.

    It is an instance of the class of that MLP too, has its attributes, and takes its arguments.

    Without gradients the whole MLP is one call of `torch.ops.blast.block_sparse_mlp`. In eager code on a GPU, the
    launches of such a call are repeated (see `mlp_replays`). With gradients or under autocast it is one call of
    `block_sparse_mlp_training`. The original MLP runs layer by layer with active dropout, after a child was changed
    (replaced, hooked), if the block sides of the up and down projections do not match, and on a CPU under autocast
    without gradients. The kernels read the parameters of the layers, so that a change of a parameter takes effect at
    once, however it was made. With fp8 weights (`quantize`) the layers have no parameters for their blocks: the fp8
    blocks are the only ones, and the MLP cannot be trained.

    Args:
        original: The MLP; its children are shared, not copied.
        roles: Which children are its matrices.
        activation: `silu`, `gelu`, `gelu_tanh` or `none`.
        skip_dead: Whether to skip hidden blocks that are always zero, or that no block reads. The result is the
            same for finite inputs.
        dense_fallback: Whether to run dense where `blast_kernels.tables.break_even` says that dense is faster for this
            number of tokens. Each such call computes the dense weights again.
    """

    original: nn.Module

    def __new__(cls, original: nn.Module, *_: Any, **__: Any) -> SparseMlp:
        kinds: tuple[Any, Any] = (cls, type(original))
        return cast(SparseMlp, object.__new__(stand_in_class(*kinds)))

    def __init__(
        self,
        original: nn.Module,
        roles: Roles,
        activation: str,
        skip_dead: bool = True,
        dense_fallback: bool = False,
    ) -> None:
        # Not that of `super()`: the class of the original follows there.
        nn.Module.__init__(self)
        self.roles, self.activation_name, self.skip_dead = roles, activation, skip_dead
        self.dense_fallback, self.weights, self._error = dense_fallback, "same", 0.0
        # nn.Module.__setattr__ would register it as a child. It is none, but both have the same children.
        object.__setattr__(self, "original", original)
        self._modules = original._modules
        self.training, self._version = original.training, original._version
        for hooks in HOOKS:
            setattr(self, hooks, getattr(original, hooks))
        self._children = tuple(original._modules.values())
        self._dropouts = [child for child in self._children if isinstance(child, nn.Dropout)]
        self._hooks_of_children = [getattr(child, hooks) for child in original.children() for hooks in HOOKS[:-1]]
        self._matrices = tuple(self.layers)
        self._argument = next(iter(inspect.signature(original.forward).parameters), "")
        self.lists, self._replays = MlpLists(), MlpReplays()
        self._row_lists: RowLists | None = None
        self._ranges: Ranges = ()
        self._indices: list[IndexState] = []
        # Compiled code cannot compare versions.
        self.register_load_state_dict_post_hook(_prepare_again)
        self.prepare()

    @property
    def gate_kind(self) -> str:
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
        """The index and fp8 tensors that it holds besides the parameters and buffers of its layers."""
        fp8 = [part for layer in self.layers if isinstance(layer, Fp8BlockLinear) for part in layer.fp8[:2]]
        own = (*(self._row_lists or ()), *fp8, *self.lists.tensors)
        return [tensor for tensor in own if isinstance(tensor, Tensor)]

    @property
    def row_lists(self) -> RowLists | None:
        """The index for the kernels, made again if a mask changed; None on the meta device."""
        if self._row_lists is None or self._index_changed():
            self.prepare()
        return self._row_lists

    @property
    def kernel_weights(self) -> Weights:
        """The blocks that the kernels read: those of the layers, in fp8 if they are stored so."""
        if not self._in_fp8():
            return self._layer_weights()
        layers = cast("list[Fp8BlockLinear]", self.layers)
        if any(layer.loaded is not None for layer in layers):
            self.prepare()
        *gate, up, down = [layer.fp8 for layer in layers]
        if not gate:
            return Weights(up.blocks, None, down.blocks, up.scales, None, down.scales)
        up_scales = None if self.gate_kind == "tied" else up.scales
        return Weights(gate[0].blocks, up.blocks, down.blocks, gate[0].scales, up_scales, down.scales)

    def prepare(self) -> None:
        """Makes the index for the kernels, and quantizes weights that are to be in fp8 and were loaded or cast."""
        before, self._row_lists, layers = self._row_lists, None, self.layers
        self._replays.clear()
        if any(layer.row_offsets.is_meta or layer.values.is_meta for layer in layers):
            return
        with torch.no_grad():
            made = row_lists_of(layers, self.gate_kind, self.skip_dead)
            # A CUDA graph reads the memory that it was captured with, so equal lists stay where they are.
            self._row_lists = before if before is not None and equal(before, made) else made
            if self.weights == "fp8" and layers[0].values.dtype in HALVES:
                self._quantize(measure=any(getattr(layer, "loaded", None) is not None for layer in layers))
            if self.dense_fallback:
                self._ranges = self._dense_ranges()
        self._indices = [IndexState.of(layer) for layer in layers]

    def quantize(self) -> None:
        """Stores the blocks in fp8 and nowhere else: half the bytes to read, and to store.

        The layers lose their parameter `values`. Each access to it computes the blocks again. `unfuse` gives them
        parameters again; the blocks stay rounded. An MLP that is cast to float32 or float64 computes in that dtype.
        """
        self.weights = "fp8"
        if self._row_lists is not None and self.layers[0].values.dtype in HALVES:
            self._quantize(measure=True)

    def dequantize(self) -> None:
        """Undoes `quantize`, except for the rounding."""
        self.weights = "same"
        from_fp8(self.layers)

    def _quantize(self, measure: bool) -> None:
        full = self._layer_weights() if measure else None
        to_fp8(self.layers, self.gate_kind == "tied")
        if full is not None:
            self._error = self._distance_from(full)

    def _in_fp8(self) -> bool:
        return isinstance(self._layer(self.roles.down), Fp8BlockLinear)

    def quantization_error(self) -> float:
        """The relative error of the output that rounding the weights to fp8 made: `‖out − full‖ / ‖full‖`.

        It was measured with 64 normally distributed tokens when the weights were quantized.

        Returns:
            The error; 0 if the weights were not quantized.

        Raises:
            BlastError: if the weights are on the meta device.
        """
        if self._row_lists is None:
            raise BlastError("weights on the meta device have no values to compare; load the model first.")
        return self._error

    def _distance_from(self, full: Weights) -> float:
        generator, row_lists = torch.Generator().manual_seed(0), self._row_lists
        x = torch.randn(ERROR_TOKENS, self.layers[0].in_features, generator=generator).to(full.down)
        if row_lists is None:
            return 0.0
        with torch.no_grad():
            expected = self._run(x, row_lists, full).float()
            off = (self._run(x, row_lists, self.kernel_weights).float() - expected).norm() / expected.norm()
        return off.item()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, as the MLP it replaces; with further arguments layer by layer."""
        x = self._only_input(inputs, named)
        if x is None:
            return self.original.forward(*inputs, **named)
        if self._runs_layers():
            return self.original.forward(x)
        if not self._can_fuse(x):
            if self.training and self._in_fp8() and torch.is_grad_enabled():
                raise BlastError("fp8 weights cannot be trained; call blast.unfuse(model), or model.eval() to infer.")
            if x.device.type == "cpu" and not torch.is_grad_enabled():
                # Under autocast. A CPU has fast kernels for each layer, but none for training.
                return self.original.forward(x)
            return self._train(x)
        compiling = torch.compiler.is_compiling()
        if compiling and not self._masks_are_fixed():
            return self._infer_outside_graph(x)
        row_lists = self._row_lists if compiling else self.row_lists
        if row_lists is None:
            raise BlastError("the weights are on the meta device; load the model first.")
        if self._ranges and dense_wins(x.numel() // x.shape[-1], self._ranges):
            return self._run_dense(x)
        if not compiling and may_replay(x):
            return self._replay(x, row_lists)
        return self._run(x, row_lists, self.kernel_weights)

    def _masks_are_fixed(self) -> bool:
        return self._layer(self.roles.down).masks_fixed

    def _replay(self, x: Tensor, row_lists: RowLists) -> Tensor:
        """Repeats the launches of the last call of this shape, or makes a call that can be repeated."""
        found = self._replays.find(x, self.activation_name, self._matrices)
        if found is None:
            found, replay = run_mlp(*self._operands(x, row_lists, self.kernel_weights), record=True)
            self._replays.add(x, self.activation_name, self._matrices, replay, found)
        return found

    def _only_input(self, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor | None:
        """The input, if the MLP is called with nothing else."""
        if len(inputs) == 1 and not named:
            return inputs[0]
        return named[self._argument] if not inputs and list(named) == [self._argument] else None

    def _train(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self._masks_are_fixed():
            if torch.is_autocast_enabled(x.device.type):
                # Cast inside the graph, so that it is fused with the operation that computes `x`.
                x = x.to(torch.get_autocast_dtype(x.device.type))
            return self._train_outside_graph(x)
        layers = self.layers
        # An exported graph cannot hold index lists that are computed while it is traced.
        if not can_train(layers) or (torch.compiler.is_exporting() and not self.lists.tensors):
            return self.original.forward(x)
        return self._run_training(x, layers)

    def _run_training(self, x: Tensor, layers: list[BlockLinear]) -> Tensor:
        return run_training(x, layers, self.lists, self.activation_name)

    @torch.compiler.disable
    def _train_outside_graph(self, x: Tensor) -> Tensor:
        return self._train(x)

    @torch.compiler.disable
    def _infer_outside_graph(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def _run(self, x: Tensor, row_lists: RowLists, weights: Weights) -> Tensor:
        up, down = self._layer(self.roles.up), self._layer(self.roles.down)
        if x.device.type == "cpu" and _fits(x, up.bias) and _fits(x, down.bias):
            blocks = (weights.first, weights.down) if weights.up is None else weights[:3]
            if cpu.serves_at_once(x, up.in_features, *blocks):
                first = cpu.Operands(
                    weights.first, weights.up, row_lists.gate_up, up.bias, up.out_features, self.activation_name,
                    self.gate_kind,
                )  # fmt: skip
                second = cpu.Operands(
                    weights.down, None, row_lists.down, down.bias, down.out_features, blocks=row_lists.down_blocks
                )
                flat = x.reshape(-1, up.in_features).contiguous()
                return cpu.products(flat, first, second).view(*x.shape[:-1], down.out_features)
        return torch.ops.blast.block_sparse_mlp(*self._operands(x, row_lists, weights))

    def _operands(self, x: Tensor, row_lists: RowLists, weights: Weights) -> tuple[Any, ...]:
        """The arguments of `block_sparse_mlp`."""
        up, down = self._layer(self.roles.up), self._layer(self.roles.down)
        return (
            x, weights.first, weights.up, row_lists.gate_up, up.bias, weights.down, row_lists.down, down.bias,
            up.out_features, down.out_features, self.activation_name, self.gate_kind,
            weights.first_scales, weights.up_scales, weights.down_scales, row_lists.down_blocks,
        )  # fmt: skip

    def _layer_weights(self) -> Weights:
        # Kernels read contiguous blocks; those of a layer are, unless somebody put others there.
        *gate, up, down = [layer.values.contiguous() for layer in self.layers]
        return Weights(gate[0], up, down) if gate else Weights(up, None, down)

    def train(self, mode: bool = True) -> SparseMlp:
        self.original.training = mode
        return super().train(mode)

    def extra_repr(self) -> str:
        how = f"skip_dead={self.skip_dead}, weights={self.weights}"
        return f"gate={self.gate_kind}, activation={self.activation_name}, {how}"

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseMlp:
        # fp8 blocks must not be cast: the layers are moved and cast with ordinary blocks.
        from_fp8(self.layers)
        super()._apply(function, recurse)
        self.prepare()
        return self

    def _layer(self, name: str) -> BlockLinear:
        layer: Any = self._modules[name]
        return layer

    def _runs_layers(self) -> bool:
        """Whether the MLP has to run layer by layer: with active dropout, or because a child was changed.

        A child was changed if it was replaced (an adapter, another activation), or got a hook or another forward. The
        children are asked in each call, because all this can happen after the MLP was fused. Hooks for all modules
        (`register_module_forward_hook`) count too.
        """
        if len(self._modules) != len(self._children):
            return True
        for child, fused in zip(self._modules.values(), self._children, strict=True):
            if child is not fused or (child is not None and "forward" in child.__dict__):
                return True
        for dropout in self._dropouts:
            if dropout.training and dropout.p > 0:
                return True
        return any(self._hooks_of_children) or _any_hook_for_all_modules()

    def _can_fuse(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled(x.device.type):
            return False
        if not torch.is_grad_enabled():
            return True
        parameters = [layer._parameters.get(name) for layer in self.layers for name in ("values", "bias")]
        tensors = [x, *(parameter for parameter in parameters if parameter is not None)]
        return not any(tensor.requires_grad for tensor in tensors)

    def _run_dense(self, x: Tensor) -> Tensor:
        *gate, up, down = [layer.matrix().to_dense() for layer in self.layers]
        act = ACTIVATIONS[self.activation_name]
        biases = [layer.bias for layer in self.layers]
        hidden = F.linear(x, up, biases[-2])
        hidden = act(F.linear(x, gate[0], biases[0])) * hidden if gate else act(hidden)
        return F.linear(hidden, down, biases[-1])

    def _dense_ranges(self) -> Ranges:
        up, values = self._layer(self.roles.up), self.layers[0].values
        total = sum(layer.in_features * layer.out_features for layer in self.layers)
        sparsity = 1 - sum(layer.values.numel() for layer in self.layers) / total
        shape, gpu = (up.out_features, up.in_features), gpu_name(values.device)
        return dense_ranges(sparsity, up.block, self.gate_kind, shape, values.dtype, gpu)

    def _index_changed(self) -> bool:
        """Whether a mask changed since `prepare`, in place or by other tensors. Asked in each call."""
        for layer, known in zip(self._matrices, self._indices, strict=True):
            buffers = layer._modules["index"]._buffers  # type: ignore[union-attr]
            if buffers["row_offsets"] is not known.offsets or buffers["col_indices"] is not known.columns:
                return True
            if known.versions and (known.offsets._version, known.columns._version) != known.versions:
                return True
        return False


def _fits(x: Tensor, bias: Tensor | None) -> bool:
    return bias is None or (bias.dtype == x.dtype and bias.is_contiguous())


def _any_hook_for_all_modules() -> bool:
    """Whether there is a hook that is called for every module."""
    hooks = nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def _prepare_again(module: nn.Module, keys: Any) -> None:
    if isinstance(module, SparseMlp):
        module.prepare()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "none": lambda x: x,
}
