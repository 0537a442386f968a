"""How far a grid is: what `blast status`, `show` and `verify` say of its files."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path

import finished_grid as finished
import pytest
import yaml

from blast.experiment.cli import main, parser
from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.records.record import make_record, write_record
from blast.experiment.run.locks import points_held
from blast.experiment.run.progress_file import TRAINING, ProgressFile
from blast.experiment.todo.status import Stand, describe, status_of

DENSE, PRUNED = "vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s90.b16.seed0"
TEXT = "gpt2-nano.pystdlib.dense.seed0"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    views = root / "views"
    views.mkdir()
    (views / "of_all.py").write_text("def rows(table): ...\n")
    values = finished.values("made")
    (root / "made.yaml").write_text(yaml.safe_dump(values))
    finished.write_finished(values, GridFolder(root / "results" / "made"), views, root / "drawn", root / "recorded")
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of a finished grid; its database is that of the test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.STORE)
    return tmp_path


def status(root: Path):
    _, plan = finished.planned(finished.values("made"))
    return status_of(root / "made.yaml", plan, GridFolder(root / "results" / "made"))


def fail(root: Path, name: str) -> None:
    _, plan = finished.planned(finished.values("made"))
    folder = GridFolder(root / "results" / "made")
    folder.log("job").parent.mkdir(exist_ok=True)
    folder.log("job").write_text("…")
    run = {"wall_s": 1, "hardware": "cpu"}
    failed = make_record(
        plan.points[name], status="failed", cause="out of memory; use less.", result={}, run=run, log="logs/job.log"
    )
    write_record(folder, failed)


def test_a_finished_grid_is_done_in_every_stage(place):
    found = status(place)
    assert list(found.stages) == ["data", "train", "mlp", "lm-eval", "mlflow"]
    assert all(set(counts) == {Stand.DONE} for counts in found.stages.values())
    assert not found.process
    assert len(list(describe(found))) == 6


def test_each_stand_of_a_point_is_told_apart(place):
    folder = GridFolder(place / "results" / "made")
    folder.record(DENSE).unlink()
    folder.record(TEXT).write_text("{")
    fail(place, PRUNED)
    stands = status(place).stands
    assert (stands[DENSE], stands[TEXT], stands[PRUNED]) == (Stand.WAITING, Stand.DAMAGED, Stand.FAILED)


def test_a_failure_has_its_cause_its_log_and_a_command_that_parses(place):
    fail(place, PRUNED)
    found = status(place)
    assert list(found.failures) == [PRUNED]
    lines = list(describe(found))
    start = lines.index(f"  {PRUNED}: out of memory; use less.")
    assert lines[start + 1] == f"      log:   {place / 'results/made/logs/job.log'}"
    words = shlex.split(lines[start + 2].removeprefix("      again: "))
    options = parser().parse_args(words[1:])
    assert (options.ids, options.config, options.out) == ([PRUNED], place / "made.yaml", place / "results/made")


def test_a_point_that_runs_tells_its_step_its_loss_and_one_that_was_killed_is_stopped(place):
    folder = GridFolder(place / "results" / "made")
    for name in (DENSE, PRUNED):
        folder.record(name).unlink()
        ProgressFile(folder.work(name) / PROGRESS).phase(TRAINING)
        folder.live(name).parent.mkdir(parents=True, exist_ok=True)
        begin = {"begin": {"steps": 20, "time": time.time()}}
        lines = [begin, {"time": time.time(), "step": 5, "loss": 1.25}]
        folder.live(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with points_held(folder, [DENSE]):
        found = status(place)
        assert (found.stands[DENSE], found.stands[PRUNED]) == (Stand.RUNNING, Stand.STOPPED)
        assert f"  {DENSE}: training, step 5 of 20, loss 1.25" in list(describe(found))
    assert status(place).stands[DENSE] is Stand.STOPPED


def test_data_that_could_not_be_fetched_is_a_failure(place):
    folder = GridFolder(place / "results" / "made")
    folder.data("digits").write_text('{"status": "failed", "cause": "no network; try later."}')
    assert status(place).failures["dataset digits"][0] == "no network; try later."


def test_the_command_takes_a_config_or_the_folder_of_a_grid(place, capsys):
    assert main(["status", "made.yaml"]) == 0
    by_config = capsys.readouterr().out
    assert main(["status", "results/made"]) == 0
    assert capsys.readouterr().out.partition(": ")[2] == by_config.partition(": ")[2]
    assert by_config.startswith("made.yaml: grid 'made' of 5 points, results in results/made; it does not run now\n")


def test_a_folder_in_which_no_grid_ran_is_refused(place, capsys):
    (place / "empty").mkdir()
    assert main(["status", "empty"]) == 2
    assert capsys.readouterr().err == (
        "blast: empty: this folder has no config.yaml, so no grid ran in it; give a config file.\n"
    )


def test_a_point_is_shown_with_its_settings_results_files_and_commands(place, capsys):
    assert main(["show", PRUNED, "--config", "made.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{PRUNED}: done\n")
    for line in ("  training.steps               20", "results:", "files:", f"  results/made/records/{PRUNED}.json"):
        assert f"\n{line}" in out
    assert main(["show", "vit-nano.digits.dense.seed1", "--config", "made.yaml"]) == 2
    assert "did you mean 'vit-nano.digits.dense.seed0'?" in capsys.readouterr().err


def wrong(capsys) -> list[str]:
    """What `blast verify` says is wrong with the copy besides its checkpoints, which are invented."""
    main(["verify", "results/made"])
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("WRONG") and "checkpoint" not in line and "requests" not in line]


def test_verify_finds_nothing_wrong_in_what_a_run_wrote(place, capsys):
    assert wrong(capsys) == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (f"results/made/records/{DENSE}.json", "its contents do not match its digest, so it was altered"),
        (f"results/made/language/{TEXT}.json", "its contents do not match its digest"),
        ("drawn/of_all.csv", "was altered; run again: it is drawn again."),
    ],
)
def test_verify_names_each_file_that_was_altered_and_ends_with_code_1(place, capsys, file, said):
    text = (place / file).read_text()
    (place / file).write_text(text.replace("0.5", "0.6") if "0.5" in text else text + "x")
    (line,) = wrong(capsys)
    assert file in line
    assert said in line
    assert main(["verify", "results/made"]) == 1


def test_verify_names_a_checkpoint_that_is_not_the_recorded_one(place, capsys):
    assert main(["verify", "results/made"]) == 1
    assert f"WRONG checkpoint results/made/points/{DENSE}/checkpoint" in capsys.readouterr().out


def test_verify_refuses_what_is_no_folder(place, capsys):
    assert main(["verify", "results/none"]) == 2
    assert "results/none: is no folder" in capsys.readouterr().err
