"""The command that runs a point again: what it says, and that it runs the points that are needed first."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import fake_worker
import pytest
import yaml

from blast.experiment.cli import main
from blast.experiment.data import prepare
from blast.experiment.language import stage
from blast.experiment.plan.options import plan_of
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.rerun import config_of, rerun_command, rerun_of_grid
from blast.experiment.records.record import read_record
from blast.experiment.records.rows import read_rows
from blast.experiment.run import child, job

ONCE = "vit-nano.digits.one_shot.s50.b16.seed0"
TAUGHT = "gpt2-nano.pystdlib.blast.s50.b16.seed0.taught"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "worker_command", fake_worker.command)
    monkeypatch.setattr(job, "fingerprint", lambda point: "code")
    monkeypatch.setattr(job, "note_code", lambda folder, point: None)
    block = {"sparsity": [0.5], "blocks": [16]}
    taught = {"methods": ["blast"], "variant": "taught", "distillation": {"teacher": "dense"}}
    values = {
        "name": "own",
        "evaluation": {"tasks": {"pystdlib": ["pystdlib_heldout"]}},
        "training": {"default": {"steps": 4, "batch": 4, "learning_rate": 1e-3}},
        "grid": [
            {"architectures": ["vit-nano"], "datasets": ["digits"], "methods": ["one_shot"], **block},
            {"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], **taught, **block},
        ],
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_the_command_of_a_committed_grid_names_its_config_and_the_digest_of_the_settings(tmp_path):
    name, point = next(iter(plan_of(CHECKOUT / "config" / "smoke.yaml").points.items()))
    said = rerun_command(point, GridFolder(tmp_path))
    assert said == f"python -m blast rerun {name} --config config/smoke.yaml --digest {point.digest[7:19]}"
    assert rerun_of_grid("smoke", ["a", "b"]) == "python -m blast rerun a b --config config/smoke.yaml"
    assert {config_of(file.stem) for file in (CHECKOUT / "config").glob("*.yaml")} <= {
        None, *(file.relative_to(CHECKOUT) for file in (CHECKOUT / "config").glob("*.yaml"))
    }  # fmt: skip
    assert rerun_of_grid("own", ["a"]) is None


def test_every_recorded_point_is_in_the_config_that_its_command_names():
    found: dict[str, set[str]] = {}
    for file in (CHECKOUT / "results" / "recorded").glob("*/accuracy.csv"):
        for row in read_rows(file):
            setting = json.loads(row["setting"])
            found.setdefault(setting["grid"], set()).add(setting["point"])
    assert found
    for grid, ids in found.items():
        assert ids <= set(plan_of(CHECKOUT / config_of(grid)).points)


def test_the_command_runs_the_point_and_those_it_needs(config, tmp_path, capsys):
    # The workflow writes the config into the folder of the grid.
    grid = GridFolder(tmp_path / "results")
    grid.root.mkdir()
    config.rename(grid.root / "config.yaml")
    point = plan_of(grid.root / "config.yaml").points[ONCE]
    words = shlex.split(rerun_command(point, grid))
    assert words[:3] == ["python", "-m", "blast"]
    again = GridFolder(tmp_path / "again")
    assert main([*words[3:], "--out", str(again.root)]) == 0
    assert capsys.readouterr().out.endswith(f"2 of 2 points are done; records in {again.root / 'records'}\n")
    assert (again.root / "logs" / "rerun.log").read_text() == f"== {point.parent}\n== {ONCE}\n"
    assert read_record(again.record(ONCE))["point_digest"] == point.digest


def test_points_without_a_config_run_again_from_their_files(config, tmp_path):
    folder = GridFolder(tmp_path / "away")
    point = plan_of(config).points[ONCE]
    words = shlex.split(rerun_command(point, folder))
    files = [str(folder.work(name) / "point.json") for name in (point.parent, ONCE)]
    assert words == ["python", "-m", "blast", "job", *files, "--out", "results/again/own"]
    assert main(["job", "--plan", str(_plan(config, tmp_path)), point.parent, ONCE, "--out", str(folder.root)]) == 0
    assert read_record(folder.record(ONCE))["run"]["command"] == shlex.join(words)
    assert main([*words[3:-1], str(tmp_path / "again")]) == 0


def _plan(config, tmp_path):
    from blast.files import write_json

    write_json(tmp_path / "plan.json", [point.to_dict() for point in plan_of(config).points.values()])
    return tmp_path / "plan.json"


def test_a_point_with_tasks_gets_its_requests_before_and_its_metrics_after(config, tmp_path, monkeypatch):
    done = []
    for place, name in ((prepare, "fetch_dataset"), (prepare, "prepare_dataset"), (prepare, "build_dataset_requests")):
        monkeypatch.setattr(place, name, lambda dataset, *words, name=name: done.append((name, dataset, *words)))
    monkeypatch.setattr(stage, "compute_language_metrics", lambda folder, ids: done.append(("metrics", *ids)))
    again = GridFolder(tmp_path / "again")
    assert main(["rerun", TAUGHT, "--config", str(config), "--out", str(again.root)]) == 0
    teacher = "gpt2-nano.pystdlib.dense.seed0"
    assert [step[0] for step in done] == ["fetch_dataset", "prepare_dataset", "build_dataset_requests", "metrics"]
    assert done[2][1:] == ("pystdlib", ["pystdlib_heldout"], again, None, False)
    assert done[3][1:] == (teacher, TAUGHT)


def test_other_settings_than_those_of_the_record_are_refused(config, capsys):
    point = plan_of(config).points[ONCE]
    other = replace(point, seed=3).digest[7:19]
    assert main(["rerun", ONCE, "--config", str(config), "--digest", other]) == 2
    said = capsys.readouterr().err
    assert f"the point '{ONCE}' has other settings now ({point.digest[7:19]} instead of {other}); check out" in said
    assert main(["rerun", ONCE, TAUGHT, "--config", str(config), "--digest", other]) == 2
    assert "give one id" in capsys.readouterr().err
    assert main(["rerun", ONCE.replace("s50", "s51"), "--config", str(config)]) == 2
    assert f"did you mean '{ONCE}'?" in capsys.readouterr().err
