"""`blast generate` decodes with `fast_decode` on a GPU, unless it cannot or shall not, and says so."""

from __future__ import annotations

import functools
import io

import pytest
import torch
import transformers

import blast
from blast.experiment.cli import main
from blast.experiment.own_model import generate as verb
from blast.experiment.own_model.generate import GenerateOptions, choose_decoding, generate

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def model_of(family: str) -> torch.nn.Module:
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.AutoConfig.for_model(family, **sizes, num_attention_heads=2, num_key_value_heads=2)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("family", "device", "plain", "fast", "words"),
    [
        ("llama", GPU, False, True, "blast.fast_decode"),
        ("llama", GPU, True, False, "generate of transformers"),
        ("llama", CPU, False, False, "there is no GPU"),
        ("phi", GPU, False, False, "'phi' is no model of the families"),
    ],
)
def test_the_choice_follows_the_device_the_model_and_the_user(family, device, plain, fast, words):
    streamer = object()
    settings, line = choose_decoding(model_of(family), device, plain, streamer)
    assert words in line
    if fast:
        chosen = settings["custom_generate"]
        assert isinstance(chosen, functools.partial)
        assert chosen.func is blast.fast_decode
        assert chosen.keywords == {"streamer": streamer, "compiled": False}
        assert "streamer" not in settings
    else:
        assert settings == {"streamer": streamer}


def as_on(device, model, _, plain, streamer):
    return choose_decoding(model, device, plain, streamer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_ways_print_the_same_text(model_folder, monkeypatch, capsys, temperature):
    texts = []
    for device in (CPU, GPU):
        monkeypatch.setattr(verb, "choose_decoding", functools.partial(as_on, device))
        out = io.StringIO()
        options = GenerateOptions(str(model_folder), "The block 3", max_new_tokens=12, temperature=temperature)
        text = generate(options, out)
        assert out.getvalue() == f"The block 3{text}\n"
        texts.append(text)
    assert texts[0] == texts[1]
    said = capsys.readouterr().err
    assert said.index("there is no GPU") < said.index("blast.fast_decode with CUDA graphs")


def test_the_command_says_how_it_decodes(model_folder, capsys):
    for words, line in (([], "because there is no GPU"), (["--plain"], "decoding: generate of transformers\n")):
        assert main(["generate", str(model_folder), "The block", "--max-new-tokens", "2", *words]) == 0
        assert line in capsys.readouterr().err
