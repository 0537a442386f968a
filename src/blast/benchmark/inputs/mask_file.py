"""The masks of a trained model as a small file, with the facts of its run.

A safetensors file holds `<matrix>.offsets` and `<matrix>.indices` for each matrix, as in block-CSR: the live blocks of
block row `r` are in the block columns `indices[offsets[r]:offsets[r + 1]]`, ascending. Each tensor is int16 if its
values fit, else int32. The header has one JSON text with the facts and a digest of masks and facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from blast.errors import BlastError
from blast.files import write_atomically

FORMAT = 1
# Facts that a file must have: the point and its settings, the step of the masks, the record they belong to.
FACTS = ("grid", "point", "model", "dataset", "method", "sparsity", "block", "step", "record", "date")


class MaskFile(NamedTuple):
    """Masks by matrix name, bool `[out / b_out, in / b_in]`, and the `FACTS` of the run."""

    masks: dict[str, np.ndarray]
    facts: dict[str, Any]


def write_mask_file(file: Path, masks: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes masks as indices, atomically. Equal masks and facts give equal bytes.

    Args:
        file: The file to write; its folder is created.
        masks: By matrix name, bool `[out / b_out, in / b_in]`.
        facts: At least `FACTS`, as JSON values.

    Raises:
        BlastError: if a fact is missing, a mask does not have two dimensions, or the file cannot be written.
    """
    if missing := [name for name in FACTS if name not in facts]:
        raise BlastError(f"{file}: these facts of the run are missing: {', '.join(missing)}; pass them in `facts`.")
    tensors = {}
    for name, mask in masks.items():
        if mask.ndim != 2:
            raise BlastError(
                f"{file}: the mask of '{name}' has {mask.ndim} dimensions; give one with rows and columns."
            )
        live = mask.astype(bool)
        offsets = np.concatenate([[0], live.sum(axis=1).cumsum()])
        tensors[f"{name}.offsets"] = _narrow(offsets)
        tensors[f"{name}.indices"] = _narrow(live.nonzero()[1])
    columns = {name: mask.shape[1] for name, mask in masks.items()}
    header = {"format": FORMAT, "facts": dict(facts), "columns": columns, "digest": _digest(masks, facts)}
    # One metadata entry only: safetensors writes several in a varying order.
    written = save(tensors, {"blast_masks": json.dumps(header, sort_keys=True)})
    write_atomically(file, written, remedy="export again")


def read_facts(file: Path) -> dict[str, Any]:
    """Reads the facts of a file without its masks.

    Raises:
        BlastError: if the file is damaged or is not a mask file.
    """
    return _read(Path(file), with_masks=False).facts


def read_mask_file(file: Path) -> MaskFile:
    """Reads a file that `write_mask_file` wrote.

    Raises:
        BlastError: if the file is damaged or is not a mask file.
    """
    return _read(Path(file), with_masks=True)


def _read(file: Path, with_masks: bool) -> MaskFile:
    try:
        with safe_open(file, "numpy") as stored:
            header = json.loads((stored.metadata() or {})["blast_masks"])
            facts, columns = header["facts"], header["columns"]
            if header["format"] != FORMAT or not set(FACTS) <= set(facts):
                raise ValueError("of another format")
            if not with_masks:
                return MaskFile({}, facts)
            masks = {}
            for name, count in columns.items():
                offsets, indices = (stored.get_tensor(f"{name}.{part}") for part in ("offsets", "indices"))
                masks[name] = _mask(offsets.astype(np.int64), indices.astype(np.int64), count)
        if _digest(masks, facts) != header["digest"]:
            raise ValueError("altered")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BlastError(
            f"{file}: these masks are damaged or of another format; restore the file from git, or make it again with "
            "`blast records export`."
        ) from error
    return MaskFile(masks, facts)


def _mask(offsets: np.ndarray, indices: np.ndarray, columns: int) -> np.ndarray:
    if offsets.ndim != 1 or indices.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(indices):
        raise ValueError("offsets and indices do not agree")
    counts = np.diff(offsets)
    if (counts < 0).any() or (indices < 0).any() or (indices >= columns).any():
        raise ValueError("an index lies outside the matrix")
    mask = np.zeros((len(counts), columns), dtype=bool)
    mask[np.repeat(np.arange(len(counts)), counts), indices] = True
    return mask


def _narrow(numbers: np.ndarray) -> np.ndarray:
    small = len(numbers) == 0 or numbers.max() <= np.iinfo(np.int16).max
    return numbers.astype(np.int16 if small else np.int32)


def _digest(masks: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(masks):
        sha.update(f"{name} {masks[name].shape}".encode() + np.packbits(masks[name].astype(bool)).tobytes())
    return sha.hexdigest()
