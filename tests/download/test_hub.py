"""Downloads from a local server that answers like the hub: checksums, cut transfers, refusals, tokens, the cache."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mute_server import connections
from patience import PATIENCE

from blast.download import hub as hub_module
from blast.download import sources
from blast.download.hub import HubFiles
from blast.errors import BlastError
from blast.files import file_digest

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = bytes(range(256)) * 3000
# The client keeps what came in steps of 10 MiB.
STEP = 10 << 20
CUT = STEP + (1 << 20)
FILES = {
    "config.json": b'{"a": 1}\n',
    "model.safetensors": LARGE,
    "pytorch_model.bin": b"a pickle",
    "onnx/model.x": b"x",
}
SOURCE = HubFiles("tiny", "models", "owner/tiny", REVISION, ("config.json", "model*.safetensors*"), "accept its terms.")


class _Hub(ThreadingHTTPServer):
    """Answers like the hub.

    `refuse` is a status for everything, `gated` one for content alone; `cuts` transfers of the large file end early.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.refuse, self.gated, self.cuts, self.pause = 0, 0, 0, 0.0
        self.asked: list[tuple[str, str | None, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        path = self.path.partition("?")[0]
        if self.command == "GET":
            hub.asked.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub.refuse:
            self.send_error(hub.refuse)
        elif path in (f"/api/models/owner/tiny/revision/{name}" for name in (REVISION, "main")):
            siblings = [_entry(name, content) for name, content in hub.files.items()]
            self._send(json.dumps({"id": "owner/tiny", "sha": REVISION, "siblings": siblings}).encode())
        elif hub.gated:
            self.send_error(hub.gated)
        elif path.startswith((f"/owner/tiny/resolve/{REVISION}/", "/owner/tiny/resolve/main/")):
            time.sleep(hub.pause)
            self._send(hub.files[path.split("/", 5)[5]], path.endswith(".safetensors"))
        else:
            self.send_error(404)

    def _send(self, content: bytes, large: bool = False) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        part = content[start:] if asked != "bytes=0-0" else content[:1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        blob = _entry("", content)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{blob["blobId"]}"')
        if "lfs" in blob:
            self.send_header("X-Linked-Etag", f'"{blob["lfs"]["sha256"]}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts and large and asked != "bytes=0-0":
            self.server.cuts -= 1
            part = part[: CUT - start]
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


def _entry(name: str, content: bytes) -> dict:
    """A line of the listing: large files with their sha256, small ones with git's digest alone."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"rfilename": name, "size": len(content), "blobId": blob}
    lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return entry | ({"lfs": lfs} if len(content) > 1000 else {})


@pytest.fixture
def hub(monkeypatch):
    running = _Hub()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield running
    running.shutdown()
    running.server_close()


def test_only_wanted_files_come_and_each_is_checked(hub, tmp_path):
    facts = SOURCE.fetch(tmp_path)
    folder = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / REVISION
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (facts["files"], facts["bytes"]) == (2, len(LARGE) + 9)
    assert (folder / "model.safetensors").readlink().name == hashlib.sha256(LARGE).hexdigest()
    assert file_digest(folder / "config.json", "git") == f"git:{_entry('config.json', FILES['config.json'])['blobId']}"


def test_a_second_fetch_asks_nothing_and_reads_nothing_again(hub, tmp_path, monkeypatch):
    facts = SOURCE.fetch(tmp_path)
    hub.asked.clear()
    monkeypatch.setattr(sources.RemoteFile, "matches", lambda *_: pytest.fail("read again"))
    assert SOURCE.fetch(tmp_path) == facts
    assert hub.asked == []


def test_a_file_that_changed_since_is_fetched_again(hub, tmp_path):
    SOURCE.fetch(tmp_path)
    file = SOURCE.folder(tmp_path) / "model.safetensors"
    file.write_bytes(LARGE[:-1])
    SOURCE.fetch(tmp_path)
    assert file.read_bytes() == LARGE


def test_a_cut_transfer_is_resumed_where_it_ended(hub, tmp_path):
    hub.cuts = 1
    hub.files["model.safetensors"] = bytes(STEP) + LARGE + bytes(STEP)
    SOURCE.fetch(tmp_path)
    ranges = [part for path, part, _ in hub.asked if path.endswith(".safetensors") and part != "bytes=0-0"]
    assert ranges == [None, f"bytes={STEP}-"]
    assert (SOURCE.folder(tmp_path) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_other_content_than_the_listing_says_is_refused(hub, tmp_path):
    SOURCE.fetch(tmp_path / "once")
    listing = next((tmp_path / "once" / "hub" / "models--owner--tiny").glob("blast-*.json"))
    target = tmp_path / "hub" / "models--owner--tiny" / listing.name
    target.parent.mkdir(parents=True)
    target.write_text(listing.read_text())
    hub.files["model.safetensors"] = LARGE[::-1]
    with pytest.raises(BlastError, match="wrong checksum"):
        SOURCE.fetch(tmp_path)
    assert (SOURCE.folder(tmp_path) / "model.safetensors.damaged").read_bytes() == LARGE[::-1]
    hub.files["model.safetensors"] = LARGE
    SOURCE.fetch(tmp_path)
    assert (SOURCE.folder(tmp_path) / "model.safetensors").read_bytes() == LARGE


def test_a_branch_lies_where_the_client_puts_its_commit(hub, tmp_path):
    source = replace(SOURCE, revision="main")
    source.fetch(tmp_path)
    assert source.folder(tmp_path).name == REVISION
    assert [path.name for path in source.paths(tmp_path)] == ["config.json", "model.safetensors"]


def test_files_in_the_cache_are_found_without_the_client(hub, tmp_path):
    SOURCE.fetch(tmp_path)
    code = (
        "import sys; from pathlib import Path; from blast.download.hub import HubFiles\n"
        f"HubFiles({SOURCE.name!r}, 'models', {SOURCE.repository!r}, {REVISION!r}, {SOURCE.wanted!r})"
        f".fetch(Path({str(tmp_path)!r}))\n"
        "sys.exit('huggingface_hub' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_names_the_terms_to_accept(hub, tmp_path, status):
    hub.refuse = status
    with pytest.raises(BlastError, match=r"^tiny: accept its terms\.$"):
        SOURCE.fetch(tmp_path)


@pytest.mark.parametrize("status", [401, 403])
def test_gated_content_with_a_public_listing_names_the_terms_to_accept(hub, tmp_path, status):
    hub.gated = status
    with pytest.raises(BlastError, match=r"^tiny: accept its terms\.$"):
        SOURCE.fetch(tmp_path)


def test_content_that_cannot_be_fetched_is_named_with_the_reason(hub, tmp_path):
    hub.gated = 500
    with pytest.raises(BlastError) as caught:
        SOURCE.fetch(tmp_path)
    message = str(caught.value)
    assert "tiny could not be fetched" in message
    assert "the server answers 500" in message
    assert message.endswith(
        f"put config.json, model.safetensors into {SOURCE.folder(tmp_path)} by hand, then run again."
    )
    assert "\n" not in message


def test_the_message_gives_the_answer_of_the_hub_not_the_advice_of_its_client(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "_reach", lambda client, address: None)
    hub.gated = 403
    with pytest.raises(BlastError, match="the server answers 403 Forbidden"):
        replace(SOURCE, gate="").fetch(tmp_path)
    with pytest.raises(BlastError, match=r"^tiny: accept its terms\.$"):
        SOURCE.fetch(tmp_path)


def test_another_refusal_is_reported_with_its_status(hub, tmp_path):
    hub.refuse = 404
    with pytest.raises(BlastError, match=r"tiny could not be fetched .*404.*check the network, or copy the folder"):
        SOURCE.fetch(tmp_path)


def test_the_users_token_goes_to_the_hub_alone(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    SOURCE.fetch(tmp_path)
    assert {token for _, _, token in hub.asked} == {"Bearer hf_mine"}
    request = sources.request_for("http://one.example/x", {"Authorization": "Bearer hf_mine"})
    handler = sources.urllib.request.HTTPRedirectHandler()
    elsewhere = handler.redirect_request(request, None, 302, "Found", {}, "http://two.example/x")
    assert not elsewhere.has_header("Authorization")


def test_a_folder_of_the_hubs_own_client_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "blobs").mkdir(parents=True)
    snapshot = SOURCE.folder(tmp_path)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        blob = repository / "blobs" / hashlib.sha256(FILES[name]).hexdigest()
        blob.write_bytes(FILES[name])
        (snapshot / name).symlink_to(blob)
    assert SOURCE.fetch(tmp_path)["bytes"] == len(LARGE) + 9


@pytest.mark.fault(
    fault="A file in a copied cache of the hub is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is fetched again.",
    reads="… is damaged: its content is not what its name … says",
    lost="nothing",
)
@pytest.mark.parametrize("reachable", [True, False])
def test_a_damaged_blob_of_the_hubs_own_client_is_named_and_fetched_again(
    hub, tmp_path, monkeypatch, capsys, reachable, reads
):
    snapshot = SOURCE.folder(tmp_path)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    blob = tmp_path / hashlib.sha256(LARGE).hexdigest()
    blob.write_bytes(LARGE[:-1])
    (snapshot / "model.safetensors").symlink_to(blob)
    if reachable:
        SOURCE.fetch(tmp_path)
        assert (snapshot / "model.safetensors").read_bytes() == LARGE
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(BlastError, match="could not be fetched"):
            SOURCE.fetch(tmp_path)
    said = capsys.readouterr().err
    assert "model.safetensors is damaged: its content is not what its name" in said
    reads(said)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"{}", b'{"../../up": {"checksum": "sha256:00", "bytes": 1}}'])
@pytest.mark.parametrize("suffix", [".json", ".checked"])
def test_a_damaged_list_of_the_files_is_asked_for_again(hub, tmp_path, content, suffix):
    facts = SOURCE.fetch(tmp_path)
    (listing,) = SOURCE.repository_folder(tmp_path).glob(f"blast-*{suffix}")
    listing.write_bytes(content)
    assert SOURCE.fetch(tmp_path) == facts
    listing.unlink()
    listing.mkdir()
    if suffix == ".json":
        assert SOURCE.fetch(tmp_path) == facts
    assert not list(tmp_path.parent.glob("up"))


def test_a_file_of_the_cache_that_is_a_folder_now_is_fetched_again(hub, tmp_path):
    SOURCE.fetch(tmp_path)
    file = SOURCE.folder(tmp_path) / "model.safetensors"
    for _ in range(2):
        file.unlink()
        file.mkdir()
        SOURCE.fetch(tmp_path)
        assert file.read_bytes() == LARGE


def test_a_file_that_is_not_in_the_repository_is_named(hub, tmp_path):
    source = HubFiles("tiny", "models", "owner/tiny", REVISION, ("config.json", "*.parquet"))
    with pytest.raises(BlastError, match=r"has no file \*\.parquet at revision 0123"):
        source.fetch(tmp_path)


def test_several_processes_fetch_once(hub, tmp_path):
    hub.pause = 0.2
    process = multiprocessing.get_context("fork").Process
    workers = [process(target=SOURCE.fetch, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    whole = [path for path, part, _ in hub.asked if part is None]
    assert len(whole) == len(set(whole)) == 3


@pytest.mark.fault(
    fault="The hub takes the connection and never answers.",
    topic="Signals and processes",
    happens="It is asked once, and not again.",
    reads=(
        "… could not be fetched (…: it gave no answer a moment ago); check the network, or copy "
        "the folder … from a machine that has it."
    ),
    lost="nothing",
)
def test_a_server_that_did_not_answer_is_not_asked_again(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(sources, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        for wanted in ("0.5 s", "a moment ago"):
            with pytest.raises(BlastError, match=wanted) as raised:
                SOURCE.fetch(tmp_path)
        reads(str(raised.value))
        assert connections(mute) == 1


def test_an_offline_machine_asks_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module._client().constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BlastError, match=r"HF_HUB_OFFLINE is set.*copy the folder"):
        SOURCE.fetch(tmp_path)
    assert hub.asked == []


def test_progress_is_reported_in_lines(hub, tmp_path):
    lines: list[str] = []
    SOURCE.fetch(tmp_path, lines.append)
    assert lines == [f"tiny: fetching 2 file(s) from http://127.0.0.1:{hub.server_port}/owner/tiny/resolve/{REVISION}/"]


def test_a_long_transfer_is_reported_once_a_second(monkeypatch):
    now = iter([0.0, 0.5, 1.5, 1.5, 1.7])
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: next(now))
    lines: list[str] = []
    with hub_module._lines("model.safetensors", lines.append)(total=4_000_000, initial=0, desc="", unit="B") as bar:
        for _ in range(3):
            bar.update(1_000_000)
    assert lines == ["model.safetensors: 2.0 of 4.0 MB"]


def test_the_client_sends_no_telemetry_and_uses_plain_http(monkeypatch):
    for switch in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(switch, raising=False)
    hub_module._client()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["HF_HUB_DISABLE_XET"] == "1"
