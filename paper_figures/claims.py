"""The paper's claims beside our results, each with a verdict."""

from __future__ import annotations

import pandas as pd

from blast.experiment.analysis.claims import judge
from blast.experiment.analysis.paper_values import read_paper_values

TITLE = "Claims of the paper"
COLUMNS = ("claim", "paper", "known_from", "paper_setting", "ours", "our_setting", "verdict")
WIDTHS = {
    "claim": "p{2.6cm}",
    "paper": "p{1.8cm}",
    "paper setting": "p{3cm}",
    "ours": "p{2.4cm}",
    "our setting": "p{4.4cm}",
}


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each finding, in the order of the claims in `config/paper_values.csv`."""
    lines = [
        (value.claim, value.shown, value.known, value.setting, finding.ours, finding.setting, finding.verdict)
        for value in read_paper_values()
        for finding in judge(value, table)
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    return frame.rename(columns=lambda name: name.replace("_", " "))
