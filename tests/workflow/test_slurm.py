"""The smoke grid on a real Slurm, on loopback: a job is cancelled, one ends at its limit, and records are the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import loopback_slurm
import pytest
import yaml
from loopback_slurm import Slurm
from patience import PATIENCE, wait_until
from workflow_place import ROOT, Place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(loopback_slurm.missing() is not None, reason=str(loopback_slurm.missing())),
]
PAGE = (ROOT / "docs" / "slurm.md").read_text()
# The tests look at the queue more often than a cluster would like, and their disk is no network's.
FAST = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with loopback_slurm.slurm() as found:
        yield found


def smoke(name: str) -> dict:
    """The smoke grid, with its pictures in its own folder."""
    values = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    return values | {"name": name, "figures": f"results/{name}/figures"}


@contextlib.contextmanager
def begin(place: Place, slurm: Slurm, *words: str, **environment: str) -> Iterator[subprocess.Popen]:
    """Starts the workflow on Slurm, as the docs say; it does not outlive a test that fails."""
    (command,) = re.findall(r"^snakemake (--profile profiles/slurm all .*)$", PAGE, re.MULTILINE)
    command = command.replace(" all ", f" {words[0]} ").replace("config/smoke.yaml", "grid.yaml").split()
    command = [str(place.python), "-m", "snakemake", *command, *words[1:]]
    running = subprocess.Popen(
        [*command, *FAST],
        cwd=place.folder,
        env={**os.environ, **slurm.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait(PATIENCE)


def told(place: Place, slurm: Slurm, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of the workflow on Slurm."""
    with begin(place, slurm, *words, **environment) as running:
        said, _ = running.communicate(timeout=PATIENCE)
    return running.returncode, said


# In each process that trains: it stops itself before step 17, once a job, so that only a signal of Slurm lets it go on.
HOLDS = """
import os, pathlib, signal, sys
if "blast.experiment.run.worker" in sys.orig_argv:
    from blast.training.settings import TrainingSettings
    rate = TrainingSettings.rate
    held = pathlib.Path({folder!r}, pathlib.Path(sys.orig_argv[-1]).parent.name)
    def rate_of(self, step):
        if step == 16 and not held.exists():
            held.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return rate(self, step)
    TrainingSettings.rate = rate_of
"""


def wait_until_held(running: subprocess.Popen, held: Path) -> None:
    """Waits until the process of a job has stopped itself in the midst of a training."""

    def stopped() -> bool:
        assert running.poll() is None, running.communicate()[0]
        text = held.read_text() if held.is_file() else ""
        return bool(text) and " T " in Path(f"/proc/{text}/stat").read_text()

    wait_until(stopped, f"the training of {held.name}")


def number_of(slurm: Slurm, words: str) -> str:
    (number,) = [number for number, _, comment in slurm.jobs("running") if words in comment]
    return number


def results(folder: Path) -> dict[str, dict]:
    """What the records of a grid say, without times."""
    found = {}
    for file in sorted((folder / "records").glob("*.json")):
        record = json.loads(file.read_text())
        found[file.stem] = record["result"] if record["point"]["stage"] == "train" else record["status"]
    return found


# Twenty jobs, each of which starts Snakemake twice, and then the grid once more.
@pytest.mark.timeout(4 * PATIENCE)
def test_the_smoke_grid_on_slurm_has_the_records_of_an_undisturbed_run(tmp_path, slurm):
    place = Place(tmp_path / "place")
    place.write(smoke("slurm"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sitecustomize.py").write_text(HOLDS.format(folder=str(tmp_path)))
    path = os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])
    with begin(place, slurm, "all", PYTHONPATH=path) as running:
        wait_until_held(running, tmp_path / "vit-nano.digits.blast.s90.b16.seed0")
        slurm.ask("scancel", number_of(slurm, "vit-nano"))
        wait_until_held(running, tmp_path / "llama-nano.pystdlib.blast.s90.b16.seed0")
        limited = number_of(slurm, "llama-nano")
        slurm.ask("scontrol", "update", f"JobId={limited}", "TimeLimit=1")
        said, _ = running.communicate(timeout=2 * PATIENCE)
    assert running.returncode == 0, said
    assert "(CANCELLED)" in said
    assert f"Slurm ended its job {limited} (TIMEOUT)" in said
    folder = place.folder / "results" / "slurm"
    logs = [log for log in folder.glob("logs/*-nano*.log") if not log.name.startswith("language.")]
    assert len(logs) == 2
    for log in logs:
        # Each was saved when Slurm told it to end.
        assert "resuming at step 18 of 60" in log.read_text(), log
    assert (folder / "verdict.txt").read_text().startswith("all 6 points are good")

    # The same grid without Slurm, undisturbed.
    on_slurm = results(folder)
    (place.folder / "results").rename(place.folder / "on slurm")
    place.write(smoke("slurm"))
    alone = place.run("points", timeout=PATIENCE)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert on_slurm == results(folder)
    assert sum(isinstance(result, dict) for result in on_slurm.values()) == 5


