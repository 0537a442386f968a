"""Small copies with random content, in the layouts of the hub, of torch's client and of ImageNet.

A download would leave the same files, but for their size and content.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

from blast import architectures
from blast.architectures._weights.hub import HubWeights
from blast.architectures._weights.torchvision import TorchvisionWeights
from blast.datasets import openwebtext, sst2, wikitext103
from blast.datasets._text.hub_text import HubText
from blast.datasets._text.tokenizer import train_tokenizer
from blast.download.hub import HubFiles
from blast.files import file_digest

NINE = [
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-3.2-1b", "qwen3-1.7b", "smollm2-135m", "vit-b-16", "vit-l-16"
]  # fmt: skip
VOCABULARY = 400
TEXT = "the quick brown fox jumps over a lazy dog while seven wise men watch its river and count grey stones"
WORDS = TEXT.split(" ")


def sentences(count: int, seed: int = 0, words: int = 30) -> list[str]:
    """Texts of the same few words in a random order."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, words)) + ".\n" for _ in range(count)]


def write_parquet(source: HubFiles | HubText, cache: Path, name: str, columns: dict[str, list]) -> Path:
    """One parquet file of a hub dataset, where the hub's client leaves it."""
    path = source.folder(cache) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def copy_texts(cache: Path) -> None:
    """WikiText-103 and OpenWebText in two files each, as many as they are cut into on the hub."""
    lines = [line for place, text in enumerate(sentences(40)) for line in (f" = Title {place} = \n", text)]
    for place, part in enumerate((lines[:40], lines[40:])):
        write_parquet(
            wikitext103._DATA, cache, f"wikitext-103-raw-v1/train-{place:05d}-of-00002.parquet", {"text": part}
        )
    held_out = [" = Other = \n", *sentences(20, seed=1)]
    write_parquet(wikitext103._DATA, cache, "wikitext-103-raw-v1/validation-00000-of-00001.parquet", {"text": held_out})
    for place in range(2):
        pages = {"text": sentences(40, seed=2 + place)}
        write_parquet(openwebtext._DATA, cache, f"plain_text/train-{place:05d}-of-00002.parquet", pages)


def copy_glue(cache: Path, data=sst2._DATA) -> None:
    """A task of GLUE: the label says which of two words a sentence holds."""
    for split, count in (("train", 48), ("validation", 12)):
        labels = [place % 2 for place in range(count)]
        rows: dict[str, list] = {column: sentences(count, place) for place, column in enumerate(data.columns)}
        words = [("bad", "good")[label] for label in labels]
        first = zip(words, rows[data.columns[0]], strict=True)
        rows[data.columns[0]] = [f"{word} {text}" for word, text in first]
        rows |= {"label": labels, "idx": list(range(count))}
        write_parquet(data.source, cache, f"{data.name}/{split}-00000-of-00001.parquet", rows)


def copy_photographs(root: Path, classes: int = 4, each: int = 4) -> Path:
    """Twenty pictures of different sides in ImageNet's folders."""
    draw = np.random.default_rng(0)
    for split, count in (("train", each), ("val", 1)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = draw.integers(0, 256, (40 + place, 60 - label, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{label}_{place}.JPEG")
    return root


def shrunk(name: str) -> architectures.ModelShape:
    """The shape of an architecture, small in width and depth; what makes its family is kept."""
    shape = architectures.get(name).shape
    if architectures.get(name).modality == "vision":
        return replace(shape, layers=2, hidden=128, ffn=256, heads=2, kv_heads=2, image=32, classes=4)
    grouped = shape.kv_heads < shape.heads
    return replace(
        shape,
        layers=2,
        hidden=64,
        ffn=128,
        heads=4,
        kv_heads=2 if grouped else 4,
        head_dim=16,
        vocab=VOCABULARY,
        context=64,
    )


def copy_weights(name: str, cache: Path) -> torch.nn.Module:
    """Random weights of the shrunk architecture where a download would leave the published ones; returns the model."""
    import importlib

    architecture = architectures.get(name)
    torch.manual_seed(len(name))
    model = importlib.import_module(f"blast.architectures.{architecture.family}").build(shrunk(name))
    weights = architecture.weights
    if isinstance(weights, TorchvisionWeights):
        folder = cache / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / "new.pth"
        torch.save(model.state_dict(), aside)
        aside.rename(folder / f"{weights.model}-{file_digest(aside).removeprefix('sha256:')[:8]}.pth")
        return model
    assert isinstance(weights, HubWeights)
    folder = weights.files(name).folder(cache)
    model.save_pretrained(folder, max_shard_size="60KB" if "xl" in name else "1GB")
    train_tokenizer(sentences(20), VOCABULARY, folder)
    return model
