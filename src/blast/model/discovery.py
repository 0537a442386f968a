"""Finds the matrices to make block-sparse, by the structure of a model rather than by its class.

An MLP is a module whose own linear layers widen `d -> f` (once, or twice if gated) and narrow `f -> d` again. This
covers gate/up/down (Llama, Qwen, SmolLM, Gemma), `c_fc`/`c_proj` Conv1D (GPT-2), torchvision's Sequential `MLPBlock`,
`fc1`/`fc2`, and the BERT pair `intermediate.dense`/`output.dense`. Output heads and attention are excluded. Experts in
three-dimensional parameters are MLPs too, which `blast.model.experts` finds.

Layers that cannot be made block-sparse (quantised, with adapters) are found too, so that they are refused by name and
not left out in silence. See `blast.model.eligibility`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from blast.errors import BlastError, check_argument, unknown_name
from blast.model.eligibility import is_linear_like, shape_of
from blast.model.experts import DOWN_NAME, find_experts, sparse_expert_targets, unsupported_experts
from blast.model.target import Mlp, Target

# Names of (gate, up, down): gate and up have the same shape.
GATED_NAMES = (("gate_proj", "up_proj", "down_proj"), ("wi_0", "wi_1", "wo"), ("w1", "w3", "w2"))
# Names of (up, down) that make an MLP even if it does not widen, or if its module has other linear layers.
PLAIN_NAMES = (
    ("c_fc", "c_proj"),
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("lin1", "lin2"),
    ("up_proj", "down_proj"),
    ("wi", "wo"),
    ("dense_h_to_4h", "dense_4h_to_h"),
)
HEADS = {"lm_head", "embed_out", "head", "heads", "classifier", "score", "cls"}
QUERY_KEY_VALUE = ({"q_proj", "k_proj", "v_proj"}, {"query", "key", "value"}, {"q", "k", "v"})
MLP, ATTENTION = "mlp", "attention"


def find_mlps(model: nn.Module) -> list[Mlp]:
    """All MLPs of linear layers of a model, in the order of its modules, each once.

    Experts in three-dimensional parameters are not among them.

    Example:
        >>> [mlp.name for mlp in blast.find_mlps(model)]
        ['transformer.h.0.mlp', 'transformer.h.1.mlp']
    """
    check_argument("the model", model, nn.Module, "a torch.nn.Module")
    modules = dict(model.named_modules())
    # The parts of an attention are no MLPs: Swin V2 computes its position bias with two linear layers.
    attentions = {name: module for name, module in modules.items() if _projects(name, module)}
    skipped = {f"{name}.{child}" for name, module in attentions.items() for child in module._modules}
    found = (_mlp_at(name, module) for name, module in modules.items() if name not in skipped)
    return [mlp for mlp in found if mlp is not None]


def match_matrices(model: nn.Module, targets: Sequence[str] | str = (MLP,)) -> list[Target]:
    """The matrices that the targets select, in the model's order, each once.

    A matrix is the weight of a linear layer, or that of one expert in a three-dimensional parameter.

    Args:
        model: Any model.
        targets: `"mlp"` (with experts), `"attention"`, shell-style patterns of names (`"*.q_proj"`,
            `"*.experts.down_proj.*"`), or `"re:"` + a regex that the whole name has to match.

    Raises:
        BlastError: if a target matches nothing.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    matrices = all_matrices(model)
    chosen: set[str] = set()
    for target in targets:
        names = {matrix.name for matrix in matrices if _matches(target, matrix)}
        if not names:
            raise _no_match(model, target, [matrix.name for matrix in matrices])
        chosen |= names
    return [matrix for matrix in matrices if matrix.name in chosen]


def selects_name(target: str, name: str) -> bool:
    """Whether a target selects a layer by its name alone: `"mlp"` any layer that is not within attention."""
    if target in (MLP, ATTENTION):
        return (target == ATTENTION) == any(_is_attention(part) for part in name.split(".")[:-1])
    return _matches(target, Target(name, nn.Identity(), "other", None))


