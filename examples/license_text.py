"""The text of the examples: this repository's licence, byte by byte, and a small Llama for it."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

LENGTH = 64
TEXT = (Path(__file__).resolve().parents[1] / "LICENSE").read_bytes()


def rows() -> list[dict[str, torch.Tensor]]:
    """The text in rows of `LENGTH` bytes; each byte is a token."""
    tokens = torch.tensor(list(TEXT))
    whole = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in whole]


def small_llama() -> transformers.LlamaForCausalLM:
    """A Llama of 0.3 million weights with fresh weights, for bytes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=256))


def continuation(model: torch.nn.Module, prompt: bytes) -> str:
    """What a model writes after a prompt."""
    ids = torch.tensor([list(prompt)])
    written = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    return bytes(written[0].tolist()).decode(errors="replace")
