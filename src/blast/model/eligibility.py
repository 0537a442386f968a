"""Why a layer cannot be made block-sparse: the one answer for pruning, conversion, saving and loading.

A `BlockLinear` computes `x · Wᵀ + bias` with a weight and a bias of its own, and stores nothing else. So a layer
qualifies if that is all it computes and all it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.sharding import is_sharded
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear

# Other forward functions that compute `x · Wᵀ + bias`, by module and class.
SAME_FORWARD = {("transformers.models.falcon.modeling_falcon", "FalconLinear")}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STATE_METHODS = ("_save_to_state_dict", "_load_from_state_dict", "get_extra_state", "set_extra_state")
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Obstacle(NamedTuple):
    """Why a layer cannot be made block-sparse.

    Attributes:
        cause: A clause about the layer: `its weight is quantised (torch.uint8)`.
        remedy: What to do first; empty if there is only one way, to leave the layer out.
    """

    cause: str
    remedy: str = ""


def is_linear_like(module: nn.Module) -> bool:
    """Whether a module is, or stands for, a linear layer: by its class, or by its features and its weight.

    Quantised layers, adapters (LoRA) and block-sparse layers count. `obstacle` says which of them can be pruned.
    """
    if isinstance(module, nn.Linear | BlockLinear) or is_conv1d(module):
        return True
    sides = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    holds = any(module._parameters) or any(module._buffers) or "base_layer" in module._modules
    return all(type(side) is int for side in sides) and holds


def shape_of(module: nn.Module) -> tuple[int, int]:
    """`(out, in)` of a linear layer, in features; also if its weight is packed or missing."""
    if is_conv1d(module):
        into, out = module.weight.shape  # type: ignore[misc]
        return out, into
    return module.out_features, module.in_features  # type: ignore[return-value]


def obstacle(module: nn.Module, parent: nn.Module | None = None, on_meta: bool = False) -> Obstacle | None:
    """Why a layer cannot be made block-sparse; None if it can.

    Args:
        module: Any module.
        parent: The module that holds it, if known.
        on_meta: Whether a weight on the meta device is allowed.
    """
    if isinstance(module, BlockLinear):
        return Obstacle("it is already block-sparse", "call blast.to_dense(model) first")
    if not isinstance(module, nn.Linear) and not is_conv1d(module):
        adapted = "base_layer" in module._modules
        return Obstacle("it is an adapter" if adapted else "it is neither a torch.nn.Linear nor a Conv1D")
    if isinstance(parent, nn.MultiheadAttention) or isinstance(
        module, nn.modules.linear.NonDynamicallyQuantizableLinear
    ):
        return Obstacle("torch.nn.MultiheadAttention reads its weight without calling the layer")
    return _of_weight(module, on_meta) or _of_forward(module) or _of_state(module)


def refuse_ineligible(
    modules: Mapping[str, nn.Module], layers: Iterable[str], otherwise: str, on_meta: bool = False
) -> None:
    """Raises if one of the layers cannot be made block-sparse.

    Args:
        modules: The modules of the model by name.
        layers: Names of linear layers among them.
        otherwise: What to do if there is no remedy: `leave it out of the targets`.
        on_meta: Whether weights on the meta device are allowed.

    Raises:
        BlastError: with the name of the first such layer, the cause, and what to do.
    """
    for name in layers:
        module = modules[name]
        found = obstacle(module, modules.get(name.rpartition(".")[0]), on_meta)
        if found is not None:
            remedy = f"{found.remedy}, or {otherwise}" if found.remedy else otherwise
            raise BlastError(
                f"'{name}' ({type(module).__name__}) cannot be made block-sparse because {found.cause}; {remedy}."
            )


def _of_weight(module: nn.Module, on_meta: bool) -> Obstacle | None:
    """An obstacle in the weight or the bias."""
    if is_parametrized(module):
        names = "' and '".join(module.parametrizations.keys())  # type: ignore[union-attr, operator]
        call = "torch.nn.utils.parametrize.remove_parametrizations"
        return Obstacle(f"a parametrization computes its '{names}'", f"call {call} first")
    weight = module._parameters.get("weight")
    if weight is None:
        parts = ", ".join(f"'{name}'" for name, part in module._parameters.items() if part is not None)
        whole = f"its weight is computed from {parts}" if parts else "its weight is no parameter of the layer"
        return Obstacle(whole, "make the weight a plain parameter (torch.nn.utils.prune.remove, remove_weight_norm)")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return Obstacle("its weight has no shape yet", "run the model once")
    if weight.dtype not in DTYPES:
        return Obstacle(f"its weight is quantised or not real ({_short(weight.dtype)})", "convert it to a float dtype")
    if is_sharded(weight):
        return None
    if type(weight) is not nn.Parameter:
        return Obstacle(f"its weight is a tensor of the class {type(weight).__name__}", "make it a torch.nn.Parameter")
    if shape_of(module) != (tuple(weight.shape[::-1]) if is_conv1d(module) else tuple(weight.shape)):
        return Obstacle(f"its weight is {list(weight.shape)} and not [out_features, in_features]", "gather it")
    if weight.is_meta and not on_meta:
        return Obstacle("its weight is on the meta device (not loaded, or offloaded)", "load the model on one device")
    bias = module._parameters.get("bias")
    if bias is None and module.bias is not None:
        return Obstacle("its bias is no parameter of the layer", "make the bias a plain parameter")
    return None


def _of_forward(module: nn.Module) -> Obstacle | None:
    """An obstacle in what the layer computes."""
    if "forward" in module.__dict__:
        return Obstacle("its forward was replaced (by an adapter, or to offload it)", "undo that")
    kind = next(kind for kind in type(module).__mro__ if "forward" in kind.__dict__)
    known = kind is nn.Linear or kind.__name__ == "Conv1D" or (kind.__module__, kind.__name__) in SAME_FORWARD
    return None if known else Obstacle(f"its class {kind.__name__} has a forward of its own")


def _of_state(module: nn.Module) -> Obstacle | None:
    """An obstacle in what the layer holds or saves besides weight and bias."""
    further: dict[str, Mapping[str, Tensor | nn.Module | None]] = {
        "parameter": {name: part for name, part in module._parameters.items() if name not in ("weight", "bias")},
        "buffer": module._buffers,
        "module": module._modules,
    }
    for kind, parts in further.items():
        held = [name for name, part in parts.items() if part is not None]
        if held:
            return Obstacle(f"it also holds a {kind} '{held[0]}', which would be lost", "remove that")
    if any(getattr(type(module), method) is not getattr(nn.Module, method) for method in STATE_METHODS):
        return Obstacle("its class has its own way to save the state of the layer")
    weight = module._parameters["weight"]
    sharded = weight is not None and is_sharded(weight)  # `fully_shard` has hooks of its own
    if any(getattr(module, hooks) for hooks in STATE_HOOKS) and not sharded:
        return Obstacle("a hook changes its state dict", "remove that hook")
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
