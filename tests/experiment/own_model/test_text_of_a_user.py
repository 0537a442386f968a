"""Texts: files and datasets in the tokens of a model, and what is held out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blast.datasets import pystdlib
from blast.experiment.own_model.opening import find_model
from blast.experiment.own_model.text import read_text


def test_the_two_parts_of_a_file_are_the_whole_file_and_share_nothing(model_folder, text_file):
    source = find_model(str(model_folder))
    data = read_text([str(text_file)], source, 32)
    size = len(text_file.read_bytes())
    assert data.counts["train_bytes"] + data.counts["validation_bytes"] == size
    assert 0.05 * size < data.counts["validation_bytes"] < 0.15 * size
    lines = {"train": data.train, "validation": data.validation}
    texts = {part: _text(source, tokens) for part, tokens in lines.items()}
    whole = text_file.read_text()
    assert all(line in whole for text in texts.values() for line in text.split("\n"))
    assert not set(texts["train"].split("\n")) & set(texts["validation"].split("\n")) - {""}


def _text(source, tokens: np.ndarray) -> str:
    from blast.experiment.own_model.opening import load_tokenizer

    return load_tokenizer(source).decode(tokens, skip_special_tokens=True)


def test_several_files_are_one_text_and_their_order_counts(model_folder, text_file, tmp_path):
    source, other = find_model(str(model_folder)), tmp_path / "other.txt"
    other.write_text("One line that is not there.\n" * 60)
    both = read_text([str(text_file), str(other)], source, 32)
    assert both.counts["train_bytes"] > read_text([str(text_file)], source, 32).counts["train_bytes"]
    assert both.digest != read_text([str(other), str(text_file)], source, 32).digest


def test_a_text_without_lines_has_a_held_out_part_too(model_folder, tmp_path):
    file = tmp_path / "line.txt"
    file.write_text("word and word " * 2000)
    data = read_text([str(file)], find_model(str(model_folder)), 32)
    assert data.counts["train_bytes"] + data.counts["validation_bytes"] == 28000
    assert data.counts["validation_tokens"] > 100


def test_a_dataset_comes_in_the_tokens_of_the_model(model_folder, tmp_path, monkeypatch):
    library = tmp_path / "library"
    library.mkdir()
    for number in range(60):
        (library / f"file{number}.py").write_text(f"number = {number}\n" * 40)
    monkeypatch.setattr(pystdlib, "library", lambda: library)
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    source = find_model(str(model_folder))
    data = read_text(["pystdlib"], source, 32)
    assert data.vocab_size == 300
    assert data.digest == read_text(["pystdlib"], source, 32).digest
    assert "number = 1" in _text(source, np.asarray(data.train))
    assert (Path(data.tokenizer_dir) / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", ["plain words", "a\nb\tc", "Grüße, naïve café", "日本語 text", "🙂🙂"])
def test_the_bytes_of_tokens_that_are_spelled_as_text_are_those_of_the_text(text):
    """Bits a byte divide by them: a tokenizer in the manner of SentencePiece, with bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    from blast.datasets._text.tokenizer import token_bytes

    words = ["▁", *"abcdefghijklmnopqrstuvwxyzé", "▁w", "▁wo"]
    vocabulary = {word: place for place, word in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words])}
    merges = [("▁", "w"), ("▁w", "o")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
