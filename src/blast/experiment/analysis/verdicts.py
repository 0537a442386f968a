"""The paired verdicts of all pruned points of a table, from the scores of single items beside their records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from blast.evaluation.item_scores import ItemScores, read_item_scores
from blast.experiment.analysis.comparison import QUALITY, summarise
from blast.experiment.analysis.paired import LIMIT, Comparison, compare

IDENTITY = ("grid", "hardware", "model", "dataset", "method", "config", "dense_config", "sparsity", "block")
COLUMNS = (*IDENTITY, *(field.name for field in fields(Comparison)))


def verdicts(table: pd.DataFrame, limit: float = LIMIT) -> pd.DataFrame:
    """Compares each configuration item by item with the dense model that `summarise` names; see `paired.compare`.

    Each seed is paired with dense of the same seed, else with the first one. Seeds whose items, or whose dense model's
    items, were not kept are left out.

    Args:
        table: As `load_table` gives it; `attrs["items"]` maps (grid, hardware, point) to the files of its items.
        limit: Largest relative loss, in percent.

    Returns:
        A row for each configuration (all settings but the seed), measure and set, with the columns `COLUMNS`.

    Raises:
        BlastError: if a file of items is damaged.
    """
    files = table.attrs.get("items", {})
    known: dict[tuple, dict[str, ItemScores]] = {}

    def items_of(place: tuple) -> dict[str, ItemScores]:
        if place not in known:
            known[place] = {task: items for file in files[place] for task, items in read_item_scores(file)[0].items()}
        return known[place]

    lines: list[dict[str, Any]] = []
    for row, pairs in _configurations(table, set(files)):
        ours, theirs = ([items_of(pair[side]) for pair in pairs] for side in (0, 1))
        identity = {key: getattr(row, key) for key in IDENTITY}
        lines += [identity | asdict(found) for found in compare(ours, theirs, limit)]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _configurations(table: pd.DataFrame, known: set[tuple]) -> Iterator[tuple[Any, list[tuple[tuple, tuple]]]]:
    """Each configuration that has a dense model to compare with, and the pairs of points whose items are known."""
    summary = summarise(table, QUALITY)
    seeds = table.drop_duplicates("point").set_index("point")["seed"].to_dict()
    points = {(row.grid, row.hardware, row.config): row.points for row in summary.itertuples(index=False)}
    compared = summary[summary["dense_config"].notna()]
    for row in compared.drop_duplicates(["grid", "hardware", "config"]).itertuples(index=False):
        place = (row.grid, row.hardware)
        dense = {seeds[point]: (*place, point) for point in points[*place, row.dense_config]}
        dense = {seed: where for seed, where in dense.items() if where in known}
        pairs = [
            ((*place, point), dense.get(seeds[point], next(iter(dense.values()))))
            for point in row.points
            if dense and (*place, point) in known
        ]
        if pairs:
            yield row, pairs
