"""Prunes a small Llama in a loop of accelerate, with a checkpoint on the way, and saves it sparse.

python examples/accelerate_loop.py     # a quarter of a minute on two cores
"""

from __future__ import annotations

import argparse

import accelerate
import torch
from license_text import continuation, rows, small_llama

import blast
from blast.integrations import register_sparsifier

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--folder", default="results/examples/accelerate_loop")
options = parser.parse_args()

accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
model = small_llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
batches = torch.utils.data.DataLoader(rows(), batch_size=8, shuffle=True)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

config = blast.SparsifyConfig(sparsity=0.8, block=16, steps=options.steps, update_every=max(1, options.steps // 20))
sparsifier = blast.Sparsifier(model, optimizer, config)
register_sparsifier(accelerator, sparsifier)

while sparsifier.step_count < options.steps:
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            sparsifier.step()  # does nothing while gradients accumulate
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and sparsifier.step_count == options.steps // 2:
            # accelerator.load_state(…) goes on from here.
            accelerator.save_state(f"{options.folder}/checkpoint")
        if sparsifier.step_count == options.steps:
            break
print(f"loss {loss.item():.2f}, sparsity of the MLPs: {sparsifier.sparsity_achieved:.2f}")

trained = accelerator.unwrap_model(model)
blast.to_sparse(trained, sparsifier.masks)
blast.save(trained, f"{options.folder}/sparse")
loaded = blast.fuse(blast.load(f"{options.folder}/sparse"))
print(continuation(loaded, b"You may reproduce"))
