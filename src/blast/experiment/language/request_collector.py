"""A model for lm-eval that collects its requests. It imports torch and transformers; `stored_scores` does not."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from blast.errors import BlastError
from blast.evaluation.requests import Request
from blast.experiment.language.stored_scores import key_of


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
