"""`blast import`: what comes from elsewhere is taken in whole or refused in one sentence, and replaces nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fake_records as fake
import pytest

from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import make_record, read_record, write_record
from blast.experiment.tracking.run import _gather_artifacts
from blast.files import file_digest

POINT = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)


def make(folder: Path, value: float = 0.5, **more) -> GridFolder:
    """The folder of another machine with one record and one artifact."""
    grid = GridFolder(folder)
    masks = grid.work(POINT.id) / "masks.safetensors"
    masks.parent.mkdir(parents=True, exist_ok=True)
    masks.write_bytes(b"masks")
    artifacts = {"masks": {"path": "masks.safetensors", "digest": file_digest(masks)}}
    result = {"metrics": [{"metric": "top1", "value": value}], "artifacts": artifacts}
    write_record(grid, make_record(POINT, status="ok", result=result, run=fake.run_part(), **more))
    return grid


def bring(source: Path, here: Path, *more: str) -> int:
    return main(["import", str(source), "--grid-dir", str(here), *more])


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_record_comes_with_the_files_that_it_names_and_no_others(tmp_path, capsys):
    away = make(tmp_path / "away")
    (away.work(POINT.id) / "other.bin").write_bytes(b"not named")
    assert bring(away.root, tmp_path / "here") == 0
    assert set(files(tmp_path / "here")) == {f"records/{POINT.id}.json", f"points/{POINT.id}/masks.safetensors"}
    assert bring(away.root, tmp_path / "here") == 0
    assert "1 of them were here before, and stay as they were." in capsys.readouterr().out


@pytest.mark.fault(
    fault="An import has another record of a point.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused. Nothing is imported.",
    reads=(
        "blast: …: has another record of '…' than …; nothing was imported: give another "
        "--grid-dir, or --replace, which keeps the old ones in the folder 'replaced'."
    ),
    lost="nothing",
)
def test_another_record_of_a_point_is_replaced_only_if_that_is_asked_for(tmp_path, capsys, reads):
    here, away = make(tmp_path / "here", 0.5), make(tmp_path / "away", 0.75)
    before = files(here.root)
    assert bring(away.root, here.root) == 2
    said = capsys.readouterr().err
    assert f"has another record of '{POINT.id}' than {away.root}; nothing was imported: give another --grid-dir" in said
    reads(said)
    assert files(here.root) == before
    assert bring(away.root, here.root, "--replace") == 0
    assert "1 of them replaced other records, which are now in" in capsys.readouterr().out
    assert here.record(POINT.id).read_bytes() == away.record(POINT.id).read_bytes()
    assert here.replaced(POINT.id, 1).read_bytes() == before[f"records/{POINT.id}.json"]
    make(away.root, 0.25)
    assert bring(away.root, here.root, "--replace") == 0
    assert len(list((here.root / "replaced").iterdir())) == 2


def test_a_damaged_record_makes_room_for_a_good_one_and_is_kept(tmp_path):
    here, away = make(tmp_path / "here"), make(tmp_path / "away", 0.75)
    here.record(POINT.id).write_text("{")
    assert bring(away.root, here.root) == 0
    assert read_record(here.record(POINT.id)) == read_record(away.record(POINT.id))
    assert here.damaged(POINT.id).read_text() == "{"


def secret_link(grid: GridFolder, secret: Path) -> None:
    masks = grid.work(POINT.id) / "masks.safetensors"
    secret.write_bytes(masks.read_bytes())
    masks.unlink()
    masks.symlink_to(secret)


def linked_folder(grid: GridFolder, secret: Path) -> None:
    work = grid.work(POINT.id)
    work.rename(secret)
    work.symlink_to(secret)


def linked_records(grid: GridFolder, secret: Path) -> None:
    (grid.root / "records").rename(secret)
    (grid.root / "records").symlink_to(secret)


def linked_record(grid: GridFolder, secret: Path) -> None:
    grid.record(POINT.id).rename(secret)
    grid.record(POINT.id).symlink_to(secret)


def linked_points(grid: GridFolder, secret: Path) -> None:
    (grid.root / "points").rename(secret)
    (grid.root / "points").symlink_to(secret)


def pipe(grid: GridFolder, _: Path) -> None:
    (grid.work(POINT.id) / "masks.safetensors").unlink()
    os.mkfifo(grid.work(POINT.id) / "masks.safetensors")


def inner_link(grid: GridFolder, secret: Path) -> None:
    """A checkpoint with the right weights and a link beside them."""
    folder = grid.work(POINT.id) / "checkpoint"
    folder.mkdir()
    (folder / "blast.safetensors").write_bytes(b"weights")
    secret.write_text("secret")
    (folder / "tokenizer.json").symlink_to(secret)
    artifacts = {"checkpoint": {"path": "checkpoint", "digest": file_digest(folder / "blast.safetensors")}}
    result = {"metrics": [], "artifacts": artifacts}
    write_record(grid, make_record(POINT, status="ok", result=result, run=fake.run_part()))


@pytest.mark.parametrize(
    "trick",
    [
        pytest.param(
            secret_link,
            marks=pytest.mark.fault(
                fault="A folder to import has a link.",
                topic="Files that are damaged or come from elsewhere",
                happens="It is refused. Nothing is imported.",
                reads="blast: …: is a link, which is not followed; put the file itself in its place.",
                lost="nothing",
            ),
        ),
        pytest.param(
            pipe,
            marks=pytest.mark.fault(
                fault="A folder to import has a pipe.",
                topic="Files that are damaged or come from elsewhere",
                happens="It is refused. Nothing is imported.",
                reads="blast: …: is a pipe or a device, not a file",
                lost="nothing",
            ),
        ),
        linked_folder,
        linked_record,
        linked_records,
        linked_points,
        inner_link,
    ],
)
def test_a_link_or_a_pipe_in_the_folder_of_another_machine_is_refused(tmp_path, capsys, trick, reads):
    away = make(tmp_path / "away")
    trick(away, tmp_path / "secret")
    assert bring(away.root, tmp_path / "here") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is a link, which is not followed" in said or "is a pipe or a device, not a file" in said
    reads(said)
    assert not (tmp_path / "here").exists()


@pytest.mark.fault(
    fault="An import is larger than the disk.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused before anything is copied.",
    reads=(
        "blast: …: the import needs … bytes and the disk has …; free some space, or leave out "
        "the folders 'checkpoint' of the points."
    ),
    lost="nothing",
)
def test_an_artifact_that_does_not_fit_the_disk_is_refused_before_anything_is_copied(
    tmp_path, capsys, monkeypatch, reads
):
    away = make(tmp_path / "away")
    masks = away.work(POINT.id) / "masks.safetensors"
    with masks.open("r+b") as sparse:
        sparse.truncate(1 << 33)
    monkeypatch.setattr("shutil.disk_usage", lambda place: shutil._ntuple_diskusage(1 << 33, 1, (1 << 33) - 1))
    assert bring(away.root, tmp_path / "here") == 2
    said = capsys.readouterr().err
    assert "the import needs 8,589,934,592 bytes and the disk has 8,589,934,591" in said
    reads(said)
    assert not (tmp_path / "here").exists()


def test_the_log_that_an_imported_record_names_is_taken_from_its_grid_alone(tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "logs/link"):
        grid = make(tmp_path / "grid", log=name)
        (grid.root / "logs").mkdir(exist_ok=True)
        if name == "logs/link":
            (grid.root / name).symlink_to(tmp_path / "secret")
        place = tmp_path / "gathered"
        place.mkdir(exist_ok=True)
        _gather_artifacts(place, grid.record(POINT.id), read_record(grid.record(POINT.id)), grid)
        assert not (place / "log.txt").exists()
    (grid.root / "logs" / "own").write_text("own")
    grid = make(tmp_path / "grid", log="logs/own")
    _gather_artifacts(place, grid.record(POINT.id), read_record(grid.record(POINT.id)), grid)
    assert (place / "log.txt").read_text() == "own"
    assert json.loads((place / "point.json").read_text())["id"] == POINT.id
