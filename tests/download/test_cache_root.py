"""Where the cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast.download.cache import cache_root
from blast.errors import BlastError


def test_the_cache_is_where_the_variable_says_else_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("BLAST_CACHE", "~/my cache")
    monkeypatch.setenv("HOME", "/home/my self")
    assert cache_root() == Path("/home/my self/my cache")
    monkeypatch.delenv("BLAST_CACHE")
    assert cache_root() == Path("/home/my self/.cache/blast")


def test_an_account_without_a_home_folder_is_one_sentence(monkeypatch):
    monkeypatch.delenv("BLAST_CACHE", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(
        BlastError, match=r"this account has no home folder for the cache; set BLAST_CACHE to a folder\."
    ):
        cache_root()


def test_a_file_in_place_of_the_cache_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        BlastError, match=r"cache: the cache has to be a folder, and this is a file; set BLAST_CACHE to"
    ):
        cache_root()
