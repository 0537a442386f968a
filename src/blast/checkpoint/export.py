"""Writes a sparse model as a dense one, in files that other tools open without `blast`."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from blast.block_sparse.sharding import refuse_sharded
from blast.checkpoint.builders import describe
from blast.checkpoint.checkpoint import load
from blast.checkpoint.folder import folder_path
from blast.checkpoint.manifest import read_manifest
from blast.checkpoint.processing import changed_file, check_vocabulary, write_processing
from blast.checkpoint.tensors import unique_tensors
from blast.errors import BlastError, check_argument
from blast.model.convert import to_dense
from blast.model.module_replacement import unwrapped

DENSE_WEIGHTS = "model.safetensors"
DESCRIPTION = "vision_transformer.json"


def export_dense(model: nn.Module | str | Path, folder: str | Path, processing_class: Any = None) -> None:
    """Writes a model with dense weights, for tools that know nothing of `blast`.

    A model of transformers becomes a folder that `from_pretrained` opens: config, generation config, weights, and the
    tokenizer or image processor. A VisionTransformer of torchvision becomes its state dict in `model.safetensors` and
    the arguments of its constructor in `vision_transformer.json`. Dead blocks are zeros.

    Args:
        model: A sparse or dense model, or the folder of a checkpoint. A model is not changed; its dense copy needs
            memory on its device. A checkpoint is exported on the CPU.
        folder: A new or empty folder.
        processing_class: The tokenizer, image processor or processor, or a folder with its files; by default that of
            the checkpoint.

    Raises:
        BlastError: if the folder is not empty or cannot be written, if blast cannot describe the class of the model, or
            if the tokenizer was altered after it was saved.

    Example:
        >>> sparse = blast.to_sparse(model, masks)
        >>> blast.export_dense(sparse, "my-dense-model")
        >>> type(model).from_pretrained("my-dense-model").lm_head
        Linear(in_features=64, out_features=96, bias=False)
    """
    target = folder_path(folder)
    check_argument("the model", model, (nn.Module, str, os.PathLike), "a torch.nn.Module or the folder of a checkpoint")
    source = None if isinstance(model, nn.Module) else folder_path(model)
    if isinstance(model, nn.Module):
        whole = unwrapped(model)
        refuse_sharded(whole)
        dense = copy.deepcopy(whole)
    else:
        dense = load(model)
    described = describe(dense)
    if described["base"] is None:
        raise BlastError(
            f"a {described['class']} ({described['library']}) has no format that other tools open; "
            "make it dense with blast.to_dense(model), and save it as you save the dense model."
        )
    check_vocabulary(dense, processing_class)
    with _new_folder(target) as fresh:
        if processing_class is not None:
            write_processing(processing_class, fresh)
        elif source is not None:
            _copy_processing(source, fresh)
        to_dense(dense)
        if described["library"] == "transformers":
            dense.save_pretrained(fresh)  # type: ignore[operator]
        else:
            _write_state(dense, described["base"], fresh)


def _write_state(model: nn.Module, arguments: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    tensors, _ = unique_tensors(model)
    save_file(tensors, folder / DENSE_WEIGHTS, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")


def _copy_processing(source: Path, folder: Path) -> None:
    manifest = read_manifest(source)
    changed = changed_file(source, manifest)
    if changed is not None:
        raise BlastError(
            f"{source / changed} is missing or was altered after the model was saved with it; "
            "pass processing_class=..., the tokenizer or processor that the model needs."
        )
    for name in manifest.get("files", {}):
        shutil.copyfile(source / name, folder / name)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`; it takes its place if the context ends without an error."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BlastError(f"{folder} is not an empty folder; empty it, or choose another one.")
    fresh = folder.with_name(f".{folder.name}.export")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            folder.rmdir()
        fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise BlastError(
            f"{folder} cannot be written ({reason}); free some space or change the permissions, then export again."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
