"""A text dataset in the tokens of a published model, for runs that start from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from blast.datasets._text.prepare import TOKENIZER
from blast.download.sources import Progress


@dataclass(frozen=True)
class Variant:
    """A dataset's module, with the tokenizer of an architecture in place of one trained on the text.

    Attributes:
        name: `"<dataset>@<architecture>"`.
        module: The dataset.
        architecture: Whose tokenizer it is.
    """

    name: str
    module: ModuleType
    architecture: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def fetch(self, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Brings the text and the tokenizer into the cache."""
        from blast import architectures

        facts = self.module.fetch(cache, progress)
        return facts | {"tokenizer": str(architectures.tokenizer_folder(self.architecture, Path(cache), progress))}

    def prepare(self, cache: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """See the dataset; other settings of a tokenizer do not count."""
        return self.module.prepare(cache, self._settings(settings))

    def load(self, cache: Path, settings: dict[str, Any] | None = None) -> Any:
        """See the dataset."""
        return self.module.load(cache, self._settings(settings))

    def _settings(self, settings: dict[str, Any] | None) -> dict[str, Any]:
        kept = {key: value for key, value in (settings or {}).items() if key != "vocab_size"}
        return kept | {TOKENIZER: self.architecture}
