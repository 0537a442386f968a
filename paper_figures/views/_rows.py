"""Rows of a table that nothing tells apart: the printed table gets the columns that do, or says that there are none.

A table module names the columns that say what a row is about, and not what was found: `KEY` those of `rows`, and
`SHOWN_KEY` those of `printed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def told_apart(
    frame: pd.DataFrame, shown: pd.DataFrame, key: Sequence[str], shown_key: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The printed table with as many columns of `key` added as tell its rows apart.

    Args:
        frame: Rows with numbers and text.
        shown: The same rows as printed.
        key: Columns of `frame` that say what a row is about.
        shown_key: Columns of `shown` that do.

    Returns:
        The table, new columns first, and the columns that say what its rows are about.
    """
    if len(frame) != len(shown):
        raise ValueError(f"{len(frame)} rows and {len(shown)} printed ones; a table prints all its rows")
    made, identity = shown.reset_index(drop=True), list(shown_key)
    rows = frame.reset_index(drop=True)
    for column in key:
        twice = made.duplicated(identity, keep=False)
        if not twice.any():
            break
        name = column.replace("_", " ")
        groups = rows.loc[twice, column].groupby([made.loc[twice, each].astype(str) for each in identity], dropna=False)
        if name not in made and (groups.nunique(dropna=False) > 1).any():
            made.insert(0, name, rows[column].astype(object).where(rows[column].notna(), ""))
            identity.append(name)
    return made, tuple(identity)


def same_rows(frame: pd.DataFrame, key: Sequence[str]) -> list[int]:
    """Positions of the rows that are equal to another one in all columns of `key`."""
    return [place for place, twice in enumerate(frame.duplicated(list(key), keep=False)) if twice]


def same_rows_remark(frame: pd.DataFrame, key: Sequence[str]) -> str:
    """A sentence on top of a table with rows that nothing tells apart; empty if there are none."""
    same = same_rows(frame, key)
    if not same:
        return ""
    first = ", ".join(f"{column} {frame.iloc[same[0]][column]}" for column in key)
    return f"{len(same)} rows are equal in all that says what they are about, so do not compare them; one is {first}."
