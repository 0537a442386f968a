"""`blast reproduce`: every claim says what it needs; a claim is measured here, or it says why not."""

from __future__ import annotations

import fnmatch

import fake_records as fake
import pytest

from blast.experiment.analysis.paper_values import read_paper_values
from blast.experiment.cli import main
from blast.experiment.plan.options import plan_of
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.records.record import make_record, write_record
from blast.experiment.reproduce import reproduce
from blast.experiment.reproduce.claims import COMPUTED, NEEDS


def test_every_claim_of_the_paper_says_what_it_needs():
    assert list(NEEDS) == [value.id for value in read_paper_values()]


@pytest.mark.parametrize("claim", [name for name, need in NEEDS.items() if need.config])
def test_the_points_that_a_claim_needs_are_in_its_config(claim):
    need = NEEDS[claim]
    points = plan_of(CHECKOUT / "config" / need.config).points
    for pattern in need.points:
        assert fnmatch.filter(points, pattern), pattern


def test_the_claims_are_listed_with_their_commands(capsys):
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert all(value.id in out for value in read_paper_values())
    assert "blast bench kernels --config config/h100.yaml" in out
    assert "blast reproduce memory_v2" in out


@pytest.mark.parametrize("claim", [name for name, need in NEEDS.items() if need.kind == COMPUTED])
def test_what_is_computed_is_projected_without_a_run(claim, capsys):
    assert main(["reproduce", claim]) == 0
    out = capsys.readouterr().out
    assert "verdict:   projected" in out
    assert "expected:  " in out
    assert "tolerance: " in out
    assert "time:      " in out


def test_what_needs_a_gpu_is_not_run_without_one_and_shows_the_records(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reproduce, "_has_gpu", lambda need: False)
    assert main(["reproduce", "energy", "--recorded", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "this machine has not one GPU with 80 GB: nothing is run" in out
    assert "verdict:   not run here (needs one GPU with 80 GB); by the records: not run" in out


@pytest.mark.parametrize(("achieved", "verdict", "code"), [(0.951, "met", 0), (0.9, "not met", 1)])
def test_a_claim_is_judged_by_the_points_that_are_there(achieved, verdict, code, tmp_path, capsys, monkeypatch):
    [name] = NEEDS["sparsity"].points
    point = plan_of(CHECKOUT / "config" / "config.yaml").points[name]
    result = {"metrics": [{"metric": "top1", "value": 0.9}], "sparsity": {"target": 0.95, "achieved": achieved}}
    ran = []

    def run(plan, left, folder: GridFolder) -> None:
        ran.extend(left)
        write_record(folder, make_record(point, status="ok", result=result, run=fake.run_part()))

    monkeypatch.setattr(reproduce, "_run", run)
    assert main(["reproduce", "sparsity", "--out", str(tmp_path), "--records"]) == 1
    assert "verdict:   not run" in capsys.readouterr().out
    assert not ran
    assert main(["reproduce", "sparsity", "--out", str(tmp_path)]) == code
    out = capsys.readouterr().out
    assert [each.id for each in ran] == [name]
    assert f"verdict:   {verdict}" in out
    assert f"measured:  {100 * achieved:.1f} % of MLP weights" in out


def test_an_unknown_claim_gets_the_nearest_name(capsys):
    assert main(["reproduce", "sparsty"]) == 2
    assert "unknown claim 'sparsty'; did you mean 'sparsity'?" in capsys.readouterr().err
