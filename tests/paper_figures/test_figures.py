"""Every figure and table is made, also from few records or none."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for place in (Path(__file__).parent, ROOT, ROOT / "workflow" / "scripts"):
    sys.path.insert(0, str(place))
import fake_inference  # noqa: E402
import fake_kernels  # noqa: E402
import fake_memory  # noqa: E402
import fake_records as fake  # noqa: E402
import fake_runs  # noqa: E402
import fake_study  # noqa: E402
import fake_training  # noqa: E402
import figure as figure_script  # noqa: E402
import paper_table as table_script  # noqa: E402

import paper_figures  # noqa: E402
from blast.errors import BlastError  # noqa: E402
from blast.experiment.records.table import load_table  # noqa: E402

FAILED, SKIPPED = "gpt2-nano.pystdlib.random.s95.b16.seed0", "vit-nano.digits.blast.s80.b16.seed0"

OF_STEPS = ("pretraining_speedup", "training_memory", "time_breakdown")
OF_RUNS = ("time_to_loss", "switch_curves")
OF_STUDIES = ("pareto", "recovery_vs_tokens")
OF_INFERENCE = ("inference_speedup", "energy")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return fake.write_grid(tmp_path_factory.mktemp("results") / "default", fail=FAILED, skip=SKIPPED)


@pytest.fixture(scope="module")
def table(grid):
    return load_table(grid, grid / "recorded")


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    return load_table(empty, empty)


def words(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Rows of the suite `kernels`, from records that were exported and read again."""
    from blast.experiment.records.export import export_grid

    folder = tmp_path_factory.mktemp("kernels")
    export_grid(fake_kernels.write_kernels(folder / "default"), folder / "recorded")
    return load_table(folder / "nothing", folder / "recorded")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Rows of the suite `training_step`."""
    folder = fake_training.write_training(tmp_path_factory.mktemp("steps") / "default")
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Rows of whole runs with their times."""
    folder = fake_runs.write_runs(tmp_path_factory.mktemp("runs") / "study")
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rows of a quality study."""
    folder = fake_study.write_study(tmp_path_factory.mktemp("studies") / "quality")
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    """Rows of the suite `inference`."""
    folder = tmp_path_factory.mktemp("inference") / "default"
    fake_inference.write_inference(folder)
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """Rows of the suite `memory`."""
    folder = fake_memory.write_memory(tmp_path_factory.mktemp("memory") / "default")
    return load_table(folder, folder / "recorded")


@pytest.fixture(scope="module")
def drawn_from_kernels(kernels):
    """Draws a figure of all rows of the suite `kernels`, each of them once; the tests only read them."""
    return cache(lambda name: paper_figures.load(name).draw(kernels))


@pytest.mark.parametrize("name", paper_figures.figures())
def test_a_figure_names_its_machine_and_draws_from_records(
    table, kernels, steps, runs, study, inference, memory, drawn_from_kernels, name
):  # fmt: skip
    given = {"kernel": kernels, "inference_memory": memory}
    given |= dict.fromkeys(OF_STEPS, steps) | dict.fromkeys(OF_RUNS, runs)
    given |= dict.fromkeys(OF_STUDIES, study) | dict.fromkeys(OF_INFERENCE, inference)
    drawn_from = given.get(name, given.get(name.partition("_")[0], table))
    draw = drawn_from_kernels if drawn_from is kernels else lambda name: paper_figures.load(name).draw(drawn_from)
    text = words(draw(name))
    assert ("CPU (imaginary)" if drawn_from is table else "imaginary GPU") in text
    grid = "study" if drawn_from is runs else "quality" if drawn_from is study else "default"
    assert f"grid {grid}" in text


@pytest.mark.parametrize("name", paper_figures.figures())
def test_without_records_a_figure_says_not_run(nothing, name):
    assert "not run" in words(paper_figures.load(name).draw(nothing))


@pytest.mark.parametrize("name", paper_figures.tables())
def test_without_records_a_table_says_not_run(nothing, name):
    frame = paper_figures.load(name).rows(nothing)
    assert len(frame) >= 1
    assert "not run" in frame.to_csv()


@pytest.mark.parametrize("name", [*paper_figures.figures(), *paper_figures.tables()])
def test_a_view_has_a_title_and_a_caption(name):
    assert paper_figures.load(name).TITLE
    assert (ROOT / "workflow" / "report" / f"{name}.rst").read_text().strip()


def test_a_figure_names_failed_and_missing_points(table):
    text = words(paper_figures.load("quality_vs_sparsity").draw(table))
    assert "failed" in text.split("\n")
    assert "not run" in text.split("\n")
    assert "Failed: GPT-2 nano Python stdlib static random 95 % seed 0." in text.replace("\n", " ")


def test_a_model_whose_points_all_failed_has_a_panel_that_says_so(table):
    llama = (table["model"] == "llama-nano") & (table["suite"] == "train")
    broken = table.assign(status=table["status"].where(~llama, "failed"))
    drawn = paper_figures.load("quality_vs_sparsity").draw(broken)
    (panel,) = [axes for axes in drawn.axes if "Llama nano" in axes.get_title(loc="left")]
    assert [text.get_text() for text in panel.texts] == ["failed"]


def test_each_panel_of_timings_is_of_one_machine(tmp_path):
    from blast.experiment.records.export import export

    records = [
        fake.make_benchmark_record("gpt2", 0.95, 2.0),
        fake.make_benchmark_record("gpt2", 0.95, 9.0, "nvidia-h100", gpu="NVIDIA H100"),
    ]
    export(records, tmp_path / "recorded")
    drawn = paper_figures.load("mlp_speedup").draw(load_table(tmp_path, tmp_path / "recorded"))
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.get_visible()]
    assert len(titles) == 2
    # One below the other.
    assert [axes.get_ylabel() for axes in drawn.axes] == ["speed-up over dense"] * 2
    assert sum("CPU (imaginary)" in title for title in titles) == 1
    assert "CPU timings say nothing about a GPU." in words(drawn).replace("\n", " ")


def test_blocks_are_live_dropped_grown_or_empty():
    import numpy as np

    masks = paper_figures.load("block_masks")
    first, second = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    found = masks.states({0: first, 5: second}, [0, 5])
    assert found[5].tolist() == [[masks.LIVE, masks.DROPPED, masks.GROWN, masks.EMPTY]]


def test_the_results_table_gives_the_reason_for_a_missing_number(table):
    module = paper_figures.load("results_table")
    frame = module.rows(table)
    notes = " ".join(frame["note"])
    assert "seed 0 failed: the loss became NaN" in notes
    assert "seed 0 not run" in notes
    assert "at chance" in notes
    assert frame[frame["note"] == "at chance"]["relative_loss_percent"].isna().all()
    # No seed differs in the top five of ten classes; in all else the pruned models are worse by more than the seeds.
    assert set(frame.loc[frame["note"] == "within noise", "metric"]) == {"top5"}
    assert set(frame.loc[(frame["metric"] == "top5") & (frame["method"] != "dense"), "note"]) == {"within noise"}
    assert "82.92 ± 0.38" in set(module.printed(frame)["value"])


@pytest.mark.slow
def test_the_figure_script_writes_the_same_bytes_twice(grid, tmp_path):
    written = []
    for place in ("first", "second"):
        arguments = [
            "accuracy_vs_sparsity",
            "--grid-dir",
            str(grid),
            "--recorded",
            str(tmp_path),
            "--out-dir",
            str(tmp_path / place),
        ]
        assert figure_script.main(arguments) == 0
        written.append({file.name: file.read_bytes() for file in sorted((tmp_path / place).iterdir())})
    assert written[0] == written[1]
    assert set(written[0]) == {"accuracy_vs_sparsity.pdf", "accuracy_vs_sparsity.png"}
    # TrueType, so that a publisher's check passes and text can be edited.
    assert b"/Type3" not in written[0]["accuracy_vs_sparsity.pdf"]


def test_the_table_script_writes_csv_markdown_and_latex(grid, tmp_path):
    arguments = ["claims", "--grid-dir", str(grid), "--recorded", str(tmp_path), "--out-dir", str(tmp_path / "out")]
    assert table_script.main(arguments) == 0
    texts = {file.suffix: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert set(texts) == {".csv", ".md", ".tex"}
    assert r"up to 95 \%" in texts[".tex"]
    assert "| up to 16.7x |" in texts[".md"]


def test_an_unknown_figure_is_one_sentence_with_the_nearest_name(capsys):
    assert figure_script.main(["accuracy_vs_sparsit"]) == 1
    assert (
        capsys.readouterr().err == "error: unknown figure 'accuracy_vs_sparsit'; did you mean 'accuracy_vs_sparsity'?\n"
    )
    with pytest.raises(BlastError, match="did you mean 'claims'"):
        paper_figures.load("claim")


def test_the_heat_map_shows_ours_alone_and_shared_masks_in_their_own_column(drawn_from_kernels):
    drawn = drawn_from_kernels("kernel_speedup")
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn.axes]
    assert [title for title in titles if title] == [
        "128", "128, shared", "128 × 64", "64 × 128", "64", "32 × 128", "32",
    ]  # fmt: skip
    cells = [text.get_text() for axes in drawn.axes for text in axes.texts]
    # 405B at 95 %, block 128, 1 token: 20 times. The kernel that skips dead blocks (25 times) is not shown.
    assert "20" in cells
    assert "25" not in cells


def test_views_of_the_kernels_ignore_cpu_timings(tmp_path):
    from blast.experiment.records.export import export

    record = fake_kernels.make_record_of(fake_kernels.points()[0], "cpu-imaginary-processor")
    export([record], tmp_path)
    table = load_table(tmp_path / "none", tmp_path)
    for name in ("kernel_speedup", "kernel_roofline", "kernel_peers"):
        assert "not run" in words(paper_figures.load(name).draw(table))
    assert set(paper_figures.load("kernel_table").rows(table)["status"]) == {"not run"}


def test_views_of_the_kernels_show_one_gpu(tmp_path):
    from blast.experiment.records.export import export

    points = fake_kernels.points()
    export([fake_kernels.make_record_of(point) for point in points[:3]], tmp_path)
    export([fake_kernels.make_record_of(point, "other-gpu") for point in points[:1]], tmp_path)
    frame = paper_figures.load("kernel_table").rows(load_table(tmp_path / "none", tmp_path))
    assert set(frame["hardware"]) == {fake_kernels.GPU}


def test_the_peers_figure_says_which_peer_did_not_run_and_why(drawn_from_kernels):
    text = words(drawn_from_kernels("kernel_peers")).replace("\n", " ")
    assert "blksprs not run in 4 cases: the package blksprs is not installed." in text
    assert "Llama 3.1 8B, 95 %, block 128, 2048 tokens" in text


def test_the_peers_figure_gives_ours_over_the_fastest_peer_case_by_case(kernels, drawn_from_kernels):
    text = words(drawn_from_kernels("kernel_peers"))
    frame = paper_figures.load("kernel_table").rows(kernels)
    timed = frame[(frame["sparsity"] == 0.95) & (frame["model"] == "llama-3.1-8b") & (frame["tokens"] == 16)]
    fastest = timed[timed["provider"].isin(["stk", "torch_bsr"])]["us"].min()
    ours = timed[(timed["provider"] == "ours") & (timed["block"] == "128x128") & (timed["tied"] == False)]  # noqa: E712
    assert f"{fastest / ours['us'].iloc[0]:.2f}×" in text


def test_transposed_blocks_of_the_down_projection_are_marked(kernels, drawn_from_kernels):
    blocks = set(paper_figures.load("kernel_table").rows(kernels).query("model == 'gpt2-xl'")["block"])
    assert blocks == {"64x64", "32x32", "128x64/64x128"}
    drawn = drawn_from_kernels("kernel_speedup")
    assert "128 × 64" in {axes.get_title(loc="center") for axes in drawn.axes}
    assert "*" in words(drawn).split("\n")


def test_the_kernel_table_gives_the_bound_and_separate_rows_for_skipped_dead_blocks(kernels):
    module = paper_figures.load("kernel_table")
    frame = module.rows(kernels)
    row = frame[(frame["model"] == "llama-3.1-405b") & (frame["block"] == "128x128") & (frame["sparsity"] == 0.95)]
    ours = row[(row["provider"] == "ours") & (row["tokens"] == 16) & (row["tied"] == False)].iloc[0]  # noqa: E712
    assert ours["speed_up"] == pytest.approx(20)
    assert (ours["bound"], ours["bound_fraction"]) == ("memory", 0.716373)
    assert set(row.loc[row["provider"] == "ours_skipped", "dead_hidden"]) == {0.12}
    shown = module.printed(frame)
    assert {"20.00×", "25.00×"} <= set(shown["speed-up"])
    assert "memory, 72 %" in set(shown["bound"])


def test_fp8_weights_have_separate_rows_with_their_error_and_enter_no_figure(kernels, drawn_from_kernels):
    module = paper_figures.load("kernel_table")
    frame = module.rows(kernels)
    rounded = frame["provider"] == "ours_fp8"
    assert set(frame.loc[rounded, "quantization_error"]) == {0.0421}
    assert frame.loc[~rounded, "quantization_error"].isna().all()
    shown = module.printed(frame)
    assert set(shown.loc[rounded, "kernel"]) == {"ours fp8", "ours fp8, shared masks"}
    assert set(shown.loc[rounded, "weights off"]) == {"4.2 %"}
    assert set(shown.loc[~rounded, "weights off"]) == {""}
    assert "32.00×" in set(shown.loc[rounded, "speed-up"])
    for name in ("kernel_speedup", "kernel_peers", "kernel_roofline"):
        drawn = drawn_from_kernels(name)
        assert "32" not in [text.get_text() for axes in drawn.axes for text in axes.texts]
        assert "fp8" not in words(drawn)


def test_a_kernel_point_that_was_not_run_is_named(tmp_path):
    skipped = fake_kernels.points()[0].id
    table = load_table(fake_kernels.write_kernels(tmp_path / "default", skip=skipped), tmp_path)
    text = words(paper_figures.load("kernel_speedup").draw(table)).replace("\n", " ")
    assert "Not run: Llama 3.1 405B 70 % block 128." in text
    frame = paper_figures.load("kernel_table").rows(table)
    assert list(frame.loc[frame["provider"].isna(), "status"]) == ["not run"]
