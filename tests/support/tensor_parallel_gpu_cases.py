"""What each process with a GPU runs in the tests of tensor parallelism with NCCL."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tensor_parallel_cases import MODELS, generated, prompt

import blast


def on_gpus(rank: int, folder: str, ranks: int, dtype: str) -> None:
    """Loads each model in parts, decodes in all ways, and saves what came out."""
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{folder}/store-{dtype}", rank=rank, world_size=ranks,
        timeout=timedelta(minutes=3),
    )  # fmt: skip
    out: dict[str, Any] = {}
    for name, facts in MODELS.items():
        model: Any = blast.load(Path(folder) / name, tensor_parallel=True).to(getattr(torch, dtype))
        assert next(model.parameters()).device == torch.device("cuda", rank)
        if facts.get("fused", True):
            blast.fuse(model)
        words = prompt().cuda()
        with torch.no_grad():
            logits = model(words).logits
        out[name] = {
            "logits": logits.float().cpu(),
            "tokens": generated(model, words, do_sample=False).cpu(),
            "fast tokens": generated(model, words, do_sample=False, custom_generate=blast.fast_decode).cpu(),
        }
    torch.save(out, Path(folder) / f"{dtype}-{rank}.pt")
    dist.destroy_process_group()
