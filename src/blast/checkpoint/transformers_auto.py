"""Lets `AutoConfig`, `AutoModelForCausalLM` and their like of transformers open a checkpoint of `blast.save`.

`AutoConfig` gives the config of the model itself, as a subclass that the Auto classes map to `SparseOpener`. Both are
transformers' own ways of registering a model; nothing of transformers is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from blast.checkpoint.builders import skeleton, with_special_floats
from blast.checkpoint.folder import folder_path
from blast.checkpoint.manifest import MANIFEST, is_checkpoint, read_manifest
from blast.checkpoint.processing import warn_of_changes
from blast.checkpoint.reading import StoredTensors, fill, usable_device
from blast.checkpoint.tensors import walk
from blast.checkpoint.transformers_config import MODEL_TYPE, WRAPPED
from blast.errors import BlastError
from blast.model.convert import refuse_save_pretrained

# Arguments of `from_pretrained` without a meaning for a folder on this machine, or that transformers passes itself.
WITHOUT_EFFECT = {
    "_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "cache_dir", "code_revision", "force_download",
    "local_files_only", "low_cpu_mem_usage", "offload_buffers", "offload_folder", "offload_state_dict", "proxies",
    "revision", "token", "tqdm_class", "trust_remote_code", "use_safetensors", "weights_only",
}  # fmt: skip
FIRST_ACCELERATOR = ("auto", "balanced", "balanced_low_0", "sequential")


def register() -> None:
    """Makes transformers know the model type of `blast.save`."""
    AutoConfig.register(MODEL_TYPE, SparseConfig, exist_ok=True)


class SparseConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config of a checkpoint; reading it gives the config of the model."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of the model.

        Raises:
            BlastError: if it is not one that `blast.save` wrote, or of a model that this transformers does not know.
        """
        found = config_dict.get(WRAPPED)
        wrapped: dict[str, Any] = found if isinstance(found, dict) else {}
        kind = wrapped.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == MODEL_TYPE:
            raise BlastError(
                f"config.json names no model type that this transformers knows ('{kind}'); install the version of "
                "transformers that the checkpoint was made with, or save the model again."
            )
        values = {key: value for key, value in wrapped.items() if key != "transformers_weights"}
        return _openable(CONFIG_MAPPING[kind]).from_dict(values, **kwargs)


