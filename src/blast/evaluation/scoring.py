"""Scores prepared evaluation requests with a model; it needs torch only."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.mode import evaluating
from blast.evaluation.requests import Request, RequestFile, read_requests
from blast.evaluation.scores import Score, ScoreFile, require_finite, write_scores

__all__ = ["max_length_of", "read_tokens", "score", "score_requests", "windows", "write_scores"]

Window = tuple[list[int], int]  # token ids (inputs and the last target), and how many of the last are scored


def max_length_of(model: nn.Module) -> int:
    """Longest input of the model in tokens, from its transformers config.

    Raises:
        BlastError: if the config has no such value.
    """
    config = getattr(model, "config", None)
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise BlastError("the model's config names no longest input; pass max_length.")


def windows(request: Request, max_length: int) -> list[Window]:
    """Cuts a request into windows that the model can read at once, exactly as lm-eval's `HFLM` does.

    A context that is too long loses its beginning. The windows of a rolling text predict each token once, and the last
    window is as long as the others.

    Raises:
        BlastError: if the continuation is empty or longer than the window.
    """
    tokens, scored = request.context + request.continuation, len(request.continuation)
    if request.kind == "loglikelihood_rolling":
        ends = [*range(max_length, scored, max_length), scored] if scored else []
        return [(tokens[max(0, end - max_length) : end + 1], (end - 1) % max_length + 1) for end in ends]
    if request.kind != "loglikelihood":
        raise BlastError(f"task '{request.task}': a '{request.kind}' cannot be scored; only likelihoods can.")
    if not request.context or not 0 < scored <= max_length:
        raise BlastError(
            f"task '{request.task}': a request of {len(request.context)} tokens of context and {scored} to score does "
            f"not fit a window of {max_length}; take a longer window or leave the document out."
        )
    return [(tokens[-(max_length + 1) :], scored)]


def read_tokens(requests: RequestFile | Sequence[Request], max_length: int) -> list[int]:
    """How many tokens a model reads to score each request: what it costs, without padding."""
    return [sum(len(tokens) - 1 for tokens, _ in windows(request, max_length)) for request in requests]


@torch.inference_mode()
def score(
    model: nn.Module,
    requests: RequestFile | Sequence[Request],
    batch_size: int = 16,
    device: torch.device | str | None = None,
    max_length: int | None = None,
) -> list[Score]:
    """Log-likelihood and greedy flag of each request.

    Windows are sorted by length, then by the number of scored tokens, longest first. Batches have a fixed size and are
    padded on the right. So the scores depend only on the model, the requests and the arguments. Probabilities are in
    float32, sums in float64.

    Args:
        model: A causal language model: `model(input_ids [batch, length]).logits` gives `[batch, length, vocabulary]`.
        requests: The requests.
        batch_size: Windows per batch; scores depend on it by rounding only.
        device: Device of the model; by default that of its first parameter.
        max_length: Longest input in tokens; by default from the model's config.

    Returns:
        One score for each request, in their order; the log-likelihood in nats. An empty rolling text scores 0.

    Raises:
        BlastError: if a request does not fit, or a score is not finite.
    """
    max_length = max_length or max_length_of(model)
    device = device or next(model.parameters()).device
    pieces = [(n, window) for n, request in enumerate(requests) for window in windows(request, max_length)]
    order = sorted(range(len(pieces)), key=lambda i: (-len(pieces[i][1][0]), -pieces[i][1][1], i))
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pieces)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, found in zip(batch, _score_batch(model, [pieces[i][1] for i in batch], device), strict=True):
                results[i] = found
    scores = [Score(0.0, True)] * len(requests)
    for (n, _), (logprob, greedy) in zip(pieces, results, strict=True):
        scores[n] = Score(scores[n].logprob + logprob, scores[n].greedy and greedy)
    require_finite(scores)
    return scores


def _score_batch(model: nn.Module, batch: list[Window], device: torch.device | str) -> list[tuple[float, bool]]:
    longest = len(batch[0][0]) - 1
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, (tokens, _) in enumerate(batch):
        ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
    # Logits before the first scored position of the batch are not needed; transformers models can omit them.
    skip = min(len(tokens) - 1 - scored for tokens, scored in batch) if _can_skip(model) else 0
    kept = {"logits_to_keep": longest - skip} if skip else {}
    logits = model(ids.to(device), **kept).logits  # [batch, longest - skip, vocabulary]
    sums: list[Tensor] = []
    flags: list[Tensor] = []
    for row, (tokens, scored) in enumerate(batch):
        end = len(tokens) - 1 - skip
        targets = torch.tensor(tokens[-scored:], device=logits.device)  # [scored]
        logprobs = logits[row, end - scored : end].float().log_softmax(-1)  # [scored, vocabulary]
        sums.append(logprobs.gather(1, targets[:, None]).double().sum())
        flags.append((logprobs.argmax(-1) == targets).all())
    return list(zip(torch.stack(sums).tolist(), torch.stack(flags).tolist(), strict=True))


def _can_skip(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def score_requests(
    model: nn.Module,
    requests: RequestFile | Path,
    out_file: Path,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    max_length: int | None = None,
) -> ScoreFile:
    """Scores a request file and writes the score file; see `score`."""
    if not isinstance(requests, RequestFile):
        requests = read_requests(requests)
    max_length = max_length or max_length_of(model)
    scores = score(model, requests, batch_size, device, max_length)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return write_scores(out_file, requests, scores, {"window": max_length, "batch": batch_size, "dtype": dtype})
