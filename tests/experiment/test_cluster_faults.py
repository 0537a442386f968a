"""What goes wrong on a cluster is one sentence each; `tests/workflow/test_slurm.py` makes it on a real Slurm."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from blast.errors import BlastError
from blast.experiment import snakemake_hooks
from blast.experiment.cluster_faults import check_slurm
from blast.experiment.snakemake_hooks import UnknownTargetMessage


def commands(folder: Path, sinfo: str) -> None:
    """Commands of Slurm that do nothing, and a `sinfo`."""
    for name, text in {"sbatch": "", "squeue": "", "scancel": "", "sinfo": sinfo}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def failed(said: str, **values: object) -> logging.LogRecord:
    """What Snakemake logs of a job that failed."""
    values = {
        "msg": "Error in rule point, jobid: 3",
        "rule_name": "point",
        "rule_msg": said,
        "output": ["results/smoke/jobs/1/train/vit-nano.digits.0a1b.done"],
        "log": ["results/smoke/logs/vit.log", "/w/.snakemake/slurm_logs/rule_point/vit/7.log"],
        **values,
    }
    return logging.makeLogRecord(values)


def test_partitions_that_slurm_has_are_accepted(tmp_path, monkeypatch):
    commands(tmp_path, "printf 'batch\\ngpu\\n'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    check_slurm([{"slurm_partition": "batch"}, {"slurm_partition": "gpu,batch"}, {}, {"slurm_partition": None}])
    check_slurm([{"slurm_partition": "far", "slurm_cluster": "another"}])
    with pytest.raises(BlastError, match=r"^unknown Slurm partition 'gpus'; did you mean 'gpu'\? Write another"):
        check_slurm([{"slurm_partition": "batch"}, {"slurm_partition": "gpus"}])


@pytest.mark.parametrize(
    ("sinfo", "sentence"),
    [
        (
            "echo 'sinfo: error: Munge encode failed: no socket' >&2; exit 1",
            "(Munge encode failed: no socket); its keys",
        ),
        ("echo 'slurm_load: error: Unable to contact slurm controller' >&2; exit 1", "`sinfo` has to work first; ask"),
        ("exit 0", "(it has no partition)"),
    ],
)
def test_a_slurm_that_does_not_answer_is_refused(tmp_path, monkeypatch, sinfo, sentence):
    commands(tmp_path, sinfo)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BlastError) as caught:
        check_slurm([])
    assert str(caught.value).startswith("Slurm does not answer here (")
    assert sentence in str(caught.value)


def test_a_machine_without_the_commands_of_slurm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BlastError, match="the command 'sbatch' of Slurm is not on this machine; start the workflow on a"
    ):
        check_slurm([])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable.",
            "point vit-nano.digits.0a1b: Slurm ended its job 7 (TIMEOUT), its log is "
            "/w/.snakemake/slurm_logs/rule_point/vit/7.log; its next attempt goes on from the state that it saved; "
            "`--set-resources` gives it more time.",
        ),
        (
            "SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed: Invalid account'."
            "\n"
            "    sbatch call:\n        sbatch …",
            "point vit-nano.digits.0a1b: sbatch refuses this job (Batch job submission failed: Invalid account); "
            "change what it asks for in the profile or with `--set-resources`, and run again.",
        ),
        (
            "Job submission failed with exception: The given account\nx appears to be invalid.",
            "point vit-nano.digits.0a1b: The given account x appears to be invalid.",
        ),
    ],
)
def test_a_job_that_slurm_refused_or_ended_prints_one_sentence_once(capsys, monkeypatch, said, sentence):
    monkeypatch.setattr(snakemake_hooks, "_SAID", [])
    for _ in range(2):
        UnknownTargetMessage(["all"]).emit(failed(said))
    assert capsys.readouterr().err == f"blast: {sentence}\n"


def test_a_job_that_failed_by_itself_prints_nothing_more(capsys):
    UnknownTargetMessage(["all"]).emit(failed("None"))
    UnknownTargetMessage(["all"]).emit(failed("", output=[], log=None))
    assert capsys.readouterr().err == ""
