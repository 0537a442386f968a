"""Points that are pruned from published weights and wrecked: a line while they run, and one in the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_records import make_point, make_training_record

from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record, write_record
from blast.experiment.run.progress import Progress
from blast.experiment.run.wrecked_points import UNIGRAM, wrecked_point
from blast.files import write_json

DENSE_LOSS, CHANCE = 2.0, 7.0


def points(start: str, pruned_start: str) -> tuple[Point, Point]:
    dense = replace(make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0), start=start)
    pruned = replace(make_point("gpt2-nano", "pystdlib", "one_shot", 0.5, 0), start=pruned_start, parent=dense.id)
    return dense, pruned


def grid(
    folder: Path, loss: float, start: str = "published", pruned_start: str = "parent", chance=CHANCE
) -> GridFolder:
    """A grid of a dense point and a pruned one, with their losses."""
    place, both = GridFolder(folder), points(start, pruned_start)
    write_json(place.plan, [point.to_dict() for point in both])
    write_json(place.data("pystdlib"), {"status": "ok", "cause": None})
    for point, found in zip(both, (DENSE_LOSS, loss), strict=True):
        record, _ = make_training_record(point)
        result = record["result"] | ({UNIGRAM: chance} if chance is not None else {})
        next(entry for entry in result["metrics"] if entry["metric"] == "loss")["value"] = found
        write_record(place, make_record(point, status="ok", result=result, run=record["run"]))
    return place


def said_of(place: GridFolder) -> str | None:
    from blast.experiment.records.record import read_record

    return wrecked_point(read_record(place.record(points("published", "parent")[1].id)), place)


@pytest.mark.parametrize("starts", [("published", "parent"), ("published", "published"), ("pretrained", "pretrained")])
def test_a_point_that_lost_more_than_half_of_its_margin_is_wrecked(tmp_path, starts):
    assert "it keeps 46 % of the margin" in said_of(grid(tmp_path / "a", 4.7, *starts))
    assert said_of(grid(tmp_path / "b", 4.4, *starts)) is None


def test_a_model_from_scratch_is_not_called_wrecked(tmp_path):
    assert said_of(grid(tmp_path, 6.9, "scratch", "scratch")) is None


def test_a_record_without_the_loss_of_a_unigram_is_judged_by_guessing_alone(tmp_path, monkeypatch):
    from blast.experiment.run import wrecked_points

    monkeypatch.setattr(wrecked_points, "vocabulary_of", lambda name: 1000)
    assert said_of(grid(tmp_path / "a", 6.9, chance=None)) is None
    assert "guessing among all 1000 tokens" in said_of(grid(tmp_path / "b", 6.91, chance=None))


@pytest.mark.fault(
    fault="A model that was pruned from published weights is wrecked.",
    topic="What the verdict says",
    happens="The point is done and bad.",
    reads=(
        "BAD point …: wrecked: it keeps … % of the margin of the dense model above chance; prune "
        "less, train for more steps or add a teacher, and keep the first and the last layers "
        "dense."
    ),
    lost="nothing",
)
def test_the_verdict_and_the_progress_name_the_point_with_what_to_change(tmp_path, capsys, reads):
    place = grid(tmp_path, 6.0)
    out = tmp_path / "verdict.txt"
    assert main(["verdict", "--grid-dir", str(tmp_path), "--out", str(out)]) == 0
    said, name = capsys.readouterr(), points("published", "parent")[1].id
    assert f"BAD point {name}: wrecked: it keeps 20 % of the margin" in said.err
    assert "prune less, train for more steps" in said.err
    reads(said.err)
    summary, line = out.read_text().splitlines()
    assert summary == "all 2 points are done; 1 of them is bad"
    assert line.startswith(f"BAD point {name}: wrecked: it keeps 20 %")
    from blast.experiment.records.record import read_record

    Progress(place, 1, None, 1).tell(read_record(place.record(name)))
    assert f"BAD point {name}: wrecked: it keeps 20 %" in capsys.readouterr().out


def test_a_verdict_on_good_models_is_as_before(tmp_path, capsys):
    grid(tmp_path, 2.1)
    assert main(["verdict", "--grid-dir", str(tmp_path), "--out", str(tmp_path / "verdict.txt")]) == 0
    assert capsys.readouterr().out == "all 2 points are good\n"
