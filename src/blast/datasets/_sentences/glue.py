"""What SST-2, MRPC and RTE share: tasks of GLUE on the hub, fine-tuned for and tested on their validation split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from blast.datasets._sentences.sentence_data import SentenceData
from blast.datasets._text.hub_text import parquet_rows
from blast.datasets._text.prepare import BYTES_OF_VOCABULARY, TOKENIZER, TextSettings, published_tokenizer
from blast.datasets._text.tokenizer import copy_tokenizer, end_of_text, token_bytes, train_tokenizer
from blast.download.cache import build_once
from blast.download.hub import HubFiles
from blast.download.sources import Progress
from blast.errors import BlastError
from blast.files import file_digest, json_digest
from blast.settings import Bounds

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

FORMAT = 1
REPOSITORY, REVISION = "nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
# GLUE's own test labels are not published.
SPLITS = {"train": "train", "test": "validation"}


@dataclass(frozen=True)
class SentenceSettings(TextSettings):
    """Settings of a dataset of labelled sentences.

    Attributes:
        vocab_size: Size of the tokenizer that is trained on the sentences; not used with `tokenizer`.
        length: Tokens a sentence or a pair, cut or padded.
    """

    vocab_size: Annotated[int, Bounds(ge=BYTES_OF_VOCABULARY)] = 8192
    length: Annotated[int, Bounds(ge=2)] = 128


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: Its name here and its folder on the hub.
        columns: The sentence, or both of a pair.
        num_classes: Number of classes.
    """

    name: str
    columns: Sequence[str]
    num_classes: int = 2
    settings: ClassVar = SentenceSettings()

    @property
    def source(self) -> HubFiles:
        """Its files on the hub."""
        wanted = tuple(f"{self.name}/{split}-*.parquet" for split in SPLITS.values())
        return HubFiles(self.name, "datasets", REPOSITORY, REVISION, wanted)

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Brings the files into the cache."""
        return self.source.fetch(cache, progress)

    def prepare(self, cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Tokenises both splits, unless the cache has them."""
        return self._prepared(cache, settings)

    def load(self, cache: Path, settings: dict[str, Any] | None = None) -> SentenceData:
        """The tokens in memory."""
        import numpy as np
        import torch

        facts = self._prepared(cache, settings)
        folder = Path(facts["folder"])
        arrays = {
            f"{split}_{what}": torch.from_numpy(np.load(folder / f"{split}_{what}.npy"))
            for split in SPLITS
            for what in ("tokens", "labels")
        }
        return SentenceData(
            **arrays,
            num_classes=self.num_classes,
            pad_token=facts["pad_token"],
            vocab_size=facts["vocab_size"],
            tokenizer_dir=folder / "tokenizer",
            digest=facts["digest"],
        )

    def _rows(self, cache: Path, split: str) -> Iterator[dict[str, Any]]:
        return parquet_rows(self.source.paths(cache, f"{self.name}/{SPLITS[split]}-*"), [*self.columns, "label"])

    def _prepared(self, cache: Path, settings: dict[str, Any] | None) -> dict[str, Any]:
        filled = self.settings.filled(settings)
        source = self.source.digest(cache)
        published = published_tokenizer(filled.get(TOKENIZER), Path(cache))
        key = json_digest([FORMAT, source, filled, published.name if published else None], escaped=True)
        folder = Path(cache) / "prepared" / self.name / key.partition(":")[2][:16]

        def build(aside: Path) -> dict[str, Any]:
            if published:
                tokenizer = copy_tokenizer(published, aside / "tokenizer")
            else:
                texts = ("\n".join(row[column] for column in self.columns) for row in self._rows(cache, "train"))
                tokenizer = train_tokenizer(texts, filled["vocab_size"], aside / "tokenizer")
            pad = pad_token(tokenizer, aside / "tokenizer")
            counts = {
                split: self._write(self._rows(cache, split), tokenizer, pad, filled["length"], aside, split)
                for split in SPLITS
            }
            made = sorted(path.name for path in aside.glob("*.npy"))
            digests = {name: file_digest(aside / name) for name in made}
            return {
                "name": self.name,
                "digest": json_digest({"source": source, "files": digests}, escaped=True),
                "source_digest": source,
                "digests": digests,
                "settings": filled,
                "counts": counts,
                "num_classes": self.num_classes,
                "pad_token": pad,
                "vocab_size": len(token_bytes(tokenizer)),
            }

        facts = build_once(folder, build)
        return facts | {"folder": str(folder), "tokenizer_dir": str(folder / "tokenizer")}

    def _write(
        self, rows: Iterator[dict[str, Any]], tokenizer: Tokenizer, pad: int, length: int, folder: Path, split: str
    ) -> int:
        import numpy as np

        tokens, labels = [], []
        for row in rows:
            tokens.append(encode(tokenizer, [row[column] for column in self.columns], length, pad))
            labels.append(row["label"])
        if not labels or not set(labels) <= set(range(self.num_classes)):
            raise BlastError(f"{self.name}: the {split} split has labels {sorted(set(labels))[:5]}; fetch it again.")
        np.save(folder / f"{split}_tokens.npy", np.stack(tokens))
        np.save(folder / f"{split}_labels.npy", np.array(labels, dtype=np.int64))
        return len(labels)


def encode(tokenizer: Tokenizer, sentences: Sequence[str], length: int, pad: int) -> np.ndarray:
    """Tokens of a sentence or a pair, int64 `[length]`, cut or padded; a pair is joined as the tokenizer does it.

    Tokenizers that know no pairs (those of GPT-2 and its like) get both sentences on two lines.
    """
    import numpy as np

    if len(sentences) > 1 and tokenizer.num_special_tokens_to_add(is_pair=True) < len(sentences):
        sentences = ["\n".join(sentences)]
    ids = tokenizer.encode(*sentences).ids[:length]
    return np.array(ids + [pad] * (length - len(ids)), dtype=np.int64)


def pad_token(tokenizer: Tokenizer, folder: Path) -> int:
    """The tokenizer's padding token, or else its end-of-text token."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = config.get("pad_token")
    text = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(text) if text else None
    return end_of_text(tokenizer, folder) if found is None else found
