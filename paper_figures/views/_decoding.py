"""Shared by the views of the suite `inference`: its rows, by model, block, number of sequences and prompt."""

from __future__ import annotations

import pandas as pd

from blast.experiment.records.rows import read_setting
from blast.experiment.records.table import one_machine
from paper_figures.views import _style as style
from paper_figures.views._kernels import by_size

SUITE = "inference"
KEYS = ["hardware", "model", "block", "mask", "tokens", "prompt", "sparsity"]


def timed(table: pd.DataFrame) -> pd.DataFrame:
    """Values of the suite from GPUs, with the column `prompt`: tokens of the prompt."""
    rows = table[(table["suite"] == SUITE) & (table["status"] == "ok") & table["value"].notna()]
    rows = rows[~rows["hardware"].fillna("cpu").str.startswith("cpu")]
    rows = rows.assign(prompt=[int(read_setting(text).get("prompt", 0)) for text in rows["setting"]])
    return one_machine(rows)


def speed_ups(rows: pd.DataFrame, metric: str, base: str = "dense_compiled") -> pd.DataFrame:
    """How many times less ours takes of a metric than dense in the same point: `KEYS`, `ratio`, `ours` and `dense`.

    Args:
        rows: From `timed`.
        metric: A metric for which lower is better.
        base: The dense provider.
    """
    wanted = rows[rows["metric"] == metric]
    wide = wanted.set_index([*KEYS, "point", "provider"])["value"].unstack("provider")
    if not {base, "ours"} <= set(wide.columns):
        return pd.DataFrame(columns=[*KEYS, "ratio", "ours", "dense"])
    found = wide.dropna(subset=[base, "ours"]).reset_index()
    return found.assign(ratio=found[base] / found["ours"], dense=found[base])[[*KEYS, "ratio", "ours", "dense"]]


def cases(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Model and block, largest models first."""
    found = sorted(set(zip(rows["model"], rows["block"], strict=True)))
    place = {model: number for number, model in enumerate(by_size(model for model, _ in found))}
    return sorted(found, key=lambda case: (place[case[0]], case[1]))


def why_empty(table: pd.DataFrame) -> str:
    """`failed` if every point of the suite failed, else `not run`."""
    return style.why_empty(table[table["suite"] == SUITE])
