"""The table that figures, tables and claims read: local records and recorded ones together."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records.data_versions import with_versions
from blast.experiment.records.item_scores import item_scores_of, recorded_item_scores
from blast.experiment.records.point_facts import execution_facts, training_facts
from blast.experiment.records.record import read_language, read_record
from blast.experiment.records.rows import (
    COLUMNS,
    FLOATS,
    INTEGERS,
    Row,
    read_grid,
    read_rows,
    read_setting,
    reader_of,
    record_rows,
)

# Keys of `setting` that become columns.
FROM_SETTING = (
    "grid",
    "point",
    "parent",
    "better",
    "chance",
    "classes",
    "cause",
    "gpu",
    "gpus",
    "interpreter",
    "projected",
    "computed",
    "mask",
    "execution",
    "same_but_execution",
    "learning_rate",
    "start",
    "trained",
    "teacher",
    "ffn",
    "same_but_rate",
    "choices",
    "parameters",
    "prunable",
    "side_by_side",
    "dataset_digest",
)
NUMBERS_FROM_SETTING = frozenset({
    "chance", "classes", "gpus", "learning_rate", "trained", "ffn", "parameters", "prunable", "side_by_side",
    "computed",
})  # fmt: skip
NOT_RUN = "not run"

# The values of each column.
Columns = dict[str, list[Any]]


def as_table(rows: Iterable[Row], source: str = "local") -> pd.DataFrame:
    """Rows as a typed table, with the columns `source`, `config` and `FROM_SETTING` added.

    Missing text is None, a missing number NaN (`<NA>` in integer columns). `config` is the id of the point without its
    seed: rows with the same one are repetitions.
    """
    rows = list(rows)
    columns = {column: [row.get(column) for row in rows] for column in COLUMNS}
    return _typed(columns | {"source": [row.get("source", source) for row in rows]})


def _typed(columns: Columns) -> pd.DataFrame:
    """The table of `as_table`, from the values of `COLUMNS` and `source`."""
    # Many rows of a point have the same setting.
    texts = {text: place for place, text in enumerate(dict.fromkeys(columns["setting"]))}
    settings = [read_setting(text) for text in texts]
    places = [texts[text] for text in columns["setting"]]
    data: dict[str, Any] = {}
    for column in (*COLUMNS, "source"):
        kind = "float64" if column in FLOATS else "Int64" if column in INTEGERS else object
        data[column] = pd.Series(columns[column], dtype=kind)
    for column in FROM_SETTING:
        kind = "float64" if column in NUMBERS_FROM_SETTING else object
        values = pd.Series([setting.get(column) for setting in settings], dtype=kind)
        data[column] = values.take(places).reset_index(drop=True)
    configs = pd.Series([_without_seed(setting.get("point")) for setting in settings], dtype=object)
    data["config"] = configs.take(places).reset_index(drop=True)
    # What prunes a trained model started where that one started.
    starts = {setting.get("point"): setting["start"] for setting in settings if setting.get("start")}
    of_parents = [starts.get(parent, "parent") for parent in data["parent"]]
    data["start"] = data["start"].mask(data["start"] == "parent", pd.Series(of_parents, dtype=object))
    # Their own facts give the tokens of a parent that trained. Of one that has its published weights, nothing was.
    data["trained"] = data["trained"].mask((data["start"] == "published") & data["trained"].notna(), 0.0)
    return pd.DataFrame(data)


def _without_seed(point: str | None) -> str | None:
    if point is None:
        return None
    return ".".join(part for part in point.split(".") if not (part.startswith("seed") and part[4:].isdigit()))


def planned_points(grid_dir: Path) -> dict[str, Point]:
    """Points of the grid by id, from its `plan.json`; empty without one.

    Raises:
        BlastError: if the plan is damaged.
    """
    plan = GridFolder(Path(grid_dir)).plan
    return read_plan(plan) if plan.is_file() else {}


def local_records(grid_dir: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Records that belong to the grid as it is planned, each with its language metrics or None, sorted by id.

    Records of an earlier plan are skipped: those of another id, or of other settings under the same id. A record in
    `failed/` counts if there is no newer one and it can be read. Where there is a plan, a damaged record is skipped
    with a line of warning: its point is then a row "not run", and the next run makes it again.

    Raises:
        BlastError: if there is no plan and a record is damaged.
    """
    planned = planned_points(grid_dir)
    if not planned:
        yield from read_grid(Path(grid_dir))
        return
    folder = GridFolder(Path(grid_dir))
    for name in sorted(planned):
        for file in (folder.record(name), folder.failed(name)):
            newest = file == folder.record(name)
            record = _readable(file, warn=newest)
            if record and record["point_digest"] == planned[name].digest:
                yield record, _language(folder, record) if newest else None
                break