class SparseOpener:
    """What an Auto class calls to open a checkpoint. A subclass belongs to one Auto class and one config."""

    config_class: type[PreTrainedConfig]
    plain_config: Any
    auto_class: Any
    model_classes: tuple[type[nn.Module], ...]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *_: Any,
        config: Any = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        subfolder: str = "",
        attn_implementation: str | None = None,
        generation_config: Any = None,
        output_loading_info: bool = False,
        **others: Any,
    ) -> Any:
        """The stored model, sparse, in eval mode.

        Raises:
            BlastError: if the folder is no checkpoint of `blast.save`, if it holds another class of model, or for an
                argument that has no meaning here.
        """
        folder = folder_path(Path(folder, subfolder))
        if not is_checkpoint(folder):
            raise BlastError(
                f"{folder} has no {MANIFEST}: a model of blast.save is opened from its folder; "
                "download a repository first, with huggingface_hub.snapshot_download."
            )
        for name, value in others.items():
            if name not in WITHOUT_EFFECT and value is not None:
                raise BlastError(f"from_pretrained of a blast checkpoint takes no '{name}'; leave it out.")
        manifest = read_manifest(folder)
        warn_of_changes(folder, manifest)
        described = {key: manifest[key] for key in ("library", "class", "base")}
        if config is not None and described["base"] is not None:
            attention = attn_implementation or config._attn_implementation or described["base"].get("attention")
            values = json.loads(config.to_json_string(use_diff=False))
            described["base"] = described["base"] | {"config": values, "attention": attention}
        model: Any = skeleton(described)
        cls._check_class(model, folder)
        chosen = _dtype(dtype if dtype is not None else torch_dtype)
        tensors = StoredTensors(folder, manifest, _dtype_of(model, chosen))
        fill(model, manifest, tensors, _device(device_map))
        if chosen is not None:
            model.config.dtype = chosen
        if generation_config is not None:
            model.generation_config = generation_config
        model.name_or_path = model.config.name_or_path = str(folder)
        model = model if isinstance(model, cls.model_classes) else model.base_model
        refuse_save_pretrained(model)
        loading_info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return (model.eval(), loading_info) if output_loading_info else model.eval()

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A dense model with fresh weights, as `from_config` of the Auto class makes it."""
        values = with_special_floats(json.loads(config.to_json_string(use_diff=False)))
        plain = cls.plain_config.from_dict(values)
        return cls.auto_class.from_config(plain, **kwargs)

    @classmethod
    def _check_class(cls, model: Any, folder: Path) -> None:
        """The model, or the base model in it, has to be one that the Auto class gives."""
        if isinstance(model, cls.model_classes) or isinstance(model.base_model, cls.model_classes):
            return
        fitting = [auto.__name__ for auto, kinds in _auto_classes(cls.plain_config) if type(model) in kinds]
        hint = f"use {fitting[0]}" if fitting else "use blast.load"
        gives = " or ".join(kind.__name__ for kind in cls.model_classes)
        raise BlastError(
            f"{folder} holds a {type(model).__name__} and no whole {gives}, "
            f"which {cls.auto_class.__name__} gives; {hint}."
        )


@cache
def _openable(kind: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """A subclass of a config, of the same name, that each Auto class opens with a `SparseOpener`."""
    config = type(kind.__name__, (kind,), {"__module__": __name__, "__doc__": kind.__doc__})
    for auto, kinds in _auto_classes(kind):
        attributes = {
            "__module__": __name__,
            "config_class": config,
            "plain_config": kind,
            "auto_class": auto,
            "model_classes": kinds,
        }
        auto.register(config, type("SparseOpener", (SparseOpener,), attributes), exist_ok=True)
    return config


def _auto_classes(kind: type[PreTrainedConfig]) -> list[tuple[Any, tuple[type[nn.Module], ...]]]:
    """The Auto classes that know a config, with the classes of models that they give."""
    from transformers.models.auto import modeling_auto

    found = []
    for name in modeling_auto.__all__:
        auto = getattr(modeling_auto, name)
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is not None and kind in mapping:
            kinds = mapping[kind]
            found.append((auto, tuple(kinds) if isinstance(kinds, list | tuple) else (kinds,)))
    return found


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise BlastError(f"'{dtype}' is no dtype of torch; give for instance dtype=torch.bfloat16.")
        return found
    return None if dtype == "auto" or dtype is None else dtype  # type: ignore[return-value]


def _dtype_of(model: Any, dtype: torch.dtype | None) -> Callable[[str], torch.dtype | None]:
    """The dtype that each stored tensor is cast to, as `from_pretrained` of transformers chooses it."""
    exact = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        exact |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    left = {
        name
        for name, entry in walk(model)
        if entry.attribute in entry.module._buffers and entry.attribute in entry.module._non_persistent_buffers_set
    }

    def dtype_of(name: str) -> torch.dtype | None:
        if dtype is None or name in left:
            return None
        return torch.float32 if exact & set(name.split(".")) else dtype

    return dtype_of


def _device(device_map: Any) -> torch.device | None:
    """The one device of a `device_map`.

    Raises:
        BlastError: if it names several.
    """
    if isinstance(device_map, str) and device_map in FIRST_ACCELERATOR:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) != 1 or "disk" in devices:
        raise BlastError("a block-sparse model is loaded onto one device; give device_map='cpu', 'cuda:0' or 'auto'.")
    (device,) = devices
    return usable_device(device)
