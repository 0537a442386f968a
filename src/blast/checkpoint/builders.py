"""Describes models in a checkpoint and builds them again: those of transformers, and torchvision's ViT.

A checkpoint can create no other class.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from blast.errors import BlastError

# Attention implementations that need no extra package.
PORTABLE_ATTENTION = ("eager", "sdpa")


def describe(model: nn.Module) -> dict[str, Any]:
    """Describes the class and the constructor arguments of a model.

    Returns:
        `library`, `class` and `base` (constructor arguments, JSON); `base` is None for an unknown class.
    """
    kind = type(model)
    described: dict[str, Any] = {"library": kind.__module__.partition(".")[0], "class": kind.__name__, "base": None}
    # Importing transformers takes seconds, and no class of it exists before that.
    if described["library"] == "transformers" and _transformers_class(kind.__name__) is kind:
        described["base"] = _describe_transformers(model)
    elif kind.__name__ == "VisionTransformer" and kind.__module__.startswith("torchvision."):
        described["base"] = _describe_vision_transformer(model)
    return described


def skeleton(described: dict[str, Any]) -> nn.Module:
    """Builds a described model with its parameters on the meta device. Buffers have memory.

    Raises:
        BlastError: if the class is unknown, or the installed library cannot build it from this description.
    """
    library, name, base = described["library"], described["class"], described["base"]
    if base is None:
        raise BlastError(
            f"the checkpoint holds a {name} ({library}), a class that blast cannot build; "
            "build the dense model yourself and pass it: blast.load(folder, model=...)."
        )
    try:
        # The constructor draws random numbers. The random state of the caller must not change.
        with torch.random.fork_rng(devices=[]), parameters_on_meta():
            if library == "transformers":
                return _build_transformers(name, base)
            if (library, name) == ("torchvision", "VisionTransformer"):
                return _build_vision_transformer(base)
    except BlastError:
        raise
    except Exception as fault:
        reason = " ".join(str(fault).split())[:200]
        raise BlastError(
            f"the installed {library} cannot build {name} from the checkpoint's description ({reason}); "
            "build the dense model yourself and pass it: blast.load(folder, model=...)."
        ) from fault
    raise BlastError(
        f"the checkpoint names the class {name} of {library}, which is not one blast builds "
        "(models of transformers, torchvision's VisionTransformer); pass the dense model as model=..."
    )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Context in which this thread creates parameters on the meta device; buffers are created as usual."""
    owner = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != owner:
            return None  # registers the parameter itself, which keeps tied weights tied
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = nn.modules.module.register_module_parameter_registration_hook(cast(Any, to_meta))
    try:
        yield
    finally:
        hook.remove()


def _transformers_class(name: str) -> Any:
    """The model class of transformers with this name; None if there is none."""
    try:
        import transformers
    except ImportError:
        return None
    kind = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if known and kind.__module__.startswith("transformers.") else None


def with_special_floats(config: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers reads it: in JSON, infinity is `{"__float__": "Infinity"}` (limits of Mamba layers)."""

    def decode(entry: dict[str, Any]) -> Any:
        return float(entry["__float__"]) if entry.keys() == {"__float__"} else entry

    return json.loads(json.dumps(config), object_hook=decode)


def _describe_transformers(model: Any) -> dict[str, Any]:
    base = {"config": json.loads(model.config.to_json_string(use_diff=False))}
    base["attention"] = getattr(model.config, "_attn_implementation", None)
    if getattr(model, "generation_config", None) is not None:
        base["generation_config"] = json.loads(model.generation_config.to_json_string(use_diff=True))
    return base


def _build_transformers(name: str, base: dict[str, Any]) -> nn.Module:
    import transformers

    kind = _transformers_class(name)
    if kind is None:
        raise BlastError(
            f"the installed transformers {transformers.__version__} has no model class {name}; "
            "install the version the checkpoint was made with, or pass the dense model as model=..."
        )
    portable = base.get("attention") in PORTABLE_ATTENTION
    options = {"attn_implementation": base["attention"]} if portable else {}
    model = kind._from_config(kind.config_class.from_dict(with_special_floats(base["config"])), **options)
    if "generation_config" in base:
        model.generation_config = transformers.GenerationConfig.from_dict(base["generation_config"])
    return model


def _describe_vision_transformer(model: Any) -> dict[str, Any] | None:
    plain = isinstance(model.conv_proj, nn.Conv2d) and isinstance(model.encoder.ln, nn.LayerNorm)
    if not plain or not isinstance(getattr(model.heads, "head", None), nn.Linear):
        return None
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_layers": len(model.encoder.layers),
        "num_heads": model.encoder.layers[0].num_heads,
        "hidden_dim": model.hidden_dim,
        "mlp_dim": model.mlp_dim,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "num_classes": model.heads.head.out_features,
        "representation_size": model.representation_size,
        "norm_eps": model.encoder.ln.eps,
        "in_channels": model.conv_proj.in_channels,
    }


def _build_vision_transformer(base: dict[str, Any]) -> nn.Module:
    from torchvision.models import VisionTransformer

    arguments = dict(base)
    channels, eps = arguments.pop("in_channels"), arguments.pop("norm_eps")
    model = VisionTransformer(**arguments, norm_layer=partial(nn.LayerNorm, eps=eps))
    if channels != model.conv_proj.in_channels:
        # The class of torchvision always has 3 input channels.
        side = model.patch_size
        model.conv_proj = nn.Conv2d(channels, model.hidden_dim, kernel_size=side, stride=side)
    return model
