"""What a model is worth: our own loss and top-k, and the scoring of ready-made evaluation requests.

Everything here needs torch alone and gives the same numbers on the same machine: batches have a fixed order and size.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Request": "requests",
    "RequestFile": "requests",
    "Score": "scores",
    "ScoreFile": "scores",
    "evaluate_language": "loss",
    "evaluate_vision": "top_k",
    "metric": "metric",
    "read_requests": "requests",
    "read_scores": "scores",
    "require_sparse_state": "sparse_state",
    "score": "scoring",
    "score_requests": "scoring",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
