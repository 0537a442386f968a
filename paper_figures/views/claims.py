"""The paper's claims beside our results, each with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from blast.experiment.analysis.judged_claims import claims_of, judged

TITLE = "Claims of the paper"
CATEGORY = "Claims"
# A local grid counts if it is the whole grid of one of these.
READS = ("config/*.yaml",)
COLUMNS = ("claim", "paper", "known_from", "paper_setting", "ours", "our_setting", "verdict")
KEY = ("claim", "paper", "paper_setting", "our_setting")
SHOWN_KEY = ("claim", "paper", "paper setting", "our setting")
WIDTHS = {
    "claim": "p{2.6cm}",
    "paper": "p{1.8cm}",
    "paper setting": "p{3cm}",
    "ours": "p{2.4cm}",
    "our setting": "p{4.4cm}",
}


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each finding, in the order of the claims in `config/paper_values.csv`.

    Of the local grid only a whole, committed one counts, see `analysis.evidence`.
    """
    folders = table.attrs.get("folders")
    claims = judged(folders["grid"], folders["recorded"]) if folders else claims_of(table)
    lines = [
        (claim["claim"], claim["paper"], claim["known"], claim["setting"], finding["ours"], _setting(finding, claim),
         finding["verdict"])
        for claim in claims
        for finding in claim["findings"]
    ]  # fmt: skip
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame.attrs["reason"] = claims[0]["not_counted"]
    return frame


def _setting(finding: Mapping[str, str], claim: Mapping[str, Any]) -> str:
    reason = claim["not_counted"]
    return f"{finding['setting']}; {reason}" if reason and finding["verdict"] == "not run" else finding["setting"]


def remarks(frame: pd.DataFrame) -> list[str]:
    """Why the local results do not count, if so."""
    reason = frame.attrs.get("reason")
    return [f"{reason[0].upper()}{reason[1:]}"] if reason else []


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    return frame.rename(columns=lambda name: name.replace("_", " "))