def split_dense(targets: Sequence[Target], first: int, last: int) -> tuple[list[Target], list[Target]]:
    """Splits targets into those to prune and those in the first and last layers, which stay dense.

    Layers are counted within each stack (encoder and decoder are two). A target outside any layer is pruned.

    Args:
        targets: The targets of a model.
        first: Number of layers at the start of each stack that stay dense.
        last: Number of layers at its end that stay dense.

    Returns:
        The targets to prune, and the dense ones.

    Raises:
        BlastError: if nothing is left to prune.
    """
    stacks: dict[str, set[int]] = {}
    for target in targets:
        if target.layer is not None:
            stacks.setdefault(_stack(target), set()).add(target.layer)
    spared = set()
    for stack, indices in stacks.items():
        order = sorted(indices)
        spared |= {(stack, index) for index in order[:first] + order[max(0, len(order) - last) :]}
    dense = [target for target in targets if (_stack(target), target.layer) in spared]
    pruned = [target for target in targets if (_stack(target), target.layer) not in spared]
    if not pruned:
        layers = max((len(indices) for indices in stacks.values()), default=0)
        raise BlastError(
            f"dense_first {first} and dense_last {last} leave none of the {layers} layers to prune; lower one of them."
        )
    return pruned, dense


def _stack(target: Target) -> str:
    """The path of a layer without its index, which is equal for all layers of a stack."""
    return re.sub(r"\d+$", "", target.layer_path or "")


def _matches(target: str, matrix: Target) -> bool:
    if target == MLP:
        return matrix.mlp is not None
    if target == ATTENTION:
        return matrix.role == "attention"
    if target.startswith("re:"):
        try:
            return re.fullmatch(target[3:], matrix.name) is not None
        except re.error as fault:
            raise BlastError(f"target '{target}' is not a valid regular expression ({fault}); correct it.") from None
    return fnmatchcase(matrix.name, target)


def _no_match(model: nn.Module, target: str, names: list[str]) -> BlastError:
    if names == [""]:
        return BlastError("the model is itself one linear layer; wrap it, for instance in torch.nn.Sequential.")
    for name, reason in unsupported_experts(model).items():
        if target == MLP or fnmatchcase(f"{name}.{DOWN_NAME}.0", target):
            return BlastError(
                f"target '{target}' matches nothing: the experts of '{name}' cannot be pruned because {reason}; "
                "change them, or give patterns of other layers."
            )
    if not names:
        return BlastError(f"target '{target}' matches nothing: the model has no nn.Linear and no Conv1D layer.")
    if target in (MLP, ATTENTION):
        return BlastError(
            f"target '{target}' matches nothing in this model: no such structure was found; "
            f"give patterns of layer names instead, for instance '{names[0]}'."
        )
    return unknown_name("target", target, (MLP, ATTENTION, *names[:20]))


def all_matrices(model: nn.Module) -> list[Target]:
    """Every matrix, with its role, in the order of the modules."""
    in_mlps = {target.name: target for mlp in find_mlps(model) for target in mlp.targets}
    in_mlps |= {target.name: target for target in (*_packed_gated(model), *sparse_expert_targets(model))}
    attention = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if any(names <= _linears_of(module).keys() for names in QUERY_KEY_VALUE)
        for child in _linears_of(module)
    }
    experts = {each.name: each for each in find_experts(model)}
    matrices = []
    for name, module in model.named_modules():
        if name in in_mlps:
            matrices.append(in_mlps[name])
        elif name in experts:
            matrices += experts[name].targets
        elif is_linear_like(module):
            inside = name in attention or any(_is_attention(part) for part in name.split(".")[:-1])
            # nn.MultiheadAttention reads the weight of this layer without calling it.
            called = not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
            matrices.append(Target(name, module, "attention" if inside and called else "other", None))
    return matrices


def _is_attention(component: str) -> bool:
    return "attn" in component.lower() or "attention" in component.lower()


def _projects(name: str, module: nn.Module) -> bool:
    """Whether a module is an attention with its projections: query, key and value, or one matrix for all three."""
    if not (_is_attention(name.rpartition(".")[2]) or _is_attention(type(module).__name__)):
        return False
    linears = _linears_of(module).keys()
    return "qkv" in linears or any(names <= linears for names in QUERY_KEY_VALUE)


