"""Two models for lm-eval: `RequestCollector` collects its requests, `StoredScores` answers them with stored scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.huggingface import HFLM

from blast.errors import BlastError
from blast.evaluation.requests import Request
from blast.evaluation.scores import Score


def request_key(kind: str, arguments: Sequence[Any]) -> str:
    """Digest of the kind and the text of a request."""
    return hashlib.sha256(json.dumps([kind, *arguments]).encode()).hexdigest()[:24]


def key_of(instance: Instance) -> str:
    """The key of a request of lm-eval."""
    return request_key(instance.request_type, instance.args)


class RequestCollector(HFLM):
    """lm-eval's tokenisation for transformers models, without a model: it keeps the tokens of each request.

    Args:
        tokenizer: A transformers tokenizer with a BOS or an EOS token, which precedes a text without context.

    Attributes:
        requests: The requests without duplicates, in the order in which they were first seen.

    Raises:
        BlastError: if the tokenizer has neither token.
    """

    def __init__(self, tokenizer: Any) -> None:
        # HFLM.__init__ would load a model.
        TemplateLM.__init__(self)
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = None
        self.custom_prefix_token_id = None
        self.enable_thinking = False
        self.requests: list[Request] = []
        self._encoded: list[tuple[list[int], list[int]]] = []
        if self.prefix_token_id is None:
            raise BlastError(
                "the tokenizer has neither a BOS nor an EOS token, but a text without context must begin with one; "
                "train the tokenizer with a BOS or an EOS token."
            )

    def collect(self, task: str, instances: list[Instance]) -> None:
        """Tokenises the requests of a task and keeps the new ones.

        Raises:
            BlastError: if the task asks for something else than likelihoods, or a continuation has no token.
        """
        known = {request.key for request in self.requests}
        for instance in instances:
            key = key_of(instance)
            if key in known:
                continue
            known.add(key)
            context, continuation = self._encode(task, instance)
            self.requests.append(Request(key, task, instance.request_type, context, continuation))

    def _encode(self, task: str, instance: Instance) -> tuple[list[int], list[int]]:
        if instance.request_type == "loglikelihood_rolling":
            return [self.prefix_token_id], self.tok_encode(instance.args[0])
        if instance.request_type != "loglikelihood":
            raise BlastError(
                f"the task '{task}' asks for {instance.request_type}, but only likelihoods can be scored; "
                "choose another task."
            )
        if instance.args[1]:
            self.loglikelihood([instance], disable_tqdm=True)
        context, continuation = self._encoded.pop() if self._encoded else ([], [])
        if not continuation:
            raise BlastError(
                f"the task '{task}' has a document (number {instance.doc_id}) whose answer {instance.args[1]!r} has no "
                "token of its own; correct the document."
            )
        return context, continuation

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        self._encoded += [(context, continuation) for _, context, continuation in requests]
        return [(0.0, False)] * len(requests)


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
