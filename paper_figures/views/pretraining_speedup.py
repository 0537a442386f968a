"""Speed-up of a whole pretraining run over dense, derived from measured step times and the cubic schedule."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis import pretraining
from paper_figures.views import _style as style
from paper_figures.views import _training as training

TITLE = "Speed-up of pretraining as a whole"
CATEGORY = "Training"
SUITES = ("training_step",)
LINES = {"union": (0, (4, 2)), "swap": "-"}
LEAST = 0.5


def _panel(axes: Axes, times: pretraining.StepTimes, colour: str) -> None:
    highest = max(times.sparse)
    # Up to the highest measured sparsity, evenly spaced on the axis.
    first, last = style.sparsity_place(LEAST), style.sparsity_place(highest)
    finals = [1 - 2 ** -(first + (last - first) * step / 24) for step in range(25)]
    notes = []
    for growth, line in LINES.items():
        found = [pretraining.whole_run(times, final, growth).speed_up for final in finals]
        places = [style.sparsity_place(final) for final in finals]
        axes.plot(places, found, color=colour, linestyle=line, zorder=3)
        passed = pretraining.passed_at(times, growth)
        # With two digits, 1.109 would read as 1.11, which it does not reach.
        digits = 3 if passed is None and round(found[-1], 2) >= pretraining.PAPER_SPEED_UP else 2
        remark = "never 1.11×" if passed is None else f"1.11× from {100 * passed:g} %"
        notes.append(f"{growth} {found[-1]:.{digits}f}×, {remark}")
    steps = {sparsity: times.dense / value for sparsity, value in times.sparse.items()}
    places = [style.sparsity_place(sparsity) for sparsity in steps]
    axes.plot(places, list(steps.values()), color=colour, linestyle="none", marker="o", markerfacecolor="white",
              markeredgewidth=0.8, zorder=4)  # fmt: skip
    axes.axhline(pretraining.PAPER_SPEED_UP, color=style.MUTED, linewidth=0.7, linestyle=(0, (1, 1.5)))
    axes.axhline(1, color=style.INK, linewidth=0.7)
    axes.text(0.04, 0.97, "\n".join(notes), transform=axes.transAxes, va="top", fontsize=5.5, color=style.MUTED,
              linespacing=1.3)  # fmt: skip
    top = max(*steps.values(), pretraining.PAPER_SPEED_UP)
    axes.set_ylim(min(0.9, *steps.values()) - 0.02, 1 + (top - 1) * 1.45)
    style.sparsity_axis(axes, [LEAST, *steps], right=0.2)
    axes.set_xlabel("final sparsity (%)")


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model: whole runs with `union` and `swap`, and single steps."""
    rows = pretraining.step_rows(table)
    known = {case: pretraining.step_times(pretraining.of_case(rows, case)) for case in training.cases(rows)}
    known = {case: times for case, times in known.items() if times is not None and times.spanned}
    if not known:
        return style.not_run(TITLE, training.why_empty(table))
    figure, axes = training.panels(len(known), 1.9)
    for place, (case, times) in zip(axes, known.items(), strict=True):
        _panel(place, times, style.model_colour(case[0]))
        place.set_title(training.case_label(case), fontsize=6.5)
    for place in axes[::4]:
        place.set_ylabel("times faster than dense")
    entries = [style.handle(f"whole run, {growth}", linestyle=line) for growth, line in LINES.items()]
    entries += [
        style.handle("one step at that sparsity", marker="o", markerfacecolor="white"),
        style.handle("the paper's 1.11×", linestyle=(0, (1, 1.5)), linewidth=0.7),
    ]
    style.legend_above(figure, entries)
    style.finish(figure)
    style.footer(
        figure,
        rows[rows["metric"] == "step_time"],
        "Derived for as many steps as dense: cubic schedule, masks fixed for the last fifth, each step the faster of "
        "masked-dense and sparse, a mask update in every 100th step. Union is assumed to keep twice its budget until "
        "the masks are trimmed.",
        training.lost_points(table),
    )
    return figure
