"""The tokenizer or image processor of a checkpoint: files beside the weights, with their digests."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from blast.checkpoint.manifest import CONFIG, MANIFEST, WEIGHTS_OF_FORMAT
from blast.errors import BlastError
from blast.files import file_digest

# What a folder of a tokenizer can hold beside it: a model, and its description.
NO_PROCESSING = {CONFIG, MANIFEST, "generation_config.json", "facts.json", *WEIGHTS_OF_FORMAT.values()}
SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def write_processing(processing_class: Any, folder: Path) -> dict[str, str]:
    """Writes a tokenizer, image processor or processor into a folder.

    Args:
        processing_class: An object with `save_pretrained`, or a folder whose files are copied.
        folder: The folder of a checkpoint.

    Returns:
        The digest of each file by its name.

    Raises:
        BlastError: if it is neither, or a file would replace one of the checkpoint.
    """
    before = {path.name for path in folder.iterdir()}
    aside = folder / ".processing"
    aside.mkdir()
    if isinstance(processing_class, str | Path):
        copy_processing(Path(processing_class), aside)
    elif hasattr(processing_class, "save_pretrained"):
        processing_class.save_pretrained(str(aside))
    else:
        raise BlastError(
            f"a {type(processing_class).__name__} cannot be stored as processing_class; give a tokenizer or processor "
            "of transformers (for tokenizers: PreTrainedTokenizerFast(tokenizer_object=...)), or a folder of its files."
        )
    found = sorted(aside.rglob("*"))
    for path in found:
        if path.is_dir() or path.parent != aside or path.name in NO_PROCESSING | before:
            name = path.relative_to(aside).as_posix()
            raise BlastError(f"the processing_class writes '{name}', which has no place in a checkpoint.")
    files = {path.name: file_digest(path) for path in found}
    for path in found:
        path.rename(folder / path.name)
    aside.rmdir()
    return files


def copy_processing(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer or processor, and nothing of a model beside it.

    Raises:
        BlastError: if there are none.
    """
    found = [path for path in sorted(source.glob("*")) if path.is_file() and _is_processing(path.name)]
    if not found:
        raise BlastError(f"{source} holds no files of a tokenizer or processor; check the path.")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def check_vocabulary(model: nn.Module, processing_class: Any) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings: it belongs to another model."""
    try:
        embeddings = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        tokens = len(getattr(processing_class, "tokenizer", processing_class))
    except (AttributeError, TypeError, NotImplementedError):
        return
    if not isinstance(processing_class, str | Path) and tokens > embeddings:
        raise BlastError(
            f"the tokenizer has {tokens} tokens and the model embeds {embeddings}, so it belongs to another model; "
            "give the tokenizer that the model was trained with."
        )


def kept_files(folder: Path, described: Mapping[str, Any]) -> dict[str, str]:
    """The files of the tokenizer or processor in a folder, if its checkpoint is of the same model; else none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        same = all(manifest[key] == described[key] for key in ("library", "class", "base"))
        return {
            name: digest for name, digest in manifest.get("files", {}).items() if same and (folder / name).is_file()
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def changed_file(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Name of the first file of the tokenizer or processor that is missing or not what was saved; None if all are."""
    for name, digest in manifest.get("files", {}).items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return name
    return None


def warn_of_changes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Warns if the tokenizer or processor is not what was saved. The model is, so loading it goes on."""
    name = changed_file(folder, manifest)
    if name is not None:
        warnings.warn(
            f"{folder / name} is missing or was altered after the model was saved with it; "
            "save the model again with the processing_class that it needs.",
            stacklevel=3,
        )


def _is_processing(name: str) -> bool:
    if name in NO_PROCESSING or name.endswith((".safetensors.index.json", ".bin.index.json")):
        return False
    return name.endswith(SUFFIXES) and not name.startswith(".")
