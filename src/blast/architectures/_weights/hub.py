"""Published weights on the model hub: a folder that transformers' `from_pretrained` reads, never pickles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.architectures._weights.byte_level_vocabulary import ByteLevelVocabulary
from blast.architectures.architecture import Build, TokenizerFiles
from blast.architectures.shapes import ModelShape
from blast.download.hub import HubFiles
from blast.errors import BlastError

if TYPE_CHECKING:
    from torch import nn

# A repository holds the same weights in many formats; these formats hold no code.
WANTED = ("config.json", "model*.safetensors*")
TOKENIZER = ("tokenizer*.json",)
DROPOUTS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "attention_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
)


@dataclass(frozen=True, kw_only=True)
class HubWeights:
    """One repository of the hub; see `Weights`.

    Attributes:
        repository: `owner/name`.
        revision: Commit.
        bytes: Size of its safetensors, as the hub shows it.
        licence: As its card states it.
        gate: Terms to accept first, and how.
        vocabulary: Another source of its tokenizer; None where only the repository has it.
    """

    repository: str
    revision: str
    bytes: int
    licence: str
    gate: str = ""
    vocabulary: ByteLevelVocabulary | None = None

    @property
    def label(self) -> str:
        """The repository, for people."""
        return f"the model hub: {self.repository}"

    def files(self, name: str) -> HubFiles:
        """The files of the repository that are used."""
        return HubFiles(name, "models", self.repository, self.revision, WANTED, self.gate)

    def fetch(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Brings the folder into the cache."""
        return self.files(name).fetch(cache, progress)

    def open(self, name: str, shape: ModelShape, build: Build, cache: Path, **sizes: int | None) -> nn.Module:
        """The model of the folder's own config with its weights; see `Weights.open`."""
        return open_folder(self.files(name).folder(cache), name, sizes.get("classes"))

    def tokenizer(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> TokenizerFiles:
        """The repository's tokenizer, which is small: the weights are not fetched for it."""
        files = replace(self.files(name), name=f"the tokenizer of {name}", wanted=TOKENIZER)
        present = (files.folder(cache) / "tokenizer.json").is_file()
        if self.vocabulary and not present:
            return self.vocabulary.fetch(cache, progress)

        def write(folder: Path) -> None:
            for path in files.paths(cache):
                shutil.copyfile(path, folder / path.name)

        return TokenizerFiles(files.fetch(cache, progress)["digest"], write)


def open_folder(folder: Path, name: str, classes: int | None) -> nn.Module:
    """A transformers model from a folder of config and safetensors, in float32 and without dropout.

    Args:
        folder: As `save_pretrained` writes it.
        name: Name of the architecture, for messages.
        classes: If given, a classifier of sequences whose head starts fresh; else the model the folder holds.

    Raises:
        BlastError: if transformers cannot read it, or the folder lacks weights of the model.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    causal = any(kind.endswith("ForCausalLM") or kind.endswith("LMHeadModel") for kind in config.architectures or ())
    kind = AutoModelForSequenceClassification if classes else AutoModelForCausalLM if causal else AutoModel
    # We check the missing weights below; transformers would print a page about them.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        without_dropout(config)
        if classes:
            config.num_labels = classes
        model, found = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as fault:
        reason = str(fault).splitlines()[0]
        raise BlastError(f"{folder}: transformers cannot load {name} from it ({reason}); fetch it again.") from fault
    finally:
        logging.set_verbosity(verbosity)
    missing = [key for key in found["missing_keys"] if not (classes and key.startswith(("score.", "classifier.")))]
    # A classifier of an encoder begins at the pooled output, and its pooler may be fresh too.
    missing = [key for key in missing if not (classes and ".pooler." in key)]
    if missing:
        raise BlastError(f"{folder}: the weights of {name} lack {missing[0]} and {len(missing) - 1} more; fetch again.")
    return model


def without_dropout(config: Any) -> None:
    """Sets every dropout of a transformers config to 0."""
    for key in DROPOUTS:
        if getattr(config, key, None) is not None:
            setattr(config, key, 0.0)
