"""Which configurations a figure of quality shows: the recipe of each method, and not its levers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from blast import architectures
from blast.experiment.analysis.comparison import QUALITY, main_metric, summarise
from blast.experiment.plan.grid import SMALL_DENSE, equal_weights_ffn

# Models that are compared: dense ones of one start, trained on as many tokens, and what was pruned beside them.
STUDY = ("grid", "hardware", "model", "dataset", "start", "trained")
STARTS = ("scratch", "pretrained", "published", "parent")
ACCURACIES = ("top1", "acc")
_RATE = re.compile(r"(?:^|[._-])lr[0-9][0-9.]*(?:e[+-]?[0-9]+)?(?=$|[._-])")


def variant_of(point: str) -> str:
    """The `variant` in the id of a point, without a word that names a learning rate: `lr9e-4`.

    Example:
        >>> variant_of("gpt2.technical_text.blast.s95.b64.seed0.taught.lr1.2e-3")
        'taught'
    """
    _, _, rest = re.sub(r"\.seed\d+", ".seed", point, count=1).partition(".seed")
    start = next((word for word in STARTS if rest == f".{word}" or rest.startswith(f".{word}.")), "")
    rest = rest.removeprefix(f".{start}") if start else rest
    return _RATE.sub("", rest.lstrip(".")).strip("._-")


def is_held_out_text(task: Any) -> bool:
    """Whether a score of bits per byte is one of the dataset's own held-out text."""
    return task is None or pd.isna(task) or str(task).endswith("_heldout")


def main_scores(table: pd.DataFrame) -> pd.DataFrame:
    """The main metric of every configuration: bits per byte of held-out text, or top-1.

    Returns:
        Rows of `comparison.summarise` with these columns added:

        - `variant`: see `variant_of`.
        - `model_share`: the share of *all* weights that the model lacks, compared with its dense model; `NaN` if
          unknown. `achieved_sparsity` is the share of the MLP weights.
        - `relative_perplexity`: how many percent the perplexity is above dense; NaN for images.
        - `low`, `high`: interval of `relative`, percent: the spread over seeds, else two standard errors.
        - `recipe`: whether the row is the recipe of its method: the configuration with the shortest variant, then with
          most seeds, among those of one sparsity, block, width and teacher.
        - `usual`: whether its models were trained on as many tokens as most of its dataset.
    """
    everything = summarise(table)
    losses = everything[(everything["metric"] == "loss") & everything["task"].isna()]
    perplexity = {
        (row.grid, row.hardware, row.config): 100 * math.expm1(row.value - row.dense)
        for row in losses.itertuples(index=False)
        if row.unit == "nats/token" and not math.isnan(row.dense)
    }
    summary = main_metric(everything[everything["metric"].isin(QUALITY)])
    held_out = [is_held_out_text(task) for task in summary["task"]]
    summary = summary[pd.Series(held_out, index=summary.index, dtype=bool)]
    rows = list(summary.itertuples(index=False))
    weights = summary.groupby(["grid", "config"], dropna=False)["parameters"].max().to_dict()
    half = [row.noise if not math.isnan(row.noise) else 2 * row.relative_error for row in rows]
    return _with_recipes(summary.assign(
        model_share=[_model_share(row, weights) for row in rows],
        relative_perplexity=[perplexity.get((row.grid, row.hardware, row.config), math.nan) for row in rows],
        low=[row.relative - noise for row, noise in zip(rows, half, strict=True)],
        high=[row.relative + noise for row, noise in zip(rows, half, strict=True)],
    ))  # fmt: skip


