"""Block masks for timing kernels: uniform, skewed, without dead hidden blocks, or of trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blast.benchmark.inputs.mask_file import read_facts, read_mask_file
from blast.benchmark.inputs.mlp import MlpMasks, MlpSize
from blast.block_sparse.blocks import keep_count
from blast.errors import BlastError, unknown_name
from blast.files import file_digest

# A row's share of the live blocks falls with its rank to this power: the longest of 128 rows is 11 times the median.
SKEW = 0.6
INFERENCE_KINDS = ("uniform", "skewed", "trained")
TRAINING_KINDS = ("uniform", "every_hidden_live")


def random_masks(
    kind: str,
    hidden: int,
    ffn: int,
    gated: bool,
    tied: bool,
    sparsity: float,
    block: tuple[int, int],
    generator: torch.Generator,
    down_block: tuple[int, int] | None = None,
) -> MlpMasks:
    """Random masks of one MLP, drawn on the generator's device; each matrix keeps exactly its number of blocks.

    Args:
        kind: `uniform` or `skewed` (rows of very different lengths).
        hidden: Width of the model.
        ffn: Inner width of the MLP.
        gated: Whether the MLP has a gate.
        tied: Whether gate and up share a mask.
        sparsity: Share of empty blocks.
        block: `[out, in]` of up and gate.
        generator: Its state decides the masks.
        down_block: `[out, in]` of the down projection; None means `block`.
    """

    def draw(out: int, into: int, sides: tuple[int, int]) -> Tensor:
        return _draw(kind, out // sides[0], into // sides[1], sparsity, generator)

    up = draw(ffn, hidden, block)
    gate = (up if tied else draw(ffn, hidden, block)) if gated else None
    return MlpMasks(up, draw(hidden, ffn, down_block or block), gate)


def _draw(kind: str, rows: int, cols: int, sparsity: float, generator: torch.Generator) -> Tensor:
    if kind not in ("uniform", "skewed"):
        raise unknown_name("mask", kind, INFERENCE_KINDS)
    chance = torch.rand(rows, cols, generator=generator, device=generator.device)
    if kind == "skewed":
        rank = torch.randperm(rows, generator=generator, device=generator.device) + 1
        # Taking the largest u^(1/w) draws without replacement with weights w.
        chance = chance.log() * (rank.float() ** SKEW)[:, None]
    mask = torch.zeros(rows * cols, dtype=torch.bool, device=generator.device)
    mask[chance.flatten().topk(keep_count(rows * cols, sparsity)).indices] = True
    return mask.view(rows, cols)


class TrainedMasks(NamedTuple):
    """Masks of a trained model, one entry a layer, and facts that identify them in a record."""

    layers: list[MlpMasks]
    facts: dict[str, Any]


def masks_folder(name: str) -> Path:
    """The folder of recorded masks, relative to the current folder, or else to the checkout of this code."""
    here = Path(name)
    return here if here.is_dir() else Path(__file__).resolve().parents[4] / here


def trained_masks(
    folder: Path, architecture: str, sparsity: float, block: tuple[int, int], tied: bool, device: Any
) -> TrainedMasks | None:
    """Masks of a trained model, from the files that `blast records export` wrote.

    If several models match, models of the method `blast` come first, and then the newest.

    Args:
        folder: Folder with the files, at any depth.
        architecture: Name of the model.
        sparsity: Share of empty blocks.
        block: `[out, in]`.
        tied: Whether gate and up share a mask; then both get the mask of the up projection.
        device: Device of the masks.

    Returns:
        The masks; None if no file has that model, sparsity and block.

    Raises:
        BlastError: if a file is damaged, or a mask in it is not of an MLP.
    """
    found = []
    for file in sorted(Path(folder).rglob("*.safetensors")):
        facts = read_facts(file)
        same = facts["model"] == architecture and tuple(facts["block"]) == tuple(block)
        if same and abs(facts["sparsity"] - sparsity) < 1e-9:
            found.append((facts["method"] == "blast", facts["date"] or "", str(file)))
    if not found:
        return None
    file = Path(max(found)[2])
    masks, facts = read_mask_file(file)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        layers.setdefault(path, {})[leaf] = torch.from_numpy(mask).to(device)
    try:
        roles = [_roles(matrices, tied) for matrices in layers.values()]
    except ValueError as error:
        raise BlastError(
            f"{file}: it has masks that are not of an MLP ({error}); give a 'masks_folder' without this file."
        ) from error
    return TrainedMasks(roles, {"masks_of": facts["point"], "masks_digest": file_digest(file)})


def _roles(matrices: dict[str, Tensor], tied: bool) -> MlpMasks:
    gates = [mask for leaf, mask in matrices.items() if "gate" in leaf]
    others = {leaf: mask for leaf, mask in matrices.items() if "gate" not in leaf}
    downs = [leaf for leaf in others if leaf in ("c_proj", "down_proj", "fc2", "3")]
    if len(others) != 2 or len(downs) != 1 or len(gates) > 1:
        raise ValueError(f"matrices {', '.join(matrices)} in one layer")
    down = others.pop(downs[0])
    (up,) = others.values()
    return MlpMasks(up, down, (up if tied else gates[0]) if gates else None)


def training_masks(
    kind: str, size: MlpSize, tied: bool, sparsity: float, generator: torch.Generator
) -> MlpMasks | None:
    """Random masks of one MLP, drawn on the generator's device; each matrix keeps exactly its number of blocks.

    Args:
        kind: `uniform`, or `every_hidden_live`. The latter gives each row of gate and up and each column of the down
            projection a block; the other blocks are uniform. Uniform masks leave dead hidden blocks, which the kernels
            skip.
        size: The MLP.
        tied: Whether gate and up share a mask.
        sparsity: Share of empty blocks.
        generator: Its state decides the masks.

    Returns:
        The masks; None if fewer blocks are live than there are hidden blocks, so that some must be dead.

    Raises:
        BlastError: for an unknown kind.
    """
    if kind not in TRAINING_KINDS:
        raise unknown_name("mask", kind, TRAINING_KINDS)
    if kind == "uniform":
        shape = (size.hidden, size.ffn, size.gated, tied, sparsity, size.block)
        return random_masks(kind, *shape, generator, size.down_block)
    (b_out, b_in), (d_out, d_in) = size.block, size.down_block
    up_grid = (size.ffn // b_out, size.hidden // b_in)
    down_grid = (size.ffn // d_in, size.hidden // d_out)  # transposed: one row per hidden block
    if any(keep_count(rows * cols, sparsity) < rows for rows, cols in (up_grid, down_grid)):
        return None
    up = _no_empty_row(*up_grid, sparsity, generator)
    gate = (up if tied else _no_empty_row(*up_grid, sparsity, generator)) if size.gated else None
    return MlpMasks(up, _no_empty_row(*down_grid, sparsity, generator).t().contiguous(), gate)


def live_share(masks: MlpMasks) -> float:
    """Share of the hidden blocks that can be non-zero and that the down projection reads."""
    live = masks.down.any(0)
    if masks.gate is not None:
        live = live & masks.up.any(1) & masks.gate.any(1)
    return live.float().mean().item()


def _no_empty_row(rows: int, cols: int, sparsity: float, generator: torch.Generator) -> Tensor:
    chance = torch.rand(rows, cols, generator=generator, device=generator.device)
    # The best block of each row ranks above all others.
    chance[torch.arange(rows, device=chance.device), chance.argmax(1)] += 1
    mask = torch.zeros(rows * cols, dtype=torch.bool, device=chance.device)
    mask[chance.flatten().topk(keep_count(rows * cols, sparsity)).indices] = True
    return mask.view(rows, cols)
