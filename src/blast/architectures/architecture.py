"""What a family file says about each of its models."""

from __future__ import annotations

from dataclasses import dataclass

from blast.architectures.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model by name, without its weights.

    Attributes:
        name: The name used in configs, e.g. `"gpt2-nano"`.
        family: The file that builds it, e.g. `"gpt2"`; filled in when the file is found.
        modality: `"language"` or `"vision"`.
        shape: Its sizes.
        pretrained: Where published weights come from, or None.
        description: One line for people.
    """

    name: str
    modality: str
    shape: ModelShape
    family: str = ""
    pretrained: str | None = None
    description: str = ""
