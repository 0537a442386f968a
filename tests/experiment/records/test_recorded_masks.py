"""Masks of trained points travel: from another machine into a grid, from there into the evidence of the repository."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import fake_kernels
import fake_records as fake

import paper_figures
from blast.benchmark.inputs.mask_file import read_mask_file
from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.export import export, export_grid
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.masks import read_masks
from blast.experiment.records.record import read_record
from blast.experiment.records.table import load_table
from blast.files import write_json


@pytest.fixture
def grid(tmp_path):
    return GridFolder(fake.write_grid(tmp_path / "default"))


def exported(recorded):
    return {file.stem: file for file in (recorded / fake.HARDWARE / "masks" / fake.GRID).glob("*.safetensors")}


def import_from(source, here):
    return main(["import", str(source), "--grid-dir", str(here)])


def test_the_last_masks_of_each_point_that_training_masked_are_exported(grid, tmp_path):
    written = export_grid(grid.root, tmp_path / "recorded")
    files = exported(tmp_path / "recorded")
    assert set(files) == {point.id for point in fake.default_points() if point.method in ("blast", "rigl_swap")}
    assert set(files.values()) <= set(written)
    for name, file in files.items():
        record, found = read_record(grid.record(name)), read_mask_file(file)
        histories = read_masks(grid.work(name) / "masks.safetensors")
        assert set(found.masks) == set(histories)
        for matrix, history in histories.items():
            assert np.array_equal(found.masks[matrix], history[900])
        point = record["point"]
        assert found.facts["record"] == record["record_digest"]
        assert [found.facts[key] for key in ("step", "model", "dataset", "method", "sparsity", "block")] == [
            900, point["architecture"], point["dataset"], point["method"], point["sparsity"], [16, 16],
        ]  # fmt: skip
        assert file.stat().st_size < 8000


def test_exporting_masks_twice_changes_nothing_and_a_point_without_its_masks_loses_none(grid, tmp_path):
    export_grid(grid.root, tmp_path / "recorded")
    before = {name: file.read_bytes() for name, file in exported(tmp_path / "recorded").items()}
    for name in list(before)[:2]:
        (grid.work(name) / "masks.safetensors").unlink()
    export_grid(grid.root, tmp_path / "recorded")
    assert {name: file.read_bytes() for name, file in exported(tmp_path / "recorded").items()} == before


def test_masks_that_a_record_does_not_name_are_not_exported(grid, tmp_path):
    name = "gpt2-nano.pystdlib.blast.s95.b16.seed0"
    shutil.copy(grid.work(name.replace("s95", "s90")) / "masks.safetensors", grid.work(name) / "masks.safetensors")
    with pytest.raises(BlastError, match=rf"{name}' names; copy the folder of the run again"):
        export_grid(grid.root, tmp_path / "recorded")


def test_a_failed_point_exports_no_masks(tmp_path):
    name = "gpt2-nano.pystdlib.blast.s95.b16.seed0"
    grid = fake.write_grid(tmp_path / "default", fail=name)
    (grid / "points" / name).mkdir(parents=True)
    (grid / "points" / name / "masks.safetensors").write_bytes(b"half")
    export_grid(grid, tmp_path / "recorded")
    assert name not in exported(tmp_path / "recorded")


def test_masks_are_imported_with_the_records_of_another_machine(grid, tmp_path, capsys):
    here = GridFolder(tmp_path / "here")
    assert import_from(grid.root, here.root) == 0
    assert "without their masks" not in capsys.readouterr().out
    export_grid(grid.root, tmp_path / "away")
    export_grid(here.root, tmp_path / "recorded")
    assert exported(tmp_path / "recorded")
    for name, file in exported(tmp_path / "recorded").items():
        assert file.read_bytes() == exported(tmp_path / "away")[name].read_bytes()


def test_records_without_their_masks_are_imported_with_a_warning(grid, tmp_path, capsys):
    name = "gpt2-nano.pystdlib.blast.s95.b16.seed0"
    (grid.work(name) / "masks.safetensors").unlink()
    assert import_from(grid.root, tmp_path / "here") == 0
    assert f"1 of them came without their masks, the first is '{name}'" in capsys.readouterr().out


def test_records_of_other_code_are_imported_with_a_warning(grid, tmp_path, capsys):
    """The workflow would run them again; nobody should learn that from hours of waiting."""
    names = sorted(file.stem for file in (grid.root / "records").glob("*.json"))
    for name in names:
        record = json.loads(grid.record(name).read_text())
        record["run"]["fingerprint"] = fingerprint(Point.from_dict(record["point"]))
        write_json(grid.record(name), record)
    assert import_from(grid.root, tmp_path / "here") == 0
    assert "other code" not in capsys.readouterr().out
    record = json.loads(grid.record(names[1]).read_text())
    record["run"]["fingerprint"] = "sha256:another"
    write_json(grid.record(names[1]), record)
    assert import_from(grid.root, tmp_path / "there") == 0
    assert f"1 of them were made by other code than is here, the first is '{names[1]}'" in capsys.readouterr().out


def test_masks_that_were_altered_on_the_way_are_refused_and_nothing_is_imported(grid, tmp_path, capsys):
    file = grid.work("gpt2-nano.pystdlib.blast.s95.b16.seed0") / "masks.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert import_from(grid.root, tmp_path / "here") == 2
    assert f"{file}: this file (masks) is not the one its record names" in capsys.readouterr().err
    assert not (tmp_path / "here").exists()


def test_the_kernel_table_names_the_point_whose_masks_were_replayed(tmp_path):
    record = fake_kernels.make_record_of(fake_kernels.points()[0])
    for entry in record["result"]["metrics"]:
        if entry["provider"] == "ours":
            entry["setting"] = entry["setting"] | {"mask": "trained", "masks_of": "a.trained.point"}
    export([record], tmp_path)
    frame = paper_figures.load("kernel_table").rows(load_table(tmp_path / "none", tmp_path))
    notes = frame.groupby("mask")["note"].agg(set).to_dict()
    assert notes == {"trained": {"masks of a.trained.point"}, "uniform": {""}}
