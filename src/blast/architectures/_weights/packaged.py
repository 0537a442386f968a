"""Published weights in a package, for machines that reach package registries but no model hub."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.architectures._weights.hub import open_folder, without_dropout
from blast.architectures.architecture import Build, TokenizerFiles
from blast.architectures.shapes import ModelShape
from blast.download.sources import RemoteFile, Source, fetch_files
from blast.errors import BlastError
from blast.files import json_digest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """Files of a package; see `Weights`.

    Attributes:
        source: The package.
        checksums: sha256 of each file by its name.
        bytes: Size of the package.
        licence: As the package states it.
        gguf: The file that holds everything in the GGUF format; none where the files are config and safetensors.
        gate: Terms to accept first.
    """

    source: Source
    checksums: Mapping[str, str]
    bytes: int
    licence: str
    gguf: str | None = None
    gate: str = ""

    @property
    def label(self) -> str:
        """The package, for people."""
        return self.source.label

    def fetch(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Brings the files into the cache."""
        files = [RemoteFile(file, f"sha256:{checksum}") for file, checksum in self.checksums.items()]
        fetch_files(name, files, [self.source], self._folder(name, cache), progress)
        return {
            "name": name,
            "digest": json_digest(dict(self.checksums), escaped=True),
            "folder": str(self._folder(name, cache)),
            "bytes": sum((self._folder(name, cache) / file).stat().st_size for file in self.checksums),
        }

    def open(self, name: str, shape: ModelShape, build: Build, cache: Path, **sizes: int | None) -> nn.Module:
        """The model with these weights; those of a GGUF file are widened from their few bits to float32."""
        folder = self._checked(name, cache)
        if self.gguf is None:
            return open_folder(folder, name, sizes.get("classes"))
        return _open_gguf(folder, self.gguf, name, sizes.get("classes"))

    def tokenizer(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> TokenizerFiles:
        """The tokenizer's files; of a GGUF file transformers makes them."""
        digest = self.fetch(name, cache, progress)["digest"]
        source = self._folder(name, cache)

        def write(folder: Path) -> None:
            if self.gguf is None:
                for path in sorted(source.glob("*token*.json")):
                    shutil.copyfile(path, folder / path.name)
                return
            from transformers import AutoTokenizer

            _need_gguf(name)
            AutoTokenizer.from_pretrained(str(source), gguf_file=self.gguf).save_pretrained(folder)

        return TokenizerFiles(digest, write)

    def _folder(self, name: str, cache: Path) -> Path:
        return Path(cache) / "packaged" / name

    def _checked(self, name: str, cache: Path) -> Path:
        folder = self._folder(name, cache)
        for file in self.checksums:
            if not (folder / file).is_file():
                raise BlastError(f"{name} is not complete, {folder / file} is missing; fetch it first.")
        return folder


def _need_gguf(name: str) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BlastError(f"{name} comes as a GGUF file, which needs {package}; pip install gguf accelerate.")


def _open_gguf(folder: Path, file: str, name: str, classes: int | None) -> nn.Module:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    _need_gguf(name)
    from accelerate import init_empty_weights

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=file, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    without_dropout(config)
    # transformers cannot save a model loaded from GGUF, so a new one takes over its parameters, without a copy of them.
    kind = AutoModelForCausalLM
    if classes:
        config.num_labels, kind = classes, AutoModelForSequenceClassification
        model = kind.from_config(config, dtype=torch.float32)
        _take_over(model.base_model, loaded.base_model)
        return model
    with init_empty_weights():  # buffers have memory
        model = kind.from_config(config, dtype=torch.float32)
    _take_over(model, loaded)
    return model


def _take_over(model: nn.Module, loaded: nn.Module) -> None:
    """Gives a model the parameters of another of the same class, tied where they were."""
    model.load_state_dict(loaded.state_dict(keep_vars=True), assign=True)
