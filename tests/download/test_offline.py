"""Where `BLAST_OFFLINE` is set, as in the jobs of a cluster, nothing is downloaded, and no server is asked."""

from __future__ import annotations

import pytest
from test_sources import CONTENT, WANTED, server  # noqa: F401

from blast.download import sources
from blast.download.hub import HubFiles
from blast.download.sources import UrlSource, fetch_files
from blast.errors import BlastError


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("BLAST_OFFLINE", "1")


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What is opened all the same."""
    opened: list[str] = []
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda request, **_: opened.append(request.full_url))
    return opened


@pytest.mark.fault(
    fault="A job of a cluster needs a file that was not fetched on the login node.",
    topic="Clusters",
    happens="The points that need it fail. Others run, and the next run repeats them.",
    reads=(
        "… could not be fetched (…: BLAST_OFFLINE is set, so nothing is downloaded; `blast fetch CONFIG` does it "
        "before); put … into … by hand, then run again."
    ),
    lost="nothing",
)
def test_a_file_that_is_missing_is_one_sentence_and_no_server_is_asked(server, asked, tmp_path, reads):  # noqa: F811
    server.files["data.bin"] = CONTENT
    with pytest.raises(BlastError) as caught:
        fetch_files("letters", [WANTED], [UrlSource(server.address)], tmp_path / "raw")
    reads(str(caught.value))
    assert not asked
    assert not server.ranges


def test_a_file_that_is_there_is_used(server, tmp_path):  # noqa: F811
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / WANTED.name).write_bytes(CONTENT)
    fetch_files("letters", [WANTED], [UrlSource(server.address)], tmp_path / "raw")


@pytest.mark.parametrize("off", ["", "0"])
def test_an_empty_variable_or_a_zero_allows_downloads(server, tmp_path, monkeypatch, off):  # noqa: F811
    monkeypatch.setenv("BLAST_OFFLINE", off)
    server.files["data.bin"] = CONTENT
    fetch_files("letters", [WANTED], [UrlSource(server.address)], tmp_path / "raw")
    assert (tmp_path / "raw" / WANTED.name).read_bytes() == CONTENT


def test_the_model_hub_is_not_asked_either(asked, tmp_path):
    pytest.importorskip("huggingface_hub")
    files = HubFiles("letters", "models", "owner/letters", "0" * 40, ["*.bin"])
    with pytest.raises(
        BlastError, match=r"letters could not be fetched .*BLAST_OFFLINE is set, so nothing is downloaded"
    ):
        files.fetch(tmp_path)
    assert not asked
