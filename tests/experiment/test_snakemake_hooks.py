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


IN_A_TRACEBACK = """Traceback (most recent call last):
  File "snakemake/api.py", line 687, in execute_workflow
OSError: [Errno 30] Read-only file system: '.snakemake/iocache'

During handling of the above exception, another exception occurred:

  File "snakemake/jobs.py", line 12, in prepare
OSError: [Errno 30] Read-only file system: 'results/tiny/logs'
"""


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (IN_A_TRACEBACK, "results/tiny/logs: cannot be used (Read-only file system); change its permissions, or give"),
        (
            "WorkflowError:\nError recording metadata for finished job ([Errno 28] No space left on device). Please "
            "ensure write permissions for the directory /a/.snakemake",
            "a file of Snakemake, in .snakemake: cannot be written (No space left on device); free some space",
        ),
        ("WorkflowError:\nTarget rules may not contain wildcards.", "Snakemake stops: WorkflowError: Target rules may"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'a'", "Snakemake stops: KeyError: 'a' (`--quiet host`"),
        ("WorkflowError: " + "a" * 1000, "Snakemake stops: WorkflowError: aaa"),
        ("RuleException:\nCalledProcessError in file 'points.smk', line 88", None),
        ("WorkflowError:\nAt least one job did not complete successfully.", None),
        ("", None),
    ],
)
def test_what_snakemake_itself_stops_for_is_one_sentence(capsys, said, sentence):
    UnknownTargetMessage(["all"]).emit(logging.makeLogRecord({"msg": said}))
    error = capsys.readouterr().err
    if sentence is None:
        assert error == ""
    else:
        assert error.startswith(f"blast: {sentence}")
        assert error.count("\n") == 1
        assert len(error) < 450


def test_a_refusal_is_not_printed_again_by_snakemake(capsys):
    pytest.importorskip("snakemake")
    stopped = refusal("this config has no points; add one.")
    UnknownTargetMessage(["all"]).emit(logging.makeLogRecord({"msg": f"WorkflowError:\n{stopped}"}))
    assert capsys.readouterr().err == "blast: this config has no points; add one.\n"
