"""`fast_decode`, the decoding loop that `model.generate` takes as `custom_generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from blast.errors import BlastError
from blast.generation.cache import capacity_for
from blast.generation.session import Choose, Session, likeliest

# Families whose attention is plain: no sliding window, no bias by distance, no cap of the logits.
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
# Processors that read nothing but the logits, so that they can be part of a graph.
OF_LOGITS_ALONE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
# Steps between two looks at whether all sequences have ended.
STRIDE = 16
# Sessions kept for each model, the last used ones.
KEPT = 2
# Smallest size of a head that FlexAttention takes on a GPU.
FLEX_HEAD = 16

_sessions: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Session]] = WeakKeyDictionary()


def fast_decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    compiled: bool = True,
    **model_kwargs: Any,
) -> Any:
    """Generates with compiled steps that are replayed as CUDA graphs. Pass it to `model.generate`:

        model.generate(**inputs, max_new_tokens=200, custom_generate=blast.fast_decode)

    The tokens are those of `model.generate` without it, except where rounding decides between two. The first call for a
    batch size and a length compiles the step and the pass of the prompt, which can take minutes; later calls use
    them again, also for prompts of other lengths and after weights or masks have changed. It keeps the key-value caches
    of the last two sizes; `forget_sessions(model)` frees them. On a CPU there are no graphs, and nothing is compiled.

    The weights of query, key and value, and of gate and up where they are dense, are moved together in memory. The
    parameters stay the same objects with the same values. A tensor that was taken from them before, such as a state
    dict, is a copy from then on, and CUDA graphs that others captured before read that copy. Weights that have a
    gradient are not moved.

    Greedy decoding and sampling work, with all logits processors, stopping criteria and streamers of transformers, and
    with prompts that are padded on the left. Processors other than temperature, top-k, top-p and min-p run outside the
    graph and cost some time in each step.

    Args:
        model: GPT-2, Llama (SmolLM2), Qwen2 or Qwen3 in eval mode, sparse, fused or dense.
        input_ids: `[batch, tokens]`; this and the rest come from `generate`.
        logits_processor: Processors and warpers of the logits.
        stopping_criteria: When to stop.
        generation_config: The settings of this call.
        synced_gpus: Not supported.
        streamer: Gets the prompt and each token. transformers passes none on, so it is given like this:
            `custom_generate=functools.partial(blast.fast_decode, streamer=streamer)`.
        compiled: Whether layers are compiled. Without it the graphs hold the kernels of the model, which are more and
            slower, but the first call has little to prepare: for few tokens. It is given as `streamer` is.
        model_kwargs: What `generate` prepared for the forward pass.

    Returns:
        `[batch, tokens and new tokens]`, int64, as `generate` returns it.

    Example:
        >>> prompt = torch.tensor([[3, 1, 4, 1, 5]])
        >>> model.eval().generate(prompt, max_new_tokens=4, custom_generate=blast.fast_decode).shape
        torch.Size([1, 9])

    Raises:
        BlastError: for a model of another family or in training, beam search, embeddings as input, scores or a
            dictionary as output, a streamer given to `generate`, and a prompt past the model's length.
    """
    if streamer is None and sys._getframe(1).f_locals.get("streamer") is not None:
        # It would get the prompt and nothing else, and whoever waits for its end would wait for ever.
        raise BlastError(
            "transformers passes no streamer to blast.fast_decode; "
            "give it as custom_generate=functools.partial(blast.fast_decode, streamer=streamer)."
        )
    reason = reason_against(model) or _unsupported(generation_config, synced_gpus, model_kwargs)
    if reason is not None:
        raise BlastError(f"blast.fast_decode cannot run this: {reason}; leave out custom_generate.")
    batch, tokens = input_ids.shape
    limit, longest = _limit(stopping_criteria, tokens), _positions(model)
    if longest is not None and limit > longest:
        raise BlastError(
            f"{tokens} tokens of prompt and {limit - tokens} new ones are more than the {longest} of the model; "
            "shorten the prompt or max_new_tokens."
        )
    mask = model_kwargs.get("attention_mask")
    if mask is not None and bool(mask.all()):
        mask = None
    session = session_of(model, batch, capacity_for(limit, longest), compiled)
    choose = _Choice(logits_processor, bool(generation_config.do_sample))
    ends = _ends(generation_config, input_ids.device)
    others = [each for each in stopping_criteria if not isinstance(each, (MaxLengthCriteria, EosTokenCriteria))]
    in_graph = choose.in_graph()
    chooser = _chooser_of(session, choose) if in_graph else likeliest
    at_each = bool(others) or streamer is not None or not in_graph
    if streamer is not None:
        streamer.put(input_ids.cpu())

    session.start(input_ids, mask, chooser)
    ended = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    while True:
        place = session.length - 1
        if not in_graph:
            scores = logits_processor(session.tokens[:, :place], session.logits.float())
            session.tokens[:, place] = choose.of(scores)
        if at_each:
            if ends is not None:
                # A sequence that has ended goes on with padding, which other criteria and streamers see.
                session.tokens[:, place].masked_fill_(ended, _pad(generation_config, ends))
                ended |= torch.isin(session.tokens[:, place], ends)
            if streamer is not None:
                streamer.put(session.tokens[:, place].cpu())
            for each in others:
                ended |= each(session.tokens[:, : session.length], session.logits)
        if session.length >= limit:
            break
        if (at_each or session.length % STRIDE == 0) and _all_ended(session, tokens, ends, ended):
            break
        session.step(chooser)
    if streamer is not None:
        streamer.end()
    return _result(session, tokens, ends, generation_config)


class _Choice:
    """How the next tokens are chosen from logits.

    Args:
        processors: Processors and warpers.
        sample: Whether to draw; otherwise the likeliest token is taken.
    """

    def __init__(self, processors: Sequence[Any], sample: bool) -> None:
        self.processors, self.sample = list(processors), sample

    def in_graph(self) -> bool:
        """Whether it reads the logits alone."""
        return all(type(each) in OF_LOGITS_ALONE for each in self.processors)

    def of(self, scores: Tensor) -> Tensor:
        """The next tokens `[batch]` from processed logits."""
        return scores.softmax(-1).multinomial(1)[:, 0] if self.sample else scores.argmax(-1)

    def __call__(self, logits: Tensor) -> Tensor:
        for each in self.processors:
            # They take the tokens so far and do not read them.
            logits = each(None, logits)
        return self.of(logits)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Equal for choices that do the same."""
        return self.sample, *((type(each).__name__, *sorted(_plain(vars(each)).items())) for each in self.processors)


