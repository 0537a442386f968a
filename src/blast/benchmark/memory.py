"""The `memory` suite: memory of a language model in inference, dense and block-sparse, by phase and by use.

Phases are loading, prefill (prompts run in pieces) and decoding. A model has random weights and masks. The memory is
that of tensors, as torch's allocator counts it. Each value stands beside what `blast.architectures.inference_memory`
computes from the sizes of the model (`computed` in the setting).
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

import blast
from blast import architectures
from blast.architectures.inference_memory import InferenceMemory, Sparse, inference_memory
from blast.benchmark.inputs.model import random_model
from blast.benchmark.step.breakdown import Meter as TensorMeter
from blast.benchmark.timing.device import gpu_for
from blast.checkpoint.allocation import TooLittleMemoryError
from blast.errors import BlastError
from blast.layers.sparse_mlp import SparseMlp
from blast.model.module_replacement import sparse_layers

DENSE, OURS = "dense_eager", "ours"

Entry = dict[str, Any]


class Meter(TensorMeter):
    """Bytes on a GPU: of tensors, of what torch's allocator took for them, and of what it does not know."""

    def reserved_peak(self) -> int:
        """Most bytes that the allocator took from the GPU since `restart`."""
        return torch.cuda.max_memory_reserved(self.device)

    def outside(self) -> int:
        """Bytes in use on the GPU that are not the allocator's: its context, libraries, and other processes."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device)


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Measures the memory of an architecture in inference, dense and then ours.

    Args:
        architecture: A language model that `inference_memory` knows.
        sparsity: Share of empty blocks of its MLPs.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and tokens.
        settings: `tokens` (list: tokens of a sequence at the end, the last `decode_steps` of them decoded one by one),
            `dtype`, and the fields of `blast.benchmark.settings.MemorySettings`.

    Returns:
        By provider, in bytes. Without tokens: `load_peak_bytes`, `weights_bytes` (with indices) and `index_bytes`. For
        each batch and length: `prefill_peak_bytes`, `decode_peak_bytes`, `kv_cache_bytes`, `activation_bytes` (the
        prefill's peak beyond weights and cache), `reserved_peak_bytes` (taken from the GPU for tensors, fragments
        included) and `outside_bytes` (in use on the GPU beside them).

    Raises:
        BlastError: without a GPU, for an architecture that cannot be computed, or if an output is not finite.
    """
    device = gpu_for("memory")
    known, dtype = architectures.get(architecture), getattr(torch, settings["dtype"])
    metrics: list[Entry] = []
    for provider in (DENSE, OURS):
        sparse = None if provider == DENSE else Sparse(sparsity=sparsity, block=tuple(block), tied=settings["tied"])
        inference_memory(known, sparse)  # says what it cannot compute before anything is built
        run = MemoryRun(provider, architecture, sparse, seed, dtype, settings, Meter(device))
        metrics += run.entries(device)
    return metrics


