"""Block masks to time kernels with: uniform at random, skewed, and those of trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blast.errors import BlastError, unknown_name
from blast.sparsity.blocks import keep_count

# A row's share of the live blocks falls with its rank to this power: the longest of 128 rows is 11 times the median.
SKEW = 0.6
KINDS = ("uniform", "skewed", "trained")


class MlpMasks(NamedTuple):
    """Masks of one MLP, bool `[out / b_out, in / b_in]`; `gate` is None without one."""

    up: Tensor
    down: Tensor
    gate: Tensor | None


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
    """Masks of one MLP with exactly the budget of each matrix, drawn on the device of the generator.

    Args:
        kind: `uniform` or `skewed` (rows of very different lengths).
        hidden: Width of the model.
        ffn: Inner width of the MLP.
        gated: Whether there is a gate.
        tied: Whether gate and up share a mask.
        sparsity: Share of empty blocks.
        block: `[out, in]` of up and gate.
        generator: Its state decides the masks.
        down_block: `[out, in]` of the down projection; None: as the others.
    """

    def draw(out: int, into: int, sides: tuple[int, int]) -> Tensor:
        return _draw(kind, out // sides[0], into // sides[1], sparsity, generator)

    up = draw(ffn, hidden, block)
    gate = (up if tied else draw(ffn, hidden, block)) if gated else None
    return MlpMasks(up, draw(hidden, ffn, down_block or block), gate)


def _draw(kind: str, rows: int, cols: int, sparsity: float, generator: torch.Generator) -> Tensor:
    if kind not in ("uniform", "skewed"):
        raise unknown_name("mask", kind, KINDS)
    chance = torch.rand(rows, cols, generator=generator, device=generator.device)
    if kind == "skewed":
        rank = torch.randperm(rows, generator=generator, device=generator.device) + 1
        # The largest of u^(1/w) are a draw without replacement with weights w.
        chance = chance.log() * (rank.float() ** SKEW)[:, None]
    mask = torch.zeros(rows * cols, dtype=torch.bool, device=generator.device)
    mask[chance.flatten().topk(keep_count(rows * cols, sparsity)).indices] = True
    return mask.view(rows, cols)


def trained_masks(
    folder: Path, architecture: str, sparsity: float, block: tuple[int, int], tied: bool, device: Any
) -> list[MlpMasks]:
    """Masks that training left, one entry a layer, from `<architecture>.s<percent>.b<out>x<in>.safetensors`.

    The file is the `masks.safetensors` of a point, as it is: `step<step>/<module>`, uint8; its last step is taken.

    Args:
        folder: Where such files are.
        architecture: Name of the model.
        sparsity: Share of empty blocks.
        block: `[out, in]`.
        tied: Whether gate and up are to share a mask; then those of the up projection are taken for both.
        device: Where to put them.

    Returns:
        The masks; empty if there is no such file.

    Raises:
        BlastError: if the file holds something else.
    """
    file = Path(folder, f"{architecture}.s{100 * sparsity:g}.b{block[0]}x{block[1]}.safetensors")
    if not file.is_file():
        return []
    from safetensors.torch import load_file

    stored = load_file(file)
    last = max((name.partition("/")[0] for name in stored), default="")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, mask in stored.items():
        step, _, module = name.partition("/")
        if step == last:
            path, _, leaf = module.rpartition(".")
            layers.setdefault(path, {})[leaf] = mask.to(device).bool()
    try:
        return [_roles(matrices, tied) for matrices in layers.values()]
    except (KeyError, ValueError) as error:
        raise BlastError(
            f"{file}: holds no masks of MLPs ({error}); copy the masks.safetensors of a trained point there."
        ) from error


def _roles(matrices: dict[str, Tensor], tied: bool) -> MlpMasks:
    gates = [mask for leaf, mask in matrices.items() if "gate" in leaf]
    others = {leaf: mask for leaf, mask in matrices.items() if "gate" not in leaf}
    downs = [leaf for leaf in others if leaf in ("c_proj", "down_proj", "fc2", "3")]
    if len(others) != 2 or len(downs) != 1 or len(gates) > 1:
        raise ValueError(f"matrices {', '.join(matrices)} in one layer")
    down = others.pop(downs[0])
    (up,) = others.values()
    return MlpMasks(up, down, (up if tied else gates[0]) if gates else None)
