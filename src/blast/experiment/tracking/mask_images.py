"""Images of block masks: which blocks of a matrix are live, and how that changed during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blast.experiment.records.masks import read_masks

LIVE, DEAD, PAPER, INK = (31, 78, 121), (226, 230, 234), (255, 255, 255), (40, 40, 40)
_CELL = 176  # px, the longest side of one mask
_GAP = 16  # px
_LINE = 16  # px, a line of text
_TEXT = 12  # px


def _scaled(mask: np.ndarray, longest: int) -> Image.Image:
    """One mask, at most `longest` px wide and high. If blocks outnumber pixels, a pixel shows their mean."""
    rows, cols = mask.shape
    pixels = np.where(mask[:, :, None], np.array(LIVE, np.uint8), np.array(DEAD, np.uint8))
    image = Image.fromarray(pixels.astype(np.uint8))
    zoom = longest // max(rows, cols)
    if zoom >= 1:
        return image.resize((cols * zoom, rows * zoom), Image.Resampling.NEAREST)
    shrink = longest / max(rows, cols)
    return image.resize((max(1, round(cols * shrink)), max(1, round(rows * shrink))), Image.Resampling.BOX)


def _live_share(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.3g} % live"


def _grid(rows: list[tuple[str, list[tuple[str, np.ndarray]]]]) -> Image.Image:
    """An image with one row for each entry of `rows`: a heading, then masks with captions."""
    font = ImageFont.load_default(_TEXT)
    drawn = [(head, [(caption, _scaled(mask, _CELL)) for caption, mask in cells]) for head, cells in rows]
    heights = [_LINE + max(cell.height for _, cell in cells) + _LINE + _GAP for _, cells in drawn]
    columns = max(len(cells) for _, cells in drawn)
    longest = max(font.getlength(head) for head, _ in drawn)
    width = max(_GAP + columns * (_CELL + _GAP), round(longest) + 2 * _GAP)
    sheet = Image.new("RGB", (width, _GAP + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for (head, cells), height in zip(drawn, heights, strict=True):
        pen.text((_GAP, top), head, INK, font=font)
        for column, (caption, cell) in enumerate(cells):
            left = _GAP + column * (_CELL + _GAP)
            sheet.paste(cell, (left, top + _LINE + 2))
            pen.text((left, top + _LINE + 4 + cell.height), caption, INK, font=font)
        top += height
    return sheet


def _head(name: str, mask: np.ndarray) -> str:
    return f"{name}   {mask.shape[0]} x {mask.shape[1]} blocks"


def _evenly_spaced(names: list[str], limit: int) -> list[str]:
    """At most `limit` names, evenly spaced, with the first and the last."""
    if len(names) <= limit:
        return names
    return [names[round(i * (len(names) - 1) / (limit - 1))] for i in range(limit)]


def draw_masks(masks_file: Path, folder: Path, *, matrices: int = 12, moments: int = 8) -> list[Path]:
    """Draws `over_time.png` (matrices by steps) and `last.png` (the final masks of all matrices).

    Args:
        masks_file: `masks.safetensors` of a point.
        folder: Folder for the images; created if missing.
        matrices: Maximum number of rows of `over_time.png`. Of more matrices, evenly spaced ones are drawn.
        moments: Maximum number of columns of `over_time.png`.

    Returns:
        The files; empty if there is no mask.

    Raises:
        BlastError: if the masks are damaged.
    """
    masks = read_masks(masks_file)
    if not masks:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    chosen = _evenly_spaced(list(masks), matrices)
    rows = []
    for name in chosen:
        history = masks[name]
        steps = [int(step) for step in _evenly_spaced([str(step) for step in history], moments)]
        cells = [(f"step {step}, {_live_share(history[step])}", history[step]) for step in steps]
        rows.append((_head(name, history[steps[-1]]), cells))
    if len(chosen) < len(masks):
        rows[0] = (f"{len(chosen)} of {len(masks)} matrices.   {rows[0][0]}", rows[0][1])
    _grid(rows).save(folder / "over_time.png", optimize=True)

    last = {name: history[max(history)] for name, history in masks.items()}
    names = _evenly_spaced(list(last), 64)
    cells = [(f"{name.split('.')[-1]}, {_live_share(last[name])}", last[name]) for name in names]
    by_parent: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, cell in zip(names, cells, strict=True):
        by_parent.setdefault(name.rpartition(".")[0] or name, []).append(cell)
    _grid(list(by_parent.items())).save(folder / "last.png", optimize=True)
    return [folder / "over_time.png", folder / "last.png"]