def _readable(file: Path, warn: bool) -> dict[str, Any] | None:
    """A record, if it is there and can be read."""
    if not (file.exists() or file.is_symlink()):
        return None
    try:
        return read_record(file)
    except BlastError as error:
        if warn:
            print(f"blast: left out: {error}", file=sys.stderr)
        return None


def _language(folder: GridFolder, record: dict[str, Any]) -> dict[str, Any] | None:
    """The language metrics beside a record, or None. If they are damaged, failed ones that give the reason."""
    file = folder.language(record["point"]["id"])
    if not (file.exists() or file.is_symlink()):
        return None
    try:
        return read_language(file)
    except BlastError as error:
        return {"status": "failed", "cause": str(error), "record_digest": record["record_digest"]}


def _not_run(point: Point) -> Row:
    values = point.to_dict()
    setting = {"grid": point.grid, "point": point.id, "parent": point.parent}
    setting |= execution_facts(values) | training_facts(values)
    setting["learning_rate"] = (point.training or {}).get("learning_rate")
    return dict.fromkeys(COLUMNS) | {
        "suite": "train" if point.stage == "train" else (point.benchmark or {}).get("suite", point.stage),
        "model": point.architecture,
        "dataset": point.dataset,
        "method": point.method,
        "sparsity": point.sparsity,
        "block": "x".join(map(str, point.block)) if point.block else None,
        "seed": point.seed,
        "status": NOT_RUN,
        "setting": json.dumps({key: value for key, value in setting.items() if value is not None}),
        "source": "local",
    }


def load_table(grid_dir: Path, recorded_dir: Path) -> pd.DataFrame:
    """All results: the local records of a grid, and the recorded ones of this and other machines.

    Args:
        grid_dir: `results/<grid>`; may be missing.
        recorded_dir: `results/recorded`, a folder for each machine; may be missing.

    Returns:
        Long-form rows as `as_table` returns them. For the same grid, point and hardware, local rows replace recorded
        ones. A failed point is a row with status "failed". A planned point without a record is a row with status
        "not run". Datasets of several versions in a grid are named as `data_versions` says. `attrs["masks"]` maps a
        local point to its file of masks. `attrs["items"]` maps grid, hardware and id of a point to the files with the
        scores of its items; `attrs["last_masks"]` to a file with its last masks, local or recorded. `attrs["folders"]`
        has the two folders, `grid` and `recorded`.

    Raises:
        BlastError: if a record or a recorded file is damaged.
    """
    rows: list[Row] = []
    local, done, masks, items = set(), set(), {}, {}
    last_masks = _recorded_masks(Path(recorded_dir))
    for record, language in local_records(grid_dir):
        point = record["point"]
        local.add((point["grid"], point["id"], record["run"].get("hardware")))
        done.add(point["id"])
        rows += [row | {"source": "local"} for row in record_rows(record, language)]
        if scored := item_scores_of(GridFolder(Path(grid_dir)), record, language):
            items[point["grid"], record["run"].get("hardware"), point["id"]] = scored
        artifact = ((record.get("result") or {}).get("artifacts") or {}).get("masks")
        if artifact:
            masks[point["id"]] = str(Path(grid_dir, "points", point["id"], artifact["path"]))
            if Path(masks[point["id"]]).is_file():
                last_masks[point["grid"], record["run"].get("hardware"), point["id"]] = Path(masks[point["id"]])
    recorded, recorded_points = _recorded(Path(recorded_dir), local)
    done |= recorded_points
    for (grid, hardware, point), file in recorded_item_scores(Path(recorded_dir)):
        if (grid, point, hardware) not in local:
            items[grid, hardware, point] = [file]
    rows += [_not_run(point) for point in planned_points(grid_dir).values() if point.id not in done]
    columns = {column: [row[column] for row in rows] + recorded[column] for column in (*COLUMNS, "source")}
    table = with_versions(_typed(columns))
    folders = {"grid": Path(grid_dir), "recorded": Path(recorded_dir)}
    files = {"masks": masks, "items": items, "last_masks": last_masks, "folders": folders}
    table.attrs.update({name: FileMap(found) for name, found in files.items()})
    return table


