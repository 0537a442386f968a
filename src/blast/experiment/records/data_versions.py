"""Versions of a dataset: what was trained on other data is another dataset, whatever its name says.

A dataset whose source changes (Debian packages get updates) keeps its name, and its digest tells the versions apart.
Everything that compares rows compares those of one dataset, so it is enough that the versions have names of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # jobs read digests too, where there is no pandas
    import pandas as pd

DIGEST = "dataset_digest"
MARK = "#"
# Digits of the digest in a row, and in a name.
DIGITS, SHOWN = 12, 8


def short_digest(digest: str | None) -> str | None:
    """What a row holds of the digest of a dataset; None for none."""
    return digest.removeprefix("sha256:")[:DIGITS] if digest else None


def split_version(dataset: str) -> tuple[str, str]:
    """The name of a dataset and its version, which is empty if there is only one: `("technical_text", "1c77784e")`."""
    name, _, version = dataset.partition(MARK)
    return name, version


def with_versions(table: pd.DataFrame) -> pd.DataFrame:
    """Names datasets by their version where a grid holds several, in the columns `dataset` and `config`.

    The version with most points keeps the plain name. So do rows that do not say what they were made of: points that
    have not run, and records from before the digest was kept.

    Args:
        table: As `as_table` makes it, with the digest in the column `dataset_digest`.

    Returns:
        The same table if there is nothing to tell apart, else a copy.
    """
    known = table[table[DIGEST].notna() & table["dataset"].notna()]
    points = known.drop_duplicates(["grid", "hardware", "point"])
    counts = points.groupby(["grid", "dataset", DIGEST], dropna=False, as_index=False).size()
    counts = counts.sort_values(["size", DIGEST], ascending=[False, True], kind="stable")
    others = counts[counts.duplicated(["grid", "dataset"])]
    if others.empty:
        return table
    other = set(others[["grid", "dataset", DIGEST]].itertuples(index=False, name=None))
    key = zip(table["grid"], table["dataset"], table[DIGEST], strict=True)
    moved = table[[place in other for place in key]]
    named = moved["dataset"] + MARK + moved[DIGEST].str[:SHOWN]
    table = table.copy()
    table.loc[moved.index, "dataset"] = named
    # A configuration is the id of a point without its seed, so it holds the name of the dataset too.
    ids = zip(moved["config"], moved["model"] + "." + moved["dataset"], moved["model"] + "." + named, strict=True)
    table.loc[moved.index, "config"] = [config.replace(old, new, 1) for config, old, new in ids]
    return table
