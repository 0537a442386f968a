"""A bundle holds what was asked for, gives it back whole, and refused it changes nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import DENSE, PRUNED, TEXT, bring, export, files, make, rewritten

from blast.experiment.cli import main
from blast.experiment.records.record import read_record


def test_a_bundle_gives_back_what_the_records_name(tmp_path, capsys):
    grid = make(tmp_path / "there")
    bundle = export(grid, tmp_path / "all.tar", "--checkpoints", "all")
    assert "3 points of the grid 'default' in 13 files" in capsys.readouterr().out
    assert bring(bundle, tmp_path / "here") == 0
    found = files(tmp_path / "here")
    expected = {path: content for path, content in files(grid.root).items() if not path.endswith("other.bin")}
    assert found == expected
    assert sorted(place.name for place in tmp_path.iterdir()) == ["all.tar", "here", "there"]


@pytest.mark.parametrize(
    ("kind", "points"), [("none", set()), ("parents", {DENSE.id}), ("all", {DENSE.id, PRUNED.id, TEXT.id})]
)
def test_only_the_weights_that_were_asked_for_come_along(kind, points, tmp_path):
    bundle = export(make(tmp_path / "there"), tmp_path / "some.tar", "--checkpoints", kind)
    assert bring(bundle, tmp_path / "here") == 0
    weights = (tmp_path / "here").rglob("blast.safetensors")
    # The dense parent of the text is not there, so nothing of it can come.
    assert {file.parts[-3] for file in weights} == points


def test_points_can_be_chosen_and_an_unknown_one_gets_the_nearest_name(tmp_path, capsys):
    grid = make(tmp_path / "there")
    bundle = export(grid, tmp_path / "one.tar", "--points", PRUNED.id)
    assert bring(bundle, tmp_path / "here") == 0
    assert [file.stem for file in (tmp_path / "here" / "records").iterdir()] == [PRUNED.id]
    assert main(["export", str(grid.root), "--points", PRUNED.id.replace("one_shot", "one_shoot")]) == 2
    assert f"did you mean '{PRUNED.id}'?" in capsys.readouterr().err


def test_the_same_points_give_the_same_bytes_and_equal_files_come_once(tmp_path):
    grid = make(tmp_path / "there")
    first, second = export(grid, tmp_path / "a.tar"), export(grid, tmp_path / "b.tar")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        names = tar.getnames()
    # Three records, one language file, and the masks of three points as one content.
    assert len(names) == len(set(names)) == 1 + 5


def test_a_bundle_that_was_imported_before_changes_nothing(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    assert bring(bundle, tmp_path / "here") == 0
    before = files(tmp_path / "here")
    assert bring(bundle, tmp_path / "here") == 0
    assert files(tmp_path / "here") == before
    assert "3 of them were here before" in capsys.readouterr().out


def test_a_damaged_file_of_the_grid_is_not_exported(tmp_path, capsys):
    grid = make(tmp_path / "there")
    (grid.work(PRUNED.id) / "masks.safetensors").write_bytes(b"others")
    assert main(["export", str(grid.root), "--out", str(tmp_path / "a.tar")]) == 2
    assert "this file (masks) is not the one its record names" in capsys.readouterr().err
    assert not (tmp_path / "a.tar").exists()


def test_another_digest_than_the_expected_one_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    digest = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("digest: "))
    assert bring(bundle, tmp_path / "here", "--digest", "0123") == 2
    assert "its digest is sha256:" in capsys.readouterr().err
    assert not (tmp_path / "here").exists()
    assert bring(bundle, tmp_path / "here", "--digest", digest.split(":")[2][:12]) == 0


def refused(bundle: Path, tmp_path: Path, capsys) -> str:
    """The sentence that refuses a bundle; nothing may have changed."""
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert bring(bundle, tmp_path / "here") == 2
    assert sorted(tmp_path.rglob("*")) == before
    [line] = capsys.readouterr().err.splitlines()
    return line


def renamed(path: str):
    def change(members: list, manifest: dict[str, Any]) -> None:
        files = manifest["files"]
        files[path] = files.pop(next(name for name in files if name.startswith("records/")))

    return change


@pytest.mark.parametrize(
    "path",
    ["../up.json", "/etc/up", "records/../../up.json", "records/other.json", "points/x/y", "up.json",
     f"points/{DENSE.id}/../../up", f"records/{DENSE.id}", "records\\up.json"],
)  # fmt: skip
def test_a_path_that_is_no_file_of_a_point_is_refused(path, tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    odd = rewritten(bundle, tmp_path / "odd.tar", renamed(path))
    assert "which belongs to no point of it" in refused(odd, tmp_path, capsys)


def test_a_link_in_a_bundle_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")

    def change(members: list, manifest: dict[str, Any]) -> None:
        member = members[1][0]
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
        members[1] = member, b""

    odd = rewritten(bundle, tmp_path / "odd.tar", change)
    assert "it holds something else than ordinary files" in refused(odd, tmp_path, capsys)


def test_a_link_to_a_bundle_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    (tmp_path / "link.tar").symlink_to(bundle)
    assert "is a link, which is not followed" in refused(tmp_path / "link.tar", tmp_path, capsys)


@pytest.mark.fault(
    fault="A bundle is cut off, or was changed.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused. Nothing is imported.",
    reads="blast: …: this bundle is damaged or altered (…); copy it again, or ask for it again.",
    lost="nothing",
)
def test_a_bundle_that_is_cut_off_is_refused(tmp_path, capsys, reads):
    whole = export(make(tmp_path / "there"), tmp_path / "a.tar").read_bytes()
    bundle = tmp_path / "cut.tar"
    for size in (0, 100, 512, 1000, 3000, len(whole) // 2, len(whole) - 12000):
        bundle.write_bytes(whole[:size])
        reads(refused(bundle, tmp_path, capsys))


def test_a_content_that_was_changed_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    bundle.write_bytes(bundle.read_bytes().replace(b"the same masks", b"the same mosks"))
    assert "a content is not the one of its digest" in refused(bundle, tmp_path, capsys)


def test_a_manifest_in_which_one_path_changed_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")

    def change(members: list, manifest: dict[str, Any]) -> None:
        path = next(path for path in manifest["files"] if path.endswith("masks.safetensors"))
        manifest["files"][path + " "] = manifest["files"].pop(path)

    odd = rewritten(bundle, tmp_path / "odd.tar", change, forged=False)
    capsys.readouterr()
    assert bring(odd, tmp_path / "here") == 2
    assert "damaged or altered (its manifest is not the one of its digest)" in capsys.readouterr().err
    assert not (tmp_path / "here").exists()


def test_a_manifest_with_another_format_is_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")
    odd = rewritten(bundle, tmp_path / "odd.tar", lambda members, manifest: manifest.update(format=9))
    assert "its format 9 is not the format 1 of this version" in refused(odd, tmp_path, capsys)


def test_files_larger_than_the_bundle_can_hold_are_refused(tmp_path, capsys):
    bundle = export(make(tmp_path / "there"), tmp_path / "a.tar")

    def change(members: list, manifest: dict[str, Any]) -> None:
        next(iter(manifest["files"].values()))["bytes"] = 1 << 40

    assert "its files have more than 10 times its size" in refused(
        rewritten(bundle, tmp_path / "odd.tar", change), tmp_path, capsys
    )


@pytest.mark.parametrize("name", ["missing.tar", "text.tar"])
def test_what_is_no_bundle_is_refused(name, tmp_path, capsys):
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    line = refused(tmp_path / name, tmp_path, capsys)
    assert (
        "there is no such bundle" in line
        if name == "missing.tar"
        else "it holds something else than ordinary files" in line
    )


def test_a_record_of_another_point_in_a_bundle_is_refused(tmp_path, capsys):
    grid = make(tmp_path / "there")
    bundle = export(grid, tmp_path / "a.tar")

    def change(members: list, manifest: dict[str, Any]) -> None:
        one, other = f"records/{DENSE.id}.json", f"records/{PRUNED.id}.json"
        manifest["files"][one], manifest["files"][other] = manifest["files"][other], manifest["files"][one]

    assert "under another name" in refused(rewritten(bundle, tmp_path / "odd.tar", change), tmp_path, capsys)
    assert read_record(grid.record(DENSE.id))
