"""The views of the quality study: main results, levers, and what small dense models do."""

from __future__ import annotations

import itertools

import fake_study as fake
import numpy as np
import pandas as pd
import pytest

import paper_figures
from blast.evaluation.item_scores import HELD_OUT, ItemScores, write_item_scores
from blast.experiment.records.table import load_table
from paper_figures.views import _labels
from paper_figures.views import _style as style
from paper_figures.views._quality import _label, _look, _series, _shifts

SKIPPED = "gpt2.technical_text.random.s80.b64.seed0"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    fake.write_study(folder / "quality", skip=SKIPPED)
    fake.write_masks(folder / "recorded" / fake.GPU)
    return load_table(folder / "quality", folder / "recorded")


@pytest.fixture(scope="module")
def results(study):
    return paper_figures.load("main_results").rows(study)


def one(frame, **which):
    for key, value in which.items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


def value_of(study, point):
    scores = study[(study["point"] == point) & (study["metric"] == "bits_per_byte") & study["step"].isna()]
    (value,) = scores["value"]
    return value


def words(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


GPT2 = {"architecture": "gpt2", "trained": 52428800}


def test_the_main_results_give_trials_seeds_and_both_dense_models(results):
    blast = one(results, **GPT2, method="blast", sparsity=0.95, variant="")
    assert (blast["trials"], blast["seeds"], blast["learning_rate"]) == (3, 3, 9e-4)
    assert blast["chosen_by"] == "validation_bits_per_byte"
    assert pd.isna(blast["above_taught_dense_percent"])
    taught = one(results, **GPT2, method="blast", sparsity=0.95, variant="taught")
    dense = one(results, **GPT2, method="dense", variant="taught")
    wanted = 100 * (taught["value"] / dense["value"] - 1)
    assert taught["above_taught_dense_percent"] == pytest.approx(wanted)
    assert taught["relative_loss_percent"] < taught["above_taught_dense_percent"]


def test_a_row_is_named_by_its_method_variant_and_teacher(results):
    row = one(results, **GPT2, method="blast", sparsity=0.95, variant="constant-growth")
    named = {variant: _labels.model_name(row | {"variant": variant}) for variant in ("", "taught", "constant-growth")}
    assert named == {"": "BLaST", "taught": "BLaST", "constant-growth": "BLaST (constant growth)"}
    assert _labels.model_name(row | {"variant": "taught", "teacher": "dense"}) == "BLaST, taught by dense"
    assert _labels.model_name(row | {"variant": float("nan")}) == "BLaST"


def test_a_verdict_needs_the_whole_interval_on_one_side(results):
    for row in results[results["verdict"].notna()].itertuples():
        wanted = "within" if row.high <= 2.25 else "outside" if row.low > 2.25 else "undecided"
        assert row.verdict == wanted
    assert {"within", "outside", "undecided"} <= set(results["verdict"])
    assert results.loc[(results["method"] == "dense") & results["teacher"].isna(), "verdict"].isna().all()


def test_the_windows_of_the_held_out_text_give_the_verdict_where_they_were_kept(study, results, tmp_path):
    nats = np.random.default_rng(0).normal(900, 90, 64)
    files, lever = {}, "gpt2.technical_text.blast.s95.b64.seed0.constant-growth"
    for point, loss in (("gpt2.technical_text.dense.seed0", 0), (lever, 2)):
        files["quality", fake.GPU, point] = [tmp_path / f"{point}.npz"]
        items = ItemScores.of_texts(nats * (1 + loss / 100), [1500] * 64, 24_000, "sha256:text")
        write_item_scores(tmp_path / f"{point}.npz", {HELD_OUT: items}, {"point": point})
    table = study.copy()
    table.attrs["items"] = files
    place = {**GPT2, "method": "blast", "sparsity": 0.95, "variant": "constant-growth"}
    row, unpaired = (one(frame, **place) for frame in (paper_figures.load("main_results").rows(table), results))
    # Items are kept in hundredths of a nat. The windows of both models are the same, so the interval is narrow.
    assert (row["verdict"], row["low"], row["high"]) == ("within", pytest.approx(2, 1e-3), pytest.approx(2, 1e-3))
    assert unpaired["verdict"] == "outside"


def test_a_difference_has_a_sign_and_a_share_has_none(results):
    shown = paper_figures.load("main_results").printed(results)
    signed = ("relative loss", "relative perplexity", "above taught dense", "above small dense")
    for column in (*signed, "MLP weights gone", "all weights gone"):
        numbers = [text.split()[0] for text in shown[column] if text.strip()]
        assert numbers
        assert all(number[0] in "+-" for number in numbers) if column in signed else not any("+" in n for n in numbers)


def test_the_axis_of_sparsities_begins_before_the_first_and_ends_after_the_last():
    figure = style.new_figure(style.COLUMN, 2)
    axes = figure.subplots()
    style.sparsity_axis(axes, [0.5, 0.75, 0.0], right=0.5)
    assert list(axes.get_xticks()) == [1, 2]
    assert axes.get_xlim() == pytest.approx((0.7, 2.5))


def test_a_point_that_was_not_run_has_a_row_that_says_so(results):
    assert one(results, method="random", sparsity=0.8, architecture="gpt2")["note"] == "seed 0 not run"


def test_a_small_dense_model_that_wins_is_named_on_top(study, results):
    module = paper_figures.load("main_results")
    assert module.remarks(results) == []
    wide = (study["ffn"] == 448) & (study["metric"] == "bits_per_byte")
    better = study.assign(value=study["value"].where(~wide, 1.19))
    (remark,) = module.remarks(module.rows(better))
    assert remark.startswith("GPT-2 on technical English at 95 %: the small dense model (live width, ffn 448)")
    assert "against 1.19 bits per byte" in remark
    assert "outside the spread of the seeds" in remark


def test_remarks_stand_above_the_table_in_markdown_and_latex(tmp_path):
    from paper_figures.views._write import save_table

    frame = pd.DataFrame({"a": [1]})
    save_table(frame, frame, tmp_path, "some", remarks=["5 % less."])
    assert (tmp_path / "some.md").read_text().startswith("5 % less.\n\n| a |")
    assert (tmp_path / "some.tex").read_text().startswith("5 \\% less.\\par\n")
    assert (tmp_path / "some.csv").read_text() == "a\n1\n"


def test_the_figure_of_quality_draws_recipes_and_no_levers(study):
    drawn = paper_figures.load("quality_vs_sparsity").draw(study)
    (panel,) = [axes for axes in drawn.axes if axes.get_title(loc="left") == "GPT-2\ntechnical English"]
    shown = {round(float(value), 6) for line in panel.lines for value in line.get_ydata()}
    results = paper_figures.load("main_results").rows(study)
    recipe = one(results, **GPT2, method="blast", sparsity=0.95, variant="")
    lever = one(results, **GPT2, method="blast", sparsity=0.95, variant="constant-growth")
    assert round(recipe["value"], 6) in shown
    assert round(lever["value"], 6) not in shown
    assert "BLaST, taught" in words(drawn)


def test_blocks_of_several_sizes_have_markers_of_their_own_which_do_not_cover_each_other():
    blocks = ["64x64", "64x64", "64x64", "128x128", "16x16", "32x32"]
    rows = pd.DataFrame({
        "method": "gmp", "teacher": None, "block": blocks, "sparsity": [0.8, 0.9, *[0.95] * 4], "seeds": 1,
    })  # fmt: skip
    lines = _series(rows)
    assert [_label(key).partition(", ")[2] for key, _ in lines] == ["", "block 16", "block 32", "block 128"]
    assert [len(line) for _, line in lines] == [3, 1, 1, 1]
    markers = [_look(key)["marker"] for key, _ in lines]
    assert len(set(markers)) == 4
    assert not set(markers[1:]) & {*style.MARKERS.values(), "*"}
    shifts = [_shifts([key for key, _ in lines])[key] for key, _ in lines]
    assert shifts[0] == pytest.approx(-shifts[-1])
    assert min(after - before for before, after in itertools.pairwise(shifts)) > 0.12


def test_each_lever_is_compared_with_the_recipe_without_it(study, results):
    found = paper_figures.load("ablations").rows(study)
    row = one(found, lever="growth decays")
    assert (row["value"], row["without"], row["base"], row["status"]) == ("cosine", "constant", "blast", "ok")
    # Seed 0 alone has both.
    point = "gpt2.technical_text.blast.s95.b64.seed0"
    decaying, constant = (value_of(study, name) for name in (point, f"{point}.constant-growth"))
    assert row["held_out_s95"] == pytest.approx(100 * (decaying / constant - 1))
    assert pd.isna(row["low_s95"])
    assert pd.isna(row["high_s95"])
    assert row["training_s95"] != row["held_out_s95"]
    assert (row["seeds_s95"], row["seeds_without_s95"]) == (3, 1)


def test_scores_of_the_training_data_are_compared_in_one_metric(study):
    """The recipe has no score of its own on the training data here: both sides take the end of the training loss."""
    recipe = study["point"].str.fullmatch(r"gpt2\.technical_text\.blast\.s95\.b64\.seed\d(\.lr.*)?")
    table = study[~(recipe & study["metric"].str.startswith("train_bits"))]
    row, whole = (one(paper_figures.load("ablations").rows(t), lever="growth decays") for t in (table, study))
    assert row["training_s80"] == whole["training_s80"]
    assert row["training_s95"] != whole["training_s95"]
    assert abs(row["training_s95"]) < 5


def test_a_lever_without_numbers_at_two_sparsities_is_not_run(study):
    module = paper_figures.load("ablations")
    found = module.rows(study)
    assert one(found, lever="dense start")["status"] == "not run at 80 %"
    assert one(found, lever="hidden units permuted")["status"] == "not run"
    assert "not run" in one(module.printed(found), lever="dense start: 0.1 instead of 0.0")["80 %: held-out"]


def test_the_levers_of_the_table_are_settings():
    from dataclasses import fields

    from blast.experiment.analysis.levers import COME_ALONG, LEVERS
    from blast.sparsity.config import SparsifyConfig
    from blast.training.distillation import Distillation
    from blast.training.settings import TrainingSettings

    known = {field.name for kind in (SparsifyConfig, TrainingSettings) for field in fields(kind)}
    known |= {"teacher"} | {f"distillation.{field.name}" for field in fields(Distillation)}
    assert {*LEVERS, *COME_ALONG} | {key for keys in COME_ALONG.values() for key in keys} <= known


def with_tasks(study):
    """The study with two accuracies of each language model; a dataset and a task have long names."""
    text = study[(study["metric"] == "bits_per_byte") & study["step"].isna()]
    score = {"metric": "acc", "unit": "fraction", "better": "higher", "spread": "stderr"}
    added = [
        text.assign(**score, task=task, value=value, low=value - 0.02, high=value + 0.02, chance=chance)
        for task, value, chance in (("boolq", 0.51, 0.5), ("a_task_of_a_very_long_name_indeed", 0.6, 0.25))
    ]
    long = study["dataset"].where(study["model"] != "vit-s-4", "a_dataset_of_a_very_long_name_indeed")
    return pd.concat([study.assign(dataset=long), *added], ignore_index=True)


def with_wide_labels(study):
    """GPT-2 as a pretrained model of a long name, with accuracies of many tasks; dense scores 0 in the first."""
    gpt2 = study[study["model"] == "gpt2"].assign(model="smollm2-135m-q4", dataset="technical_code", start="pretrained")
    scores = gpt2[(gpt2["metric"] == "bits_per_byte") & gpt2["step"].isna()]
    accuracy = {"metric": "acc", "unit": "fraction", "better": "higher", "spread": "stderr", "chance": 0.25}
    tasks = [
        scores.assign(**accuracy, task=task, value=value, low=value, high=value)
        for task, value in (("arc_easy", 0.0), ("hellaswag", 0.6), ("lambada", 0.0), ("piqa", 0.0), ("sciq", 0.5))
    ]
    return pd.concat([gpt2, *tasks], ignore_index=True)


@pytest.mark.parametrize(
    ("name", "panels", "rows"),
    [
        ("quality_vs_sparsity", 3, with_tasks),
        ("accuracy_vs_sparsity", 5, with_tasks),
        ("accuracy_vs_sparsity", 5, with_wide_labels),
    ],
)
def test_no_text_of_a_figure_by_sparsity_runs_out_of_the_picture_or_into_another_panel(study, name, panels, rows):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = paper_figures.load(name).draw(rows(study))
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    width, height = drawn.bbox.width, drawn.bbox.height
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert len(shown) == panels
    texts = [text for axes in shown for text in (axes._left_title, axes.yaxis.label)]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_accuracies_have_chance_and_standard_errors_and_no_line_where_dense_is_at_chance(study):
    drawn = paper_figures.load("accuracy_vs_sparsity").draw(with_tasks(study))
    gpt2 = [axes for axes in drawn.axes if axes.get_title(loc="left").startswith("GPT-2")]
    panels = {" ".join(axes.get_ylabel().split()): axes for axes in gpt2}
    assert set(panels) == {"boolq accuracy (%)", "a task of a very long name indeed accuracy (%), chance 25 %"}
    near, far = (panels[label] for label in sorted(panels, key=len))
    assert "chance" in {text.get_text() for text in near.texts}
    assert "2.25 %" not in {text.get_text() for text in near.texts}
    assert "2.25 %" in {text.get_text() for text in far.texts}
    bars = [list(line.get_ydata()) for line in far.lines if line.get_linewidth() == 0.8]
    assert bars
    assert all(bar == pytest.approx([58, 62]) for bar in bars)


def test_a_model_without_an_accuracy_has_a_panel_that_says_not_run(study):
    drawn = paper_figures.load("accuracy_vs_sparsity").draw(study)
    texts = {
        axes.get_title(loc="left").split("\n")[0]: [text.get_text() for text in axes.texts]
        for axes in drawn.axes if axes.get_visible()
    }  # fmt: skip
    assert texts["GPT-2"] == texts["SmolLM2 135M, pretrained"] == ["not run"]
    assert "not run" not in texts["ViT S 4"]


def test_training_curves_are_those_of_recipes(study):
    drawn = paper_figures.load("training_curves").draw(study)
    (panel,) = [axes for axes in drawn.axes if axes.get_title(loc="left") == "GPT-2\ntechnical English"]
    curves = study[(study["model"] == "gpt2") & (study["metric"] == "validation_loss") & study["step"].notna()]
    last = curves.sort_values("step").groupby("point")["value"].last()
    shown = {float(line.get_ydata()[-1]) for line in panel.lines}
    blast = "gpt2.technical_text.blast.s95.b64.seed0"
    assert last[blast] in shown
    assert shown.isdisjoint({last[f"{blast}.taught"], last[f"{blast}.dense-start"], last[f"{blast}.lr6e-4"]})


def test_training_curves_without_blast_are_those_of_gmp(study):
    draw = paper_figures.load("training_curves").draw
    trained = study[study["method"].isin(["dense", "blast"])]
    usual = draw(trained)
    pruned = draw(trained.assign(method=trained["method"].replace("blast", "gmp")))
    titles = [[t for axes in figure.axes if (t := axes.get_title(loc="left"))] for figure in (usual, pruned)]
    assert titles[0]
    assert titles[1] == [title.replace("\n", ", GMP\n", 1) for title in titles[0]]
    assert [len(axes.lines) for axes in usual.axes] == [len(axes.lines) for axes in pruned.axes]


def test_the_figure_of_masks_counts_hidden_blocks(study):
    drawn = paper_figures.load("mask_by_layer").draw(study)
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.get_visible()]
    assert titles == [f"GPT-2, technical English\nBLaST {percent} %" for percent in (80, 90, 95)]
    heights = [text.get_text() for text in drawn.axes[2].texts]
    assert len(heights) == 12
    assert all(0 < int(height) <= 48 for height in heights)


