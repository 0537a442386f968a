"""Loss by training step, with the target and the achieved sparsity."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing, without_execution_variants
from blast.experiment.analysis.recipe import recipe_points
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.records.table import one_machine
from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

TITLE = "Training curves"
CATEGORY = "Training"
SUITES = ("train",)
# Of the pruned models of a panel, those of the first of these methods that ran are drawn.
METHODS = ("blast", "gmp")


def _curve(rows: pd.DataFrame, metric: str) -> tuple[list[int], list[float]]:
    curve = rows[rows["metric"] == metric].sort_values("step")
    return curve["step"].astype(int).tolist(), curve["value"].tolist()


def _one_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Dense, and the pruned models of one method."""
    chosen = next((method for method in METHODS if (rows["method"] == method).any()), None)
    return rows[rows["method"].isin(["dense", chosen])]


def _panel(loss: Axes, share: Axes, rows: pd.DataFrame) -> None:
    lines = rows.groupby(["sparsity", "config"], sort=True)
    for (sparsity, _), line in lines:
        colour = style.sparsity_colour(sparsity)
        validated, values = _curve(line, "validation_loss")
        trained, noisy = _curve(line, "train_loss")
        if trained:
            loss.plot(trained, noisy, color=colour, linewidth=0.5, alpha=0.35, zorder=1)
        loss.plot(validated, values, color=colour, linewidth=1.2, zorder=3)
        if sparsity:
            steps, target = _curve(line, "sparsity_target")
            share.plot(
                steps,
                [100 * value for value in target],
                color=colour,
                linewidth=0.8,
                linestyle=(0, (3, 1.5)),
                drawstyle="steps-post",
            )
            steps, achieved = _curve(line, "sparsity_achieved")
            share.plot(steps, [100 * value for value in achieved], color=colour, linewidth=1.2, drawstyle="steps-post")
    # The scale is that of the last 80 % of the steps: the first losses would flatten the rest.
    losses = rows[rows["metric"].isin(["validation_loss", "train_loss"])]
    late = losses.loc[losses["step"] >= 0.2 * losses["step"].max(), "value"]
    if len(late) and late.max() > late.min():
        margin = 0.06 * (late.max() - late.min())
        loss.set_ylim(late.min() - margin, late.max() + margin)
    share.set_ylim(-4, 104)
    share.set_yticks([0, 50, 100])
    loss.tick_params(labelbottom=False)
    share.set_xlabel("step")


def draw(table: pd.DataFrame) -> Figure:
    """Draws seed 0 of dense and of one pruned recipe of each model and dataset: BLaST's, or else that of `gmp`."""
    table = table[(table["suite"] == "train") & table["method"].isin(["dense", *METHODS])]
    table = chosen_trials(without_execution_variants(table))
    curves = table[(table["status"] == "ok") & table["step"].notna()]
    recipes = recipe_points(table)
    keys = zip(curves["grid"], curves["hardware"], curves["point"], strict=True)
    curves = curves[pd.Series([key in recipes for key in keys], index=curves.index, dtype=bool)]
    curves = one_machine(curves[curves["seed"] == curves["seed"].min()])
    panels = [_one_method(rows) for _, rows in curves.groupby(["grid", "model", "dataset"], sort=True)]
    panels = [rows for rows in panels if (rows["metric"] == "validation_loss").any()]
    if not panels:
        return style.not_run(TITLE, style.why_empty(table))
    width = style.DOUBLE if len(panels) > 1 else style.COLUMN
    columns = min(4, len(panels))
    count = -(-len(panels) // columns)
    figure = style.new_figure(width, 2.55 * count + 0.5)
    grid = figure.subplots(2 * count, columns, squeeze=False, height_ratios=[2, 1] * count)
    for place in range(count * columns):
        loss, share = grid[2 * (place // columns), place % columns], grid[2 * (place // columns) + 1, place % columns]
        if place >= len(panels):
            loss.set_visible(False)
            share.set_visible(False)
            continue
        share.sharex(loss)  # Not with the panels of other rows, whose runs have other lengths.
        rows = panels[place]
        first = rows.iloc[0]
        _panel(loss, share, rows)
        _, name = start_and_grid(first, curves["grid"].nunique())
        # Panels of another method than BLaST name it.
        other = ", GMP" if (rows["method"] == METHODS[1]).any() else ""
        loss.set_title(f"{style.model_label(first['model'])}{other}\n{style.dataset_label(first['dataset'])}{name}")
        if place % columns == 0:
            share.set_ylabel("sparsity (%)")
        unit = rows.loc[rows["metric"] == "validation_loss", "unit"].iloc[0] or "nats"
        loss.set_ylabel(f"loss ({unit})" if place % columns == 0 or unit != _unit(panels[place - 1]) else "")
    sparsities = sorted(set(curves["sparsity"]))
    entries = [
        style.handle("dense" if not value else f"{100 * value:g} %", linestyle="-", color=style.sparsity_colour(value))
        for value in sparsities
    ]
    entries += [
        style.handle("validation loss", linestyle="-", linewidth=1.2),
        style.handle("training loss", linestyle="-", linewidth=0.5, alpha=0.6),
        style.handle("achieved sparsity", linestyle="-", linewidth=1.2),
        style.handle("target sparsity", linestyle=(0, (3, 1.5)), linewidth=0.8),
    ]
    style.legend_above(figure, entries)
    style.finish(figure)
    style.footer(figure, curves, f"Seed {curves['seed'].min()}.", style.missing_remark(missing(table)))
    return figure


def _unit(rows: pd.DataFrame) -> str:
    return rows.loc[rows["metric"] == "validation_loss", "unit"].iloc[0] or "nats"
