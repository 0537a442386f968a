"""Shared by all figures: sizes, colours, markers, labels, the footer and the "not run" panel."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from blast import datasets
from blast.experiment.records.data_versions import split_version
from blast.sparsity.config import METHOD_DETAILS
from paper_figures.views._titles import DPI, fit_titles

# Inches: one and two columns of a two-column paper.
COLUMN, DOUBLE = 3.4, 7.0
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
# Palette of Okabe and Ito, safe for colour-blind readers; one colour for each family of models.
FAMILIES = {"gpt2": "#0072B2", "llama": "#D55E00", "vit": "#009E73", "qwen": "#CC79A7", "smollm": "#E69F00"}
OTHER = "#56B4E9"
# Behind a text that stands over lines.
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
MARKER_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "h")


class Mark(NamedTuple):
    """Label and marker of a method in all figures."""

    label: str
    marker: str


# A method that is not listed is drawn as X.
MARKERS = {"blast": "o", "rigl_swap": "D", "random": "^", "one_shot": "s", "one_shot_wanda": "v", "one_shot_obs": "P",
           "small_dense": "X", "gmp": "h"}  # fmt: skip
# Where methods share a panel; one that is not listed is grey.
METHOD_COLOURS = {"blast": "#0072B2", "rigl_swap": "#CC79A7", "gmp": "#D55E00", "small_dense": "#009E73"}
METHODS = {
    "dense": Mark("dense", "_"),
    **{name: Mark(method.label, MARKERS.get(name, "X")) for name, method in METHOD_DETAILS.items()},
}
METRICS = {
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
    "loss": "loss (nats)",
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "acc": "accuracy (%)",
    "acc_norm": "normalised accuracy (%)",
}
_WORDS = {
    "gpt2": "GPT-2",
    "llama": "Llama",
    "vit": "ViT",
    "qwen3": "Qwen3",
    "smollm2": "SmolLM2",
    "xl": "XL",
    "1b": "1B",
    "135m": "135M",
    "b": "B",
    "l": "L",
    "s": "S",
}
_TASKS = {"pystdlib_next_line": "next line", "pystdlib_heldout": "held-out files"}

RC = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5, "legend.frameon": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "lines.linewidth": 1.3, "lines.markersize": 4, "figure.dpi": 100, "savefig.dpi": DPI,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#ececec", "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure in the common style. Sizes are in inches. With `layout=None`, the caller places the axes."""
    mpl.use("Agg")
    sns.set_theme(context="paper", style="ticks", rc=RC)
    return Figure(figsize=(width, height), layout=layout)


def model_colour(model: str) -> str:
    """Colour of a model, which is that of its family."""
    return next((colour for family, colour in FAMILIES.items() if str(model).startswith(family)), OTHER)


def sparsity_colour(sparsity: float) -> Any:
    """Dark ink for dense; for pruned models from light to strong with increasing sparsity."""
    if not sparsity:
        return INK
    # Half empty is the light end, 96 % the strong one.
    place = (sparsity_place(sparsity) - 1) / (sparsity_place(0.96) - 1)
    return sns.color_palette("flare", as_cmap=True)(min(1.0, max(0.0, place)))


def sparsity_place(sparsity: float) -> float:
    """Position of a sparsity on the axis. Each halving of the remaining weights has the same width."""
    return -math.log2(1 - sparsity)


def sparsity_axis(axes: Axes, sparsities: Iterable[float], right: float = 0.3) -> None:
    """Labels the horizontal axis with the given sparsities."""
    known = sorted({value for value in sparsities if value > 0}) or [0.5, 0.95]
    places = [sparsity_place(value) for value in known]
    axes.set_xticks(places, [f"{100 * value:g}" for value in known])
    axes.set_xlim(places[0] - 0.3, places[-1] + right)
    axes.set_xlabel("sparsity of MLP weights (%)")


def model_label(model: str) -> str:
    """`GPT-2 nano` for `gpt2-nano`."""
    words = [_WORDS.get(word, word) for word in str(model).split("-")]
    return re.sub(r"(\d)b\b", r"\1B", " ".join(words))


