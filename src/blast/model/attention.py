"""The attention of a transformers model, chosen by name for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Within the context the model of this config uses the attention that transformers knows by this name."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
