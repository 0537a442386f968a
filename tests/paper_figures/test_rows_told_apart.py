"""No table has two rows that nothing tells apart, neither in its numbers nor as it is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "workflow" / "scripts"):
    sys.path.insert(0, str(place))
import fake_inference  # noqa: E402
import fake_kernels  # noqa: E402
import fake_memory  # noqa: E402
import fake_records as fake  # noqa: E402
import fake_runs  # noqa: E402
import fake_study  # noqa: E402
import fake_training  # noqa: E402
import paper_table as table_script  # noqa: E402

import paper_figures  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402
from paper_figures.views._rows import same_rows, same_rows_remark, told_apart  # noqa: E402

RECORDED = ROOT / "results" / "recorded"
FAKES = {
    "default": fake.write_grid,
    "kernels": fake_kernels.write_kernels,
    "steps": fake_training.write_training,
    "runs": fake_runs.write_runs,
    "study": fake_study.write_study,
    "inference": fake_inference.write_inference,
    "memory": fake_memory.write_memory,
}


@pytest.fixture(scope="module", params=["recorded", "recorded and local", *FAKES])
def table(request, tmp_path_factory):
    """Recorded rows, rows of every fake grid, and a local grid beside the recorded rows."""
    folder = tmp_path_factory.mktemp("rows") / "default"
    if request.param == "recorded":
        return load_table(folder, RECORDED)
    if request.param == "recorded and local":
        return load_table(fake.write_grid(folder, fail=FAILED, skip=SKIPPED), RECORDED)
    FAKES[request.param](folder)
    return load_table(folder, folder / "recorded")


FAILED, SKIPPED = "gpt2-nano.pystdlib.random.s95.b16.seed0", "vit-nano.digits.blast.s80.b16.seed0"


def shown_rows(module, frame: pd.DataFrame) -> pd.DataFrame:
    return module.printed(frame) if hasattr(module, "printed") else frame


@pytest.mark.slow
@pytest.mark.parametrize("name", paper_figures.tables())
def test_no_table_has_two_rows_that_nothing_tells_apart(table, name):
    module = paper_figures.load(name)
    frame = module.rows(table)
    same = frame.iloc[same_rows(frame, module.KEY)]
    assert same.empty, same[list(module.KEY)].to_string()
    shown, key = told_apart(frame, shown_rows(module, frame), module.KEY, module.SHOWN_KEY)
    same = shown.iloc[same_rows(shown, key)]
    assert same.empty, same[list(key)].to_string()


def two_rows(**differing: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = pd.DataFrame({"grid": ["a", "a"], "model": ["m", "m"], "start": ["scratch"] * 2, "value": [1.0, 2.0]})
    frame = frame.assign(**differing)
    return frame, frame[["model", "value"]]


def test_a_column_that_tells_rows_apart_is_added_and_no_other():
    frame, shown = two_rows(start=["scratch", "pretrained"])
    made, key = told_apart(frame, shown, ("grid", "start", "model"), ("model",))
    assert list(made.columns) == ["start", "model", "value"]
    assert key == ("model", "start")
    assert told_apart(frame, shown, ("grid", "start", "model"), ("model", "value"))[0].equals(shown)


def test_a_missing_value_tells_rows_apart_too():
    frame, shown = two_rows(start=["scratch", None])
    made, key = told_apart(frame, shown, ("grid", "start"), ("model",))
    assert list(made["start"]) == ["scratch", ""]
    assert not same_rows(made, key)


@pytest.mark.fault(
    fault="Nothing tells two rows of a table apart.",
    topic="What the verdict says",
    happens="The table is made. A line above it says so.",
    reads="… rows are equal in all that says what they are about, so do not compare them; one is …",
    lost="nothing",
)
def test_rows_that_nothing_tells_apart_are_told_on_top_of_the_table(reads):
    frame, shown = two_rows()
    made, key = told_apart(frame, shown, ("grid", "start", "model"), ("model",))
    assert same_rows_remark(made, key) == (
        "2 rows are equal in all that says what they are about, so do not compare them; one is model m."
    )
    reads(same_rows_remark(made, key))
    assert same_rows_remark(*told_apart(frame, shown, ("grid",), ("value",))) == ""


def test_a_table_prints_all_its_rows():
    frame, shown = two_rows()
    with pytest.raises(ValueError, match="2 rows and 1 printed"):
        told_apart(frame, shown.head(1), ("grid",), ("model",))


def test_dense_models_of_two_grids_and_starts_are_told_apart_in_the_results(tmp_path):
    """Three dense rows of the results looked the same."""
    arguments = ["results_table", "--grid-dir", str(tmp_path / "none"), "--recorded", str(RECORDED)]
    assert table_script.main([*arguments, "--out-dir", str(tmp_path)]) == 0
    lines = (tmp_path / "results_table.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| "))
    assert {"grid", "start"} <= {cell.strip() for cell in header.split("|")}
    assert not any("equal in all" in line for line in lines)
    about = [line.split("|")[1:9] for line in lines if line.startswith("| ") and " dense |" in line]
    assert len(about) > 3
    assert len({tuple(cells) for cells in about}) == len(about)


# What a metric of a model's quality is not: sizes, times, and scores of other parts of the data.
NOT_QUALITY = ("_bytes", "_time", "scoring_rate", "_loss", "sparsity", "sparse_execution")
OTHER_PARTS = ("train_", "validation_")


@pytest.mark.slow
def test_every_score_of_the_records_is_in_the_results():
    """`acc_norm` was not; perplexity a byte is 2 to the power of bits a byte."""
    table = load_table(ROOT / "no results", RECORDED)
    rows = table[(table["suite"] == "train") & table["step"].isna() & table["metric"].notna()]
    scores = {
        (row.metric, row.task) for row in rows[["metric", "task"]].itertuples(index=False)
        if not row.metric.endswith(NOT_QUALITY) and not row.metric.startswith(OTHER_PARTS)
    } - {("byte_perplexity", "text_heldout")}  # fmt: skip
    found = paper_figures.load("results_table").rows(table)
    known = set(found[["metric", "task"]].itertuples(index=False, name=None))
    # lm-eval's bits per byte have an error over documents, and stand for ours.
    assert {metric for metric, _ in scores} <= {metric for metric, _ in known}
    assert {score for score in scores if score[1]} <= known
    assert ("acc_norm", "piqa") in known


def test_the_commands_of_missing_rows_are_those_of_their_points(tmp_path):
    grid = fake.write_grid(tmp_path / "default", fail=FAILED, skip=SKIPPED)
    frame = paper_figures.load("results_table").rows(load_table(grid, tmp_path))
    lost = frame[frame["value"].isna()]
    assert len(lost) == 2
    assert json.dumps(sorted(lost["rerun"])).count("blast rerun") == 2