def method_label(method: str) -> str:
    """`swap (RigL)` for `rigl_swap`."""
    return METHODS[method].label if method in METHODS else str(method).replace("_", " ")


def method_colour(method: str) -> str:
    """Colour of a method where methods share a panel."""
    return METHOD_COLOURS.get(method, INK if method == "dense" else MUTED)


def dataset_label(dataset: Any) -> str:
    """`Fashion-MNIST` for `fashion_mnist`, without the name of a tokenizer; empty for none.

    One of several versions is named too: `technical English, data 1c77784e`.
    """
    if dataset is None or pd.isna(dataset):
        return ""
    name, version = split_version(str(dataset))
    return datasets.label(datasets.base_name(name)) + (f", data {version}" if version else "")


def metric_label(metric: str, task: Any = None) -> str:
    """Name and unit of a metric; those of a task of lm-eval also name it, held-out text apart."""
    name = METRICS.get(metric, metric.replace("_", " "))
    if task is not None and not pd.isna(task) and not str(task).endswith("_heldout"):
        return f"{_TASKS.get(task, str(task).replace('_', ' '))} {name}"
    return name


def in_percent(metric: str) -> float:
    """Factor from the stored to the displayed value: 100 for fractions, else 1."""
    return 100.0 if METRICS.get(metric, "").endswith("(%)") else 1.0


def hardware_label(hardware: Any) -> str:
    """`CPU (AMD EPYC)` for `cpu-amd-epyc`, so that nobody takes it for a GPU."""
    if hardware is None or pd.isna(hardware):
        return "no machine"
    words = [word for word in str(hardware).split("-") if word not in ("cpu", "r", "tm", "core", "processor")]
    known = {
        "intel": "Intel",
        "xeon": "Xeon",
        "epyc": "EPYC",
        "geforce": "GeForce",
        "platinum": "Platinum",
        "gold": "Gold",
        "family": "family",
        "model": "model",
    }
    name = " ".join(known.get(word, word.upper() if len(word) < 7 else word) for word in words)
    return f"CPU ({name})" if str(hardware).startswith("cpu") else name


def series_looks(series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Colour and marker of each model and dataset: the colour of the model's family, and a marker of its own in it."""
    looks: dict[tuple[str, str], dict[str, Any]] = {}
    for model, dataset in sorted(set(series)):
        colour = model_colour(model)
        place = sum(look["color"] == colour for look in looks.values())
        looks[model, dataset] = {"color": colour, "marker": MARKER_SHAPES[place % len(MARKER_SHAPES)]}
    return looks


def handle(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], label=label, **({"linestyle": "none", "color": MUTED} | style))


def seed_handle() -> Line2D:
    """The legend entry of the broad bars that span lowest to highest seed."""
    return handle("spread of seeds", linestyle="-", linewidth=3.2, alpha=0.4, solid_capstyle="butt")


