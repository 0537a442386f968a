"""Where the files of a grid are: users and other programs read them by these names."""

from __future__ import annotations

from pathlib import Path

from blast.experiment.plan.paths import GridFolder


def test_every_file_of_a_grid_has_its_place():
    grid = GridFolder(Path("results/g"))
    found = {
        name: getattr(grid, name)("x").relative_to(grid.root).as_posix()
        for name in ("record", "language", "item_scores", "agreement", "work", "data", "requests", "left_out", "failed",
                     "retry", "log")
    }  # fmt: skip
    assert found == {
        "record": "records/x.json", "language": "language/x.json", "item_scores": "language/x.items.npz",
        "agreement": "agreement/x.json", "work": "points/x", "data": "data/x.json", "requests": "requests/x.jsonl.gz",
        "left_out": "requests/x.left_out.json", "failed": "failed/x.json", "retry": "retry/x", "log": "logs/x.log",
    }  # fmt: skip
    assert grid.stamp(3, "points", "j").relative_to(grid.root).as_posix() == "jobs/3/points/j.done"
    assert (grid.plan, grid.rows) == (grid.root / "plan.json", grid.root / "rows.csv")
