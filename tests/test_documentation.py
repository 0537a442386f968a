"""What the README and the docs promise is tried here; their numbers are those of the records."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

import paper_figures
from blast import architectures
from blast.experiment.analysis.live_blocks import last_masks, live_by_layer
from blast.experiment.cli import main
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.records.table import load_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "config" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
QUALITY = ROOT / "config" / "quality.yaml"
RECORDED_MASKS = ROOT / "results" / "recorded" / "nvidia-h200" / "masks" / "quality"
README = (ROOT / "README.md").read_text()
KERNELS = (ROOT / "docs" / "kernels.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
ALL = "\n".join(page.read_text() for page in PAGES)


def test_the_speed_ups_of_the_docs_are_those_of_the_records():
    with (ROOT / "results/recorded/nvidia-h100-80gb-hbm3/kernels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["suite"] == "kernels" and row["metric"] == "latency"]
    wanted = {"sparsity": "0.95", "block": "128x128", "status": "ok"}
    rows = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    # Points of the peers and of other masks have an id with a variant.
    rows = [row for row in rows if json.loads(row["setting"])["point"].endswith(".b128.seed0")]
    time = {(row["model"], row["provider"], row["tied"], row["tokens"]): float(row["value"]) for row in rows}
    lines = re.findall(r"^\| (llama-\S+) \| (own|shared) \|(.*)\|$", KERNELS, flags=re.MULTILINE)
    assert len(lines) == 8
    for model, masks, numbers in lines:
        for tokens, number in zip(("1", "16", "128", "2048", "8192"), numbers.split("|"), strict=True):
            tied = {"own": "false", "shared": "true"}[masks]
            ratio = time[model, "dense_eager", "", tokens] / time[model, "ours", tied, tokens]
            assert f"{ratio:.1f}" == number.strip(), (model, masks, tokens, ratio)


@cache
def recorded_table():
    return load_table(ROOT / "no results", ROOT / "results" / "recorded")


@cache
def view(name: str) -> pd.DataFrame:
    """The rows of a table by the records; not to be changed."""
    return paper_figures.load(name).rows(recorded_table())


def test_the_slowest_cases_of_the_docs_are_those_of_the_records():
    table = recorded_table()
    timed = table[(table["suite"] == "kernels") & (table["metric"] == "latency") & (table["status"] == "ok")]
    dense = timed[timed["provider"] == "dense_eager"].set_index(["point", "tokens"])["value"]
    ours = timed[(timed["provider"] == "ours") & (timed["mask"] == "uniform") & ~timed["block"].str.contains("32")]
    assert ours["model"].nunique() == 13
    ratios = dense[pd.MultiIndex.from_frame(ours[["point", "tokens"]])].to_numpy() / ours["value"]
    said = re.search(
        r"at 70, 80, 90 and 95 % is ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) times", " ".join(KERNELS.split())
    )
    assert [f"{slowest:.2f}" for slowest in ratios.groupby(ours["sparsity"]).min()] == list(said.groups())


ONE_CORE, _, TWO_CORES = (
    KERNELS.partition("## Speed on a CPU")[2].partition("\n## ")[0].partition("### Two cores without bfloat16")
)


def cpu_ratios(hardware: str, clock: str) -> dict[tuple[str, ...], float]:
    """Dense over ours on a CPU: by model, dtype, block, sparsity, tokens and metric."""
    with (ROOT / "results" / "recorded" / hardware / "kernels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["suite"] == "mlp" and row["status"] == "ok"]
    assert {json.loads(row["setting"])["clock"] for row in rows} == {clock}
    key = ("model", "dtype", "block", "sparsity", "tokens", "metric")
    times: dict[str, dict] = {"ours": {}, "dense_eager": {}}
    for row in rows:
        times[row["provider"]][tuple(row[name] for name in key)] = float(row["value"])
    return {case: times["dense_eager"][case] / time for case, time in times["ours"].items()}


@pytest.mark.parametrize(
    ("section", "hardware", "clock", "count"),
    [
        (ONE_CORE, "cpu-amd-epyc", "processor", 12),
        (TWO_CORES, "cpu-amd-epyc-family-25-model-1", "wall", 8),
    ],
    ids=["one core", "two cores"],
)
def test_the_speed_on_a_cpu_of_the_docs_is_that_of_the_records(section, hardware, clock, count):
    ratios = cpu_ratios(hardware, clock)
    lines = re.findall(r"^\| (\S+) \| (bfloat16|float32) \| (\d+) % \|(.*)\|$", section, flags=re.MULTILINE)
    assert len(lines) == count
    for model, dtype, percent, cells in lines:
        for tokens, cell in zip(("1", "16", "512"), cells.split("|"), strict=True):
            numbers = [
                ratios[model, dtype, "64x64", f"{int(percent) / 100:g}", tokens, metric]
                for metric in ("latency", "matrix_latency")
            ]
            assert cell.strip() == " / ".join(f"{number:.1f}" for number in numbers), (model, dtype, percent, tokens)


def test_the_slowest_cases_on_a_cpu_of_the_docs_are_those_of_the_records():
    ratios = cpu_ratios("cpu-amd-epyc", "processor")
    slowest = [min(ratio for key, ratio in ratios.items() if key[3] == each) for each in ("0.7", "0.8", "0.9", "0.95")]
    said = re.search(
        r"90 and 95 % is ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) times as fast as dense on one core",
        " ".join(ONE_CORE.split()),
    )
    assert [f"{ratio:.2f}" for ratio in slowest] == list(said.groups())
    on_two = min(cpu_ratios("cpu-amd-epyc-family-25-model-1", "wall").values())
    assert f"The slowest case is {on_two:.1f} times as fast as dense" in " ".join(TWO_CORES.split())


def same(number: float | None, printed: str, digits: int) -> bool:
    """Whether a number is printed as it is; one that is missing as a dash."""
    return printed.strip() == ("–" if number is None or math.isnan(number) else f"{number:.{digits}f}")


def test_the_training_steps_of_the_docs_are_those_of_the_records():
    table = recorded_table()
    frame = view("pretraining_table").set_index(["model", "tokens", "sparsity"])
    frame = frame.sort_index()
    peaks = table[(table["suite"] == "training_step") & (table["metric"] == "peak_bytes")]
    peaks = peaks.set_index(["model", "tokens", "sparsity", "provider"])["value"]
    lines = re.findall(r"^\| (\S+) \| (\d+x\d+) \| (\d+) \|(.*)\|$", KERNELS, flags=re.MULTILINE)
    assert {line[0] for line in lines} == {model for model, *_ in frame.index}
    for model, block, tokens, numbers in lines:
        found = frame.loc[model, int(tokens)]
        assert found.loc[0.95, "block"] == block
        *steps, swap, union, memory = numbers.split("|")
        for sparsity, printed in zip((0.8, 0.9, 0.95), steps, strict=True):
            assert same(found["step_speed_up"].get(sparsity), printed, 2), (model, sparsity)
        assert same(found.loc[0.95, "swap_speed_up"], swap, 2), model
        assert same(found.loc[0.95, "union_speed_up"], union, 2), model
        for provider, printed in zip(("dense_compiled", "ours"), memory.split("/"), strict=True):
            assert same(peaks.loc[model, int(tokens), 0.95, provider] / 1e9, printed, 1), (model, provider)
    shares = 100 * frame[["swap_update_share", "union_update_share"]].xs(0.95, level="sparsity").stack()
    said = f"(one in every hundredth step: {shares.min():.1f} to {shares.max():.1f} % of the time)"
    assert said in " ".join(KERNELS.split())


def test_the_real_run_of_the_docs_is_that_of_the_records():
    results = view("results_table")
    results = results[(results["grid"] == "study") & (results["architecture"] == "gpt2")]
    bits = results[results["metric"] == "bits_per_byte"].set_index(["method", "sparsity"])
    times = view("time_to_loss_table")
    times = times[(times["grid"] == "study") & (times["model"] == "gpt2") & (times["execution"] != "masked")]
    ratios = times.set_index(["method", "sparsity", "end_of"])["ratio_without_compiling"]
    section = RESULTS.partition("## Quality and time of a whole run")[2]
    lines = re.findall(r"^\| (dense|blast|rigl_swap) \| (\d+) \|(.*)\|$", section, flags=re.MULTILINE)
    assert len(lines) == len(bits) == 5
    for method, percent, numbers in lines:
        place = method, int(percent) / 100
        value, lost, steps, equal = (number.strip() for number in numbers.split("|"))
        assert value == f"{bits.loc[place, 'value']:.3f}"
        if method != "dense":
            assert lost == f"{bits.loc[place, 'relative_loss_percent']:+.1f}"
            assert same(ratios[(*place, "steps")], steps, 2)
            assert same(ratios[(*place, "pruned")], equal, 2)


STUDY = RESULTS.partition("## The quality study so far")[2].partition("\n## ")[0]


def study_rows(section):
    """The rows of the first table of a part of the quality study."""
    return re.findall(
        r"^\| (\w[\w, ]*) \| (\d+) \| (\d) \| ([\d.]+) \| (\S*) ?\| (\w*) ?\|$", section, flags=re.MULTILINE
    )


@pytest.mark.parametrize(
    ("architecture", "section"),
    list(zip(("gpt2", "smollm2-135m", "gpt2-medium"), STUDY.split("\n### ")[:-1], strict=True)),
    ids=["GPT-2", "Llama's kind", "GPT-2 medium"],
)
def test_the_quality_study_of_the_docs_is_that_of_the_records(architecture, section):
    results = view("main_results")
    results = results[(results["grid"] == "quality") & (results["architecture"] == architecture)]
    results = results[results["variant"].isin(["", "taught"]) | results["variant"].str.startswith("steps")]
    lines = study_rows(section)
    assert len(lines) == len(results) > 0
    for model, percent, seeds, value, lost, verdict in lines:
        method, _, more = model.replace(",", " ").partition(" ")
        found = results[(results["method"] == method) & (results["sparsity"] == int(percent) / 100)]
        found = found[found["teacher"].notna() == more.endswith("taught")]
        if method == "gmp":
            side = more.split()[-1] if "blocks of" in more else "64"
            found = found[found["block"] == f"{side}x{side}"]
            steps = more.removesuffix(" steps").strip()
            found = found[found["variant"].isin([f"steps{steps}"] if "steps" in more else ["", "taught"])]
        if more.isdigit():
            found = found[found["ffn"] == int(more)]
        (row,) = found.to_dict("records")
        assert (seeds, value) == (str(row["seeds"]), f"{row['value']:.3f}")
        if lost:
            assert (lost, verdict) == (f"{row['relative_loss_percent']:+.1f}", row["verdict"])


def test_the_images_of_the_quality_study_in_the_docs_are_those_of_the_records():
    results = view("main_results")
    results = results[(results["grid"] == "quality") & (results["architecture"] == "vit-s-4")]
    section = STUDY.split("\n### ")[-1]
    rows = re.findall(
        r"^\| ([\w-]+) \| (\w+)(?: (\d+))? \| (\d+) \| (\d) \| ([\d.]+) \| (\S*) ?\| (\w*) ?\|$", section, re.MULTILINE
    )
    assert len(rows) == len(results) == 10
    for data, method, ffn, percent, seeds, value, lost, verdict in rows:
        found = results[results["dataset"] == data.lower().replace("-", "_")]
        found = found[(found["method"] == method) & (found["sparsity"] == int(percent) / 100)]
        (row,) = found.to_dict("records")
        assert not ffn or row["ffn"] == int(ffn)
        assert (seeds, value) == (str(row["seeds"]), f"{100 * row['value']:.2f}")
        if method != "dense":
            assert (lost, verdict) == (f"{row['relative_loss_percent']:+.1f}", row["verdict"])
    top = results[results["dataset"] == "mnist"].set_index(["method", "sparsity"])["value"]
    times = (1 - top["gmp", 0.95]) / (1 - top["dense", 0.0])
    assert f"the mean error of `gmp` at 95 % is {times:.2f} times dense's" in section


def test_what_the_docs_say_beside_the_tables_of_the_quality_study_is_in_the_records():
    words = " ".join(STUDY.split())
    results = view("main_results")
    results = results[(results["grid"] == "quality") & (results["architecture"] == "gpt2")]
    masks = last_masks(RECORDED_MASKS / "gpt2.technical_text.gmp.s95.b64.seed0.lr9e-4.safetensors")
    width = 64 * statistics.mean(layer.hidden for layer in live_by_layer(masks, 48))
    assert f"{width:.0f} hidden units a layer" in words
    taught = results[(results["variant"] == "taught") & (results["method"] == "gmp")].set_index("sparsity")
    above = taught["above_taught_dense_percent"]
    assert f"and {above[0.95]:.1f} % above dense with the same teacher" in words
    assert f"and {above[0.8]:.1f} % above dense with one" in words
    lamp = results[results["variant"] == "whole-model-lamp"].set_index("sparsity")["value"]
    assert f"{lamp[0.8]:.3f} bits a byte at 80 % and {lamp[0.95]:.3f} at 95 %" in words
    table = recorded_table()
    bits = table[(table["grid"] == "quality") & (table["metric"] == "bits_per_byte")].set_index("point")["value"]
    images = table[(table["grid"] == "quality") & (table["metric"] == "top1")]
    known = f"{len(bits) + len(images)} of {len(expand(read_config(QUALITY)).points)} points have run"
    assert known in words
    assert known.replace("of", "of its") in (ROOT / "config" / "README.md").read_text()
    apart = {}
    for percent in (95, 80):
        once = f"gpt2.technical_text.gmp.s{percent}.b64.seed0"
        apart[percent] = f"{100 * abs(bits[once + '.lr9e-4'] / bits[once] - 1):.1f}".lstrip("0")
    assert f"are {apart[95]} % apart at 95 %, and {apart[80]} % at 80 %" in words
    blocks = results[results["variant"].isin([""]) & (results["method"] == "gmp") & (results["sparsity"] == 0.95)]
    # Each seed against dense of the same seed: the sizes have not the same seeds.
    lost = blocks["relative_loss_percent"]
    assert sorted(blocks["block"]) == ["128x128", "16x16", "32x32", "64x64"]
    assert f"16 to 128 lose {lost.min():.1f} to {lost.max():.1f} % at 95 %" in words


def test_the_times_of_gpt2_medium_in_the_docs_are_those_of_the_records():
    words = " ".join(STUDY.split())
    times = view("time_to_loss_table")
    times = times[(times["model"] == "gpt2-medium") & (times["grid"] == "quality")].set_index(["point", "end_of"])
    point = "gpt2-medium.technical_text.gmp.s{}.b64.seed0"
    at_80, at_95 = (times.loc[(point.format(percent), "steps")] for percent in (80, 95))
    dense = at_80["dense_s"]
    assert f"take {dense:.0f} s dense, {at_80['pruned_s']:.0f} s at 80 % and {at_95['pruned_s']:.0f} s at 95 %" in words
    assert f"{at_80['ratio']:.2f} and {at_95['ratio']:.2f} times faster" in words
    sooner = times.loc[(point.format(95) + ".steps2000", "dense")]
    assert f"reached {sooner['ratio']:.2f} times sooner" in words
    assert f"after {sooner['pruned_s']:.0f} s. That run" in words
    assert f"compiling, {sooner['ratio_without_compiling']:.2f} times sooner" in words
    ended = times.loc[(point.format(95) + ".steps2000", "pruned"), "pruned_s"]
    assert f"ends after {ended:.0f} s" in words


def test_the_levers_of_the_docs_are_those_of_the_records():
    found = view("ablations")
    found = found[found["model"] == "gpt2"]
    found = found.assign(lever=found["lever"].str.removesuffix(" (OWL)"))
    first, _, second = STUDY.partition("Of growth itself")
    words = " ".join(STUDY.split())
    for base, section in (("gmp", first), ("blast", second)):
        changes = found[found["base"] == base].set_index("lever")[["held_out_s80", "held_out_s95"]].dropna(how="all")
        if base == "gmp":
            growth = changes.loc["growth"].abs()
            assert changes.loc["growth", "held_out_s80"] < 0 < changes.loc["growth", "held_out_s95"]
            said = f"{growth['held_out_s80']:.1f} % better at 80 % and {growth['held_out_s95']:.1f} % worse at 95 %"
            assert said.replace("0.", ".") in words
            changes = changes.drop("growth")
            hidden = found.set_index("lever").loc["distillation.hidden weight"]
            said = f"by {hidden['held_out_s80']:.1f} % at 80 %, by {hidden['held_out_s95']:.1f} % at 95 %"
            assert said.replace("0.", ".") in words
        rows = re.findall(r"^\| ([a-z][a-z ×^-]+) \| ([+-][\d.]+)? ?\| ([+-][\d.]+) \|$", section, flags=re.MULTILINE)
        assert {lever for lever, *_ in rows} == set(changes.index)
        for lever, *shown in rows:
            expected = ["" if pd.isna(change) else f"{change:+.1f}" for change in changes.loc[lever]]
            assert shown == expected, lever


def test_what_the_docs_say_of_the_vit_is_what_the_records_say():
    results = view("results_table")
    results = results[(results["architecture"] == "vit-s-4") & (results["metric"] == "top1")]
    results = results[results["grid"] == "study"]
    top = results.set_index(["method", "sparsity"])["value"]
    times = view("time_to_loss_table")
    times = times[(times["model"] == "vit-s-4") & (times["end_of"] == "steps") & (times["grid"] == "study")]
    said = " ".join(RESULTS.split())
    dense, *pruned = (
        f"{100 * top[place]:.1f}" for place in [("dense", 0.0), *(("blast", s) for s in (0.8, 0.9, 0.95))]
    )
    assert f"({dense} % top-1 dense; {pruned[0]}, {pruned[1]} and {pruned[2]} % at 80, 90 and 95 %)" in said
    ratio, share = times["ratio_without_compiling"], 100 * times["mask_update_share"]
    assert f"({ratio.min():.2f} to {ratio.max():.2f} times)" in said
    assert f"added {share.min():.0f} to {share.max():.0f} %" in said


def test_the_answers_that_are_those_of_stock_lm_eval_are_counted_right():
    (file,) = (ROOT / "results" / "recorded").glob("*/agreement/smollm2/*.json")
    agreement = json.loads(file.read_text())
    alike, asked = (sum(each[key] for each in agreement["sets"].values()) for key in ("alike", "questions"))
    assert agreement["passed"]
    assert alike == asked
    said = f"all {alike} answers to {agreement['limit']} items of seven sets are alike"
    assert len(agreement["sets"]) == 7
    assert said in " ".join((ROOT / "docs" / "workflow.md").read_text().split())


def test_the_results_of_the_readme_are_those_of_the_docs():
    """Whose numbers are those of the records."""
    wanted = {
        "fused MLP of Llama-3.1-405B": re.search(r"^\| llama-3.1-405b \| shared \| ([\d.]+)", KERNELS, re.MULTILINE)[1],
    }
    step = re.search(r"^\| llama-3.2-1b \| 128x128 \| 8192 \|(.*)\|$", KERNELS, re.MULTILINE)[1].split("|")
    wanted["one training step of Llama-3.2-1B"] = step[2].strip()
    wanted["a whole pretraining run of Llama-3.2-1B"] = step[3].strip()
    wanted["peak memory of that training step"] = step[5].strip()
    starts = {"gmp | 80": "GPT-2 small from scratch, 80 %", "gmp | 95": "GPT-2 small from scratch, 95 %",
              "gmp, taught | 95": "the same, 95 % sparse, taught by",
              "small_dense 1152 | 95": "instead of it a smaller dense model"}  # fmt: skip
    for model, start in starts.items():
        wanted[start] = re.search(rf"^\| {re.escape(model)} \| \d \| [\d.]+ \| (\S+)", RESULTS, re.MULTILINE)[1]
    wanted["a ViT on MNIST"] = re.search(r"^\| MNIST \| gmp \| 95 \| 3 \| [\d.]+ \| (\S+)", RESULTS, re.MULTILINE)[1]
    shown = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]*\|$", README, re.MULTILINE))
    for start, number in wanted.items():
        assert [value.strip() for text, value in shown.items() if text.startswith(start)] == [number], start


def test_the_memory_that_the_docs_compute_is_what_the_example_gives():
    section = (ROOT / "docs/library.md").read_text().partition("## Memory of inference")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    found = {"architectures": architectures}
    exec(example, found)
    needed, dense = found["needed"], found["inference_memory"](found["model"])
    numbers = re.search(r"bytes: ([\d.]+), ([\d.]+) and ([\d.]+) GB", example).groups()
    assert numbers == tuple(f"{part / 1e9:.1f}" for part in (needed.weights, needed.kv_cache, needed.total))
    assert f"here {dense.weights / needed.weights:.2f} times less than dense" in section


def test_every_link_of_the_docs_leads_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#:]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_every_path_the_docs_name_is_there():
    made_by_recipes = set(re.findall(r"^`([\w./-]+)`:$", ALL, re.MULTILINE))
    named = re.findall(r"`((?:src|kernels|config|workflow|paper_figures|tests)/[\w/.-]*)`", ALL)
    assert len(named) > 10
    for path in named:
        drawn = path.startswith("paper_figures/") and path.endswith((".pdf", ".md"))
        assert (ROOT / path).exists() or drawn or path in made_by_recipes, path


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`(?:python -m )?blast ([a-z-]+)", ALL))))
def test_every_verb_the_docs_name_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert "usage: blast" in capsys.readouterr().out


def test_every_make_target_the_docs_name_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", ALL)) <= targets