def legend_above(figure: Figure, handles: list[Line2D], length: float = 1.6) -> None:
    """One legend for the whole figure, above the panels, in as few lines as possible.

    Args:
        figure: The figure.
        handles: The entries.
        length: Of the lines in the entries, in letters: longer where patterns of lines tell them apart.
    """
    widths = range(len(handles), 0, -1)
    columns = next(count for count in widths if count == 1 or _fits(figure, handles, count, length))
    lines = -(-len(handles) // columns)
    columns = -(-len(handles) // lines)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, borderaxespad=0.1, handletextpad=0.4,
        columnspacing=1.2, handlelength=length, labelspacing=0.3,
    )  # fmt: skip


def _fits(figure: Figure, handles: list[Line2D], columns: int, length: float) -> bool:
    """Whether a legend with `columns` columns, filled column by column, is narrower than the figure."""
    rows = -(-len(handles) // columns)
    widest = [max(len(entry.get_label()) for entry in handles[i : i + rows]) for i in range(0, len(handles), rows)]
    # Inches: width of a letter, and of the line and gaps beside the text.
    beside = 0.196 + 0.09 * length
    return sum(0.047 * letters + beside for letters in widest) < figure.get_figwidth() - 0.1


def missing_remark(lost: pd.DataFrame, shown: int = 4) -> str:
    """A sentence for the footer with the points that failed or were not run; empty if there are none."""
    parts = []
    for status, rows in lost.groupby("status", sort=True):
        names = [
            f"{model_label(row.model)} {dataset_label(row.dataset)} {method_label(row.method)} "
            f"{100 * row.sparsity:g} % seed {row.seed}".replace("  ", " ")
            for row in rows.itertuples(index=False)
        ]
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        parts.append(f"{str(status).capitalize()}: {', '.join(names[:shown])}{more}.")
    return " ".join(parts)


def side_by_side_remark(table: pd.DataFrame) -> str:
    """A sentence for the footer of times, if some runs shared their machine with others; empty if none did."""
    timed = table[(table["suite"] == "train") & (table["metric"] == "training_time") & table["side_by_side"].notna()]
    count = len(timed[["grid", "point"]].drop_duplicates())
    return f"{count} runs were timed beside others on their machine." if count else ""


def footer(figure: Figure, shown: pd.DataFrame, *remarks: str) -> None:
    """Small print below the panels: machines, grids, seeds, source of the results, and remarks.

    Args:
        figure: The figure, complete except for the footer.
        shown: The rows that it shows.
        remarks: More sentences; empty ones are ignored.
    """
    lines = []
    if len(shown):
        machines = ", ".join(hardware_label(name) for name in sorted(set(shown["hardware"].dropna())))
        grids = ", ".join(sorted(set(shown["grid"].dropna())))
        sources = " and ".join(sorted(set(shown["source"].dropna())))
        most = int(shown["seeds"].max()) if "seeds" in shown else 0
        seeds = {0: "", 1: "; one seed"}.get(most, f"; up to {most} seeds")
        lines.append(f"Measured on {machines}; grid {grids}{seeds}; {sources} results.")
    lines += [remark for remark in remarks if remark]
    width, height = figure.get_size_inches()
    wrapped = textwrap.wrap(" ".join(lines), int(width * 22.5))
    share = (0.115 * len(wrapped) + 0.05) / height
    if figure.get_layout_engine() is not None:
        figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.008, 0.03 / height, "\n".join(wrapped), fontsize=5.5, color=MUTED, va="bottom", linespacing=1.25)


def empty_panel(axes: Axes, text: str = "not run") -> None:
    """Turns a panel into a frame with the reason why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linestyle=(0, (4, 3)))
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes, fontsize=8)


def not_run(title: str, text: str = "not run", width: float = COLUMN) -> Figure:
    """A figure of one empty panel, if nothing was measured."""
    figure = new_figure(width, 1.8)
    axes = figure.subplots()
    axes.set_title(title)
    empty_panel(axes, text)
    # The report shows no picture of an empty panel.
    figure.set_label(text)
    return figure


def why_empty(table: pd.DataFrame) -> str:
    """`failed` if every point failed, else `not run`."""
    tried = set(table["status"]) if len(table) else set()
    return "failed" if tried == {"failed"} else "not run"


def mark_missing(axes: Axes, place: float, status: str, marker: str = "") -> None:
    """Writes `failed` or `not run` vertically at the bottom of a panel, above `marker` if one is given."""
    foot = 0.03
    if marker:
        axes.plot(place, 0.05, marker=marker, color=MUTED, markerfacecolor="none", markersize=3, markeredgewidth=0.6,
                  linestyle="none", transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
        foot = 0.1
    axes.text(place, foot, status, rotation=90, ha="center", va="bottom", fontsize=5.5, color=MUTED,
              transform=axes.get_xaxis_transform())  # fmt: skip


def finish(figure: Figure) -> None:
    """Removes the top and right frame lines, and makes the titles fit; call it when all panels are drawn."""
    fit_titles(figure)
    for axes in figure.axes:
        if axes.lines or axes.collections:
            sns.despine(ax=axes)
