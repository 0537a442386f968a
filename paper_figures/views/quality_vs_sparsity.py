"""Quality against sparsity by the main metric of each model and dataset: bits per byte of text, top-1 of images."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from blast.experiment.analysis.recipe import main_scores
from blast.experiment.analysis.trials import chosen_trials
from paper_figures.views._quality import by_sparsity

TITLE = "Quality against sparsity"
CATEGORY = "Quality"
SUITES = ("train",)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each architecture and dataset. The caption explains it to the reader."""
    table = chosen_trials(table)
    return by_sparsity(TITLE, table, main_scores(table))
