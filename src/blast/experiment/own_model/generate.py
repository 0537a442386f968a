"""`blast generate`: continues a text with a model, and prints it while it is made."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from blast.errors import BlastError
from blast.evaluation.scoring import max_length_of
from blast.experiment.own_model.memory import check_memory, free_bytes
from blast.experiment.own_model.opening import find_model, load_tokenizer
from blast.tensor_parallel.processes import started_by_torchrun
from blast.training.launch import destroy_process_group, rank_and_world_size

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GenerateOptions:
    """What the user asked for.

    Attributes:
        model: See `find_model`.
        prompt: The beginning of the text.
        max_new_tokens: Largest number of new tokens.
        temperature: 0 takes the likeliest token; above, tokens are drawn, and higher values give more variety.
        top_p: Tokens are drawn from the likeliest ones that have this probability together.
        seed: Seed of the draws.
        plain: Whether transformers decodes, where `blast.fast_decode` would on a GPU.
    """

    model: str
    prompt: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    plain: bool = False


def generate(options: GenerateOptions, out: TextIO | None = None) -> str:
    """Continues a prompt; a sparse model is fused before.

    Where `torchrun` started several processes, each of them has to call this; each holds a part of the model, and the
    first one prints.

    Args:
        options: What the user asked for.
        out: Where the text goes, word by word; by default the standard output.

    Returns:
        The new text.

    Raises:
        BlastError: if there is no such model, the prompt is empty, or it leaves the model no room for a token; or if
            the model cannot be split over the processes.
    """
    import torch

    from blast.experiment.own_model.finish import fuse_if_possible

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts, first = started_by_torchrun(), rank_and_world_size()[0] == 0
    say = _to_errors if first else _to_nobody
    source = find_model(options.model, say)
    tokenizer = load_tokenizer(source)
    tokens = tokenizer(options.prompt, return_tensors="pt").input_ids
    if not tokens.numel():
        raise BlastError("the prompt is empty; give some words.")
    if not parts:
        check_memory(f"running {source.name}", 5 * source.parameters, free_bytes(device), "choose a smaller model")
    model: Any = fuse_if_possible((source.load_part() if parts else source.load()).to(device)).eval()
    longest = max_length_of(model)
    room = longest - tokens.shape[1]
    if room < 1:
        raise BlastError(
            f"the prompt has {tokens.shape[1]} tokens and {source.name} reads {longest} at once; shorten the prompt."
        )
    new = min(options.max_new_tokens, room)
    if new < options.max_new_tokens:
        say(f"{new} new tokens at most: {source.name} reads {longest} tokens at once")
    drawn = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
    streamer = _streamer(tokenizer, out or sys.stdout) if first else None
    decoding, words = choose_decoding(model, device, options.plain, streamer)
    say(words)
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            tokens.to(device),
            attention_mask=torch.ones_like(tokens).to(device),
            max_new_tokens=new,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            **(drawn if options.temperature else {"do_sample": False}),
            **decoding,
        )
    seconds, made = time.perf_counter() - start, found[0, tokens.shape[1] :]
    say(f"{len(made)} tokens, {len(made) / seconds:.1f} a second")
    if parts:
        destroy_process_group()
    return tokenizer.decode(made, skip_special_tokens=True)


def choose_decoding(model: Any, device: torch.device, plain: bool, streamer: Any) -> tuple[dict[str, Any], str]:
    """How a model is to generate.

    Args:
        model: A language model of transformers.
        device: Where it runs.
        plain: Whether transformers is to decode.
        streamer: Gets the tokens; None if nothing does.

    Returns:
        Settings for `model.generate`, and a line that says which way it is.
    """
    import blast
    from blast.generation.decode import reason_against

    ordinary = {"streamer": streamer}
    if plain:
        return ordinary, "decoding: generate of transformers"
    if device.type != "cuda":
        return ordinary, "decoding: generate of transformers, because there is no GPU"
    reason = reason_against(model)
    if reason is not None:
        return ordinary, f"decoding: generate of transformers, because {reason}"
    # For a single text, compiling would take longer than it saves.
    fast = functools.partial(blast.fast_decode, streamer=streamer, compiled=False)
    return {
        "custom_generate": fast
    }, "decoding: blast.fast_decode with CUDA graphs; --plain takes generate of transformers"


def _to_errors(line: str) -> None:
    """Prints a line that is no part of the text."""
    print(line, file=sys.stderr)


def _to_nobody(_: str) -> None:
    """Says nothing: another process does."""


def _streamer(tokenizer: Any, out: TextIO) -> Any:
    """Prints the text while it is made."""
    from transformers import TextStreamer

    class ToFile(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(text, file=out, flush=True, end="\n" if stream_end else "")

    return ToFile(tokenizer, skip_special_tokens=True)
