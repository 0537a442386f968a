"""Sizes of transformer models: one frozen type, and a registry of published models.

Standard library only: a grid is planned and a benchmark shape looked up without importing torch.
The numbers are public facts, read from the `config.json` or model card named in each entry's `source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies beyond the original context."""

    factor: float
    original_context: int
    low_frequency: float = 1.0
    high_frequency: float = 4.0


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """All sizes that the weights of a transformer depend on.

    Attributes:
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        ffn: Inner width of the MLP.
        heads: Query heads.
        kv_heads: Key/value heads; equal to `heads` without grouped queries.
        gated: Whether the MLP has gate, up and down (SwiGLU) rather than two matrices.
        head_dim: Width of a head; `hidden // heads` when left out.
        vocab: Size of the vocabulary; None where the dataset's tokenizer decides.
        context: Longest sequence in tokens.
        tied_embeddings: Whether the output layer is the input embedding.
        rope_theta: Base of the rotary frequencies, where the model has them.
        rope_scaling: Llama 3's scaling, where the model has it.
        norm_eps: Epsilon of the normalisation layers.
        init_std: Standard deviation of initial weights (language models). GPT-2 uses 0.02 at width 768; scaled with the
            root of the width, this is 0.05 at width 128.
        image: Side of an image in pixels; None where the dataset decides.
        patch: Side of a patch in pixels; None where it follows from `patches`.
        patches: Patches along a side, for models whose patch follows the image.
        classes: Number of classes; None where the dataset decides.
        channels: Channels of an image; None where the dataset decides.
        source: Where the numbers are published.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    gated: bool = False
    head_dim: int | None = None
    vocab: int | None = None
    context: int | None = None
    tied_embeddings: bool = True
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    init_std: float = 0.02
    image: int | None = None
    patch: int | None = None
    patches: int | None = None
    classes: int | None = None
    channels: int | None = None
    source: str = ""

    @property
    def width_of_head(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def mlp_matrices(self) -> list[tuple[str, int, int]]:
        """The matrices of one MLP as `(role, out, in)`."""
        if self.gated:
            return [
                ("gate", self.ffn, self.hidden),
                ("up", self.ffn, self.hidden),
                ("down", self.hidden, self.ffn),
            ]
        return [("fc1", self.ffn, self.hidden), ("fc2", self.hidden, self.ffn)]

    @property
    def mlp_weights(self) -> int:
        """MLP weights of the whole model, biases left out."""
        return self.layers * sum(rows * cols for _, rows, cols in self.mlp_matrices)


def _gpt2(size: str, layers: int, hidden: int, heads: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        vocab=50257,
        context=1024,
        source=f"https://huggingface.co/openai-community/{size}",
    )


def _llama3(
    repository: str,
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    *,
    head_dim: int = 128,
    rope_factor: float = 8.0,
    tied_embeddings: bool = False,
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=8,
        gated=True,
        head_dim=head_dim,
        vocab=128256,
        context=131072,
        tied_embeddings=tied_embeddings,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=rope_factor, original_context=8192),
        source=f"https://huggingface.co/{repository}",
    )


def _vit16(weights: str, layers: int, hidden: int, heads: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        norm_eps=1e-6,
        image=224,
        patch=16,
        classes=1000,
        channels=3,
        source=f"https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.{weights}.html",
    )


SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        "gpt2": _gpt2("gpt2", 12, 768, 12),
        "gpt2-medium": _gpt2("gpt2-medium", 24, 1024, 16),
        "gpt2-large": _gpt2("gpt2-large", 36, 1280, 20),
        "gpt2-xl": _gpt2("gpt2-xl", 48, 1600, 25),
        "llama-3.2-1b": _llama3(
            "meta-llama/Llama-3.2-1B", 16, 2048, 8192, 32, head_dim=64, rope_factor=32.0, tied_embeddings=True
        ),
        "llama-3.2-3b": _llama3("meta-llama/Llama-3.2-3B", 28, 3072, 8192, 24, rope_factor=32.0, tied_embeddings=True),
        "llama-3.1-8b": _llama3("meta-llama/Llama-3.1-8B", 32, 4096, 14336, 32),
        "llama-3.1-70b": _llama3("meta-llama/Llama-3.1-70B", 80, 8192, 28672, 64),
        "llama-3.1-405b": _llama3("meta-llama/Llama-3.1-405B", 126, 16384, 53248, 128),
        "smollm2-135m": ModelShape(
            layers=30,
            hidden=576,
            ffn=1536,
            heads=9,
            kv_heads=3,
            gated=True,
            vocab=49152,
            context=8192,
            rope_theta=100000.0,
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M",
        ),
        "qwen3-1.7b": ModelShape(
            layers=28,
            hidden=2048,
            ffn=6144,
            heads=16,
            kv_heads=8,
            gated=True,
            head_dim=128,
            vocab=151936,
            context=40960,
            rope_theta=1000000.0,
            norm_eps=1e-6,
            source="https://huggingface.co/Qwen/Qwen3-1.7B-Base",
        ),
        "minilm": ModelShape(
            layers=6,
            hidden=384,
            ffn=1536,
            heads=12,
            kv_heads=12,
            vocab=30522,
            context=512,
            norm_eps=1e-12,
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        ),
        "vit-b-16": _vit16("vit_b_16", 12, 768, 12),
        "vit-l-16": _vit16("vit_l_16", 24, 1024, 16),
    }
)
