"""A tiny language model with its tokenizer, trained on nothing, and a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blast import architectures
from blast.datasets._text.tokenizer import train_tokenizer
from blast.experiment.own_model import start

LINE = "The block {0} of layer {1} is {2}; it holds {3} weights, and {4} of them are not zero.\n"


@pytest.fixture(scope="session", autouse=True)
def short_calibration() -> Iterator[None]:
    """One-shot pruning looks at little text, as the models are tiny."""
    before, start.CALIBRATION = start.CALIBRATION, 512
    yield
    start.CALIBRATION = before


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of about 60 kB, easy to learn."""
    words = ("live", "dead", "small", "large", "dense")
    lines = [
        LINE.format(n % 97, n % 7, words[(n * n) % 5], 16 * (n % 5 + 1), words[n % 3]) + ("\n" if n % 4 == 0 else "")
        for n in range(700)
    ]
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(lines))
    return file


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """The folder of a small Llama of transformers, trained on the text for a moment, with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    train_tokenizer([text_file.read_text()], 300, folder)
    torch.manual_seed(0)
    model = architectures.build("llama-nano", vocab_size=300, context=64)
    tokens = _tokens(folder, text_file)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        places = torch.randint(0, len(tokens) - 33, (8,), generator=torch.Generator().manual_seed(step))
        batch = torch.stack([tokens[place : place + 33] for place in places])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def _tokens(folder: Path, text_file: Path) -> torch.Tensor:
    from blast.datasets._text.tokenizer import load_tokenizer

    return torch.tensor(load_tokenizer(folder).encode(text_file.read_text()).ids)