# In each process of `blast`: its verb, and whether it may download.
TELLS = """
import os, sys
words = sys.orig_argv
if "-m" in words and words[words.index("-m") + 1] == "blast":
    with open({file!r}, "a") as file:
        file.write(f"{{words[words.index('-m') + 2]}} {{os.environ.get('BLAST_OFFLINE')}}\\n")
"""


def test_jobs_of_slurm_ask_for_what_the_rules_say_and_never_download(tmp_path, slurm):
    place = Place(tmp_path / "place")
    values = smoke("asked") | {"threads": 2, "memory_gb": 1.25, "benchmarks": []}
    values["grid"] = values["grid"][1:]
    place.write(values)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sitecustomize.py").write_text(TELLS.format(file=str(tmp_path / "told")))
    path = os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])
    code, said = told(place, slurm, "points", BLAST_CACHE=str(tmp_path / "cache"), PYTHONPATH=path)
    assert code == 0, said
    seen = {rule: " ".join(asked) for rule, *asked in slurm.jobs("completed", "%k %C %m %l %P")}
    (asked,) = {asked for rule, asked in seen.items() if rule.startswith("rule_point") and asked.startswith("2 ")}
    assert asked == "2 1250M 1:00:00 batch"
    # Only what runs on the machine where the workflow was started downloads.
    told_by = set((tmp_path / "told").read_text().splitlines())
    assert told_by == {"fetch None", "prepare 1", "job 1"}


@pytest.mark.fault(
    fault="The profile names a partition that Slurm does not have.",
    topic="Clusters",
    happens="The workflow does not start.",
    reads=(
        "unknown Slurm partition 'bach'; did you mean 'batch'? Write another `slurm_partition` into the profile; "
        "`sinfo` lists them."
    ),
    lost="nothing",
)
def test_a_partition_that_does_not_exist_is_one_sentence(tmp_path, slurm, reads):
    place = Place(tmp_path / "place")
    place.write(smoke("nowhere"))
    code, said = told(place, slurm, "points", "--default-resources", "slurm_partition=bach")
    assert code == 1, said
    reads(said)
    assert said.count("blast: ") == 1
    assert "Traceback" not in said
    assert not slurm.jobs("pending,running")


@pytest.mark.fault(
    fault="munge, which signs what Slurm's commands say, does not run.",
    topic="Clusters",
    happens="The workflow does not start.",
    reads=(
        "Slurm does not answer here (…); its keys are checked by munge, which has to run: `munge -n` tells; ask its "
        "administrators, or run on this machine: leave out the profile."
    ),
    lost="nothing",
)
def test_slurm_without_munge_is_one_sentence(tmp_path, slurm, reads):
    place = Place(tmp_path / "place")
    place.write(smoke("unsigned"))
    without = tmp_path / "slurm.conf"
    conf = (slurm.root / "slurm.conf").read_text()
    without.write_text(conf.replace("munge.socket", "no.socket"))
    code, said = told(place, slurm, "points", SLURM_CONF=str(without))
    assert code == 1, said
    reads(said)
    assert said.count("blast: ") == 1
    assert "Traceback" not in said


@pytest.mark.fault(
    fault="The workflow is started with the profile of Slurm where there is no Slurm.",
    topic="Clusters",
    happens="It does not start.",
    reads=(
        "the command 'sbatch' of Slurm is not on this machine; start the workflow on a login node of the cluster, or "
        "run on this machine: leave out the profile."
    ),
    lost="nothing",
)
def test_a_machine_without_slurm_is_one_sentence(tmp_path, slurm, reads):
    place = Place(tmp_path / "place")
    place.write(smoke("bare"))
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "bash", "which", "git", "uname"):
        if found := shutil.which(name):
            (bare / name).symlink_to(found)
    code, said = told(place, slurm, "points", PATH=f"{bare}{os.pathsep}{Path(sys.executable).parent}")
    assert code == 1, said
    reads(said)
    assert said.count("blast: ") == 1
    assert "Traceback" not in said


def test_the_other_commands_of_the_docs_run_as_they_are(tmp_path, slurm):
    place = Place(tmp_path / "place")
    section = PAGE.partition("## Slurm")[2].partition("## Kubernetes")[0]
    lines = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    assert [line.split()[0] for line in lines] == ["export", "snakemake", "snakemake", "blast"]
    # The other tests run the third one.
    script = "\n".join(["set -e", *(line for line in lines if " profiles/slurm all " not in line)])
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("snakemake", "blast"):
        (tools / name).write_text(f'#!/bin/sh\nexec "{place.python}" -m {name} "$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), slurm.environment["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=place.folder,
        env={**os.environ, **slurm.environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert dict(re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE))["point"] == "2"
    assert re.search(r"^(\d+) of \1 are in .*/place/.cache/blast$", said, re.MULTILINE), said
    assert not slurm.jobs("pending,running")
