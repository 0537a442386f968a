"""Scores of single items go from a grid into the evidence, and the paired verdict is made there without the grid."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fake_records as fake

from blast.errors import BlastError
from blast.evaluation.item_scores import ItemScores, write_item_scores
from blast.experiment.analysis.verdicts import COLUMNS, verdicts
from blast.experiment.plan.paths import ITEMS, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.export import export_grid
from blast.experiment.records.record import read_record, record_digest
from blast.experiment.records.table import load_table
from blast.files import file_digest, write_json

DENSE, PRUNED = "gpt2-nano.pystdlib.dense.seed0", "gpt2-nano.pystdlib.blast.s95.b16.seed0"


def items(percent: float) -> dict[str, ItemScores]:
    random = np.random.default_rng(0)
    nats = random.normal(900, 90, 64) * (1 + percent / 100)
    return {"text_heldout": ItemScores(nats, np.full(64, 1500), {}, {}, 24_000, "sha256:text")}


def keep(grid: GridFolder, point: str, percent: float) -> None:
    facts = {"record": read_record(grid.record(point))["record_digest"]}
    write_item_scores(grid.item_scores(point), items(percent), facts)


@pytest.fixture
def grid(tmp_path):
    made = GridFolder(fake.write_grid(tmp_path / "default"))
    keep(made, DENSE, 0)
    keep(made, PRUNED, 7)
    return made


def test_the_verdict_is_the_same_from_the_grid_and_from_the_evidence(grid, tmp_path):
    local = verdicts(load_table(grid.root, tmp_path / "none"))
    assert list(local.columns) == list(COLUMNS)
    assert list(local["verdict"]) == ["outside"]
    (line,) = local.itertuples(index=False)
    assert (line.config, line.sparsity, line.block) == (PRUNED.removesuffix(".seed0"), 0.95, "16x16")
    assert line.relative == pytest.approx(7, abs=0.01)
    assert line.relative_perplexity > line.relative
    written = export_grid(grid.root, tmp_path / "recorded")
    folder = tmp_path / "recorded" / fake.HARDWARE / "items" / fake.GRID
    assert {folder / f"{DENSE}.npz", folder / f"{PRUNED}.npz"} <= set(written)
    shutil.rmtree(grid.root)
    assert verdicts(load_table(grid.root, tmp_path / "recorded")).equals(local)


def test_a_point_whose_parent_has_no_items_gets_no_verdict(grid, tmp_path):
    grid.item_scores(DENSE).unlink()
    assert verdicts(load_table(grid.root, tmp_path / "none")).empty


def test_a_comparison_with_stock_lm_eval_is_exported_with_its_record_and_with_no_other(grid, tmp_path):
    file = tmp_path / "recorded" / fake.HARDWARE / "agreement" / fake.GRID / f"{DENSE}.json"
    write_json(grid.agreement(DENSE), {"passed": True, "record_digest": "sha256:another"})
    export_grid(grid.root, tmp_path / "recorded")
    assert not file.exists()
    digest = read_record(grid.record(DENSE))["record_digest"]
    write_json(grid.agreement(DENSE), {"passed": True, "record_digest": digest})
    assert file in export_grid(grid.root, tmp_path / "recorded")
    assert file.read_bytes() == grid.agreement(DENSE).read_bytes()


def test_items_of_another_record_are_not_exported(grid, tmp_path):
    shutil.copy(grid.item_scores(DENSE), grid.item_scores(PRUNED))
    with pytest.raises(BlastError, match=rf"not those of the record of '{PRUNED}'"):
        export_grid(grid.root, tmp_path / "recorded")


def test_windows_of_the_held_out_text_and_items_of_lm_eval_are_exported_together(grid, tmp_path):
    for point, percent in ((DENSE, 0), (PRUNED, 1)):
        write_item_scores(grid.work(point) / ITEMS, {"held_out": items(percent)["text_heldout"]}, {"point": point})
        record = json.loads(grid.record(point).read_text())
        digest = file_digest(grid.work(point) / ITEMS)
        record["result"].setdefault("artifacts", {})["items"] = {"path": ITEMS, "digest": digest}
        record["record_digest"] = record_digest(Point.from_dict(record["point"]), record["result"], "ok")
        write_json(grid.record(point), record)
        language = json.loads(grid.language(point).read_text()) | {"record_digest": record["record_digest"]}
        write_json(grid.language(point), language)
        keep(grid, point, 7 * percent)
    local = verdicts(load_table(grid.root, tmp_path / "none"))
    assert dict(zip(local["task"], local["verdict"], strict=True)) == {"held_out": "within", "text_heldout": "outside"}
    export_grid(grid.root, tmp_path / "recorded")
    (grid.work(DENSE) / ITEMS).write_bytes((grid.work(PRUNED) / ITEMS).read_bytes())
    with pytest.raises(BlastError, match=rf"{ITEMS}: these scores of items are not those of the record of '{DENSE}'"):
        export_grid(grid.root, tmp_path / "recorded")
    shutil.rmtree(grid.root)
    assert verdicts(load_table(grid.root, tmp_path / "recorded")).equals(local)
