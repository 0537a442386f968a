"""A byte-level vocabulary as two files, `vocab.json` and `merges.txt`, made into a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blast.architectures.architecture import TokenizerFiles
from blast.download.sources import RemoteFile, Source, fetch_files
from blast.files import json_digest


@dataclass(frozen=True)
class ByteLevelVocabulary:
    """Tokens and merges of one tokenizer.

    Attributes:
        name: What it is called in the cache.
        checksums: sha256 of both files.
        sources: Where they come from, in the order tried.
    """

    name: str
    checksums: Mapping[str, str]
    sources: Sequence[Source]

    def fetch(self, cache: Path, progress: Callable[[str], None] | None = None) -> TokenizerFiles:
        """Brings both files into the cache."""
        folder = Path(cache) / "packaged" / f"{self.name}-vocabulary"
        files = [RemoteFile(file, f"sha256:{checksum}") for file, checksum in self.checksums.items()]
        fetch_files(f"the tokenizer of {self.name}", files, self.sources, folder, progress)

        def write(target: Path) -> None:
            from transformers import GPT2Tokenizer

            GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(target)

        return TokenizerFiles(json_digest(dict(self.checksums), escaped=True), write)
