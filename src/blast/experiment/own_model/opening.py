"""Opens the causal language model that a word of the command line means, with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast import architectures
from blast.architectures._weights.hub import WANTED, open_folder
from blast.checkpoint.manifest import MANIFEST, is_checkpoint
from blast.download.cache import cache_root
from blast.download.hub import HubFiles
from blast.errors import BlastError, one_line, unknown_name
from blast.files import json_digest
from blast.untrusted import is_inner_path

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class ModelSource:
    """A causal language model that is not loaded yet.

    Attributes:
        name: As the user wrote it.
        folder: Folder of its files; None for a model of `blast.architectures`.
        tokenizer: Folder that holds its `tokenizer.json`.
        digest: Digest of its weights, or of the names, sizes and times of its files.
        parameters: Number of its parameters, as if it were dense.
    """

    name: str
    folder: Path | None
    tokenizer: Path
    digest: str
    parameters: int

    def load(self) -> nn.Module:
        """The model in float32, in eval mode; sparse if it was saved so.

        Raises:
            BlastError: if it cannot be loaded.
        """
        if self.folder is None:
            return architectures.load(self.name).eval()
        if is_checkpoint(self.folder):
            from blast.checkpoint.checkpoint import load

            return load(self.folder).float()
        return open_folder(self.folder, self.name, None).eval()

    def load_part(self) -> nn.Module:
        """The part of this process in float32, where `torchrun` started several; see `tensor_parallel` of `blast.load`.

        Raises:
            BlastError: if it is no checkpoint of `blast.save`, or cannot be split.
        """
        if self.folder is None or not is_checkpoint(self.folder):
            raise BlastError(
                f"{self.name} is no checkpoint of blast.save, and only those are split over processes; save the model "
                "with blast.save, or start one process."
            )
        from blast.checkpoint.checkpoint import load

        return load(self.folder, tensor_parallel=True).float()


def find_model(name: str, say: Callable[[str], Any] = print) -> ModelSource:
    """The model that a name means; its files are fetched, and its weights are not loaded.

    Args:
        name: A folder (of transformers, or of `blast.save`), a model of `blast list architectures` that has published
            weights, or `owner/name` on the model hub.
        say: Prints a line of progress.

    Raises:
        BlastError: if there is no such model, it is no causal language model, or it comes without a tokenizer.

    Example:
        find_model("smollm2-135m-q4")
    """
    place = Path(name).expanduser()
    if place.is_dir():
        return _in_folder(name, place)
    if place.is_file():
        raise BlastError(f"{name} is a file; give the folder of the model, with its {CONFIG} or {MANIFEST}.")
    if name in architectures.names():
        return _published(name, say)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        files = HubFiles(name, "models", name, "main", (*WANTED, "tokenizer*.json"))
        files.fetch(cache_root(), say)
        return _in_folder(name, files.folder(cache_root()))
    if "/" in name:
        raise BlastError(f"{name}: there is no such folder; give the folder of a model, or a name.")
    with_weights = [known for known in architectures.names() if architectures.get(known).weights]
    raise unknown_name("model, and no folder,", name, with_weights)


def _published(name: str, say: Callable[[str], Any]) -> ModelSource:
    """A model of `blast.architectures`."""
    if architectures.get(name).modality != "language":
        raise BlastError(f"{name} is no causal language model; give one, for instance smollm2-135m-q4.")
    facts = architectures.fetch(name, progress=say)
    return ModelSource(
        name, None, architectures.tokenizer_folder(name, progress=say), facts["digest"], _count(_meta_published(name))
    )


def _in_folder(name: str, folder: Path) -> ModelSource:
    """A model in a folder of transformers or of `blast.save`."""
    checkpoint = is_checkpoint(folder)
    if not checkpoint and not (folder / CONFIG).is_file():
        raise BlastError(f"{name} holds neither {MANIFEST} nor {CONFIG}; give the folder of a saved model.")
    if checkpoint:
        from blast.checkpoint.builders import skeleton
        from blast.checkpoint.manifest import read_manifest

        model = skeleton(read_manifest(folder))
    else:
        model = _meta_of_config(folder, name)
    _check_shards(name, folder)
    if not any(type(model).__name__.endswith(kind) for kind in CAUSAL):
        raise BlastError(f"{name} holds a {type(model).__name__}; give a causal language model of transformers.")
    if not (folder / TOKENIZER).is_file():
        raise BlastError(
            f"{name} holds no {TOKENIZER}; save the tokenizer there too, with tokenizer.save_pretrained('{name}')."
        )
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.iterdir())]
    return ModelSource(name, folder, folder, json_digest(state), _count(model))


def _check_shards(name: str, folder: Path) -> None:
    """Refuses an index of weights that names a file outside the folder; transformers would read that one."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BlastError(f"{index}: this index of weights is damaged; copy {name} again.") from error
        if odd := [file for file in files if not is_inner_path(file)]:
            raise BlastError(f"{index}: names the file {one_line(odd[0])[:80]} outside its folder; copy {name} again.")


def _meta_published(name: str) -> nn.Module:
    import torch

    with torch.device("meta"):
        return architectures.build(name)


def _meta_of_config(folder: Path, name: str) -> nn.Module:
    """The model that a config describes, without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kinds = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("architectures") or []
        if kinds and not any(kind.endswith(CAUSAL) for kind in kinds):
            raise BlastError(f"{name} holds a {kinds[0]}; give a causal language model of transformers.")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except BlastError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BlastError(
            f"{name}: transformers finds no causal language model in it ({reason}); give the folder of one."
        ) from error


def _count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a model, as transformers gives it.

    Raises:
        BlastError: if transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source.tokenizer), local_files_only=True)
    except Exception as error:  # the tokenizers package raises bare exceptions for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BlastError(f"{source.tokenizer}: its tokenizer cannot be read ({reason}); save it again.") from error
