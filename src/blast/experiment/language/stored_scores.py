"""A model for lm-eval that answers its requests with stored scores. It needs no torch, whose import takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from blast.errors import BlastError
from blast.evaluation.scores import Score


def request_key(kind: str, arguments: Sequence[Any]) -> str:
    """Digest of the kind and the text of a request."""
    return hashlib.sha256(json.dumps([kind, *arguments]).encode()).hexdigest()[:24]


def key_of(instance: Instance) -> str:
    """The key of a request of lm-eval."""
    return request_key(instance.request_type, instance.args)


class StoredScores(LM):
    """Answers each request with its stored score.

    Args:
        scores: Scores by the key of their request.
    """

    def __init__(self, scores: dict[str, Score]) -> None:
        super().__init__()
        self.scores = scores

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [tuple(self._score(request)) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [self._score(request).logprob for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise BlastError(
            f"the task '{requests[0].task_name}' asks for generated text, but only likelihoods can be scored; "
            "choose another task."
        )

    def _score(self, request: Instance) -> Score:
        try:
            return self.scores[key_of(request)]
        except KeyError as error:
            raise BlastError(
                f"the task '{request.task_name}' has a request that is not in the request file: the task or lm-eval "
                "changed since the file was built; delete the file, then build and score the requests again."
            ) from error
