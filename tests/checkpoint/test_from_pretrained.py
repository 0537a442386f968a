"""Stock transformers opens a checkpoint as the sparse model if blast is imported, and refuses it if not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from patience import PATIENCE
from safetensors.torch import load_file, save_file
from sparse_pairs import inputs_of, output_of, pair, random_masks
from tokenizers import Tokenizer, models

import blast
from blast.checkpoint.manifest import CONFIG, WEIGHTS
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A sparse Llama and its checkpoint with a tokenizer, which no test changes."""
    _, sparse, _ = pair("llama")
    folder = tmp_path_factory.mktemp("saved") / "a model"
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    blast.save(sparse, folder, processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=words))
    return sparse, folder


@pytest.mark.parametrize(("kind", "auto"), [("llama", "AutoModelForCausalLM"), ("gpt2", "AutoModelForPreTraining")])
def test_an_auto_class_gives_the_saved_model(kind: str, auto: str, tmp_path: Path) -> None:
    _, sparse, masks = pair(kind)
    blast.save(sparse, tmp_path)
    opened = getattr(transformers, auto).from_pretrained(tmp_path)
    assert type(opened) is type(sparse)
    assert type(opened.config) is type(sparse.config)
    assert not opened.training
    assert blast.masks_of(opened).keys() == masks.keys()
    assert torch.equal(output_of(opened, inputs_of(kind)), output_of(sparse, inputs_of(kind)))
    with pytest.raises(BlastError, match="save_pretrained cannot store"):
        opened.save_pretrained(tmp_path / "again")


def test_auto_model_gives_the_model_without_its_head(saved) -> None:
    sparse, folder = saved
    opened = transformers.AutoModel.from_pretrained(folder)
    assert type(opened) is type(sparse.model)
    assert torch.equal(opened(inputs_of("llama"))[0], sparse.model(inputs_of("llama"))[0])


def test_dtype_and_device_are_those_asked_for(saved) -> None:
    sparse, folder = saved
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", device_map={"": "cpu"})
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.bfloat16}
    assert opened.config.dtype == torch.bfloat16
    assert opened.model.rotary_emb.inv_freq.dtype == torch.float32  # as transformers leaves it
    up = opened.model.layers[0].mlp.up_proj
    assert torch.equal(up.values, sparse.model.layers[0].mlp.up_proj.values.bfloat16())
    auto = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu")
    assert auto.dtype == torch.float32
    with pytest.raises(BlastError, match="loaded onto one device"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"model": "cpu", "lm_head": "disk"})


def test_other_arguments_are_respected_or_refused(saved) -> None:
    _, folder = saved
    auto = transformers.AutoModelForCausalLM
    options = {"attn_implementation": "eager", "output_attentions": True, "trust_remote_code": False}
    opened, info = auto.from_pretrained(folder.parent, subfolder=folder.name, output_loading_info=True, **options)
    assert (opened.config._attn_implementation, opened.config.output_attentions) == ("eager", True)
    assert not any(info.values())
    with pytest.raises(BlastError, match=r"takes no 'quantization_config'; leave it out"):
        auto.from_pretrained(folder, quantization_config={"load_in_8bit": True})
    with pytest.raises(BlastError, match=r"is only in the model"):
        auto.from_pretrained(folder, num_hidden_layers=3)


def test_a_class_with_another_head_is_refused_by_name(saved) -> None:
    _, folder = saved
    with pytest.raises(BlastError, match=r"LlamaForCausalLM and no whole LlamaForSeq.* use AutoModelForCausalLM"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match="AutoModelForImageClassification"):
        transformers.AutoModelForImageClassification.from_pretrained(folder)


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64
}  # fmt: skip
FAMILIES = {
    "AutoModelForMaskedLM": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)),
    "AutoModelForCausalLM": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=4)
    ),
    "AutoModelForSeq2SeqLM": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16, vocab_size=64)
    ),
}


