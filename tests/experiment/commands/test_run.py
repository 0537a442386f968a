"""`blast run`: its words, how far it says a run is, that Ctrl-C reaches all processes, and Snakemake's exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import finished_grid as finished
import pytest
import yaml
from patience import PATIENCE

from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.commands import run
from blast.experiment.commands.display import Lines
from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.run.progress_file import TRAINING, ProgressFile
from blast.experiment.todo.todo import begin_run, find_todo
from blast.experiment.todo.watch import Look, Watch
from blast.files import write_atomically

DENSE = "vit-nano.digits.dense.seed0"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], (None, ["all"], [])),
        (["a.yaml"], ("a.yaml", ["all"], [])),
        (["points", "a.yaml"], ("a.yaml", ["points"], [])),
        (["tables", "figures"], (None, ["tables", "figures"], [])),
        (["a.yaml", "all", "--rerun-triggers", "mtime"], ("a.yaml", ["all"], ["--rerun-triggers", "mtime"])),
    ],
)
def test_words_are_a_config_targets_and_options_of_snakemake(words, found):
    file, targets, more = run._words(words)
    assert (file.name, targets, more) == (found[0] or "config.yaml", *found[1:])


def test_two_configs_are_refused():
    with pytest.raises(BlastError, match=r"'a\.yaml' and 'b\.yml' are both config files; give one"):
        run._words(["a.yaml", "b.yml"])


def test_a_profile_is_named_by_its_folder_and_an_unknown_one_is_refused(tmp_path):
    assert (run._profile("default") / "config.yaml").is_file()
    assert run._profile(str(tmp_path)) == tmp_path
    with pytest.raises(BlastError, match=r"unknown profile 'defalt'; did you mean 'default'\?"):
        run._profile("defalt")


@pytest.mark.fault(
    fault="A run is started with the profile of a cluster, and Snakemake's plugin for it is not installed.",
    topic="Clusters",
    happens="`blast run` does not start.",
    reads="Snakemake's plugin for 'slurm' is not installed; run 'make clusters'.",
    lost="nothing",
)
def test_a_profile_whose_plugin_is_missing_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys, reads):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert main(["run", "config/smoke.yaml", "--profile", "slurm", "--dry-run"]) != 0
    said = capsys.readouterr().err
    reads(said)
    assert said.count("\n") == 1
    (tmp_path / "config.yaml").write_text("executor: local\n")
    run._check_plugin(tmp_path)


def test_a_run_with_other_keys_writes_its_config_into_the_grid_and_a_dry_run_nowhere(tmp_path):
    folder = GridFolder(tmp_path / "grid")
    with run._config_file(Path("a.yaml"), {"name": "x"}, ["name=x"], folder, dry=True) as file:
        assert yaml.safe_load(file.read_text()) == {"name": "x"}
    assert not folder.root.exists()
    with run._config_file(Path("a.yaml"), {"name": "x"}, ["name=x"], folder, dry=False) as file:
        assert file == folder.given
    assert folder.given.read_text().startswith("# a.yaml with --set name=x\n")
    with run._config_file(Path("a.yaml"), {}, [], folder, dry=False) as file:
        assert file == Path("a.yaml")


@pytest.fixture
def watched(tmp_path) -> tuple[GridFolder, Watch]:
    """A run of the points of a grid of which none is done."""
    folder = GridFolder(tmp_path / "grid")
    config, plan = finished.planned(finished.values("made"))
    begin_run(find_todo(config, plan, folder, finished.STORE), folder)
    return folder, Watch(folder, time.time() - 5)


def test_a_run_is_as_far_as_its_records_and_its_stamps(watched):
    folder, watch = watched
    first = watch.look()
    assert first.points == (0, 5)
    finished.write_point(finished.planned(finished.values("made"))[1].points[DENSE], folder)
    stamp = folder.stamp(1, "fetch", "digits")
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    second = watch.look()
    assert second.points == (1, 5)
    assert (first.jobs[0], second.jobs[0]) == (0, 1)
    assert second.jobs[1] == first.jobs[1]


def test_points_that_run_tell_their_steps_and_those_of_an_earlier_run_do_not_count(watched):
    folder, watch = watched
    progress = ProgressFile(folder.work(DENSE) / PROGRESS)
    progress.phase(TRAINING)
    now = time.time()
    lines = [{"begin": {"steps": 20, "time": now}}, {"time": now, "step": 5, "loss": 1.25}]
    write_atomically(folder.live(DENSE), "".join(json.dumps(line) + "\n" for line in lines))
    assert watch.look().running[DENSE].step == 5
    os.utime(folder.work(DENSE) / PROGRESS, (1, 1))
    assert watch.look().running == {}


def test_a_run_that_has_not_begun_shows_nothing(tmp_path):
    assert Watch(GridFolder(tmp_path), time.time()).look() is None


def test_a_plain_output_has_a_line_for_each_point_that_runs_now_and_then(watched, capsys):
    folder, watch = watched
    ProgressFile(folder.work(DENSE) / PROGRESS).phase("loading data")
    lines, look = Lines(), watch.look()
    lines.show(look)
    assert capsys.readouterr().out == ""
    lines._shown -= 100
    lines.show(look)
    lines.show(look)
    assert capsys.readouterr().out == f"{DENSE}: loading data\n"
    assert isinstance(look, Look)


# In place of Snakemake: a process with a child, which both end at Ctrl-C as Snakemake and a job do.
STAND_IN = """
import signal, subprocess, sys, time
from blast.experiment.cli import main
from blast.experiment.commands import run
from blast.experiment.plan.paths import GridFolder
from pathlib import Path
child = "import time; print('child', flush=True); time.sleep(600)"
inner = f'''
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print("pid", child.pid, flush=True)
try:
    child.wait()
except KeyboardInterrupt:
    child.wait(); print("ended", flush=True); sys.exit(7)
'''
sys.exit(run._watched([sys.executable, "-c", inner], GridFolder(Path("grid")), whole=True, plain=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_the_workflow_and_its_jobs_and_the_code_is_that_of_the_workflow(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    lines = [process.stdout.readline(), process.stdout.readline()]
    (child,) = [int(line.split()[1]) for line in lines if line.startswith("pid ")]
    process.send_signal(number)
    rest = process.communicate(timeout=PATIENCE)[0]
    assert "stopping all jobs; what is done is kept, and the same command goes on from there." in rest
    assert "ended" in rest
    assert process.returncode == 7
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
