"""A real Slurm on loopback for tests: munged, slurmctld and slurmd of this account, on free ports.

It is in a temporary folder, keeps no accounts (no slurmdbd) and needs no control groups, systemd or root. All of it
ends with the block.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from patience import PATIENCE, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
# Daemons are in folders that the path of an ordinary account does not have.
PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,defer_batch
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait={kill_wait}
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=1-0 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=1-0 PriorityTier=9 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm on this machine; None if there can."""
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if lacking:
        return f"{', '.join(lacking)} not found; Debian: {PACKAGES}"
    return None if find_spec("snakemake_executor_plugin_slurm") else "no plugin of Snakemake: make clusters"


class Slurm:
    """A running cluster of one node.

    Args:
        root: Its folder.

    Attributes:
        environment: Variables by which `sbatch` and the others find it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{root / 'bin'}{os.pathsep}{PATH}"}

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}, timeout=PATIENCE
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def jobs(self, state: str = "all", form: str = "%i %T %k") -> list[list[str]]:
        """One line for each job that the controller knows: by default its number, its state and its comment."""
        said = self.ask("squeue", "--noheader", f"--states={state}", f"--format={form}")
        return [line.split(maxsplit=form.count("%") - 1) for line in said.splitlines()]


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Runs a daemon in the foreground until the block ends."""
    with log.open("w") as stream:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)
    try:
        yield daemon
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(PATIENCE)


@contextlib.contextmanager
def slurm(cpus: int = 4, memory: int = 16_000, kill_wait: int = 30) -> Iterator[Slurm]:
    """Runs a cluster of one node, with the partitions `batch` and `urgent`, which preempts it, and two GPUs in name.

    Args:
        cpus: Processors that the node is said to have.
        memory: Megabytes that it is said to have.
        kill_wait: Seconds between the signals TERM and KILL for a job at the end of its time.
    """
    if reason := missing():
        raise LookupError(reason)
    # A path of a socket has to be short.
    root = Path(tempfile.mkdtemp(prefix="blast-slurm-", dir="/tmp"))
    try:
        host = socket.gethostname().split(".")[0]
        controller, node = _ports(2)
        values = {"host": host, "user": getpass.getuser(), "root": root, "controller": controller, "node": node}
        (root / "slurm.conf").write_text(CONFIG.format(**values, cpus=cpus, memory=memory, kill_wait=kill_wait))
        (root / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        for name in ("state", "spool", "bin"):
            (root / name).mkdir()
        # The plugin takes SLURM_CONF from the surroundings of the srun that it starts within a job.
        srun = root / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={root}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
        srun.chmod(0o755)
        key = root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        found = Slurm(root)
        environment = {**os.environ, **found.environment}
        munge = [shutil.which("munged", path=PATH), "--foreground", "--force", f"--socket={root}/munge.socket"]
        munge += [f"--{name}-file={root}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        daemons = [[shutil.which(name, path=PATH), "-D", "-f", str(root / "slurm.conf")] for name in PROGRAMS[1:3]]
        root.chmod(0o755)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_running(munge, root / "munge.out", environment))
                wait_until((root / "munge.socket").exists, "the socket of munged")
                for command in daemons:
                    log = root / f"{Path(command[0]).name}.out"
                    stack.enter_context(_running(command, log, environment))
                wait_until(lambda: _ready(found), "a node that is idle")
            except AssertionError as error:
                said = [file.read_text(errors="replace")[-2000:] for file in root.glob("*.out")]
                raise RuntimeError("\n".join([str(error), *said])) from error
            yield found
            with contextlib.suppress(RuntimeError):
                # Also those that hang would outlive the daemons.
                found.ask("scancel", f"--user={getpass.getuser()}")
                found.ask("scancel", "--signal=KILL", f"--user={getpass.getuser()}")
                wait_until(lambda: not found.jobs("running,completing"))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _ready(found: Slurm) -> bool:
    try:
        return "idle" in found.ask("sinfo", "--noheader", "--format=%t")
    except RuntimeError:
        return False