@pytest.mark.parametrize("auto", sorted(FAMILIES))
def test_other_families_and_their_experts_open_and_are_exported(auto: str, tmp_path: Path) -> None:
    model = FAMILIES[auto]().eval()
    masks = random_masks(model)
    blast.save(blast.to_sparse(model, masks, drop=True), tmp_path / "sparse")
    opened = getattr(transformers, auto).from_pretrained(tmp_path / "sparse")
    assert blast.masks_of(opened).keys() == masks.keys()
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
    half = getattr(transformers, auto).from_pretrained(tmp_path / "sparse", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    dense, expected = (
        getattr(transformers, auto).from_pretrained(tmp_path / "dense"),
        blast.to_dense(model).state_dict(),
    )
    assert dense.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in dense.state_dict().items())


def test_the_config_is_that_of_the_model(saved) -> None:
    sparse, folder = saved
    config = transformers.AutoConfig.from_pretrained(folder)
    assert isinstance(config, type(sparse.config))
    assert config.model_type == "llama"
    assert (config.hidden_size, config.architectures) == (sparse.config.hidden_size, ["LlamaForCausalLM"])
    fresh = transformers.AutoModelForCausalLM.from_config(config)
    assert not any(isinstance(module, BlockLinear) for module in fresh.modules())


def test_a_class_of_transformers_refuses_the_folder_and_says_what_opens_it(saved) -> None:
    _, folder = saved
    for kind in (transformers.LlamaForCausalLM, transformers.LlamaModel, transformers.GPT2LMHeadModel):
        with pytest.raises(ValueError, match=r"open it with AutoModelForCausalLM or its like, or blast.load"):
            kind.from_pretrained(folder)


def test_no_model_comes_out_when_the_config_was_replaced(tmp_path: Path) -> None:
    _, sparse, _ = pair("llama")
    digest = blast.save(sparse, tmp_path)
    sparse.config.save_pretrained(tmp_path)
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModel, transformers.LlamaForCausalLM):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            kind.from_pretrained(tmp_path)
    assert blast.save(blast.load(tmp_path), tmp_path) == digest
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_config_of_a_model_type_that_is_not_known_is_one_sentence(tmp_path: Path) -> None:
    blast.save(pair("gpt2")[1], tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    for wrapped in ({"model_type": "none_such"}, {}, None, 3):
        (tmp_path / CONFIG).write_text(json.dumps(content | {"wrapped_config": wrapped}))
        with pytest.raises(BlastError, match=r"config.json names no model type"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_damaged_checkpoint_is_refused_by_from_pretrained_too(tmp_path: Path) -> None:
    blast.save(pair("gpt2")[1], tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(BlastError, match="was altered"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_that_no_auto_class_opens_gets_no_config(tmp_path: Path) -> None:
    blast.save(pair("vit")[1], tmp_path / "vit")
    assert not (tmp_path / "vit" / CONFIG).exists()
    changed = pair("gpt2")[1]
    changed.extra = torch.nn.Linear(2, 2)
    blast.save(changed, tmp_path / "changed")
    assert not (tmp_path / "changed" / CONFIG).exists()


OPEN = """
import sys
IMPORTS
print(len(transformers.AutoTokenizer.from_pretrained(sys.argv[1])))
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(sum(type(module).__name__ == "BlockLinear" for module in model.modules()))
"""
BLAST_FIRST = """
import blast
loaded = {'torch', 'transformers', 'safetensors'} & set(sys.modules)
assert not loaded, loaded
import transformers
"""
ORDERS = {
    "blast first": BLAST_FIRST,
    "transformers first": "import transformers\nfrom transformers import AutoModelForCausalLM\nimport blast",
    "without blast": "import transformers",
}


@pytest.mark.parametrize(
    "order",
    ["without blast", *(pytest.param(f"{first} first", marks=pytest.mark.slow) for first in ("blast", "transformers"))],
)
def test_a_fresh_process_opens_the_tokenizer_and_the_sparse_model_or_raises(order: str, saved) -> None:
    code = OPEN.replace("IMPORTS", ORDERS[order])
    done = subprocess.run([sys.executable, "-c", code, str(saved[1])], capture_output=True, text=True, timeout=PATIENCE)
    if order == "without blast":
        assert done.stdout.strip() == "2", done.stderr
        assert done.returncode == 1
        assert "pip install blast-suite, then import blast before it is opened" in done.stderr
    else:
        assert done.stdout.split() == ["2", "6"], done.stderr