def _is_no_mlp(name: str, module: nn.Module) -> bool:
    """Whether its place says that a module is no MLP: an attention, or a part of a router or of a gated norm."""
    parent, leaf = ["", *name.split(".")][-2:]
    if _is_attention(leaf) or _is_attention(type(module).__name__):
        return True
    return "router" in leaf or "router" in parent or parent.endswith("norm")


def _linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers among the children of a module, without output heads."""
    return {name: child for name, child in module.named_children() if name not in HEADS and is_linear_like(child)}


def _mlp_at(name: str, module: nn.Module) -> Mlp | None:
    """The MLP whose matrices this module holds, or None."""
    if _is_no_mlp(name, module):
        return None
    linears = _linears_of(module)
    for gate, up, down in GATED_NAMES:
        if {gate, up, down} <= linears.keys() and _mirrored(linears[up], linears[down]):
            return _gated(name, module, gate, up, down)
    for up, down in PLAIN_NAMES:
        # An adapter has the reverse order: it narrows first.
        in_order = [child for child in linears if child in (up, down)] == [up, down]
        if in_order and _mirrored(linears[up], linears[down]):
            return _plain(name, module, up, down)
    if _is_pair(module, "intermediate", "output"):
        return _plain(name, module, "intermediate.dense", "output.dense")
    return _mlp_by_shape(name, module, linears)


def _mlp_by_shape(name: str, module: nn.Module, linears: dict[str, nn.Module]) -> Mlp | None:
    """The MLP made of exactly these linear layers, by their shapes and order: wide first, then narrow."""
    wide = [child for child, linear in linears.items() if shape_of(linear)[0] > shape_of(linear)[1]]
    narrow = [child for child, linear in linears.items() if shape_of(linear)[0] < shape_of(linear)[1]]
    if len(wide) not in (1, 2) or list(linears) != wide + narrow or len(narrow) != 1:
        return None
    if not all(_mirrored(linears[child], linears[narrow[0]]) for child in wide):
        return None
    if len(wide) == 1:
        return _plain(name, module, wide[0], narrow[0])
    gate, up = sorted(wide, key=lambda child: "gate" not in child)
    return _gated(name, module, gate, up, narrow[0])


def _packed_gated(model: nn.Module) -> list[Target]:
    """Matrices of MLPs that store gate and up as one matrix (`gate_up_proj`, Phi). These MLPs are no `Mlp`."""
    targets = []
    for name, module in model.named_modules():
        if {"gate_up_proj", "down_proj"} <= _linears_of(module).keys():
            targets.append(_part(name, module, "gate_up_proj", "up"))
            targets.append(_part(name, module, "down_proj", "down"))
    return targets


def _is_pair(module: nn.Module, first: str, second: str) -> bool:
    """Whether two children of a module each have a child `dense`, and the two make an MLP."""
    up, down = (getattr(getattr(module, child, None), "dense", None) for child in (first, second))
    if not isinstance(up, nn.Module) or not isinstance(down, nn.Module):
        return False
    return is_linear_like(up) and is_linear_like(down) and _mirrored(up, down)


def _mirrored(up: nn.Module, down: nn.Module) -> bool:
    return shape_of(up) == shape_of(down)[::-1]


def _gated(name: str, module: nn.Module, gate: str, up: str, down: str) -> Mlp:
    parts = [_part(name, module, child, role) for child, role in ((gate, "gate"), (up, "up"), (down, "down"))]
    return Mlp(name, module, up=parts[1], down=parts[2], gate=parts[0])


def _plain(name: str, module: nn.Module, up: str, down: str) -> Mlp:
    return Mlp(name, module, up=_part(name, module, up, "fc1"), down=_part(name, module, down, "fc2"))


def _part(name: str, module: nn.Module, child: str, role: str) -> Target:
    return Target(f"{name}.{child}" if name else child, module.get_submodule(child), role, name)
