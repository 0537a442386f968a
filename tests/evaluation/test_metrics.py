"""Validation loss and top-k of small models whose right answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.item_scores import ItemScores
from blast.evaluation.loss import evaluate_language
from blast.evaluation.metric import of_part
from blast.evaluation.statistics import ratio_and_stderr
from blast.evaluation.top_k import evaluate_vision


class Table(nn.Module):
    """A language model whose next-token distribution depends on the last token alone."""

    def __init__(self, vocabulary: int, scale: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(
            scale * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@dataclass
class Language:
    chunks: Tensor

    def validation_chunks(self, length: int, limit: int | None) -> Tensor:
        return self.chunks[:limit, : length + 1]

    def bytes_of(self, tokens: Tensor) -> int:
        """Token n stands for n + 1 bytes."""
        return int((tokens + 1).sum())


@dataclass
class Vision:
    images: Tensor
    labels: Tensor
    num_classes: int = 10

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if len(self.images) != len(self.labels):
            yield self.images, self.labels
            return
        yield from zip(self.images.split(batch), self.labels.split(batch), strict=True)


def language(n: int = 7, length: int = 5, vocabulary: int = 13) -> Language:
    return Language(torch.randint(vocabulary, (n, length + 1), generator=torch.Generator().manual_seed(1)))


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    data = language()
    loss, bits, perplexity = evaluate_language(Table(13, scale=0.0), data, length=5)
    assert loss["value"] == pytest.approx(math.log(13))
    assert loss["high"] - loss["value"] == pytest.approx(0.0, abs=1e-6)
    size = int((data.chunks[:, 1:] + 1).sum())
    assert bits["value"] == pytest.approx(35 * math.log2(13) / size)
    assert perplexity["value"] == pytest.approx(13)
    assert [entry["unit"] for entry in (loss, bits, perplexity)] == ["nats/token", "bits/byte", "perplexity/token"]


def test_the_loss_is_the_mean_over_all_tokens_with_its_standard_error_over_chunks() -> None:
    model, data = Table(13), language()
    loss, bits, perplexity = evaluate_language(model, data, length=5, batch=3)
    inputs, targets = data.chunks[:, :-1], data.chunks[:, 1:]
    with torch.no_grad():
        nats = F.cross_entropy(model.table[inputs].flatten(0, 1), targets.flatten(), reduction="none").view(7, 5)
    assert loss["value"] == pytest.approx(nats.mean().item(), abs=1e-6)
    assert loss["high"] - loss["value"] == pytest.approx(nats.mean(1).std().item() / math.sqrt(7), abs=1e-6)
    ratio, stderr = ratio_and_stderr((nats.sum(1) / math.log(2)).tolist(), (targets + 1).sum(1).tolist())
    assert (bits["value"], bits["high"] - bits["value"]) == pytest.approx((ratio, stderr), abs=1e-6)
    # The delta method, against a difference quotient.
    reach = loss["high"] - loss["value"]
    slope = (math.exp(loss["value"] + 1e-6) - math.exp(loss["value"] - 1e-6)) / 2e-6
    assert perplexity["high"] - perplexity["value"] == pytest.approx(reach * slope, rel=1e-6)
    assert (perplexity["value"], perplexity["n"]) == (math.exp(loss["value"]), 7)
    assert (loss["n"], loss["task"], loss["better"]) == (7, None, "lower")
    assert loss["setting"] == {"window": 5, "tokens": 35, "bytes": int((targets + 1).sum()), "batch": 3}


def test_a_limit_takes_the_first_chunks() -> None:
    model, data = Table(13), language()
    limited = evaluate_language(model, data, length=5, limit=2)
    assert limited == evaluate_language(model, Language(data.chunks[:2]), length=5)


def test_the_losses_of_single_chunks_are_kept_if_asked_for() -> None:
    kept: list[ItemScores] = []
    _, bits, _ = evaluate_language(Table(13), language(), length=5, keep=kept.append)
    (items,) = kept
    assert items.nats.sum() / items.bytes.sum() / math.log(2) == pytest.approx(bits["value"])
    assert (len(items), items.tokens, items.metric) == (7, 35, None)
    other = Language(language().chunks.flip(0))
    evaluate_language(Table(13), other, length=5, keep=kept.append)
    assert kept[1].digest != items.digest


def test_evaluating_twice_gives_the_same_entries() -> None:
    model, data = Table(13), language()
    assert evaluate_language(model, data, length=5, batch=2) == evaluate_language(model, data, length=5, batch=2)


def test_a_loss_that_is_not_finite_fails_in_one_sentence() -> None:
    model = Table(13)
    model.table.data.fill_(float("nan"))
    with pytest.raises(BlastError, match="validation loss is not finite on 7 of 7 chunks"):
        evaluate_language(model, language(), length=5)


def test_no_chunk_fails_in_one_sentence() -> None:
    with pytest.raises(BlastError, match="at least one chunk"):
        evaluate_language(Table(13), Language(torch.zeros(0, 6, dtype=torch.long)), length=5)


def vision(ranks: list[int], classes: int = 10) -> Vision:
    """Images that are their own outputs: the label of image i has `ranks[i]` classes above it."""
    outputs = torch.stack([torch.arange(classes, 0, -1.0)] * len(ranks))
    return Vision(outputs, torch.tensor(ranks), classes)


def test_top_k_counts_labels_among_the_k_largest_outputs() -> None:
    ranks = [0, 0, 1, 4, 5, 9, 0, 3]
    top1, top5, _ = evaluate_vision(nn.Identity(), vision(ranks), batch=3, device="cpu")
    assert (top1["metric"], top1["value"], top1["n"]) == ("top1", 3 / 8, 8)
    assert (top5["metric"], top5["value"], top5["n"]) == ("top5", 6 / 8, 8)
    assert top1["high"] - top1["value"] == pytest.approx(math.sqrt(3 / 8 * 5 / 8 / 8))
    assert top1["low"] == pytest.approx(2 * top1["value"] - top1["high"])
    assert (top1["setting"]["chance"], top5["setting"]["chance"]) == (0.1, 0.5)


def test_with_fewer_classes_than_guesses_every_guess_is_right() -> None:
    _, top5, _ = evaluate_vision(nn.Identity(), vision([0, 1, 2], classes=3), device="cpu")
    assert top5["value"] == 1.0
    assert top5["setting"]["chance"] == 1.0


def test_the_loss_of_images_is_their_mean_cross_entropy_with_its_standard_error() -> None:
    data = vision([0, 0, 1, 4, 5, 9, 0, 3])
    *_, loss = evaluate_vision(nn.Identity(), data, batch=3, device="cpu")
    nats = -data.images.double().log_softmax(1)[torch.arange(8), data.labels]
    assert loss["value"] == pytest.approx(nats.mean().item(), abs=1e-6)
    assert loss["high"] - loss["value"] == pytest.approx(nats.std().item() / math.sqrt(8), abs=1e-6)
    assert (loss["metric"], loss["unit"], loss["better"], loss["n"]) == ("loss", "nats", "lower", 8)


def test_a_loss_too_large_for_a_perplexity_is_kept_without_one() -> None:
    model = Table(13)
    model.table.data.zero_()
    model.table.data[:, 0] = 1e4
    data = Language(torch.ones(2, 6, dtype=torch.long))
    assert [entry["metric"] for entry in evaluate_language(model, data, length=5)] == ["loss", "bits_per_byte"]


def test_metrics_of_a_part_are_named_after_it_and_not_as_the_learning_curves() -> None:
    entries = evaluate_language(Table(13), language(), length=5)
    named = of_part("validation", entries)
    assert [entry["metric"] for entry in named] == [
        "validation_final_loss",
        "validation_bits_per_byte",
        "validation_perplexity",
    ]
    assert [entry | {"metric": None} for entry in named] == [entry | {"metric": None} for entry in entries]
    assert entries[0]["metric"] == "loss"


def test_outputs_that_are_not_finite_fail_in_one_sentence() -> None:
    data = vision([0, 1])
    data.images[1, 3] = float("inf")
    with pytest.raises(BlastError, match="not finite"):
        evaluate_vision(nn.Identity(), data, device="cpu")


def test_images_without_labels_fail_in_one_sentence() -> None:
    data = vision([0, 1])
    data.labels = data.labels[:1]
    with pytest.raises(BlastError, match="2 images and 1 labels"):
        evaluate_vision(nn.Identity(), data, device="cpu")


def test_evaluation_uses_the_statistics_of_batch_norm_and_does_not_change_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(10)).train()
    before = model[0].running_mean.clone()
    evaluate_vision(model, vision([0, 1, 2]))
    assert torch.equal(model[0].running_mean, before)
    assert model.training
    assert model[0].training
