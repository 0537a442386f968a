"""The files of a checkpoint: writes and checks `blast.json`, and replaces a folder atomically."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.files import file_digest, text_digest

FORMAT = 1
WEIGHTS = "model.safetensors"
MANIFEST = "blast.json"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of `blast.save`."""
    return (folder / MANIFEST).is_file()


def write_manifest(folder: Path, content: dict[str, Any]) -> str:
    """Writes `blast.json` beside the finished `model.safetensors`.

    Returns:
        Digest of the whole checkpoint, `"sha256:…"`.
    """
    weights = folder / WEIGHTS
    manifest = {
        "format": FORMAT,
        **content,
        "weights": {"file": WEIGHTS, "bytes": weights.stat().st_size, "digest": file_digest(weights)},
    }
    manifest["digest"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest["digest"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads `blast.json` and checks the digests of it and of the weights.

    Raises:
        BlastError: if a file is missing, incomplete, altered, or of another format version.
    """
    path, weights = folder / MANIFEST, folder / WEIGHTS
    if not path.is_file():
        hint = "it was not written by blast.save" if folder.is_dir() else "there is no such folder"
        raise BlastError(f"{folder} is not a blast checkpoint: {MANIFEST} is missing ({hint}); check the path.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise BlastError(f"{path} is unfinished or not JSON written by blast.save; {_REMEDY}.") from None
    if found != FORMAT:
        raise BlastError(
            f"{path} has format version {found}, and this blast reads version {FORMAT}; "
            "load it with the version of blast that wrote it, or save the model again."
        )
    if manifest.get("digest") != _digest(manifest):
        raise BlastError(f"{path} was altered after it was written (its digest does not match); {_REMEDY}.")
    expected = manifest["weights"]
    if not weights.is_file():
        raise BlastError(f"{weights} is missing; {_REMEDY}.")
    size = weights.stat().st_size
    if size != expected["bytes"]:
        raise BlastError(f"{weights} has {size} bytes instead of {expected['bytes']}, so it is incomplete; {_REMEDY}.")
    if file_digest(weights) != expected["digest"]:
        raise BlastError(f"{weights} was altered after it was written (its digest does not match); {_REMEDY}.")
    return manifest


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write to. It replaces `folder` when the context ends without an error.

    Other files of a replaced checkpoint are copied. If the process is killed, `folder` is the old or the new one, or
    missing for an instant. It is never half-written, but a hidden folder can stay beside it.

    Raises:
        BlastError: if `folder` exists and is neither empty nor a checkpoint.
    """
    if folder.exists() and not (folder.is_dir() and (is_checkpoint(folder) or not any(folder.iterdir()))):
        raise BlastError(f"{folder} contains other files than a blast checkpoint; empty it, or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
    fresh, old = aside.with_suffix(".new"), aside.with_suffix(".old")
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            for other in folder.iterdir():
                if other.name not in (WEIGHTS, MANIFEST):
                    copy = shutil.copytree if other.is_dir() else shutil.copy2
                    copy(other, fresh / other.name)
        for path in (*(file for file in fresh.iterdir() if file.is_file()), fresh):
            _to_disk(path)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


_REMEDY = "restore it from a copy, or save the model again with blast.save"


def _digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    # Not `json_digest`: checkpoints that exist were digested with spaces after separators.
    return text_digest(json.dumps(content, sort_keys=True))


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot do it for folders
        pass
    finally:
        os.close(handle)
