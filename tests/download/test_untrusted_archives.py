"""Archives and compressed files from elsewhere: no member leaves its folder, and none fills the disk or the memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from blast.download import registries
from blast.download.registries import NpmPackage, PypiPackage
from blast.download.sources import RemoteFile, SourceError, unpack_gzip
from blast.errors import BlastError
from blast.evaluation import item_scores, requests, scores
from blast.evaluation.item_scores import read_item_scores
from blast.evaluation.requests import RequestFile, compress, read_requests
from blast.evaluation.scores import read_scores
from blast.untrusted import LARGEST_RATIO, gunzip, is_inner_path, member

BOMB = b"\0" * (3 * LARGEST_RATIO * 10_000)


@pytest.mark.fault(
    fault="A path in a file from elsewhere leads out of its folder.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused.",
    reads="the name … leads out of this folder; copy the folder again.",
    lost="nothing",
)
@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "/a", "a/../b", "../a", "a//b", "a\0", "a\n", "C:a", "a\\b", "a/", None, 3, ["a"], "x" * 1001],
)
def test_a_name_that_leads_out_of_its_folder_is_no_inner_path(tmp_path, name, reads):
    assert not is_inner_path(name)
    with pytest.raises(BlastError, match="leads out of this folder") as refused:
        member(tmp_path, name)
    reads(str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_member_is_below_its_folder_and_reached_through_no_link(tmp_path):
    assert member(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BlastError, match="is a link, which is not followed"):
        member(tmp_path, "link/b.json")
    # Folders above may be links: they are the user's own.
    assert member(tmp_path / "link", "b.json")


@pytest.mark.fault(
    fault="A compressed file would fill the disk.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused and removed.",
    reads="… is damaged (it unpacks to more than 200 times its size)",
    lost="nothing",
)
def test_a_compressed_file_that_would_fill_the_disk_is_refused_and_removed(tmp_path, reads):
    (tmp_path / "a.gz").write_bytes(gzip.compress(BOMB))
    with pytest.raises(
        SourceError, match=r"a\.gz is damaged \(it unpacks to more than 200 times its size\)"
    ) as refused:
        unpack_gzip(tmp_path / "a.gz", tmp_path / "a")
    reads(str(refused.value))
    assert not list(tmp_path.iterdir())
    assert gunzip(gzip.compress(b"abc"), 3) == b"abc"
    with pytest.raises(ValueError, match="more than 2 bytes"):
        gunzip(gzip.compress(b"abc"), 2)


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def link_of(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_of_an_npm_archive_only_plain_files_of_the_wanted_folder_come_out(tmp_path, monkeypatch):
    content = tar_of([
        (tarfile.TarInfo("package/good.txt"), b"good"),
        (tarfile.TarInfo("package/../../up.txt"), b"bad"),
        (tarfile.TarInfo("/tmp/up.txt"), b"bad"),
        (tarfile.TarInfo("package/.."), b"bad"),
        (link_of("package/link.txt", "/etc/passwd", tarfile.SYMTYPE), b""),
        (link_of("package/hard.txt", "package/good.txt", tarfile.LNKTYPE), b""),
    ])  # fmt: skip
    monkeypatch.setattr(registries, "_run", lambda command, work: (work / "a.tgz").write_bytes(content))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    wanted = [RemoteFile(name, "sha256:00000000") for name in ("good.txt", "link.txt", "hard.txt", "up.txt")]
    NpmPackage("a", "1", "").download(wanted, folder, print)
    assert snapshot(tmp_path) == {"a", "a/b", "a/b/good.txt"}


@pytest.mark.parametrize("kind", ["npm", "wheel"])
def test_a_member_that_is_far_larger_than_its_archive_is_refused(tmp_path, monkeypatch, kind):
    if kind == "npm":
        name, content = "a.tgz", tar_of([(tarfile.TarInfo("package/data"), BOMB)])
        package = NpmPackage("a", "1", "")
    else:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner/data", BOMB)
        name, content, package = "a.whl", stream.getvalue(), PypiPackage("a", "1", "inner")
    monkeypatch.setattr(registries, "_run", lambda command, work: (work / name).write_bytes(content))
    with pytest.raises(SourceError, match=r"cannot be unpacked \(it unpacks to more than 200 times its size"):
        package.download([RemoteFile("data", "sha256:00000000")], tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_the_documents_of_a_request_file_are_written_under_file_names_alone(tmp_path):
    file = tmp_path / "r.jsonl.gz"
    for name in ("../up.jsonl", "/tmp/up.jsonl", "a/b.jsonl", ""):
        RequestFile(["a"], [], {name: [{"text": "x"}]}).write(file)
        with pytest.raises(BlastError, match="is no file name; delete it and build the requests again"):
            read_requests(file)
    RequestFile(["a"], [], {"a.jsonl": [{"text": "x"}]}).write(file)
    assert read_requests(file).documents == {"a.jsonl": [{"text": "x"}]}


@pytest.mark.parametrize("content", [b"", b"x", compress("[]\n"), compress("{}\n{}\n"), compress('{"digest": 1}\n')])
def test_request_and_score_files_that_are_damaged_are_one_sentence(tmp_path, content):
    for read in (read_requests, read_scores, read_item_scores):
        file = tmp_path / "file"
        file.write_bytes(content)
        with pytest.raises(BlastError, match=r"damaged|altered") as refused:
            read(file)
        assert "\n" not in str(refused.value)


def test_compressed_scores_and_requests_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "LARGEST", 10_000)
    monkeypatch.setattr(scores, "LARGEST", 10_000)
    monkeypatch.setattr(item_scores, "LARGEST", 10_000)
    packed, arrays = tmp_path / "a.gz", tmp_path / "a.npz"
    packed.write_bytes(compress(json.dumps({"digest": "x" * 20_000}) + "\n"))
    np.savez_compressed(arrays, header=np.zeros(20_000, dtype=np.uint8))
    assert max(os.path.getsize(file) for file in (packed, arrays)) < 10_000
    for read, file in ((read_requests, packed), (read_scores, packed), (read_item_scores, arrays)):
        with pytest.raises(BlastError, match="damaged"):
            read(file)
