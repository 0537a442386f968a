"""What goes wrong on a cluster, in one sentence each: before the first job is submitted, and when one ends early."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name

# Seconds within which Slurm answers.
ANSWER_S = 60.0
_WITHOUT = "or run on this machine: leave out the profile"


def check_slurm(asked: Iterable[Mapping[str, Any]]) -> None:
    """Refuses to start where Slurm is not there, does not answer, or has no partition that jobs ask for.

    Args:
        asked: What each job asks for. Its `slurm_partition` may be several, joined by commas.

    Raises:
        BlastError: one sentence.
    """
    if lacking := [name for name in ("sbatch", "sinfo", "squeue", "scancel") if shutil.which(name) is None]:
        raise BlastError(
            f"the command '{lacking[0]}' of Slurm is not on this machine; start the workflow on a login node of the "
            f"cluster, {_WITHOUT}."
        )
    command = ["sinfo", "--noheader", "--format=%R"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
        said, known = done.stderr, done.stdout.split() if done.returncode == 0 else []
    except subprocess.TimeoutExpired:
        said, known = f"no answer within {ANSWER_S:g} s", []
    if not known:
        said = said.strip() or "it has no partition"
        mend = (
            "its keys are checked by munge, which has to run: `munge -n` tells"
            if "munge" in said.lower()
            else "`sinfo` has to work first"
        )
        raise BlastError(
            f"Slurm does not answer here ({_last_line(said)}); {mend}; ask its administrators, {_WITHOUT}."
        )
    # Of another cluster, this one does not know the partitions.
    here = [job for job in asked if not any(job.get(key) for key in ("cluster", "clusters", "slurm_cluster"))]
    names = dict.fromkeys(name for job in here for name in str(job.get("slurm_partition") or "").split(","))
    if unknown := [name for name in names if name and name not in known]:
        sentence = unknown_name("Slurm partition", unknown[0], known)
        raise BlastError(f"{sentence} Write another `slurm_partition` into the profile; `sinfo` lists them.")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error|fatal): ", "", lines[-1]) if lines else ""


def fault_of_job(event: Any) -> str | None:
    """The sentence for a job of a cluster that was refused, or that ended early; None if the cluster says nothing.

    Args:
        event: The log record of Snakemake for a job that failed.
    """
    said = str(getattr(event, "rule_msg", None) or "")
    outputs = getattr(event, "output", None) or ["?"]
    name = f"{getattr(event, 'rule_name', 'job')} {Path(str(outputs[0])).name.removesuffix('.done')}"
    if found := re.search(r"SLURM sbatch failed\. The error message was '(.*?)'\.\n", said, re.DOTALL):
        return (
            f"{name}: sbatch refuses this job ({_last_line(found[1])}); change what it asks for in the profile or with "
            "`--set-resources`, and run again."
        )
    if found := re.search(r"SLURM-job '(\S+)' failed.*?SLURM status is: '(\w+)'", said, re.DOTALL):
        logs = [str(file) for file in getattr(event, "log", None) or [] if "slurm_logs" in str(file)]
        log = f", its log is {logs[0]}" if logs else ""
        return f"{name}: Slurm ended its job {found[1]} ({found[2]}){log}; {_NEXT.get(found[2], _AGAIN)}"
    if "Job submission failed with exception: " in said:
        return f"{name}: {' '.join(said.partition('exception: ')[2].split())[:400]}"
    return None


_AGAIN = "it is submitted again while attempts are left (`retries`), or by the next run."
_NEXT = {
    "TIMEOUT": "its next attempt goes on from the state that it saved; `--set-resources` gives it more time.",
    "CANCELLED": "its next attempt goes on from the state that it saved.",
    "PREEMPTED": "its next attempt goes on from the state that it saved.",
    "OUT_OF_MEMORY": "raise `memory_gb` in the config, or lower 'batch', and run again.",
}
