"""Only recorded results and whole grids of committed configs decide a claim of the paper."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import fake_records as fake
import pytest

import paper_figures
from blast.experiment.analysis.evidence import TOYS, evidence, why_not_counted
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.records.export import export_grid
from blast.experiment.records.table import load_table
from blast.files import write_json

CONFIGS = sorted((CHECKOUT / "config").glob("*.yaml"))


def planned(folder: Path, file: Path, **changes) -> Path:
    """The folder of a grid with its plan, each point changed in the same way."""
    points = [replace(point, **changes) for point in expand(read_config(file), file).points.values()]
    write_json(folder / "plan.json", [point.to_dict() for point in points])
    return folder


@pytest.fixture
def configs(tmp_path):
    """A repository with the config of the default grid in it."""
    folder = tmp_path / "repository" / "config"
    folder.mkdir(parents=True)
    shutil.copy(CHECKOUT / "config" / "config.yaml", folder)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_every_committed_grid_but_the_toys_counts():
    names = {read_config(file).name: file.name for file in CONFIGS}
    assert set(names) >= TOYS
    assert all(file == ("config.yaml" if name == "default" else f"{name}.yaml") for name, file in names.items())


def test_the_whole_default_grid_counts(tmp_path, configs):
    assert why_not_counted(planned(tmp_path / "default", configs / "config.yaml"), configs) is None


def test_a_part_of_a_grid_or_other_settings_do_not_count(tmp_path, configs):
    file = configs / "config.yaml"
    part = list(expand(read_config(file), file).points.values())[1:]
    write_json(tmp_path / "part" / "plan.json", [point.to_dict() for point in part])
    for folder in (tmp_path / "part", planned(tmp_path / "other", file, threads=7)):
        assert "its points are not those of config/config.yaml" in why_not_counted(folder, configs)


def test_a_config_that_was_changed_or_never_committed_does_not_count(tmp_path, configs):
    file = configs / "config.yaml"
    file.write_text(file.read_text().replace("steps: 520", "steps: 30"))
    toy = configs / "toy.yaml"
    toy.write_text(file.read_text().replace("name: default", "name: toy"))
    for folder, used in ((tmp_path / "default", file), (tmp_path / "toy", toy)):
        assert f"no unchanged config/{used.name} of this" in why_not_counted(planned(folder, used), configs)


def test_the_smoke_grid_does_not_count(tmp_path):
    folder = planned(tmp_path / "smoke", CHECKOUT / "config" / "smoke.yaml")
    assert "the local grid 'smoke' does not count" in why_not_counted(folder)


@pytest.mark.fault(
    fault="A small grid of a user lies beside the recorded claims.",
    topic="What the verdict says",
    happens="The claims do not change.",
    reads="The local grid '…' does not count: its points are not those of config/….yaml.",
    lost="nothing",
)
def test_a_toy_grid_changes_no_verdict_on_a_claim(tmp_path, reads):
    """A grid of a user, under the name of a real one, turned a claim to "not met"."""
    recorded = tmp_path / "recorded"
    grid = fake.write_grid(tmp_path / "default")
    export_grid(grid, recorded)
    claims = paper_figures.load("claims")
    alone = claims.rows(load_table(tmp_path / "nothing", recorded))
    assert set(alone["verdict"]) >= {"met", "not run"}
    assert claims.remarks(alone) == []
    both = claims.rows(load_table(grid, recorded))
    assert both.drop(columns="our_setting").equals(alone.drop(columns="our_setting"))
    (remark,) = claims.remarks(both)
    assert remark.startswith("The local grid 'default' does not count: its points are not those of config/config.yaml")
    reads(remark)
    assert both.loc[both["verdict"] == "not run", "our_setting"].str.contains("does not count").all()


def test_a_toy_grid_alone_leaves_its_claims_not_run(tmp_path):
    table = load_table(fake.write_grid(tmp_path / "default"), tmp_path / "recorded")
    counted, reason = evidence(tmp_path / "default", tmp_path / "recorded")
    assert counted.empty
    assert reason
    frame = paper_figures.load("claims").rows(table)
    assert set(frame["verdict"]) == {"not run", "projected"}