def _chooser_of(session: Session, choice: _Choice) -> Choose:
    """A function that chooses so; the same one for equal choices, so that the graph of the session is used again."""
    if not choice.sample and not choice.processors:
        return likeliest
    known = session.chooser
    if not isinstance(known, _Choice) or known.settings != choice.settings:
        session.chooser = choice
    return session.chooser


def reason_against(model: Any) -> str | None:
    """Why a model cannot be decoded in sessions; None if it can."""
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    if family not in FAMILIES or not hasattr(model, "get_output_embeddings"):
        return f"'{family}' is no model of the families {', '.join(FAMILIES)}"
    if model.training:
        return "the model is in training; call model.eval()"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "some of its layers attend to a window of the tokens"
    if getattr(config, "add_cross_attention", False):
        return "it attends to an encoder"
    if getattr(config, "reorder_and_upcast_attn", False) or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "its attention is computed in another order"
    return None


def session_of(model: nn.Module, batch: int, capacity: int, compiled: bool = True) -> Session:
    """The session of a model for this size: one that was used before, or a new one.

    Args:
        model: The model.
        batch: Number of sequences.
        capacity: Largest number of tokens of a sequence.
        compiled: Whether layers are compiled on a GPU.
    """
    first = next(model.parameters())
    known = _sessions.setdefault(model, {})
    key = batch, capacity, compiled, first.device, first.dtype
    session = known.pop(key, None)
    if session is None:
        graphs = first.is_cuda
        layers = compiled and graphs
        session = Session(
            model, batch, capacity, graphs=graphs, compiled="layers" if layers else "no",
            flex=layers and _flex_fits(model), prompt_compiled=layers,
        )  # fmt: skip
    known[key] = session
    while len(known) > KEPT:
        del known[next(iter(known))]
    return session


def forget_sessions(model: nn.Module) -> None:
    """Frees the caches and graphs that `fast_decode` keeps for a model."""
    _sessions.pop(model, None)


def _flex_fits(model: Any) -> bool:
    heads, size = model.config.num_attention_heads, getattr(model.config, "head_dim", None)
    shared = heads // (getattr(model.config, "num_key_value_heads", None) or heads)
    # FlexAttention decodes with a power of two of heads for each key-value head, and with heads of 16 or more.
    return shared & (shared - 1) == 0 and (size or model.config.hidden_size // heads) >= FLEX_HEAD


def _unsupported(config: Any, synced_gpus: bool, model_kwargs: dict[str, Any]) -> str | None:
    if config.num_beams > 1:
        return "it searches with beams"
    if config.return_dict_in_generate or config.output_scores or config.output_logits or config.output_attentions:
        return "it returns more than tokens"
    if synced_gpus:
        return "the model is spread over several processes"
    if model_kwargs.get("inputs_embeds") is not None:
        return "the prompt is embeddings, not tokens"
    used = model_kwargs.get("past_key_values")
    if used is not None and used.get_seq_length() > 0:
        return "it goes on from a key-value cache"
    return None


def _limit(criteria: Sequence[Any], tokens: int) -> int:
    """The length at which generation stops at the latest."""
    lengths = [each.max_length for each in criteria if isinstance(each, MaxLengthCriteria)]
    if not lengths:
        raise BlastError("blast.fast_decode needs to know the largest length; give generate max_new_tokens.")
    return max(min(lengths), tokens + 1)


def _positions(model: Any) -> int | None:
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


def _ends(config: Any, device: torch.device) -> Tensor | None:
    """The tokens that end a sequence; None without any."""
    found = config.eos_token_id
    return None if found is None else torch.as_tensor(found, device=device).reshape(-1)


def _pad(config: Any, ends: Tensor) -> int:
    return int(ends[0]) if config.pad_token_id is None else int(config.pad_token_id)


def _all_ended(session: Session, tokens: int, ends: Tensor | None, ended: Tensor) -> bool:
    """Whether all sequences have ended; waits for the GPU."""
    if ends is not None:
        ended = ended | torch.isin(session.tokens[:, tokens : session.length], ends).any(1)
    return bool(ended.all())


def _result(session: Session, tokens: int, ends: Tensor | None, config: Any) -> Tensor:
    """Prompts and new tokens, up to the end of the longest sequence; padding after the end of each."""
    found = session.tokens[:, : session.length].clone()
    if ends is None:
        return found
    ended = torch.isin(found[:, tokens:], ends)
    after = ended.cumsum(1) - ended.long() > 0
    found[:, tokens:].masked_fill_(after, _pad(config, ends))
    longest = int((~after).sum(1).max())
    return found[:, : tokens + longest]


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
