"""Vision transformer: torchvision's `VisionTransformer`, GELU MLP."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from blast.architectures._weights.torchvision import TorchvisionWeights
from blast.architectures.architecture import Architecture
from blast.architectures.shapes import SHAPES, ModelShape
from blast.errors import BlastError

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

# torchvision initialises position embeddings with a deviation of 0.02, and patches have one of about 0.5. A model then
# needs hundreds of steps to use positions. The small model trains for fewer steps, so both start alike: after 240 steps
# of 32 digits, top-1 is 96 % instead of 64 %.
SMALL_POSITION_STD = 0.5

ARCHITECTURES = (
    Architecture(
        name="vit-nano",
        modality="vision",
        shape=ModelShape(layers=3, hidden=64, ffn=256, heads=4, kv_heads=4, patches=4, norm_eps=1e-6),
        description="a small vision transformer of three layers; every image has 4 × 4 patches",
    ),
    Architecture(
        name="vit-nano-wide",
        modality="vision",
        # With more layers, or more patches, attention alone learns Fashion-MNIST and MNIST as well in a short run.
        shape=ModelShape(layers=1, hidden=128, ffn=1024, heads=4, kv_heads=4, patches=2, norm_eps=1e-6),
        description="a vision transformer of one layer with a wide MLP; every image has 2 × 2 patches",
    ),
    Architecture(
        name="vit-s-4",
        modality="vision",
        shape=ModelShape(layers=8, hidden=384, ffn=1536, heads=6, kv_heads=6, patch=4, norm_eps=1e-6),
        description="a vision transformer of eight layers with patches of 4 pixels",
    ),
    Architecture(
        name="vit-b-16",
        modality="vision",
        shape=SHAPES["vit-b-16"],
        weights=TorchvisionWeights(model="vit_b_16", checksum="c867db91", bytes=round(330.285 * 2**20)),
        description="the published ViT-B/16",
    ),
    Architecture(
        name="vit-l-16",
        modality="vision",
        shape=SHAPES["vit-l-16"],
        weights=TorchvisionWeights(model="vit_l_16", checksum="852ce7e3", bytes=round(1161.023 * 2**20)),
        description="the published ViT-L/16",
    ),
)


def build(shape: ModelShape) -> VisionTransformer:
    """A vision transformer of the given shape with fresh weights and no dropout.

    Raises:
        BlastError: if patches do not tile the image.
    """
    from torch import nn
    from torchvision.models import VisionTransformer

    patch = shape.patch or shape.image // shape.patches
    if patch < 1 or shape.image % patch:
        wanted = f"a multiple of {shape.patch or shape.patches}"
        raise BlastError(f"images of {shape.image} pixels cannot be cut into whole patches; the side must be {wanted}.")
    model = VisionTransformer(
        image_size=shape.image,
        patch_size=patch,
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_dim=shape.hidden,
        mlp_dim=shape.ffn,
        dropout=0.0,
        attention_dropout=0.0,
        num_classes=shape.classes,
        norm_layer=partial(nn.LayerNorm, eps=shape.norm_eps),
    )
    if shape.channels != model.conv_proj.in_channels:
        # torchvision's class takes colour images only; a new first layer is initialised as torchvision does.
        model.conv_proj = nn.Conv2d(shape.channels, shape.hidden, kernel_size=patch, stride=patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=math.sqrt(1 / (shape.channels * patch * patch)))
        nn.init.zeros_(model.conv_proj.bias)
    if shape.patches:
        nn.init.normal_(model.encoder.pos_embedding, std=SMALL_POSITION_STD)
    return model
