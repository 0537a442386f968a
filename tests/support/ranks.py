"""Processes of a test that talk to one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.multiprocessing
from torch.multiprocessing.spawn import start_processes

# What each of them would import; modules of `tests/support` are not found that early.
IMPORTED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "blast.checkpoint.manifest",
    "blast.generation.session",
    "blast.sparsity.sparsifier",
    "blast.training.loop",
]


def run_ranks(work: Callable[..., Any], *arguments: Any, ranks: int) -> None:
    """Runs `work(rank, *arguments)` in a process for each rank, and waits for them.

    They are forks of a process that has imported torch and no more than that, so that each starts at once. What is in
    `os.environ` when a test process calls this first is in that of all its ranks.

    Raises:
        Exception: what one of them raises, or that it died.
    """
    torch.multiprocessing.set_forkserver_preload(IMPORTED)
    start_processes(work, arguments, nprocs=ranks, start_method="forkserver")
