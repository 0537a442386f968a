"""Loss across the switch from masked-dense to sparse, compared with the same run without the switch."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.execution_pairs import ExecutionPair, execution_pairs
from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

TITLE = "Loss across the switch"
CATEGORY = "Training"
SUITES = ("train",)
MASKED_COLOUR, SWITCHING_COLOUR = style.INK, "#D55E00"
EARLY = 0.2


def _nats(gap: float) -> str:
    return f"{gap:.1e}" if gap else "0"


def _note(pair: ExecutionPair) -> str:
    """The step of the switch, and the largest differences in training loss before and after it."""
    found = pair.curves("train_loss")
    if pair.first_sparse_step is None:
        state = "never sparse" if pair.state_recorded else "step of the switch\nnot recorded"
        return f"{state};\ndifference at most {_nats(found.largest_gap(0))} nats"
    before, after = found.largest_gap(0, pair.first_sparse_step), found.largest_gap(pair.first_sparse_step)
    parts = [f"{_nats(gap)} {words}" for words, gap in (("before", before), ("after", after)) if gap is not None]
    return f"sparse from step {pair.first_sparse_step};\ndifference at most {', '.join(parts)}"


def _panel(loss: Axes, gap: Axes, pair: ExecutionPair, grids: int) -> None:
    trained, validated = pair.curves("train_loss"), pair.curves("validation_loss")
    loss.plot(trained.steps, trained.masked, color=MASKED_COLOUR, linewidth=2.2, alpha=0.35, zorder=2)
    loss.plot(trained.steps, trained.switching, color=SWITCHING_COLOUR, linewidth=0.8, zorder=3)
    late = [value for step, value in zip(trained.steps, trained.masked, strict=True)
            if step >= EARLY * trained.steps[-1]]  # fmt: skip
    margin = 0.1 * (max(late) - min(late)) or 0.1
    loss.set_ylim(min(late) - margin, max(late) + margin)
    gap.axhline(0, color=style.INK, linewidth=0.6)
    gap.plot(trained.steps, trained.gaps, color=SWITCHING_COLOUR, linewidth=0.8, zorder=3)
    gap.plot(validated.steps, validated.gaps, color=SWITCHING_COLOUR, marker="o", markersize=2.4, linestyle="none",
             markerfacecolor="white", markeredgewidth=0.7, zorder=4)  # fmt: skip
    widest = max(map(abs, [*trained.gaps, *validated.gaps])) or 1e-6
    gap.set_ylim(-1.25 * widest, 1.25 * widest)
    gap.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    gap.yaxis.get_offset_text().set_fontsize(6)
    if pair.first_sparse_step is not None:
        for axes in (loss, gap):
            axes.axvline(pair.first_sparse_step, color=style.MUTED, linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=1)
    loss.text(0.99, 0.97, _note(pair), transform=loss.transAxes, ha="right", va="top", fontsize=5.5,
              color=style.MUTED, linespacing=1.3, bbox=style.BEHIND_TEXT)  # fmt: skip
    first = pair.point
    what = f"{style.model_label(first.model)}, {style.method_label(first.method)} {100 * first.sparsity:g} %"
    loss.set_title(f"{what}\n{style.dataset_label(first.dataset)}{start_and_grid(first, grids)[1]}")
    loss.tick_params(labelbottom=False)
    gap.set_xlabel("step")


def draw(table: pd.DataFrame) -> Figure:
    """Draws a column for each pair of runs that differ in `execution` alone: losses above, their difference below."""
    table = table[table["suite"] == "train"]
    pairs = [pair for pair in execution_pairs(table) if pair.curves("train_loss").steps]
    if not pairs:
        return style.not_run(TITLE, style.why_empty(table[table["same_but_execution"].notna()]))
    columns = min(2, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.7 * lines + 0.5)
    grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[3, 2] * lines)
    for place in range(lines * columns):
        loss, gap = grid[2 * (place // columns), place % columns], grid[2 * (place // columns) + 1, place % columns]
        if place >= len(pairs):
            loss.set_visible(False)
            gap.set_visible(False)
            continue
        gap.sharex(loss)
        _panel(loss, gap, pairs[place], len({pair.point.grid for pair in pairs}))
        if place % columns == 0:
            loss.set_ylabel("training loss (nats)")
            gap.set_ylabel("difference (nats)")
    style.legend_above(figure, [
        style.handle("always masked-dense", linestyle="-", linewidth=2.2, alpha=0.35, color=MASKED_COLOUR),
        style.handle("switches to sparse, and its difference", linestyle="-", linewidth=0.8, color=SWITCHING_COLOUR),
        style.handle("difference in validation loss", marker="o", markersize=2.4, markerfacecolor="white",
                     color=SWITCHING_COLOUR),
        style.handle("switch", linestyle=(0, (3, 1.5)), linewidth=0.8),
    ])  # fmt: skip
    style.finish(figure)
    shown = pd.concat([pair.rows for pair in pairs])
    lost = missing(table[table["execution"] == "masked"], execution_variants=True)
    style.footer(figure, shown, "Both runs have the same seed and batches.", style.missing_remark(lost))
    return figure
