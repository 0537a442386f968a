"""`blast.json`: writes it, reads it, and checks every field of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.files import file_digest, text_digest

# Checkpoints of format 1 are read, not written.
FORMAT = 2
WEIGHTS_OF_FORMAT = {1: "model.safetensors", 2: "blast.safetensors"}
# No tool but blast looks for this name, so none takes a sparse checkpoint for a whole dense model.
WEIGHTS = WEIGHTS_OF_FORMAT[FORMAT]
MANIFEST = "blast.json"
# A model of thousands of matrices has a manifest of some hundred kilobytes.
LARGEST = 1 << 28
CONFIG = "config.json"
REMEDY = "restore it from a copy, or save the model again with blast.save"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of `blast.save`."""
    return (folder / MANIFEST).is_file()


def own_files(folder: Path) -> set[str]:
    """Names of the files that belong to a checkpoint, so that a new one replaces them."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        config = {CONFIG} if manifest["library"] == "transformers" else set()
        return {MANIFEST, WEIGHTS_OF_FORMAT[manifest["format"]], *manifest.get("files", {}), *config}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {MANIFEST, *WEIGHTS_OF_FORMAT.values()}


def weights_file(folder: Path) -> Path:
    """The file of the weights in a checkpoint of any format."""
    files = [folder / name for name in reversed(WEIGHTS_OF_FORMAT.values())]
    return next((file for file in files if file.is_file()), files[0])


def write_manifest(folder: Path, content: Mapping[str, Any]) -> str:
    """Writes `blast.json` beside the finished weights.

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
    """Reads `blast.json` and checks its fields, its digest and the size of the file of the weights.

    `weights_file.WeightsFile` checks the digest of that file.

    Raises:
        BlastError: if a file is missing, incomplete, altered, or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        hint = "it was not written by blast.save" if folder.is_dir() else "there is no such folder"
        raise BlastError(f"{folder} is not a blast checkpoint: {MANIFEST} is missing ({hint}); check the path.")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        manifest = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BlastError(f"{path} is unfinished or not JSON written by blast.save; {REMEDY}.") from None
    if type(found) is not int or found not in WEIGHTS_OF_FORMAT:
        raise BlastError(
            f"{path} has format version {str(found)[:40]!s}, and this blast reads version "
            f"{' and '.join(map(str, WEIGHTS_OF_FORMAT))}; load it with the version of blast that wrote it, "
            "or save the model again."
        )
    if manifest.get("digest") != _digest(manifest):
        raise BlastError(f"{path} was altered after it was written (its digest does not match); {REMEDY}.")
    _check_fields(path, manifest)
    expected, weights = manifest["weights"], folder / WEIGHTS_OF_FORMAT[found]
    if not weights.is_file():
        raise BlastError(f"{weights} is missing; {REMEDY}.")
    size = weights.stat().st_size
    if size != expected["bytes"]:
        raise BlastError(f"{weights} has {size} bytes instead of {expected['bytes']}, so it is incomplete; {REMEDY}.")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    # Not `json_digest`: checkpoints that exist were digested with spaces after separators.
    return text_digest(json.dumps(content, sort_keys=True))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


Check = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _text(value: Any) -> bool:
    return type(value) is str and bool(value)


def _sides(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(_count(side) and side > 0 for side in value)


def _file_name(value: Any) -> bool:
    return _text(value) and value not in (".", "..") and not set(value) & set("/\\:\0")


_MATRIX: dict[str, Check] = {
    "shape": _sides,
    "block": _sides,
    "blocks": _count,
    "live": _count,
    "transposed": lambda value: type(value) is bool,
}


def _check_fields(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises a BlastError that names the first field of the wrong type or value."""

    def check(field: str, good: bool) -> None:
        if not good:
            raise BlastError(f"{path} has no valid field '{field}'; {REMEDY}.")

    def names(field: str, value: Any, of_key: Check, of_value: Check) -> None:
        check(field, type(value) is dict)
        for key, item in value.items():
            check(f"{field}.{key[:80]}", of_key(key) and of_value(item))

    for field in ("library", "class"):
        check(field, _text(manifest.get(field)))
    check("base", type(manifest.get("base", 0)) in (dict, type(None)))
    names("aliases", manifest.get("aliases"), _text, _text)
    names("files", manifest.get("files", {}), _file_name, _text)
    names("matrices", manifest.get("matrices"), _text, lambda facts: type(facts) is dict)
    for name, facts in manifest["matrices"].items():
        for part, good in _MATRIX.items():
            check(f"matrices.{name[:80]}.{part}", good(facts.get(part)))
        (rows, cols), block = facts["shape"], facts["block"]
        tiled = not rows % block[0] and not cols % block[1]
        check(f"matrices.{name[:80]}.blocks", tiled and facts["blocks"] == rows // block[0] * (cols // block[1]))
        check(f"matrices.{name[:80]}.live", facts["live"] <= facts["blocks"])
    check("weights", type(manifest.get("weights")) is dict)
    weights = manifest["weights"]
    check("weights.file", weights.get("file") == WEIGHTS_OF_FORMAT[manifest["format"]])
    check("weights.bytes", _count(weights.get("bytes")))
    check("weights.digest", _text(weights.get("digest")))
