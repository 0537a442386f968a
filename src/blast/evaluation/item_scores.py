"""Scores of single items of evaluation sets, in a small file: what a paired comparison of two models needs.

The file is a compressed `.npz`, about 3 bytes an item. The log-likelihoods are in hundredths of a nat.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blast.errors import BlastError
from blast.files import write_atomically

FORMAT = 1
STEPS_A_NAT = 100
# Unpacked; a million items have 10 MB.
LARGEST = 1 << 30
OF_ANOTHER_FORM = (ValueError, LookupError, TypeError, AttributeError)
# Name of the set whose items are the windows or images of our own test data.
HELD_OUT = "held_out"


@dataclass(frozen=True)
class ItemScores:
    """The items of one set, in their order: how likely the right answer is, and whether the model gives it.

    Attributes:
        nats: Minus the log-likelihood of each right answer, `[n]`, float64, in hundredths. For a text, of the whole
            text.
        bytes: Length of the same answers in UTF-8, `[n]`, with the space before them. 0 for images.
        correct: By metric (`acc`, `acc_norm`, `top1`), whether the model gives the right answer, `[n]`, bool. Empty for
            texts.
        chance: By metric, the share of right answers without a model: of guessing, or of the most frequent answer where
            all items have the same choices.
        tokens: Tokens of all right answers.
        digest: Digest of the items. Two models are comparable on a set if it is equal.
    """

    nats: np.ndarray
    bytes: np.ndarray
    correct: Mapping[str, np.ndarray]
    chance: Mapping[str, float]
    tokens: int
    digest: str

    @classmethod
    def of_texts(cls, nats: Sequence[float], sizes: Sequence[int], tokens: int, digest: str) -> ItemScores:
        """The items of a set of texts: minus log-likelihoods, lengths in bytes, tokens of all, digest."""
        return cls(np.array(nats, dtype=np.float64), np.array(sizes, dtype=np.int64), {}, {}, tokens, digest)

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def metric(self) -> str | None:
        """The metric that judges the set: `acc_norm` where it is computed, else `acc` or `top1`; None for texts."""
        return next((name for name in ("acc_norm", "acc", "top1") if name in self.correct), None)


def write_item_scores(file: Path, sets: Mapping[str, ItemScores], facts: Mapping[str, Any]) -> None:
    """Writes the items of some sets, atomically. The same values give the same bytes.

    Args:
        file: The file to write, `….npz`; its folder is created.
        sets: By name of the task.
        facts: What else a reader needs, as JSON values: the point, its record, the requests.
    """
    header: dict[str, Any] = {"format": FORMAT, "facts": dict(facts), "sets": {}}
    arrays: dict[str, np.ndarray] = {}
    for task, items in sets.items():
        header["sets"][task] = {
            "chance": dict(items.chance), "tokens": items.tokens, "digest": items.digest, "metrics": [*items.correct],
        }  # fmt: skip
        arrays[f"{task}.nats"] = np.round(items.nats * STEPS_A_NAT).astype(np.int32)
        arrays[f"{task}.bytes"] = items.bytes.astype(np.uint16 if items.bytes.max(initial=0) < 1 << 16 else np.uint32)
        for name, right in items.correct.items():
            arrays[f"{task}.{name}"] = np.packbits(right)
    arrays["header"] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(Path(file), content.getvalue())


def read_item_scores(file: Path) -> tuple[dict[str, ItemScores], dict[str, Any]]:
    """Reads the items by task, and the facts.

    Raises:
        BlastError: if the file is missing, damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > LARGEST:
                raise ValueError("too large")
        with np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError("of another format")
            return {task: _items(stored, task, known) for task, known in header["sets"].items()}, header["facts"]
    except FileNotFoundError as error:
        raise BlastError(f"{file}: these scores of items do not exist; run `blast language` for the point.") from error
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise BlastError(
            f"{file}: these scores of items are damaged or of another format; restore the file from git, or run "
            "`blast language` for the point."
        ) from error


def _items(stored: Any, task: str, known: Mapping[str, Any]) -> ItemScores:
    nats, sizes = stored[f"{task}.nats"], stored[f"{task}.bytes"]
    if nats.ndim != 1 or nats.shape != sizes.shape:
        raise ValueError(f"{nats.shape} log-likelihoods and {sizes.shape} lengths")
    correct = {name: np.unpackbits(stored[f"{task}.{name}"], count=len(nats)).astype(bool) for name in known["metrics"]}
    return ItemScores(
        nats / STEPS_A_NAT, sizes.astype(np.int64), correct, known["chance"], known["tokens"], known["digest"]
    )
