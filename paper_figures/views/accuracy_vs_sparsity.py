"""Accuracy against sparsity: top-1 of images, and each task of lm-eval, with chance and standard errors."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from blast.experiment.analysis.recipe import accuracy_scores
from blast.experiment.analysis.trials import chosen_trials
from paper_figures.views._quality import by_sparsity

TITLE = "Accuracy against sparsity"
CATEGORY = "Quality"
SUITES = ("train",)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each architecture, dataset and task. Models whose accuracy is unknown have one too."""
    table = chosen_trials(table)
    return by_sparsity(TITLE, table, accuracy_scores(table), errors=True)
