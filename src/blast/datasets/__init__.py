"""Datasets by name: `names()`, `get(name)`; `get("wikitext103@gpt2")` is the text in the tokens of GPT-2.

A dataset is one file of this folder that defines

- `LABEL`: its name in figures;
- `MODALITY`: `"language"`, `"classification"` (of sentences) or `"vision"`;
- `LICENCE`, and `DESCRIPTION`, which `blast list` prints;
- `SOURCES`: where the data come from, in the order tried; `BYTES`: the size of the download;
- `GATE`, only where there are terms to accept first: what to accept, and how;
- `EVALUATION`: names of lm-eval tasks; an empty list for images and sentences;
- `SETTINGS`: a dataclass with the defaults of its settings;
- `fetch(cache, progress) -> dict`: brings the raw files into the cache, or raises one sentence;
- `prepare(cache, settings) -> dict`: turns them into what training reads (tokens, evaluation documents) and returns
  the facts: digests and counts;
- `load(cache, settings)`: opens what was prepared as `LanguageData` or `VisionData`.

All three may be called again and by several processes at once. Nothing heavy is imported before one is called.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.settings import Place, read_part

__all__ = ["base_name", "check_settings", "get", "label", "names", "tokenizer_of", "with_tokenizer"]

VARIANT = "@"
PARTS = (
    *("LABEL", "MODALITY", "LICENCE", "DESCRIPTION", "SOURCES", "BYTES", "EVALUATION", "SETTINGS"),
    *("fetch", "prepare", "load"),
)


@cache
def _found() -> dict[str, ModuleType]:
    """Every dataset file of this folder: those that state a modality.

    Raises:
        BlastError: if such a file lacks a part.
    """
    modules = {
        entry.name: importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)
    }
    found = {name: module for name, module in modules.items() if hasattr(module, "MODALITY")}
    for name, module in found.items():
        if missing := [part for part in PARTS if not hasattr(module, part)]:
            raise BlastError(f"the dataset file {name}.py lacks {', '.join(missing)}; add it, as in digits.py.")
    return found


def names() -> list[str]:
    """Names of all datasets, sorted."""
    return sorted(_found())


def label(name: str) -> str:
    """The name of a dataset in figures; a name that is no dataset, or one with a tokenizer, is returned as it is."""
    return _found()[name].LABEL if name in _found() else name


def base_name(name: str) -> str:
    """The dataset's own name, without the tokenizer that may follow it."""
    return name.partition(VARIANT)[0]


def with_tokenizer(name: str, architecture: str) -> str:
    """The name of a dataset in the tokens of an architecture's published tokenizer; images have none."""
    return name if get(name).MODALITY == "vision" else f"{base_name(name)}{VARIANT}{architecture}"


def tokenizer_of(name: str) -> str | None:
    """The architecture whose tokenizer a name asks for, if it does."""
    return name.partition(VARIANT)[2] or None


def get(name: str) -> Any:
    """The module of the dataset called `name`, or the like of it for a name with a tokenizer.

    Raises:
        BlastError: if there is none; the message gives the nearest name.
    """
    base, tokenizer = base_name(name), tokenizer_of(name)
    if base not in _found():
        raise unknown_name("dataset", base, _found())
    module = _found()[base]
    if tokenizer is None:
        return module
    if module.MODALITY == "vision":
        raise BlastError(f"'{base}' holds images, which take no tokenizer; write it without '{VARIANT}{tokenizer}'.")
    from blast.datasets.variant import Variant

    return Variant(name, module, tokenizer)


def check_settings(name: str, settings: Any, place: Place) -> dict[str, Any]:
    """The given settings of a dataset, checked; what is not given is not added.

    Raises:
        BlastError: for an unknown dataset, an unknown setting, or a wrong value.
    """
    return read_part(type(get(name).SETTINGS), settings, place)