def _recorded(recorded_dir: Path, local: Set[tuple[Any, Any, Any]]) -> tuple[Columns, set[str | None]]:
    """Recorded rows but those of local results, as columns, and the ids of their points.

    Args:
        recorded_dir: `results/recorded`.
        local: Grid, id and hardware of the local results.
    """
    columns: Columns = {column: [] for column in (*COLUMNS, "source")}
    done = set()
    for file in sorted(recorded_dir.glob("*/*.csv")):
        read = _columns_of(file)
        places = {text: _place(read_setting(text)) for text in set(read["setting"])}
        points = [places[text] for text in read["setting"]]
        kept = [(*point, hardware) not in local for point, hardware in zip(points, read["hardware"], strict=True)]
        for column, values in read.items():
            columns[column] += values if all(kept) else compress(values, kept)
        done.update(point for _, point in set(compress(points, kept)))
    columns["source"] = ["recorded"] * len(columns["value"])
    return columns, done


def _place(setting: Mapping[str, Any]) -> tuple[Any, Any]:
    return setting.get("grid"), setting.get("point")


def _columns_of(file: Path) -> Columns:
    """What `read_rows` reads, in columns. With pyarrow, which MLflow needs, in a third of the time."""
    # Arrow's errors are ValueErrors.
    with suppress(ImportError, ValueError):
        from pyarrow import csv, string

        texts = csv.read_csv(
            file,
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, string())),
        )
        if tuple(texts.column_names) == COLUMNS:
            columns = {column: _values(column, texts[column].to_pylist()) for column in COLUMNS}
            for setting in set(columns["setting"]):
                read_setting(setting)
            return columns
    # Where the file is damaged, this says how.
    rows = read_rows(file)
    return {column: [row[column] for row in rows] for column in COLUMNS}


def _values(column: str, texts: list[str]) -> list[Any]:
    read = reader_of(column)
    # Text needs no call, and most columns are text.
    return [text or None for text in texts] if read is str else [read(text) if text else None for text in texts]


class FileMap(Mapping[Any, Any]):
    """A mapping of points to files that is its own copy.

    pandas copies `attrs` deeply whenever it makes a frame or a row of another. With thousands of paths that took nine
    tenths of the time of a table.
    """

    def __init__(self, files: Mapping[Any, Any]) -> None:
        self._files = MappingProxyType(dict(files))

    def __getitem__(self, key: Any) -> Any:
        return self._files[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __deepcopy__(self, memo: dict[int, Any]) -> FileMap:
        return self


def _recorded_masks(recorded_dir: Path) -> dict[tuple[str, str | None, str], Path]:
    """Files of the last masks of recorded points, by grid, hardware and id."""
    files = sorted(recorded_dir.glob("*/masks/*/*.safetensors"))
    return {(file.parent.name, file.parents[2].name, file.name.removesuffix(".safetensors")): file for file in files}


def one_machine(table: pd.DataFrame) -> pd.DataFrame:
    """Keeps one machine for each grid, model and dataset, so that no curve mixes two machines.

    Prefers the local machine, then the one with most rows, then the first by name. Rows of points that were never run
    stay.
    """
    keys = ["grid", "model", "dataset"]
    named = table[[*keys, "hardware", "source"]].fillna("")
    count = (
        named[named["hardware"] != ""]
        .groupby([*keys, "hardware"], as_index=False)
        .agg(local=("source", lambda source: (source == "local").sum()), rows=("source", "size"))
    )
    ranked = count.sort_values(["local", "rows", "hardware"], ascending=[False, False, True], kind="stable")
    best = ranked.drop_duplicates(keys)
    chosen = set(best[[*keys, "hardware"]].itertuples(index=False, name=None))
    kept = [row[-1] == "" or row in chosen for row in named[[*keys, "hardware"]].itertuples(index=False, name=None)]
    return table[pd.Series(kept, index=table.index, dtype=bool)]
