"""The way of a new user: prune, then generate, then eval, and a scan before; all through the command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

import blast
from blast.experiment.cli import main
from blast.experiment.own_model.generate import GenerateOptions, generate
from blast.experiment.own_model.layer_cost import recommended

SHORT = "--sparsity .5 --block 16 --steps 12 --length 32 --batch 4 --learning-rate 1e-3"


@pytest.fixture(scope="module")
def sparse(model_folder, text_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("verbs") / "sparse"
    assert main(["prune", str(model_folder), "--text", str(text_file), "--out", str(out), *SHORT.split()]) == 0
    return out


def test_the_same_command_again_prints_the_report_and_trains_nothing(sparse, model_folder, text_file, capsys):
    before = (sparse / "blast.safetensors").stat().st_mtime_ns
    assert main(["prune", str(model_folder), "--text", str(text_file), "--out", str(sparse), *SHORT.split()]) == 0
    said = capsys.readouterr().out
    assert "is done" in said
    assert "bits a byte, held out" in said
    assert "step " not in said.replace("12 steps", "")
    assert (sparse / "blast.safetensors").stat().st_mtime_ns == before


def test_generate_continues_the_prompt_while_it_prints(sparse, capsys):
    assert main(["generate", str(sparse), "The block", "--max-new-tokens", "8"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("The block")
    assert "8 tokens, " in said.err
    assert " a second" in said.err


@pytest.mark.parametrize("which", ["sparse", "model_folder"])
def test_generate_gives_what_the_model_itself_decodes(which, request):
    folder = request.getfixturevalue(which)
    out = io.StringIO()
    text = generate(GenerateOptions(str(folder), "The block 3", max_new_tokens=8), out)
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("The block 3", return_tensors="pt").input_ids
    found = model.generate(tokens, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True) == text
    assert out.getvalue() == f"The block 3{text}\n"


def test_a_seed_fixes_what_is_drawn(sparse):
    drawn = {"max_new_tokens": 12, "temperature": 1.0}
    first, same = (generate(GenerateOptions(str(sparse), "The", **drawn, seed=1), io.StringIO()) for _ in range(2))
    other = generate(GenerateOptions(str(sparse), "The", **drawn, seed=2), io.StringIO())
    assert first == same
    assert first != other


def test_new_tokens_end_where_the_model_cannot_read_on(sparse, capsys):
    assert main(["generate", str(sparse), "The block " * 10, "--max-new-tokens", "1000"]) == 0
    assert "new tokens at most" in capsys.readouterr().err


def test_scan_leaves_the_model_as_it_is_and_measures_each_part(model_folder, text_file, tmp_path, capsys):
    words = f"scan {model_folder} --text {text_file} --sparsity 0 .5 .9 --block 16 --length 32 --json {tmp_path}/s.json"
    assert main(words.split()) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert [*found["layers"]] == ["0", "1"]
    assert [*found["kinds"]] == ["gate", "up", "down"]
    for rises in (*found["layers"].values(), *found["kinds"].values()):
        # The weights came back after the parts before: a sparsity of 0 changes nothing.
        assert rises["0"] == 0
        assert rises["0.9"] > 0
    said = capsys.readouterr().out
    assert "layer 1" in said
    assert "written: " in said


def test_scan_recommends_the_layers_that_cost_far_more_than_the_others():
    costs = {str(layer): {"0.5": 9.0, "0.8": 0.1} for layer in range(12)}
    costs["0"]["0.8"], costs["11"]["0.8"], costs["5"]["0.8"] = 2.0, 0.5, 0.29
    assert recommended(costs) == [0, 11]
    assert recommended({"0": {"0.8": 5.0}, "1": {"0.8": 0.1}}) == []


def test_scan_recommends_at_most_a_quarter_of_the_layers():
    costs = {str(layer): {"0.8": 1.0 + layer if layer < 4 else 0.01} for layer in range(9)}
    assert recommended(costs) == [2, 3]


def test_layers_can_stay_dense(model_folder, text_file, tmp_path):
    words = ["prune", str(model_folder), "--text", str(text_file), "--out", str(tmp_path / "out"), *SHORT.split()]
    assert main([*words, "--dense-layers", "0", "--no-teacher"]) == 0
    assert all(".layers.1." in name for name in blast.masks_of(blast.load(tmp_path / "out")))


def test_a_sparse_model_can_be_pruned_further(sparse, text_file, tmp_path):
    words = ["prune", str(sparse), "--text", str(text_file), "--out", str(tmp_path / "more"), *SHORT.split()]
    assert main([*words[:5], str(tmp_path / "more"), *SHORT.replace(".5", ".75").split()]) == 0
    masks = blast.masks_of(blast.load(tmp_path / "more")).values()
    assert all(1 - mask.float().mean().item() == pytest.approx(0.75, abs=0.01) for mask in masks)


def test_a_blast_checkpoint_and_its_dense_export_score_alike(sparse, tmp_path, monkeypatch, capsys):
    """On a set of our own in the cache's place: two questions of the form of SciQ."""
    from blast.experiment.language import tasks_of_lm_eval

    rows = [
        {"question": "Which blocks are not zero?", "distractor1": "none", "distractor2": "dead", "distractor3": "small",
         "correct_answer": "live", "support": "The live blocks are not zero."},
        {"question": "What holds weights?", "distractor1": "a line", "distractor2": "a word", "distractor3": "a text",
         "correct_answer": "a block", "support": "A block holds weights."},
    ]  # fmt: skip
    file = tmp_path / "sciq.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(tasks_of_lm_eval.sets, "prepare", lambda name, cache: {"file": str(file)})
    blast.export_dense(sparse, tmp_path / "dense")
    scores = []
    for number, folder in enumerate((sparse, tmp_path / "dense")):
        out = tmp_path / f"{number}.json"
        assert main(["eval", str(folder), "--tasks", "sciq", "--limit", "2", "--json", str(out)]) == 0
        scores.append(json.loads(out.read_text())["scores"])
    assert "sciq" in capsys.readouterr().out
    assert [row["metric"] for row in scores[0]] == ["acc", "acc_norm"]
    assert all(row["n"] == 2 for row in scores[0])
    assert [row["value"] for row in scores[0]] == [row["value"] for row in scores[1]]
