"""The models of the suite `inference`: random weights, dense and with the masks of a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from blast_kernels.mlp_inference.row_lists import block_counts
from torch import Tensor, nn

import blast
from blast import architectures
from blast.benchmark.inputs.masks import masks_folder, trained_masks
from blast.benchmark.step.training_setup import random_model_masks
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.layers.sparse_mlp import SparseMlp
from blast.model.discovery import find_mlps
from blast.sparsity.one_shot import apply_masks_

# Our logits may be off from float32 by so many times the error of masked-dense in the same dtype, and by this besides.
FACTOR, LEAST = 2.0, 1e-3
# Spread of the weights of a head that would start at zero.
HEAD_STD = 0.02


class MaskedModel(NamedTuple):
    """Masks of all MLPs by module name, and what a record says of them."""

    masks: Mapping[str, Tensor]
    facts: dict[str, Any]


def random_model(architecture: str, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
    """A model with random weights in eval mode. It is built on its device in its dtype, and nowhere else.

    Raises:
        BlastError: if the architecture is an encoder.
    """
    if architectures.get(architecture).modality == "encoder":
        raise BlastError(f"'{architecture}' does not generate tokens; give a language model or a vision transformer.")
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = architectures.build(architecture).eval()
        _fill_heads(model)
        return model
    finally:
        torch.set_default_dtype(before)


def _fill_heads(model: nn.Module) -> None:
    """Gives random weights to a head that starts at zero, as torchvision's do: its logits could not be compared."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=HEAD_STD)


def masks_for(
    model: nn.Module, architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> MaskedModel:
    """Masks for a model of this architecture: random ones, or those of a trained model.

    Raises:
        BlastError: if there are none of this kind.
    """
    if settings["mask"] != "trained":
        return MaskedModel(random_model_masks(model, sparsity, block, seed, settings["mask"]), {})
    device = next(model.parameters()).device
    found = trained_masks(masks_folder(settings["masks_folder"]), architecture, sparsity, block, False, device)
    if found is None:
        raise BlastError(
            f"no trained masks of '{architecture}' at sparsity {sparsity:g} with blocks of {block[0]}x{block[1]} are "
            f"in '{settings['masks_folder']}'; train that point and export it, or set 'mask' to 'uniform'."
        )
    masks: dict[str, Tensor] = {}
    for mlp, layer in zip(find_mlps(model), found.layers, strict=True):
        masks |= {mlp.up.name: layer.up, mlp.down.name: layer.down}
        if mlp.gate is not None and layer.gate is not None:
            masks[mlp.gate.name] = layer.gate
    return MaskedModel(masks, found.facts)


def sparse_model(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Makes a model sparse and fuses it, in place."""
    return blast.fuse(blast.to_sparse(model, dict(masks), drop=True))


def bytes_of_step(model: nn.Module) -> int:
    """Bytes of the weights that a decoding step has to read, indices included.

    An input embedding is not read as a whole, unless it is the head too. Dead hidden blocks of a fused MLP, and the
    index of the transposed matrix, are not read.
    """
    any_model: Any = model
    embedding, head = any_model.get_input_embeddings().weight, any_model.get_output_embeddings().weight
    sizes = blast.model_bytes(model)
    read = sizes.weights - sizes.mlp - (0 if embedding is head else embedding.nbytes)
    fused = [module for module in model.modules() if isinstance(module, SparseMlp)]
    if not fused:
        return read + sizes.mlp
    return read + sum(map(bytes_of_mlp, fused))


def bytes_of_mlp(mlp: SparseMlp) -> int:
    """Bytes of the blocks and row lists that a fused MLP has to read; dead hidden blocks are not read."""
    lists, weights = mlp.row_lists, mlp.kernel_weights
    if lists is None:
        return 0
    block = mlp.layers[0].block
    element = weights.first.element_size()
    named = int(block_counts(lists.gate_up).sum()) * (2 if mlp.gate_kind == "tied" else 1)
    down = mlp.layers[-1].block
    blocks = named * block.rows * block.cols + int(block_counts(lists.down).sum()) * down.rows * down.cols
    return element * blocks + lists.gate_up.nbytes + lists.down.nbytes


def shares(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares of the MLP blocks of a fused model: `live`, and `computed`, without the dead hidden blocks."""
    total = sum(mask.numel() for mask in masks.values())
    live = sum(int(mask.sum()) for mask in masks.values())
    computed = 0
    for module in model.modules():
        if isinstance(module, SparseMlp) and module.row_lists is not None:
            lists = module.row_lists
            twice = 2 if module.gate_kind == "tied" else 1
            computed += twice * int(block_counts(lists.gate_up).sum()) + int(block_counts(lists.down).sum())
    return {"live": live / total, "computed": computed / total}


@torch.no_grad()
def check_logits(
    architecture: str, masks: Mapping[str, Tensor], block: BlockShape, ours: nn.Module, prompt: Tensor, seed: int
) -> float:
    """Compares the logits of our model with masked-dense in float32.

    Args:
        architecture: Name of the architecture.
        masks: The masks of our model.
        block: Their blocks.
        ours: The sparse model with random weights of `seed`.
        prompt: `[sequences, tokens]`, or images `[number, channels, side, side]`.
        seed: Seed of the weights.

    Returns:
        `‖ours − float32‖ / ‖float32‖` of the logits.

    Raises:
        BlastError: if that is more than twice the error of masked-dense in the dtype of our model.
    """
    first = next(ours.parameters())
    reference = random_model(architecture, first.dtype, first.device, seed)
    apply_masks_(reference, masks, block)
    rounded = _logits(reference, prompt)
    expected = _logits(reference.float(), prompt)
    scale = expected.norm()
    theirs, error = ((logits - expected).norm() / scale for logits in (rounded, _logits(ours, prompt)))
    if not error <= FACTOR * theirs + LEAST:
        raise BlastError(
            f"the sparse model of '{architecture}' is off by {error:.1e} from float32, and masked-dense by "
            f"{theirs:.1e}; no timing was recorded."
        )
    return float(error)


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits in float32, of tokens or images."""
    if inputs.is_floating_point():
        return model(inputs.to(next(model.parameters()).dtype)).float()
    return model(inputs).logits.float()
