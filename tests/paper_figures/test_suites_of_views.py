"""A view reads the rows of its `SUITES` alone: what it shows is the same without all others."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import fake_inference  # noqa: E402
import fake_kernels  # noqa: E402
import fake_memory  # noqa: E402
import fake_records  # noqa: E402
import fake_runs  # noqa: E402
import fake_study  # noqa: E402
import fake_training  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402
from blast.experiment.todo.views import find_views  # noqa: E402

VIEWS = {view.name: view for view in find_views(paper_figures.FOLDER, Path("drawn")) if view.suites is not None}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> pd.DataFrame:
    """Rows of all suites, from an invented grid of each kind; those of single MLPs are recorded ones."""
    folder = tmp_path_factory.mktemp("grids")
    fake_records.write_grid(folder / "default")
    fake_kernels.write_kernels(folder / "kernels")
    fake_training.write_training(folder / "steps")
    fake_runs.write_runs(folder / "runs")
    fake_study.write_study(folder / "study")
    fake_memory.write_memory(folder / "memory")
    fake_inference.write_inference(folder / "inference")
    tables = [load_table(grid, folder / "none") for grid in sorted(folder.iterdir())]
    recorded = load_table(folder / "none", paper_figures.FOLDER.parents[1] / "results" / "recorded")
    tables.append(recorded[recorded["suite"] == "training_mlp"])
    table = pd.concat(tables, ignore_index=True)
    for part in tables:
        for key, files in part.attrs.items():
            table.attrs[key] = {**table.attrs.get(key, {}), **files}
    return table


def shown(name: str, table: pd.DataFrame) -> bytes | str:
    module = paper_figures.load(name)
    if not VIEWS[name].is_figure:
        frame = module.rows(table)
        said = module.remarks(frame) if hasattr(module, "remarks") else []
        return frame.to_csv() + "\n".join(said)
    picture = io.BytesIO()
    figure = module.draw(table)
    figure.savefig(picture, format="png", dpi=60, metadata={"Software": None})
    plt.close(figure)
    return picture.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_shows_the_same_without_the_suites_that_it_does_not_name(everything, name):
    own = paper_figures.rows_of(paper_figures.load(name), everything)
    assert 0 < len(own) < len(everything) or name == "tensor_parallel"
    assert own.attrs.keys() == everything.attrs.keys()
    assert shown(name, own) == shown(name, everything)
