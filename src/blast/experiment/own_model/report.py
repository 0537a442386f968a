"""What a pruned model cost and gained: a JSON mapping, and the lines that say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blast.evaluation.wrecked import kept_margin, wrecked
from blast.experiment.own_model.step_time import as_time

if TYPE_CHECKING:
    from torch import Tensor, nn

    from blast.model.target import Target


def losses(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of `evaluate_language` by name, as JSON values: `loss`, `bits_per_byte`, `perplexity`, `error`.

    `error` is the standard error of the bits per byte, or None.
    """
    found = {entry["metric"]: entry["value"] for entry in metrics}
    bits = next(entry for entry in metrics if entry["metric"] == "bits_per_byte")
    error = None if bits["high"] is None else bits["high"] - bits["value"]
    return found | {"error": error, "tokens": bits["setting"]["tokens"]}


def sparsity_facts(model: nn.Module, every: Sequence[Target], masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares of empty blocks: of the pruned matrices, of all MLP weights, and of all weights.

    Args:
        model: In its dense state.
        every: All matrices of the MLPs.
        masks: Of the pruned ones.
    """
    sizes = {target.name: target.shape[0] * target.shape[1] for target in every}
    dead = sum(sizes[name] * (1 - mask.float().mean().item()) for name, mask in masks.items())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "pruned": dead / sum(sizes[name] for name in masks),
        "mlp": dead / sum(sizes.values()),
        "all": dead / total,
    }


def verdict(after: Mapping[str, Any], before: Mapping[str, Any], unigram: float, vocabulary: int) -> dict[str, Any]:
    """Share of dense's margin above the unigram that is kept, and the sentence about a wrecked model (else None)."""
    kept = kept_margin(after["loss"], before["loss"], unigram)
    return {"kept": kept, "unigram_loss": unigram, "wrecked": wrecked(after["loss"], vocabulary, kept)}


def describe(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as lines of text: dense and sparse side by side."""
    before, after = report["dense"], report["sparse"]
    yield f"{'':<24} {'dense':>10} {'sparse':>10}"
    more = 100 * (after["bits_per_byte"] / before["bits_per_byte"] - 1)
    error = "" if after["error"] is None else f", +-{after['error']:.3f}"
    yield _row("bits a byte, held out", before["bits_per_byte"], after["bits_per_byte"], ".3f", f"{more:+.1f} %{error}")
    if "perplexity" in before and "perplexity" in after:
        yield _row("perplexity of a token", before["perplexity"], after["perplexity"], ",.2f", "")
    rate = after["tokens_per_second"] / before["tokens_per_second"]
    yield _row(
        "decoded tokens a second", before["tokens_per_second"], after["tokens_per_second"], ".1f", f"{rate:.2f} times"
    )
    for key, name in (("mlp_bytes", "MB of MLP weights"), ("bytes", "MB of all weights")):
        yield _row(name, before[key] / 1e6, after[key] / 1e6, ".1f", f"{after[key] / before[key]:.2f} times")
    found = report["sparsity"]
    yield (
        f"empty: {100 * found['pruned']:.1f} % of the pruned matrices, {100 * found['mlp']:.1f} % of the MLP weights, "
        f"{100 * found['all']:.1f} % of all weights"
    )
    yield (
        f"kept: {100 * report['verdict']['kept']:.0f} % of what dense knows beyond the frequencies of tokens "
        f"(measured on {after['tokens']:,} held-out tokens)"
    )
    seconds = report["seconds"]
    yield (
        f"took {as_time(seconds['all'])}: {as_time(seconds['training'])} for {report['plan']['steps']} steps of "
        f"{report['tokens_a_step']} tokens, the rest for measuring and saving"
    )
    if report["verdict"]["wrecked"]:
        yield f"The model is {report['verdict']['wrecked']}"


def _row(name: str, dense: float, sparse: float, form: str, more: str) -> str:
    return f"{name:<24} {dense:>10{form}} {sparse:>10{form}}   {more}".rstrip()
