"""What points cost before they run, from records of points like them or by a guess."""

from __future__ import annotations

from dataclasses import replace

import finished_grid as finished
import pytest

from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.state import Left, State
from blast.experiment.todo import cost
from blast.experiment.todo.cost import Records, estimate, in_bytes, in_hours
from blast.experiment.todo.todo import find_left

DENSE, PRUNED = "vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s90.b16.seed0"


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def record(name: str, seconds: float, **run) -> dict:
    point = finished.planned(finished.values("made"))[1].points[name].values
    result = {"metrics": [{"metric": "checkpoint_bytes", "value": 1000}]}
    return {"point": point, "status": "ok", "result": result, "run": {"wall_s": seconds, **run}}


def points(*names: str, **changes):
    plan = finished.planned(finished.values("made", **changes))[1]
    return [plan.points[name] for name in names]


def records(*given: dict) -> Records:
    made = Records()
    for each in given:
        made.add(each)
    return made


def test_a_point_costs_the_median_of_those_most_like_it():
    known = records(record(DENSE, 10), record(DENSE, 12), record(DENSE, 100), record(PRUNED, 50))
    found = estimate(points(DENSE), known)
    assert (found.core_seconds, found.disk, found.like, found.guessed) == (12, 1000, 1, 0)


def test_a_longer_training_costs_more_in_proportion():
    training = {"default": {"steps": 60, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}}
    assert estimate(points(DENSE, training=training), records(record(DENSE, 10))).core_seconds == pytest.approx(30)


def test_a_method_without_a_record_costs_as_others_of_its_model():
    assert estimate(points(PRUNED), records(record(DENSE, 10))).core_seconds == 10


def test_times_of_a_gpu_say_nothing_of_a_cpu_and_failed_points_nothing_at_all():
    failed = record(DENSE, 1) | {"status": "failed"}
    found = estimate(points(DENSE), records(failed, record(DENSE, 1, gpu="H200"), record(DENSE, 1, trained={})))
    assert (found.like, found.guessed) == (0, 1)
    assert found.core_seconds > cost.START


def test_the_length_of_texts_makes_no_image_dearer():
    training = {"steps": 60, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}
    (short,), (long,) = (points(DENSE, training={"default": training | more}) for more in ({}, {"length": 1024}))
    assert estimate([long], records()).core_seconds == estimate([short], records()).core_seconds
    assert estimate([long], records(record(DENSE, 10))).core_seconds == pytest.approx(30)


def test_of_many_points_alike_the_first_records_are_read_alone(tmp_path, monkeypatch):
    _, plan = finished.planned(finished.values("made"))
    folder = GridFolder(tmp_path / "made")
    for point in plan.points.values():
        finished.write_point(point, folder)
    monkeypatch.setattr(cost, "MOST_ALIKE", 2)
    found = find_left(plan, folder, finished.STORE)
    first = found[0]
    other = next(left for left in found if left.point.method != first.point.method)
    # The same point, as if the grid had many alike; one more has no record.
    lost = first._replace(point=replace(first.point, id="lost"), state=State(Left.ALL, "it has no record", None))
    read = cost.records_of([lost, *[first] * 5, other], folder)
    assert [record["point"]["id"] for record in read] == [first.point.id, first.point.id, other.point.id]


def test_on_a_gpu_a_point_takes_gpu_seconds_too(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = estimate(points(DENSE), records(record(DENSE, 7, gpu="H200")))
    assert (found.gpu_seconds, found.core_seconds) == (7, 7)


def test_hours_and_bytes_have_two_or_three_digits_that_count():
    assert [in_hours(seconds) for seconds in (60, 5400, 3.6e6)] == ["0.017", "1.5", "1000"]
    assert [in_bytes(size) for size in (900, 1.5e6, 2e9, 3e12)] == ["1 kB", "1.5 MB", "2 GB", "3 TB"]
