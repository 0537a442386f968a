"""Scores of single items, from the samples that lm-eval's metrics are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from blast.evaluation.item_scores import ItemScores
from blast.files import json_digest

# Metrics that are 1 for a right answer and 0 for a wrong one.
YES_OR_NO = ("acc", "acc_norm")


def gold_of(task: Any, doc: Mapping[str, Any]) -> int:
    """Number of the right choice of a multiple-choice question; of several right ones, the first."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = gold[0] if isinstance(gold, list) else gold
    return gold if isinstance(gold, int) else task.doc_to_choice(doc).index(gold)


def chance_of(task: Any, docs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By metric, the share of right answers that needs no model.

    It is what the YAML file of the task names, usually 1 / choices. If all items have the same choices, it is the share
    of the most frequent answer: a model that always gives it knows nothing.
    """
    named = dict((task.config.metadata or {}).get("chance", {}))
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or not docs:
        return named
    choices = task.doc_to_choice(docs[0])
    if any(task.doc_to_choice(doc) != choices for doc in docs):
        return named
    most = max(Counter(gold_of(task, doc) for doc in docs).values()) / len(docs)
    return {name: max(value, most) for name, value in named.items()}


def item_scores(
    task: Any, samples: Sequence[Mapping[str, Any]], tokens_of: Callable[[str, Sequence[str]], int]
) -> ItemScores:
    """The items of one task.

    Args:
        task: lm-eval's task object.
        samples: Its samples, as `lm_eval.evaluator.evaluate` returns them.
        tokens_of: Number of scored tokens of a request, from its kind and its arguments.
    """
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    kind = "loglikelihood_rolling" if task.OUTPUT_TYPE == "loglikelihood_rolling" else "loglikelihood"
    nats, sizes, tokens = [], [], 0
    for sample in samples:
        place = gold_of(task, sample["doc"]) if task.OUTPUT_TYPE == "multiple_choice" else 0
        arguments, (answer,) = sample["arguments"][place], sample["resps"][place]
        nats.append(-(answer[0] if isinstance(answer, tuple) else answer))
        sizes.append(len(arguments[-1].encode()))
        tokens += tokens_of(kind, arguments)
    known = [name for name in YES_OR_NO if samples and name in samples[0]]
    return ItemScores(
        nats=np.array(nats),
        bytes=np.array(sizes, dtype=np.int64),
        correct={name: np.array([sample[name] > 0 for sample in samples]) for name in known},
        chance={name: value for name, value in chance_of(task, [s["doc"] for s in samples]).items() if name in known},
        tokens=tokens,
        digest=json_digest([sample["doc"] for sample in samples], escaped=True),
    )
