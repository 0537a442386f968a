"""What single levers of the method are worth: two recipes that differ in one choice, at the sparsities of the study."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import missing, relative_loss, summarise
from blast.experiment.analysis.recipe import STUDY, main_scores, variant_of
from blast.experiment.analysis.trials import chosen_trials
from blast.files import canonical_json
from blast.settings import plain
from blast.sparsity.config import METHOD_DETAILS, SparsifyConfig
from blast.training.settings import TrainingSettings

# Where the levers are compared.
SPARSITIES = (0.8, 0.95)
# The levers of the study by setting; settings that are not listed are named as they are.
LEVERS = {
    "learning_rate_schedule": "learning rate schedule",
    "lr_density_power": "learning rate × density^-power",
    "grow": "growth",
    "grow_decay": "growth decays",
    "grow_score": "blocks that grow",
    "regrown_state": "state of blocks that grow again",
    "dense_start": "dense start",
    "keep_score": "blocks that stay",
    "layer_spread": "sparsity spread over layers (OWL)",
    "joint_hidden": "hidden blocks ranked jointly",
    "permute_hidden": "hidden units permuted",
    "teacher": "teacher",
}
# Settings that come along with a lever and are no levers of their own then.
COME_ALONG = {
    "learning_rate_schedule": ("decay", "hold", "final_learning_rate"),
    "grow": ("grow_decay", "grow_share", "grow_score", "regrown_state", "swap_share", "swap_decay"),
    "teacher": ("distillation.weight", "distillation.temperature", "distillation.hidden_weight"),
}
# Scores on the data that a model was trained on.
TRAIN = ("train_bits_per_byte", "train_top1", "train_final_loss")
CURVE = "train_loss"


@dataclass(frozen=True)
class Effect:
    """What a lever changes at one sparsity, in percent of the score without it; positive means worse.

    Attributes:
        held_out: Change of the main metric on held-out data: the mean over the seeds that both have, or between the
            means if they share none; NaN if one of the two was not run.
        low, high: Its extremes over these seeds; NaN with fewer than two.
        training: Change of the score on the training data, of a metric that both have; NaN if there is none.
        seeds: Seeds with the lever, and without it.
        status: `ok`, or why there is no number.
        points: Ids of the points with the lever, then of those without it; none where there is no number.
    """

    held_out: float
    low: float
    high: float
    training: float
    seeds: tuple[int, int]
    status: str
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lever:
    """One lever on one recipe.

    Attributes:
        place: Values of `recipe.STUDY` and the block; None for a lever that no point tried.
        key: Setting that it changes.
        value: Its value with the lever, `without` without it, as text.
        base: The variant of the recipe, or its method, that the lever was tried on.
        effects: By sparsity.
    """

    place: dict[str, Any] | None
    key: str
    value: str
    without: str
    base: str
    effects: dict[float, Effect]

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return LEVERS.get(self.key, self.key.replace("_", " "))

    @property
    def lacking(self) -> list[float]:
        """Sparsities without a number."""
        return [s for s in SPARSITIES if s not in self.effects or self.effects[s].status != "ok"]


def levers(table: pd.DataFrame) -> list[Lever]:
    """The levers that points tried, by place and name, then those of `LEVERS` that none tried.

    Two recipes show a lever if they differ in it alone, apart from their learning rates, of which each has its best.
    If several pairs show it, the one counts whose recipe shows most levers, and of its pairs the one in which least
    else comes along.

    Args:
        table: As `blast.experiment.records.table.load_table` makes it.
    """
    table = chosen_trials(table)
    recipes = _recipes(table)
    found: list[Lever] = []
    if not recipes.empty:
        for _, group in recipes.groupby([*STUDY, "block", "once"], dropna=False, sort=True):
            found += _levers_of(group)
    tried = {lever.key for lever in found}
    return found + [Lever(None, key, "", "", "", {}) for key in LEVERS if key not in tried]


def _recipes(table: pd.DataFrame) -> pd.DataFrame:
    """Pruned configurations at `SPARSITIES` with their choices, those that failed or were not run included."""
    scores = main_scores(table)
    training = _training_scores(table)
    keys = [(row.grid, row.hardware, row.config) for row in scores.itertuples(index=False)]
    scores = scores.assign(status="ok", training=[training.get(key, {}) for key in keys])
    lost = missing(table[table["suite"] == "train"])
    machines = scores.drop_duplicates(["grid", "model", "dataset"]).set_index(["grid", "model", "dataset"])["hardware"]
    where = [(row.grid, row.model, row.dataset) for row in lost.itertuples(index=False)]
    lost = lost.assign(
        hardware=[machines.get(key) for key in where], value=math.nan, lowest=math.nan, highest=math.nan, seeds=0,
        training=[{}] * len(lost), higher=False, variant=[variant_of(point) for point in lost["point"]],
    )  # fmt: skip
    both = pd.concat([scores, lost], ignore_index=True) if len(lost) else scores
    both = both[both["sparsity"].isin(SPARSITIES) & both["choices"].notna() & both["block"].notna()]
    once = [method in METHOD_DETAILS and METHOD_DETAILS[method].prunes_parent for method in both["method"]]
    both = both.assign(once=once, node=[canonical_json(dict(choices)) for choices in both["choices"]])
    # A seed that is missing does not hide the others.
    return both.sort_values("seeds", ascending=False, kind="stable").drop_duplicates(
        [*STUDY, "block", "once", "node", "sparsity"]
    )


def _training_scores(table: pd.DataFrame) -> dict[tuple, dict[str, float]]:
    """Scores on the training data by metric, of each grid, machine and configuration; `CURVE` is the end of a curve."""
    known: dict[tuple, dict[str, float]] = {}
    for row in summarise(table, TRAIN).itertuples(index=False):
        known.setdefault((row.grid, row.hardware, row.config), {})[row.metric] = row.value
    curves = table[(table["metric"] == CURVE) & (table["status"] == "ok") & table["step"].notna()]
    taught = set(table.loc[table["teacher"].notna(), "config"])
    for key, curve in curves.groupby(["grid", "hardware", "config"], sort=False):
        # What a teacher adds to the training loss is no loss on the data.
        if key[2] not in taught:
            known.setdefault(key, {})[CURVE] = float(
                curve.loc[curve["step"] >= 0.9 * curve["step"].max(), "value"].mean()
            )
    return known


def _training_change(on: dict[str, float], off: dict[str, float], higher: bool) -> float:
    """Change of the first metric of the training data that both have; NaN without one."""
    for metric in (*TRAIN, CURVE):
        if metric in on and off.get(metric):
            return relative_loss(on[metric], off[metric], higher and metric == "train_top1")
    return math.nan


def _difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, int] | None:
    """The one lever in which two recipes differ, and how many settings came along; None if they differ in more."""
    differing = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    keys = set(differing)
    for lever, others in COME_ALONG.items():
        if lever in keys:
            keys -= set(others)
    return (keys.pop(), len(differing) - 1) if len(keys) == 1 else None


def _levers_of(group: pd.DataFrame) -> list[Lever]:
    choices = {row.node: dict(row.choices) for row in group.itertuples(index=False)}
    nodes = sorted(choices, key=lambda node: (len(node), node))
    pairs = [
        (*difference, one, other)
        for place, one in enumerate(nodes)
        for other in nodes[place + 1 :]
        if (difference := _difference(choices[one], choices[other])) is not None
    ]
    degree = Counter(node for _, _, *pair in pairs for node in pair)
    best: dict[tuple, tuple] = {}
    for key, along, *pair in pairs:
        hub, other = sorted(pair, key=lambda node: (-degree[node], nodes.index(node)))
        changed = [node for node in (hub, other) if key in choices[node]]
        # With the lever is what differs from the default; of two values that do, the one that is tried on the recipe.
        on = changed[0] if len(changed) == 1 else other
        off = hub if on == other else other
        name = key, str(choices[on].get(key))
        rank = -degree[hub], nodes.index(hub), along
        if name not in best or rank < best[name][0]:
            best[name] = rank, hub, on, off
    place = {name: group[name].iloc[0] for name in (*STUDY, "block")}
    found = []
    for (key, value), (_, hub, on, off) in sorted(best.items()):
        cells = {(row.node, row.sparsity): row for row in group.itertuples(index=False)}
        effects = {s: _effect(cells.get((on, s)), cells.get((off, s))) for s in SPARSITIES}
        base = group[group["node"] == hub].iloc[0]
        without = choices[off].get(key, _default(key))
        named = base["variant"] or base["method"]
        found.append(Lever(place, key, value, str(without), named, effects))
    return found


def _default(key: str) -> Any:
    for kind in (SparsifyConfig, TrainingSettings):
        for field in fields(kind):
            if field.name == key and field.default is not MISSING:
                return plain(field.default)
    return "none"


def _effect(on: Any, off: Any) -> Effect:
    lost = next((row for row in (on, off) if row is None or row.status != "ok"), on)
    if lost is None or lost.status != "ok":
        status = "not run" if lost is None else lost.status
        return Effect(math.nan, math.nan, math.nan, math.nan, (0, 0), status)
    higher = bool(on.higher)
    # Another seed is another start and other batches, and changes more than most levers do.
    shared = sorted(set(on.by_seed) & set(off.by_seed))
    pairs = [(on.by_seed[seed], off.by_seed[seed]) for seed in shared] or [(on.value, off.value)]
    changes = [relative_loss(ours, theirs, higher) for ours, theirs in pairs]
    return Effect(
        held_out=sum(changes) / len(changes),
        low=min(changes) if len(changes) > 1 else math.nan,
        high=max(changes) if len(changes) > 1 else math.nan,
        training=_training_change(on.training, off.training, higher),
        seeds=(int(on.seeds), int(off.seeds)),
        status="ok",
        points=(*on.points, *off.points),
    )
