"""Where the files of a grid are: users and other programs read them by these names."""

from __future__ import annotations

from pathlib import Path

from blast.experiment.plan.options import grid_of
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


def test_a_grid_lies_where_it_is_said_to_else_in_its_own_folder_else_in_that_of_its_name(tmp_path):
    folder = GridFolder(tmp_path / "copied")
    folder.root.mkdir()
    folder.config.write_text(
        "name: named\ntraining: {default: {steps: 2, batch: 2, learning_rate: 0.1}}\n"
        "grid: [{architectures: [vit-nano], datasets: [digits], sparsity: [0.5], blocks: [16]}]\n"
    )
    assert grid_of(folder.config).folder.root == Path("results/named")
    assert grid_of(folder.root).folder.root == folder.root
    assert grid_of(folder.root, folder=tmp_path / "other").folder.root == tmp_path / "other"
