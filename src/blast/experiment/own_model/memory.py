"""How much memory a command needs, and whether this machine has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from blast.errors import BlastError

if TYPE_CHECKING:
    import torch

FLOAT = 4
# A trained weight in float32: itself, its gradient, two moments of Adam, and a copy in bfloat16 for the products.
TRAINED = 4 * FLOAT + 2
# Numbers that a layer keeps for the backward pass, for each token, in units of its width and of that of its MLP.
OF_WIDTH, OF_FFN = 18, 5
# Numbers for each token and entry of the vocabulary: logits and log-probabilities of two models, and a gradient.
OF_VOCABULARY = 5
LIMIT_OF_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def training_bytes(parameters: int, config: object, tokens: int, teacher: bool) -> int:
    """Estimate of the memory that pruning takes.

    Args:
        parameters: Of the model.
        config: Its config of transformers; sizes that it does not name count as nothing.
        tokens: Tokens of a step.
        teacher: Whether the dense model is held too.
    """
    layers, width, ffn, vocabulary = (
        int(getattr(config, name, 0) or 0)
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    )
    activations = layers * (OF_WIDTH * width + OF_FFN * (ffn or 4 * width)) + OF_VOCABULARY * vocabulary
    return parameters * (TRAINED + (FLOAT if teacher else 0)) + tokens * activations * FLOAT


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take: of the GPU, else of the machine and of its container."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        known = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(known["MemAvailable"].split()[0]) * 1024
    if LIMIT_OF_CONTAINER.is_file() and (limit := LIMIT_OF_CONTAINER.read_text().strip()).isdigit():
        free = min(free, int(limit))
    return free


def check_memory(what: str, needed: int, free: int, remedy: str) -> None:
    """Refuses what does not fit.

    Args:
        what: What needs the memory, for the error.
        needed: Bytes.
        free: Bytes.
        remedy: What to do.

    Raises:
        BlastError: if more is needed than there is.
    """
    if needed > free:
        raise BlastError(f"{what} needs about {gigabytes(needed)} of memory and {gigabytes(free)} are free; {remedy}.")


def gigabytes(count: int) -> str:
    """Bytes as text, for instance `1.6 GB`."""
    return f"{count / 1e9:.1f} GB"