def accuracy_scores(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of every configuration: top-1 of images, and `acc` of each task of lm-eval.

    Returns:
        Rows of `comparison.summarise` with the columns `variant`, `recipe` and `usual` of `main_scores` added.
    """
    return _with_recipes(summarise(table, ACCURACIES))


def _with_recipes(summary: pd.DataFrame) -> pd.DataFrame:
    summary = summary.assign(
        start=summary["start"].where(summary["start"].notna(), "scratch"),
        trained=summary["trained"].astype(float),
        variant=[variant_of(points[0]) for points in summary["points"]],
    ).reset_index(drop=True)
    return summary.assign(recipe=_recipes(summary), usual=_usual(summary))


def recipe_points(table: pd.DataFrame) -> dict[tuple[Any, Any, Any], str]:
    """The points of curves that a figure shows: without a teacher, and of the shortest variant.

    Variants are compared among points that agree in start, tokens, method, sparsity, block, width, execution and seed.

    Args:
        table: From `trials.chosen_trials`.

    Returns:
        The start of each point, by grid, machine and id.
    """
    done = table[(table["suite"] == "train") & (table["status"] == "ok") & table["step"].isna()]
    done = done[done["teacher"].isna()].drop_duplicates(["grid", "hardware", "point"])
    done = done.assign(start=done["start"].where(done["start"].notna(), "scratch"))
    ranked = done.assign(length=[len(variant_of(point)) for point in done["point"]])
    ranked = ranked.sort_values(["length", "point"], kind="stable")
    first = ranked.drop_duplicates([*STUDY, "method", "sparsity", "block", "ffn", "execution", "seed"])
    return {(row.grid, row.hardware, row.point): row.start for row in first.itertuples(index=False)}


def _recipes(summary: pd.DataFrame) -> pd.Series:
    taught = summary["teacher"].notna()
    ranked = summary.assign(taught=taught, length=summary["variant"].map(len), fewest=-summary["seeds"])
    ranked = ranked.sort_values(["length", "fewest", "config"], kind="stable")
    first = ~ranked.duplicated([*STUDY, "method", "sparsity", "block", "ffn", "taught", "metric", "task"])
    return first.reindex(summary.index)


def _usual(summary: pd.DataFrame) -> pd.Series:
    keys = ["grid", "hardware", "model", "dataset", "start"]
    counts = summary.groupby([*keys, "trained"], dropna=False).size().reset_index(name="rows")
    ranked = counts.sort_values(["rows", "trained"], ascending=False, na_position="last", kind="stable")
    best = set(ranked.drop_duplicates(keys)[[*keys, "trained"]].fillna(-1).itertuples(index=False, name=None))
    found = [key in best for key in summary[[*keys, "trained"]].fillna(-1).itertuples(index=False, name=None)]
    return pd.Series(found, index=summary.index, dtype=bool)


def _model_share(row: Any, weights: Mapping[tuple[Any, Any], float]) -> float:
    """Share of all weights of the dense model that this one lacks; `weights` has those of each grid and config."""
    if row.method == "dense":
        return 0.0
    total = weights.get((row.grid, row.dense_config), math.nan)
    if not math.isnan(total) and not math.isnan(row.prunable):
        return row.achieved_sparsity * row.prunable / total
    ratio = weight_ratio(row.model, row.achieved_sparsity)
    return 1 - 1 / ratio if ratio else math.nan


def weight_ratio(model: str, sparsity: float) -> float | None:
    """Number of weights of the dense model divided by those left when the MLPs have this sparsity.

    Calculated from the shape. Norms, biases and block indices are not counted.

    Returns:
        None for a model without a registered shape.
    """
    shape = architectures.SHAPES.get(model)
    if shape is None or shape.vocab is None:
        return None
    attention = 2 * shape.hidden * shape.width_of_head * (shape.heads + shape.kv_heads) * shape.layers
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
    rest = attention + embeddings
    return (rest + shape.mlp_weights) / (rest + shape.mlp_weights * (1 - sparsity))


def has_equal_weights(row: Any) -> bool:
    """Whether a small dense model has as many MLP weights as its sparsity leaves; else its width was given."""
    return row.method == SMALL_DENSE and row.ffn == equal_weights_ffn(row.model, row.sparsity)
