"""Prunes a small Llama with the Trainer of transformers, saves it sparse, loads it and writes some text.

python examples/hf_trainer.py          # a quarter of a minute on two cores
"""

from __future__ import annotations

import argparse

import transformers
from license_text import continuation, rows, small_llama

import blast
from blast.integrations import SparsifyCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--folder", default="results/examples/hf_trainer")
options = parser.parse_args()

model = small_llama()
pruning = SparsifyCallback(sparsity=0.8, block=16, update_every=max(1, options.steps // 20))
arguments = transformers.TrainingArguments(
    f"{options.folder}/training",
    max_steps=options.steps,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    save_steps=0.5,
    logging_steps=0.1,
    report_to=[],
)
transformers.Trainer(model, arguments, train_dataset=rows(), callbacks=[pruning]).train()
print(f"sparsity of the MLPs: {pruning.sparsifier.sparsity_achieved:.2f}")

blast.to_sparse(model, pruning.sparsifier.masks)
blast.save(model, f"{options.folder}/sparse")
loaded = blast.fuse(blast.load(f"{options.folder}/sparse"))
print(continuation(loaded, b"You may reproduce"))
