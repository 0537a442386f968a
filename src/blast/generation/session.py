"""A session: one model that decodes batches of one size, step by step, on a GPU as replayed CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch._dynamo
from torch import Tensor, nn

from blast.generation.attention import (
    count_blocks,
    prompt_mask,
    session_attention,
    step_block_mask,
    step_mask,
)
from blast.generation.cache import SessionCache, empty
from blast.generation.merged import MergedProjections
from blast.layers.hooked import HookedOutsideGraph, has_forward_hooks
from blast.layers.sparse_mlp import SparseMlp
from blast.model.module_replacement import sparse_layers
from blast.training.compilation import repeated_blocks

Compiled = Literal["no", "layers", "whole"]
# Chooses the next tokens `[batch]` from the logits `[batch, vocabulary]`, float32.
Choose = Callable[[Tensor], Tensor]
# Eager steps before a capture: code is compiled in the first one, and kernels are tuned.
WARM_UP = 2
# How often the layers may be compiled. All models and sizes count together, and torch would stop after eight.
RECOMPILATIONS = 128


class _Code(NamedTuple):
    """What runs a pass: the whole of it, and in it each layer; no layers: those of the model."""

    whole: Callable[..., Tensor]
    layers: list[Callable[..., Any]]

    @classmethod
    def of(cls, whole: Callable[..., Tensor], blocks: list[nn.Module], at_once: bool, **options: Any) -> _Code:
        """Compiled: the pass at once, or its layers."""
        if at_once:
            return cls(torch.compile(whole, **options), [])
        return cls(whole, [torch.compile(block._call_impl, **options) for block in blocks])


def likeliest(logits: Tensor) -> Tensor:
    """The token with the largest logit of each row."""
    return logits.argmax(-1)


class Session:
    """Decodes batches of one size, up to `capacity` tokens.

    With graphs the whole step is one CUDA graph: the forward pass, the choice of the next token, and its place in
    `tokens`. A step costs the CPU a few microseconds then, and waits for nothing. Inference mode of the caller has no
    effect: the tensors of a session outlive it.

    Args:
        model: A causal language model of transformers in eval mode; `decode.reason_against` says which ones.
        batch: Number of sequences.
        capacity: Largest number of tokens of a sequence, prompt included.
        graphs: Whether to replay CUDA graphs. Without them each step runs eagerly.
        compiled: What of a step is compiled. `layers`: all layers run the same code, which is compiled once. A sparse
            MLP is no part of that code, because each has its own number of blocks. `whole`: the whole pass, which takes
            longer the more layers there are, and saves a kernel or two a layer.
        static: Whether attention reads the whole cache with a mask, as graphs need it. Otherwise the CPU knows how many
            tokens are cached, and attention reads those.
        flex: Whether the steps use FlexAttention, which skips unused cache; slow if nothing is compiled.
        prompt_compiled: Whether the prompt is compiled too, once for all lengths from two tokens on.
        autotune: Whether Inductor times several kernels for each matrix product of a step, which takes minutes.

    Attributes:
        tokens: `[batch, capacity]`, int64: prompts and chosen tokens.
        logits: Of the last pass, `[batch, vocabulary]`.
        length: Number of tokens in `tokens`.
        cache: Keys and values.
        mode: Of `torch.compile`, for a step.
        merged: The projections of one input that run as one product.
        chooser: What the caller chose with last, for the next call.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        *,
        graphs: bool = False,
        compiled: Compiled = "no",
        static: bool | None = None,
        flex: bool = False,
        prompt_compiled: bool = False,
        autotune: bool = False,
    ) -> None:
        self._prompt_compiled = prompt_compiled
        # Weak, so that a model is freed whose session is kept.
        self._model = weakref.ref(model)
        self.batch, self.capacity = batch, capacity
        self.graphs, self.compiled, self.static = graphs, compiled, graphs if static is None else static
        device = next(model.parameters()).device
        self.tokens = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._padding = torch.zeros(batch, dtype=torch.int64, device=device)
        self.cache = SessionCache(self._position, capacity, self.model.config.num_hidden_layers)
        self._block_mask = step_block_mask(self._position, self._padding, capacity) if flex else None
        self.merged = MergedProjections(model)
        self.length = 0
        self.chooser: Choose = likeliest
        self.logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        # What the graph was captured with.
        self._choose: Choose | None = None
        self._weights: tuple[int, ...] = ()
        self.mode = "max-autotune-no-cudagraphs" if autotune else None
        blocks = repeated_blocks(model) if compiled == "layers" else []
        self._step_code = _Code.of(self._logits, blocks, compiled == "whole", dynamic=False, mode=self.mode)
        self._prompt_code = _Code(self._logits, [])
        if prompt_compiled:
            self._prompt_code = _Code.of(self._logits, blocks, compiled == "whole", dynamic=True, mode=None)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            ReferenceError: if it was deleted.
        """
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this session was deleted")
        return model

    @torch.inference_mode(False)
    @torch.no_grad()
    def start(self, prompt: Tensor, mask: Tensor | None = None, choose: Choose = likeliest) -> None:
        """Runs the prompts and chooses the first new token of each.

        Args:
            prompt: `[batch, tokens]`, padded on the left.
            mask: `[batch, tokens]`, 0 for padding; None without padding.
            choose: Chooses the next tokens.
        """
        # Weights that were replaced are merged again.
        self.merged = MergedProjections(self.model)
        tokens, weights = prompt.shape[1], weights_in_place(self.model)
        if weights != self._weights:
            self._graph, self._weights = None, weights
        empty(self.cache)
        self.tokens[:, :tokens].copy_(prompt)
        self._padding.zero_()
        attention_mask, positions = None, torch.arange(tokens, device=prompt.device)[None]
        if mask is not None:
            self._padding.copy_((mask == 0).sum(1))
            attention_mask = prompt_mask(self._padding, tokens)
            positions = (positions - self._padding[:, None]).clamp(min=0)
        if self._prompt_compiled and not self.cache.bytes:
            # Compiled layers expect that the cache exists. A pass makes it, in the shapes and dtype of the model.
            with session_attention(self.model.config):
                self._logits(prompt[:, :1], positions[:, :1], None, {})
        self.logits = self._forward(prompt, positions, attention_mask)
        self._position.fill_(tokens)
        self.cache.prompt, self.length = False, tokens + 1
        self._append(choose)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, choose: Choose = likeliest) -> None:
        """Runs the last token of each sequence and chooses the next.

        Args:
            choose: Chooses the next tokens. With graphs it is captured with the rest: it may not wait for the GPU, and
                another one needs another capture.
        """
        if not self.graphs:
            self.cache.used = None if self.static else self.length
            self._step(choose)
        elif self._graph is not None and self._choose is choose:
            self._graph.replay()
        else:
            self._capture(choose)
        self.length += 1

    def rewind(self, tokens: int) -> None:
        """Goes back to just after the first new token, so that the same steps can run again.

        Args:
            tokens: Length of the prompt.
        """
        self._position.fill_(tokens)
        self.length = tokens + 1

    def _step(self, choose: Choose) -> None:
        token = self.tokens.index_select(1, self._position)
        mask = step_mask(self._position, self._padding, self.capacity) if self.cache.used is None else self._used_mask()
        if self._block_mask is not None:
            count_blocks(self._block_mask, self._position)
        self.logits = self._forward(token, self._position - self._padding[:, None], mask)
        self._position.add_(1)
        self._append(choose)

    def _used_mask(self) -> Tensor | None:
        return step_mask(self._position, self._padding, self.length) if bool(self._padding.any()) else None

    def _append(self, choose: Choose) -> None:
        self.tokens.index_copy_(1, self._position, choose(self.logits.float())[:, None])

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of the last token of each sequence, `[batch, vocabulary]`."""
        code = self._prompt_code if self.cache.prompt else self._step_code
        layers, flex = code.layers, self._block_mask is not None and not self.cache.prompt
        if layers and hooked_around_sparse(repeated_blocks(self.model)):
            layers, flex = [], False
        more = {"block_mask": self._block_mask} if flex else {}
        with session_attention(self.model.config), self.merged.active(), self._compiled_layers(layers):
            return code.whole(tokens, positions, mask, more)

    @contextmanager
    def _compiled_layers(self, layers: list[Callable[..., Any]]) -> Iterator[None]:
        """Within the context the model runs these in the place of its layers, if there are any."""
        if not layers:
            yield
            return
        blocks, sparse = repeated_blocks(self.model), list(sparse_layers(self.model).values())
        before = [block._compiled_call_impl for block in blocks], [layer.masks_fixed for layer in sparse]
        for number, (block, compiled) in enumerate(zip(blocks, layers, strict=True)):
            block._compiled_call_impl = partial(self._run_layer, number, compiled)
        for layer in sparse:
            layer.masks_fixed = False
        try:
            with torch._dynamo.config.patch(nested_graph_breaks=True, recompile_limit=RECOMPILATIONS):
                yield
        finally:
            self.cache.select(None)
            for block, impl in zip(blocks, before[0], strict=True):
                block._compiled_call_impl = impl
            for layer, fixed in zip(sparse, before[1], strict=True):
                layer.masks_fixed = fixed

    def _run_layer(self, number: int, compiled: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        self.cache.select(number)
        return compiled(*inputs, **named)

    def _logits(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, more: dict[str, Any]) -> Tensor:
        hidden = self.model.base_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **more,
        ).last_hidden_state
        logits: Tensor = self.model.get_output_embeddings()(hidden[:, -1])
        return logits

    def _capture(self, choose: Choose) -> None:
        """Runs the step: eagerly at first, then as a new graph. Random numbers are drawn as if it had run once."""
        self._graph = None
        position, random = self._position.clone(), torch.cuda.get_rng_state(self._position.device)
        stream = torch.cuda.Stream(self._position.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                # Each one writes the same places again.
                self._position.copy_(position)
                self._step(choose)
            self._position.copy_(position)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(choose)
        self._graph, self._choose = graph, choose
        torch.cuda.set_rng_state(random, self._position.device)
        graph.replay()


def hooked_around_sparse(blocks: Iterable[nn.Module]) -> bool:
    """Whether a module inside these has hooks and a sparse layer below it.

    Such blocks are not compiled: the graph would break in the middle of a call with hooks, where torch 2.11 cannot go
    on (see `blast.layers.hooked`).
    """
    inner = (module for block in blocks for module in block.modules() if module is not block)
    return any(
        has_forward_hooks(module) and any(isinstance(part, HookedOutsideGraph) for part in module.modules())
        for module in inner
        if not isinstance(module, HookedOutsideGraph)
    )


def weights_in_place(model: nn.Module) -> tuple[int, ...]:
    """Addresses of the tensors that a forward pass reads, and the classes of its modules.

    A graph reads these addresses: other values there are seen, other tensors are not. Fused MLPs bring their index up
    to date first, so that new masks are seen.
    """
    found: list[int] = []
    for module in model.modules():
        found.append(id(type(module)))
        if isinstance(module, SparseMlp):
            _ = module.row_lists
            found += [tensor.data_ptr() for tensor in module.extra_tensors]
        found += [part.data_ptr() for part in module._parameters.values() if part is not None]
        found += [part.data_ptr() for part in module._buffers.values() if part is not None]
    return tuple(found)
