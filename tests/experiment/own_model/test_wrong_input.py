"""Bad input of prune, scan, generate and eval: one sentence each, code 2, and no folder is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from blast.experiment.cli import main


@pytest.fixture
def place(model_folder, text_file, tmp_path, monkeypatch) -> Path:
    """A working folder with the model, the text, and things that are wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "text.txt").symlink_to(text_file)
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "zeros.txt").write_bytes(b"a\0b" * 100)
    (tmp_path / "short.txt").write_text("Two words. " * 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "nothing").mkdir()
    for name in ("bare", "encoder", "damaged"):
        shutil.copytree(model_folder, tmp_path / name)
    (tmp_path / "bare" / "tokenizer.json").unlink()
    (tmp_path / "encoder" / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertModel"]})
    )
    (tmp_path / "damaged" / "tokenizer.json").write_text("{}")
    return tmp_path


PRUNE = "--text text.txt --out new --steps 8 --length 32"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "prune model --text none.txt --out new",
            "none.txt: cannot be read (No such file or directory); give the path",
        ),
        ("prune model --text full --out new", "full: cannot be read (Is a directory); give the path of a text file."),
        ("prune model --text empty.txt --out new", "empty.txt: is empty; give a file with text."),
        ("prune model --text binary.txt --out new", "binary.txt: byte 128 is not UTF-8, so it is no text"),
        ("prune model --text zeros.txt --out new", "zeros.txt: holds zero bytes, so it is no text"),
        ("prune model --text short.txt --out new", "short.txt: the part for training has"),
        ("prune model --text pystdlyb --out new", "no dataset 'pystdlyb'; did you mean 'pystdlib'?"),
        ("prune model --text digits --out new", "the dataset 'digits' is no text; give a text file"),
        (f"prune modle {PRUNE}", "unknown model, and no folder, 'modle'; known: "),
        (f"prune smollm2-135m-q5 {PRUNE}", "did you mean 'smollm2-135m-q4'?"),
        (f"prune ./none/model {PRUNE}", "./none/model: there is no such folder"),
        (f"prune text.txt {PRUNE}", "text.txt is a file; give the folder of the model"),
        (f"prune nothing {PRUNE}", "nothing holds neither blast.json nor config.json"),
        (f"prune bare {PRUNE}", "bare holds no tokenizer.json; save the tokenizer there too"),
        (f"prune encoder {PRUNE}", "encoder holds a BertModel; give a causal language model"),
        (f"prune damaged {PRUNE}", "its tokenizer cannot be read"),
        (f"prune vit-nano {PRUNE}", "vit-nano is no causal language model"),
        (f"prune model {PRUNE} --block 48", "block 48 does not divide 'model.layers.0.mlp.gate_proj' of shape 384x128"),
        (f"prune model {PRUNE} --dense-layers 0,1", "--dense-layers leaves no layer of model to prune"),
        (f"prune model {PRUNE} --dense-layers 0,7", "model has no layer 7 to leave dense; its layers are 0 to 1."),
        ("prune model --text text.txt --out new --length 65", "model reads 64 tokens at once and --length is 65"),
        ("prune model --text text.txt --out new --length 32 --minutes .0001", "minutes are too short here"),
        ("prune model --text text.txt --out full", "full exists and holds something else than a pruned model"),
        ("prune model --text text.txt --out text.txt", "text.txt exists and holds something else"),
        ("scan model --text empty.txt", "empty.txt: is empty"),
        ("scan model --text text.txt --length 32 --block 48", "block 48 does not divide"),
        ("generate none hello", "unknown model, and no folder, 'none'"),
        ("generate bare hello", "bare holds no tokenizer.json"),
        # It reads the list of lm-eval's tasks.
        pytest.param("eval model --tasks scik", "unknown task 'scik'; did you mean 'sciq'?", marks=pytest.mark.slow),
        ("eval model --tasks pystdlib_heldout", "asks about a dataset that a grid prepares; take one of: "),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(words, sentence, place, capsys):
    before = {path.name for path in place.iterdir()}
    assert main(words.split(" ")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("blast: ")
    assert sentence in said
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--sparsity 1", "argument --sparsity: '1' is no number from 0 to below 1"),
        ("--sparsity -.1", "argument --sparsity: '-.1' is no number from 0 to below 1"),
        ("--sparsity nan", "'nan' is no number from 0 to below 1"),
        ("--block 0", "argument --block: '0' is no whole number of at least 1"),
        ("--minutes 0", "argument --minutes: '0' is no number above 0"),
        ("--minutes 1 --steps 8", "not allowed with argument"),
        ("--dense-layers 1,x", "argument --dense-layers: 'x' is no whole number of at least 0"),
        ("--learning-rate inf", "'inf' is no number above 0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(words, sentence, place, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prune", "model", "--text", "text.txt", "--out", "new", *words.split()])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_prompt_that_leaves_no_room_or_is_empty_is_refused(place, capsys):
    assert main(["generate", "model", "live dead " * 200]) == 2
    assert "and model reads 64 at once; shorten the prompt." in capsys.readouterr().err
    assert main(["generate", "model", ""]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_model_without_an_mlp_is_named(place, tmp_path, capsys, monkeypatch):
    from blast.experiment.own_model import choice

    monkeypatch.setattr(choice, "MLP", "*.no_such_layer")
    assert main(["prune", "model", *PRUNE.split()]) == 2
    assert "model has no MLP that can be pruned (" in capsys.readouterr().err


def test_too_little_memory_is_refused_before_anything_is_loaded(place, monkeypatch, capsys):
    from blast.experiment.own_model import workplace

    monkeypatch.setattr(workplace, "free_bytes", lambda device: 1_000_000)
    assert main(["prune", "model", *PRUNE.split()]) == 2
    said = capsys.readouterr().err
    assert "pruning model needs about 0.0 GB of memory and 0.0 GB are free; choose a smaller model." in said


def test_a_folder_of_another_command_is_not_overwritten(place, capsys):
    words = ["prune", "model", "--text", "text.txt", "--out", "new", "--length", "32", "--block", "16", "--batch", "2"]
    assert main([*words, "--steps", "8"]) == 0
    before = (place / "new" / "blast.json").read_bytes()
    assert main([*words, "--steps", "9"]) == 2
    assert "new holds a model that another command pruned" in capsys.readouterr().err
    assert (place / "new" / "blast.json").read_bytes() == before


def test_the_checkpoint_of_another_class_is_refused(place, capsys):
    import torch

    import blast
    from blast import architectures

    torch.manual_seed(0)
    blast.save(architectures.build("vit-nano", num_classes=3, image_size=8, channels=1), place / "vision")
    assert main(["generate", "vision", "hello"]) == 2
    assert "vision holds a VisionTransformer; give a causal language model of transformers." in capsys.readouterr().err


@pytest.mark.fault(
    fault="An index of weights names a file outside its folder.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused.",
    reads="names the file … outside its folder; copy … again.",
    lost="nothing",
)
@pytest.mark.parametrize("file", ["../model/model.safetensors", "/etc/passwd", "a/../../b", ""])
def test_an_index_of_weights_that_names_a_file_outside_its_folder_is_refused(place, capsys, file, reads):
    index = place / "bare" / "model.safetensors.index.json"
    (place / "bare" / "model.safetensors").rename(place / "elsewhere.safetensors")
    shutil.copy(place / "model" / "tokenizer.json", place / "bare")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": file}}))
    assert main(["generate", "bare", "hello"]) == 2
    said = capsys.readouterr().err
    assert f"names the file {file!r} outside its folder; copy bare again." in said
    assert said.count("\n") == 1
    reads(said)
    index.write_text("{")
    assert main(["generate", "bare", "hello"]) == 2
    assert "this index of weights is damaged; copy bare again." in capsys.readouterr().err
