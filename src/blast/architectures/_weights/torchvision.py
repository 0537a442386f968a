"""Published weights of torchvision's models: one `.pth` file, opened as plain tensors after its checksum is checked.

The file lies in `hub/checkpoints/` of the cache, where torch's own client puts it. Its name ends with the first eight
digits of its sha256. A file that was put there by hand under the same rule is checked by its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.architectures.architecture import Build, TokenizerFiles
from blast.architectures.shapes import ModelShape
from blast.download.sources import RemoteFile, UrlSource, fetch_files
from blast.errors import BlastError
from blast.files import file_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

ADDRESS = "https://download.pytorch.org/models/"
DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class TorchvisionWeights:
    """The weights of one vision transformer; see `Weights`.

    Attributes:
        model: torchvision's name of it, the first part of the file's name.
        checksum: First digits of the file's sha256, the second part of its name.
        bytes: Size of the file, as torchvision states it.
        licence: torchvision's.
        gate: Empty: there are no terms to accept.
    """

    model: str
    checksum: str
    bytes: int
    licence: str = "BSD-3-Clause (torchvision); trained on ImageNet-1k"
    gate: str = ""

    @property
    def label(self) -> str:
        """The file, for people."""
        return f"{ADDRESS}{self.model}-{self.checksum}.pth"

    def fetch(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Brings the file into the cache."""
        folder = Path(cache) / "hub" / "checkpoints"
        file = self._found(folder) or RemoteFile(f"{self.model}-{self.checksum}.pth", f"sha256:{self.checksum}")
        fetch_files(name, [file], [UrlSource(ADDRESS)], folder, progress)
        path = folder / file.name
        digest = file_digest(path)
        return {"name": name, "digest": digest, "folder": str(folder), "file": file.name, "bytes": path.stat().st_size}

    def open(self, name: str, shape: ModelShape, build: Build, cache: Path, **sizes: int | None) -> nn.Module:
        """The model with these weights; positions are interpolated where images have another side."""
        import torch

        folder = Path(cache) / "hub" / "checkpoints"
        file = self._found(folder)
        if file is None:
            raise BlastError(f"{name} is not in {folder}; fetch it first.")
        state = torch.load(folder / file.name, map_location="cpu", weights_only=True)
        shape = shape_of(state, shape)
        if (sizes.get("channels") or shape.channels) != shape.channels:
            raise BlastError(
                f"the published weights of {name} see {shape.channels} channels and the images have "
                f"{sizes['channels']}; set channels: {shape.channels} for the dataset under 'data'."
            )
        wanted = replace(shape, image=sizes.get("image") or shape.image, classes=sizes.get("classes") or shape.classes)
        model = build(wanted)
        if wanted.image != shape.image:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state = dict(interpolate_embeddings(wanted.image, wanted.patch, state))
        if wanted.classes != shape.classes:
            # A head for other classes starts fresh, as torchvision builds it.
            state = {key: value for key, value in state.items() if not key.startswith("heads.head.")}
            state |= {f"heads.head.{key}": value for key, value in model.heads.head.state_dict().items()}
        model.load_state_dict(state)
        return model

    def tokenizer(self, name: str, cache: Path, progress: Callable[[str], None] | None = None) -> TokenizerFiles:
        """Raises: images have no tokenizer."""
        raise BlastError(f"{name} sees images and has no tokenizer; choose a language model.")

    def _found(self, folder: Path) -> RemoteFile | None:
        """The published file if it is in the folder, else a file that was put there by hand."""
        names = sorted(path.name for path in folder.glob(f"{self.model}-{'[0-9a-f]' * DIGITS}.pth"))
        published = f"{self.model}-{self.checksum}.pth"
        if not names:
            return None
        chosen = published if published in names else names[0]
        return RemoteFile(chosen, f"sha256:{chosen[len(self.model) + 1 :].removesuffix('.pth')}")


def shape_of(state: dict[str, Tensor], shape: ModelShape) -> ModelShape:
    """Sizes read from the tensors of a vision transformer; the width of a head is taken from `shape`."""
    hidden, channels, patch, _ = state["conv_proj.weight"].shape
    layers = len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")})
    patches = state["encoder.pos_embedding"].shape[1] - 1
    return replace(
        shape,
        layers=layers,
        hidden=hidden,
        ffn=state["encoder.layers.encoder_layer_0.mlp.0.bias"].shape[0],
        heads=hidden // shape.width_of_head,
        kv_heads=hidden // shape.width_of_head,
        channels=channels,
        patch=patch,
        image=round(patches**0.5) * patch,
        classes=state["heads.head.bias"].shape[0],
    )
