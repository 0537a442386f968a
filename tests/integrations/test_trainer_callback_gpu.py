"""The Trainer on a GPU: mixed precision with and without a gradient scaler, compiled, in both execution states."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import transformers

import blast
from blast.integrations import SparsifyCallback

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def no_folder_passes_for_datasets(monkeypatch):
    """Where the library `datasets` is not installed, transformers takes the folder tests/datasets for it."""
    found = importlib.util.find_spec("datasets")
    if found is not None and found.origin is None:
        monkeypatch.setattr(transformers.trainer, "is_datasets_available", lambda: False)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("options", [{"fp16": True}, {"bf16": True}, {"bf16": True, "torch_compile": True}], ids=str)
def test_training_reaches_its_sparsity_and_resumes(options, execution, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=32, max_position_embeddings=64))
    data = [{"input_ids": torch.arange(16) % (2 + n), "labels": torch.arange(16) % (2 + n)} for n in range(20)] * 8
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=20, learning_rate=1e-3, save_steps=10, report_to=[], disable_tqdm=True, **options
    )
    masks = []
    for resume in (None, str(tmp_path / "checkpoint-10")):
        pruning = SparsifyCallback(sparsity=0.5, block=32, update_every=2, execution=execution)
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[pruning])
        trainer.train(resume_from_checkpoint=resume)
        assert pruning.sparsifier.finished
        assert pruning.sparsifier.sparsity_achieved == 0.5
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        masks.append(pruning.sparsifier.masks)
    assert masks[0].keys() == masks[1].keys()
    blast.to_sparse(model, masks[1])
    assert model.generate(torch.zeros(1, 4, dtype=torch.int64, device="cuda"), max_new_tokens=2).shape == (1, 6)
