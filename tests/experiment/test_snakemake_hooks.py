"""What the workflow refuses before it starts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from blast.errors import BlastError
from blast.experiment.snakemake_hooks import UnknownTargetMessage, check_writable, refusal


def test_a_folder_may_be_there_or_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "b c", Path("a/b"), Path(), Path("results")):
        check_writable(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/figures", "file/a/b"])
def test_a_file_in_the_way_is_one_sentence(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(BlastError, match=r"cannot be a folder, as '.*file' is a file; name another folder, or move"):
        check_writable(Path(folder))


def test_a_folder_that_may_not_be_written_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        BlastError, match=r"a: '.*' may not be written; change its permissions, or name another folder\."
    ):
        check_writable(tmp_path / "a")


def test_a_refusal_is_printed_where_the_quiet_mode_does_not_hide_it(capsys):
    pytest.importorskip("snakemake")
    assert str(refusal("the sentence.")) == "the sentence."
    assert capsys.readouterr().err == "blast: the sentence.\n"


@pytest.mark.parametrize("target", ["figures/clams.pdf", "my figures (old)/clams.pdf"])
def test_an_unknown_target_prints_the_nearest_one(capsys, target):
    said = f"No rule to produce {target} (if you use input functions make sure that they don't raise exceptions)."
    known = target.replace("clams", "claims")
    UnknownTargetMessage([known, "all"]).emit(logging.makeLogRecord({"msg": said}))
    assert capsys.readouterr().err == f"blast: unknown target '{target}'; did you mean '{known}'?\n"
