"""How the loss of a pruned pretrained model falls with the tokens it is trained on: a power law and its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from blast.experiment.analysis.recipe import main_scores
from blast.sparsity.config import METHOD_DETAILS

# Two-sided.
CONFIDENCE = 0.95
# How far beyond the tokens that were run a fit is followed.
REACH = 1e4


@dataclass(frozen=True)
class PowerLaw:
    """`loss = scale * tokens ** -power`, a straight line in logarithms, by least squares.

    Attributes:
        scale: Loss in percent at one token.
        power: How fast it falls.
        tokens: Tokens of the points it was fitted to.
        deviation: Standard deviation of the residuals in ln(loss); NaN for two points, which leave no residual.
    """

    scale: float
    power: float
    tokens: tuple[float, ...]
    deviation: float

    def loss(self, tokens: Any) -> Any:
        """Loss in percent, of a number of tokens or of an array."""
        return self.scale * np.asarray(tokens, dtype=float) ** -self.power

    def band(self, tokens: Any) -> tuple[Any, Any]:
        """The 95 % confidence interval of the line there; NaN for two points."""
        known = np.log(self.tokens)
        centred, place = known - known.mean(), np.log(tokens) - known.mean()
        error = self.deviation * np.sqrt(1 / len(known) + place**2 / (centred @ centred))
        factor = np.exp(student.ppf(0.5 + CONFIDENCE / 2, max(1, len(known) - 2)) * error)
        return self.loss(tokens) / factor, self.loss(tokens) * factor

    def tokens_for(self, loss: float) -> tuple[float, float, float]:
        """Tokens at which the line reaches a loss, and where the two edges of its band do; infinite if never."""
        places = np.geomspace(min(self.tokens), max(self.tokens) * REACH, 2000)
        low, high = self.band(places)
        middle = (self.scale / loss) ** (1 / self.power) if self.power > 0 else math.inf
        if math.isnan(self.deviation):
            return middle, math.nan, math.nan
        return middle, _first(places, low <= loss), _first(places, high <= loss)


def _first(places: np.ndarray, reached: np.ndarray) -> float:
    return float(places[np.argmax(reached)]) if reached.any() else math.inf


def fit(tokens: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Fits a power law.

    Args:
        tokens: Tokens trained on, above 0.
        losses: Losses relative to dense, percent. Those that are not above 0 are left out: they have no logarithm.

    Returns:
        None for fewer than two different numbers of tokens.

    Example:
        >>> round(fit([1e6, 4e6, 16e6], [8.0, 4.0, 2.0]).power, 3)
        0.5
    """
    pairs = [(x, y) for x, y in zip(tokens, losses, strict=True) if x > 0 and y > 0]
    if len({x for x, _ in pairs}) < 2:
        return None
    x, y = np.log(np.array(pairs)).T
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - (intercept + slope * x)
    freedom = len(x) - 2
    deviation = math.sqrt(float(residuals @ residuals) / freedom) if freedom > 0 else math.nan
    return PowerLaw(math.exp(intercept), -float(slope), tuple(np.exp(x)), deviation)


@dataclass(frozen=True)
class Recovery:
    """Losses of one method at one sparsity after different numbers of tokens.

    Attributes:
        first: A row of `main_scores` that identifies it.
        rows: Its rows, by tokens.
        law: The fit; None with one point.
    """

    first: Any
    rows: pd.DataFrame
    law: PowerLaw | None


def recoveries(table: pd.DataFrame) -> list[Recovery]:
    """Pruned models that started from published weights, by grid, model, dataset, method and sparsity."""
    scores = main_scores(table)
    scores = scores[scores["recipe"] & (scores["start"] == "pretrained") & (scores["method"] != "dense")]
    scores = scores[scores["relative"].notna() & (scores["trained"] > 0)]
    # What is pruned at once is trained on no tokens after that.
    once = {name for name, method in METHOD_DETAILS.items() if method.prunes_parent}
    scores = scores[~scores["method"].isin(once)].assign(taught=scores["teacher"].notna())
    keys = ["grid", "hardware", "model", "dataset", "method", "taught", "block", "sparsity"]
    found = []
    for _, rows in scores.groupby(keys, dropna=False, sort=True):
        rows = rows.sort_values("trained")
        found.append(Recovery(next(rows.itertuples(index=False)), rows, fit(rows["trained"], rows["relative"])))
    return found
