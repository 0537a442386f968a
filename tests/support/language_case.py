"""A small language model with its tokenizer, documents and questions, for the tests of lm-eval's requests."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import torch

WINDOW = 48
REQUESTS = 200
LETTERS = "abcdefghij"


def write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pieces_of_the_standard_library() -> tuple[list[str], list[dict]]:
    """200 texts of 1 to 40 lines, and 50 questions for the next line, 200 answers in all."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    lines = [
        line for name in ("ast.py", "bisect.py", "heapq.py") for line in (folder / name).read_text().splitlines(True)
    ]
    texts = ["".join(lines[5 * i : 5 * i + 1 + i % 40]) for i in range(REQUESTS)]
    full = [line for line in lines if line.strip() and len(line) < WINDOW]
    questions = [
        {"context": "".join(full[i * 9 : i * 9 + 6]), "choices": full[i * 9 + 6 : i * 9 + 10], "label": i % 4}
        for i in range(REQUESTS // 4 - 10)
    ]
    # The model learns to repeat a letter: some answers that greedy decoding gives.
    questions += [
        {"context": f"{x} {x} {x} {x}", "choices": [f" {y}" for y in "abcd"], "label": 0} for x in "abcdefghij"
    ]
    return texts, questions


def write_documents(folder: Path) -> Path:
    """Writes the files that the tasks of `pystdlib` read."""
    texts, questions = pieces_of_the_standard_library()
    write_lines(folder / "heldout.jsonl", [{"text": text} for text in texts])
    write_lines(folder / "next_line.jsonl", questions)
    return folder


def trained_tokenizer(folder: Path):
    """A tokenizer of 400 tokens, trained on the texts and saved as `tokenizer` in the folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    texts, _ = pieces_of_the_standard_library()
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end)
    wrapped.save_pretrained(folder / "tokenizer")
    return wrapped


def trained_model(tokenizer):
    """A GPT-2 of one layer that has learnt to repeat a letter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=len(tokenizer), n_positions=WINDOW, initializer_range=0.1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    repeats = [torch.tensor([tokenizer.encode(f"{x} {x} {x} {x} {x}")]) for x in LETTERS]
    for _ in range(10):
        for ids in repeats:
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
    return model.eval()