def test_the_masks_of_a_single_model_are_a_figure_too(study):
    one_model = study[(study["method"] == "dense") | (study["sparsity"] == 0.95)]
    one_model.attrs = study.attrs
    (axes,) = paper_figures.load("mask_by_layer").draw(one_model).axes
    assert axes.get_title(loc="left") == "GPT-2, technical English\nBLaST 95 %"


def test_the_figure_of_recovery_says_what_two_and_a_quarter_percent_would_take(study):
    drawn = paper_figures.load("recovery_vs_tokens").draw(study)
    text = words(drawn).replace("\n", " ")
    assert "Tokens for 2.25 %: SmolLM2 135M: BLaST 50 %" in text
    (panel,) = [axes for axes in drawn.axes if axes.get_visible()]
    assert panel.get_xscale() == panel.get_yscale() == "log"


def test_the_pareto_figure_draws_small_dense_models_and_measured_times(study):
    drawn = paper_figures.load("pareto").draw(study)
    assert {"small dense", "BLaST", "dense"} <= set(words(drawn).split("\n"))
    panel = next(axes for axes in drawn.axes if axes.get_xlabel().startswith("time of a training step (ms)"))
    times = {round(float(value), 4) for line in panel.lines for value in line.get_xdata()}
    # Of dense, of blast at .95, and of a small dense model at .95.
    assert {100.0, 71.5, 52.5} <= times
    assert {"ffn 160", "ffn 448", "95"} <= {text.get_text() for text in panel.texts}
    assert "was not timed" not in words(drawn)


def test_the_pareto_figure_counts_the_models_whose_training_was_not_timed(study):
    images = study[study["model"] == "vit-s-4"]
    blast = (images["metric"] == "training_time") & (images["method"] == "blast")
    text = words(paper_figures.load("pareto").draw(images[~blast])).replace("\n", " ")
    assert "The training of 2 models was not timed." in text


def test_without_a_time_of_a_token_its_panel_says_not_run(study):
    untimed = study[study["metric"] != "scoring_rate"]
    drawn = paper_figures.load("pareto").draw(untimed)
    panels = [axes for axes in drawn.axes if axes.get_xlabel().startswith("time of a token")]
    assert panels
    assert all([text.get_text() for text in axes.texts] == ["not run"] for axes in panels)


def test_times_that_were_measured_beside_other_runs_are_named(study):
    beside = study.assign(side_by_side=study["side_by_side"].where(study["model"] != "vit-s-4", 2.0))
    text = words(paper_figures.load("pareto").draw(beside)).replace("\n", " ")
    assert "21 runs were timed beside others on their machine." in text
