"""Arguments of a wrong type are one sentence, at once, and change nothing; numbers of NumPy and torch are numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparsity_models import tiny_llama
from torch import nn

import blast
from blast.block_sparse.csr import BlockIndex

CONFIG = blast.SparsifyConfig(sparsity=0.5, block=8, steps=10)
NAME = "model.layers.0.mlp.up_proj"
A_MODEL = "give a torch.nn.Module."
A_PATH = "give its path, for instance 'my-sparse-model'."


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_llama()


@pytest.fixture(scope="module")
def mask(model: nn.Module) -> torch.Tensor:
    rows, cols = model.get_submodule(NAME).weight.shape
    return torch.ones(rows // 8, cols // 8, dtype=torch.bool)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, a: blast.Sparsifier("gpt2", adamw(m), CONFIG), f"the model is of type str; {A_MODEL}"),
        (lambda m, a: blast.Sparsifier(adamw(m), m, CONFIG), f"the model is of type AdamW; {A_MODEL}"),
        (lambda m, a: blast.Sparsifier(type(m), adamw(m), CONFIG), "the model is the class LlamaForCausalLM itself; "),
        (lambda m, a: blast.Sparsifier(m.state_dict(), adamw(m), CONFIG), "the model is of type OrderedDict; "),
        (lambda m, a: blast.Sparsifier(m, adamw(m), {"steps": 3}), "the config is of type dict; give a SparsifyConfig"),
        (lambda m, a: blast.Sparsifier(m, adamw(m), None), "the config is None; give a SparsifyConfig"),
        (lambda m, a: blast.Sparsifier(m, adamw(m), type(CONFIG)), "the config is the class SparsifyConfig itself; "),
        (
            lambda m, a: blast.Sparsifier(m, torch.optim.AdamW, CONFIG),
            "the optimizer is the class AdamW itself; give an",
        ),
        (
            lambda m, a: blast.Sparsifier(m, None, CONFIG),
            "a NoneType is no optimizer; give a torch.optim.Optimizer, or",
        ),
        (lambda m, a: blast.Sparsifier(m, [], CONFIG), "the list of optimizers is empty; give every optimizer that"),
        (lambda m, a: blast.SparsifyConfig.from_method(None, steps=1), "unknown method 'None'"),
        (lambda m, a: blast.SparsifyConfig.from_dict(None), "null is no mapping of sparsify settings to values"),
        (lambda m, a: blast.to_sparse("m", {NAME: a}), f"the model is of type str; {A_MODEL}"),
        (lambda m, a: blast.to_sparse(m, None), "the argument `masks` is None; give a mapping from names of matrices"),
        (lambda m, a: blast.to_sparse(m, [a]), "the argument `masks` is of type list; give a mapping"),
        (lambda m, a: blast.to_sparse(m, {0: a}), "a name in `masks` is of type int; give a mapping"),
        (lambda m, a: blast.to_sparse(m, {NAME: a.tolist()}), f"the mask of '{NAME}' is of type list; give a bool ten"),
        (lambda m, a: blast.to_sparse(m, {NAME: a.numpy()}), f"the mask of '{NAME}' is of type ndarray; give a bool"),
        (
            lambda m, a: blast.to_sparse(m, {NAME: a.int()}),
            "not torch.int32 [16, 8]; give one entry for each block, and",
        ),
        (
            lambda m, a: blast.to_sparse(m, {NAME: a.float()}),
            "not torch.float32 [16, 8]; give one entry for each block",
        ),
        (lambda m, a: blast.to_sparse(m, {NAME: a.to("meta")}), "a mask is on the meta device, where it has no values"),
        (lambda m, a: blast.to_dense(None), f"the model is None; {A_MODEL}"),
        (lambda m, a: blast.fuse(m.state_dict()), f"the model is of type OrderedDict; {A_MODEL}"),
        (lambda m, a: blast.unfuse("m"), f"the model is of type str; {A_MODEL}"),
        (lambda m, a: blast.masks_of(None), f"the model is None; {A_MODEL}"),
        (lambda m, a: blast.find_mlps(None), f"the model is None; {A_MODEL}"),
        (lambda m, a: blast.model_bytes("m"), f"the model is of type str; {A_MODEL}"),
        (lambda m, a: blast.quantization_errors(None), f"the model is None; {A_MODEL}"),
        (lambda m, a: blast.average_gradients(None), f"the model is None; {A_MODEL}"),
        (lambda m, a: blast.save(m, None), f"the folder is None; {A_PATH}"),
        (lambda m, a: blast.save(m, 3), f"the folder is of type int; {A_PATH}"),
        (lambda m, a: blast.save(m, ""), f"the path of the folder is empty; {A_PATH}"),
        (lambda m, a: blast.save("folder", m), f"the model is of type str; {A_MODEL}"),
        (lambda m, a: blast.load(None), f"the folder is None; {A_PATH}"),
        (lambda m, a: blast.load("folder", "model"), f"the model is of type str; {A_MODEL}"),
        (
            lambda m, a: blast.load("folder", device="gpu"),
            "the device is 'gpu', which torch does not know; give for in",
        ),
        (lambda m, a: blast.load("folder", device="cuda:99"), "the device is 'cuda:99', but torch finds "),
        (lambda m, a: blast.export_dense(m, None), f"the folder is None; {A_PATH}"),
        (
            lambda m, a: blast.export_dense(None, "folder"),
            "the model is None; give a torch.nn.Module or the folder of a",
        ),
        (lambda m, a: blast.BlockCSR.from_dense([[1]], a), "the weight is of type list; give a tensor [out, in]."),
        (
            lambda m, a: blast.BlockCSR.from_dense(torch.ones(8), a),
            "the weight has the shape [8]; give a matrix [out, in]",
        ),
        (lambda m, a: blast.BlockCSR(3, torch.ones(1)), "the index is of type int; give a BlockIndex, for instance"),
        (lambda m, a: blast.BlockCSR(BlockIndex.from_mask(a, (128, 64)), [1]), "the argument `values` is of type list"),
        (lambda m, a: BlockIndex([0, 1], [0], (8, 8), (8, 8)), "row_offsets is of type list; give an int32 vector, or"),
        (
            lambda m, a: blast.BlockLinear(3),
            "the matrix is of type int; give a BlockCSR, for instance BlockCSR.from_de",
        ),
        (
            lambda m, a: blast.BlockLinear(torch.ones(8, 8)),
            "the matrix is of type Tensor; give a BlockCSR, for instance",
        ),
        (lambda m, a: blast.BlockCSR.from_dense(torch.ones(8, 8), [[True]]), "a mask is of type list; give a bool ten"),
    ],
)
def test_an_argument_of_a_wrong_type_is_one_sentence(model, mask, tmp_path, monkeypatch, call, sentence):
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(blast.BlastError) as caught:
        call(model, mask)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: None, "the saved state of the sparsifier is None; give a result of sparsifier.state_dict()."),
        (lambda state: [state], "the saved state of the sparsifier is of type list; give a result of sparsifier.state"),
        (lambda state: {}, "the saved sparsifier has format None, not 2"),
        (lambda state: state | {"masks": 3}, "the saved state of the sparsifier is damaged; give a result of"),
        (
            lambda state: {key: state[key] for key in state if key != "step_count"},
            "lacks 'step_count'; give a result of",
        ),
    ],
)
def test_a_saved_state_that_is_none_is_one_sentence(change, sentence):
    model = tiny_llama()
    sparsifier = blast.Sparsifier(model, adamw(model), CONFIG)
    masks = sparsifier.masks
    with pytest.raises(blast.BlastError) as caught:
        sparsifier.load_state_dict(change(sparsifier.state_dict()))
    assert sentence in str(caught.value)
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_a_model_that_is_one_layer_is_refused_in_one_sentence():
    layer = nn.Linear(8, 8)
    with pytest.raises(
        blast.BlastError, match=r"itself one linear layer; wrap it, for instance in torch\.nn\.Sequential"
    ):
        blast.Sparsifier(layer, adamw(layer), CONFIG)


@pytest.mark.parametrize("sparsity", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), "0.5", np.array(0.5)])
@pytest.mark.parametrize("steps", [np.int64(10), np.int32(10), torch.tensor(10), 10.0, "10"])
def test_a_number_of_numpy_or_torch_is_a_number(sparsity, steps):
    config = blast.SparsifyConfig(sparsity=sparsity, block=8, steps=steps, tie_gate_up=np.bool_(False))
    assert config == CONFIG
    assert config.digest() == CONFIG.digest()
    assert [type(value) for value in (config.sparsity, config.steps, config.tie_gate_up)] == [float, int, bool]


@pytest.mark.parametrize(
    "block",
    [np.int64(8), torch.tensor(8), np.array([8, 8]), torch.tensor([8, 8]), [np.int32(8), 8], torch.Size([8, 8])],
)
def test_a_block_of_numpy_or_torch_is_a_block(block):
    assert repr(blast.SparsifyConfig(sparsity=0.5, block=block, steps=10)) == repr(CONFIG)


@pytest.mark.parametrize(
    "block", [(64,), 0, -8, "8", None, 8.0, True, {}, np.array([8.0, 8.0]), np.array([[8], [8]]), []]
)
def test_a_block_that_is_none_is_one_sentence(block):
    with pytest.raises(blast.BlastError, match=r"^block is .*; give one positive whole number \(a square\) or two"):
        blast.SparsifyConfig(sparsity=0.5, block=block, steps=10)