class MemoryRun:
    """Measures one model.

    Args:
        provider: `dense_eager` or `ours`.
        architecture: Name of the architecture.
        sparse: How its MLPs are sparse; None for the dense model.
        seed: Seed of weights, masks and tokens.
        dtype: Dtype of weights, activations and cache.
        settings: Settings of `measure`.
        meter: Reads the bytes.
    """

    def __init__(
        self,
        provider: str,
        architecture: str,
        sparse: Sparse | None,
        seed: int,
        dtype: torch.dtype,
        settings: dict[str, Any],
        meter: Meter,
    ) -> None:
        self.provider, self.architecture, self.sparse, self.seed = provider, architecture, sparse, seed
        self.dtype, self.settings, self.meter = dtype, settings, meter
        self.shape = architectures.get(architecture).shape

    def entries(self, device: torch.device) -> list[Entry]:
        """Loads the model, then runs each batch and length; what does not fit the GPU is `not run`."""
        self.meter.restart()
        before = self.meter.allocated()
        try:
            model = self._loaded(device)
        except (torch.OutOfMemoryError, TooLittleMemoryError):
            return [self._missing("load_peak_bytes", None, None)]
        computed = self._computed(0, 0, 0)
        peak = self.meter.peak() - before
        found = [
            self._entry("load_peak_bytes", peak, computed.weights, None, None),
            self._entry("weights_bytes", blast.model_bytes(model).weights, computed.weights, None, None),
            self._entry("index_bytes", _index_bytes(model), computed.index + computed.row_lists, None, None),
        ]
        for batch in self.settings["batches"]:
            for tokens in self.settings["tokens"]:
                length = min(tokens, self.shape.context)
                try:
                    found += self._generate(model, batch, length, before)
                except torch.OutOfMemoryError:
                    found.append(self._missing("prefill_peak_bytes", batch, length))
        return found

    def _loaded(self, device: torch.device) -> nn.Module:
        """The model on its device: made there, or loaded from a checkpoint that is written first."""
        model = random_model(self.architecture, self.sparse, self.seed, self.dtype, device)
        if self.settings["checkpoint"]:
            with tempfile.TemporaryDirectory() as folder:
                blast.save(model, f"{folder}/model")
                del model
                self.meter.restart()
                model = blast.load(f"{folder}/model", device=device).requires_grad_(False)
        return model if self.sparse is None else blast.fuse(model)

    @torch.inference_mode()
    def _generate(self, model: nn.Module, batch: int, length: int, before: int) -> list[Entry]:
        steps = min(self.settings["decode_steps"], length - 1)
        piece = max(1, min(self.settings["tokens_at_once"] // batch, length - steps))
        words = self._words(batch, length, next(model.parameters()).device)
        self.meter.restart()
        held = self.meter.allocated() - before
        cache = None
        for first in range(0, length - steps, piece):
            out = model(
                words[:, first : min(first + piece, length - steps)],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            finite = bool(out.logits.isfinite().all())
            del out
            if not finite:
                raise BlastError(f"the logits of '{self.architecture}' ({self.provider}) are not finite; report it.")
        prefill, in_cache = self.meter.peak() - before, _cache_bytes(cache)
        reserved = self.meter.reserved_peak()
        self.meter.restart()
        for place in range(length - steps, length):
            cache = model(words[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
        decode, cached = self.meter.peak() - before, _cache_bytes(cache)
        early = self._computed(batch, length - steps, batch * piece)
        late = self._computed(batch, length, batch)
        return [
            self._entry("prefill_peak_bytes", prefill, early.total, batch, length),
            self._entry("decode_peak_bytes", decode, late.total, batch, length),
            self._entry("kv_cache_bytes", cached, late.kv_cache, batch, length),
            self._entry("activation_bytes", prefill - held - in_cache, early.activations, batch, length),
            self._entry("reserved_peak_bytes", reserved, None, batch, length),
            self._entry("outside_bytes", self.meter.outside(), None, batch, length),
        ]

    def _words(self, batch: int, length: int, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.shape.vocab, (batch, length), generator=generator).to(device)

    def _computed(self, batch: int, context: int, tokens_at_once: int) -> InferenceMemory:
        return inference_memory(
            architectures.get(self.architecture), self.sparse, batch=batch, context=context,
            tokens_at_once=tokens_at_once, element=self.dtype.itemsize,
        )  # fmt: skip

    def _entry(
        self, metric: str, value: int | None, computed: int | None, batch: int | None, tokens: int | None, **facts: Any
    ) -> Entry:
        names = ("tied", "checkpoint", "tokens_at_once", "decode_steps")
        facts = {name: self.settings[name] for name in names} | facts
        if computed is not None:
            facts["computed"] = computed
        return {
            "metric": metric, "task": None, "unit": "bytes", "value": None if value is None else float(value),
            "low": None, "high": None, "spread": None, "n": None, "better": "lower", "provider": self.provider,
            "tokens": tokens, "batch": batch, "dtype": self.settings["dtype"], "setting": facts,
        }  # fmt: skip

    def _missing(self, metric: str, batch: int | None, tokens: int | None) -> Entry:
        cause = "it does not fit the memory of this GPU; give fewer tokens, a smaller batch or a higher sparsity"
        return self._entry(metric, None, None, batch, tokens, cause=cause) | {"status": "not run"}


def _cache_bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _index_bytes(model: nn.Module) -> int:
    """Bytes of all indices: those of the layers, which can share one, and the row lists of fused MLPs."""
    indices = {id(layer.index): layer.index for layer in sparse_layers(model).values()}
    lists = [tensor for module in model.modules() if isinstance(module, SparseMlp) for tensor in module.extra_tensors]
    return sum(tensor.nbytes for index in indices.values() for tensor in index.buffers()) + sum(
        tensor.nbytes for tensor in lists
    )
