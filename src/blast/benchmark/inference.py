"""The `inference` suite: first token, decoding, calls of `generate` and energy of a language model, dense and ours.

All decode in the same loop (`blast.generation.session`), with random weights. Dense runs eagerly, and compiled,
autotuned and replayed as CUDA graphs; ours runs in the second way. For all, query, key and value are one product, and
so are gate and up where they are dense. Prompts and steps are timed in turn in one run. Our logits must agree with
those of masked-dense before anything is timed. Of vision transformers, the classification of images is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import blast
from blast import architectures
from blast.benchmark.decoding.images import classify
from blast.benchmark.decoding.models import bytes_of_step, check_logits, masks_for, random_model, shares, sparse_model
from blast.benchmark.decoding.parts import host_times, part_times
from blast.benchmark.timing.cuda_graphs import plain_memory, replay_of, time_in_turn
from blast.benchmark.timing.device import gpu_for
from blast.benchmark.timing.energy import UNAVAILABLE, EnergyMeter
from blast.benchmark.timing.interleaved import Timing
from blast.benchmark.timing.roofline import measured_ceilings
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.generation.cache import capacity_for
from blast.generation.decode import forget_sessions
from blast.generation.session import Session
from blast.model.memory import model_bytes

EAGER, COMPILED, OURS = "dense_eager", "dense_compiled", "ours"
# Tokens with which the logits are checked, and timed calls of `generate`.
CHECKED, CALLS = 64, 3

Entry = dict[str, Any]


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Times a language model, or a vision transformer.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks of its MLPs.
        block: Block shape `[out, in]`.
        seed: Seed of weights and masks.
        settings: `tokens` (list: how many sequences are decoded, or images classified, together), `dtype`, `repeats`,
            and the fields of `blast.benchmark.settings.InferenceSettings`.

    Returns:
        By provider, number of sequences and length of the prompt: `first_token_latency` and `latency` (of a decoding
        step), ms; `throughput`, `generate_rate` and `fast_generate_rate` (with `blast.fast_decode`), tokens/s;
        `roofline_fraction` of a step; `energy`, J a token, and `power_idle`, W; `time_mlp`, `time_head`, `time_rest`
        and `time_gaps` of a step, ms; `mlp_host_time`, the CPU's time to start an MLP eagerly, ms; `weight_bytes`,
        `cache_bytes`. For images: see `decoding.images.classify`.

    Raises:
        BlastError: without a GPU, for an encoder, without masks of the kind that is asked for, or
            if our logits are wrong.
    """
    device = gpu_for("inference")
    started = time.monotonic()
    with plain_memory():
        if architectures.get(architecture).modality == "vision":
            return classify(architecture, sparsity, block, seed, settings, device)
        run = InferenceRun(architecture, sparsity, block, seed, settings, device, started)
        for sequences in settings["tokens"]:
            run.decode(sequences)
        return run.metrics


class InferenceRun:
    """Measures one model.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks.
        block: Block shape.
        seed: Seed of weights and masks.
        settings: Settings of `measure`.
        device: Where to.
        started: Start of the point on the monotonic clock.

    Attributes:
        metrics: The entries.
    """

    def __init__(
        self,
        architecture: str,
        sparsity: float,
        block: tuple[int, int],
        seed: int,
        settings: dict[str, Any],
        device: torch.device,
        started: float,
    ) -> None:
        self.architecture, self.settings, self.device, self.started = architecture, settings, device, started
        self.metrics: list[Entry] = []
        dtype = getattr(torch, settings["dtype"])
        self._generator = torch.Generator().manual_seed(seed)
        made = random_model(architecture, dtype, device, seed)
        drawn = masks_for(made, architecture, sparsity, block, seed, settings)
        self._ours = sparse_model(made, drawn.masks)
        prompt = self._prompt(1, min(CHECKED, self._longest))
        error = check_logits(architecture, drawn.masks, BlockShape(*block), self._ours, prompt, seed)
        self._facts = drawn.facts | {"logit_error": error, "weights": "random"}
        self._facts |= {f"{name}_share": share for name, share in shares(self._ours, drawn.masks).items()}
        self._dense = random_model(architecture, dtype, device, seed + 1)
        # Compiled code of another point must not count towards the limit of recompilations.
        torch.compiler.reset()

    @property
    def models(self) -> dict[str, nn.Module]:
        """By provider."""
        eager = {EAGER: self._dense} if self.settings["eager"] else {}
        return {**eager, COMPILED: self._dense, OURS: self._ours}

    @property
    def _longest(self) -> int:
        return architectures.get(self.architecture).shape.context or 1 << 30

    def decode(self, sequences: int) -> None:
        """Measures `sequences` decoded together, after each length of a prompt."""
        steps = self.settings["steps"]
        needed = max(self.settings["prompts"]) + steps + 1
        if needed > self._longest:
            raise BlastError(
                f"a prompt of {max(self.settings['prompts'])} tokens and {steps} steps are more than the "
                f"{self._longest} of '{self.architecture}'; lower 'prompts' or 'steps'."
            )
        sessions = {name: self._session(name, sequences, needed) for name in self.models}
        for length in self.settings["prompts"]:
            if self._out_of_time(sequences, length):
                continue
            self._time(sessions, sequences, length)
        del sessions
        if self.settings["parts"]:
            self._host(sequences)
        if self.settings["generate"]:
            self._generate(sequences)

    def _session(self, name: str, sequences: int, needed: int) -> Session:
        # Eagerly, attention reads the cached tokens alone, as in `generate` by default.
        fast = name != EAGER
        gpu = self.device.type == "cuda"
        return Session(
            self.models[name],
            sequences,
            capacity_for(needed, self._longest),
            graphs=fast and gpu,
            compiled=self.settings["compiled"] if fast else "no",
            static=fast,
            flex=fast and gpu and self.settings["attention"] == "flex",
            prompt_compiled=fast,
            autotune=fast and self.settings["autotune"],
        )

    def _time(self, sessions: Mapping[str, Session], sequences: int, length: int) -> None:
        prompt, steps = self._prompt(sequences, length), self.settings["steps"]
        seconds = self.settings["seconds"] / 20
        first = {name: (self._first(name, session, prompt), 1) for name, session in sessions.items()}
        for name, timing in time_in_turn(first, self.settings["repeats"], seconds).items():
            self._add(name, "first_token_latency", "ms", timing.median, sequences, length, timing=timing)
        del first
        for session in sessions.values():
            session.start(prompt)
        rounds = {name: (_round(session, length, steps), steps) for name, session in sessions.items()}
        timings = time_in_turn(rounds, self.settings["repeats"], seconds)
        for name, timing in timings.items():
            session = sessions[name]
            self._add(name, "latency", "ms", timing.median, sequences, length, timing=timing)
            rate = 1e3 * sequences / timing.median
            self._add(name, "throughput", "tokens/s", rate, sequences, length, better="higher")
            self._add(name, "weight_bytes", "bytes", model_bytes(self.models[name]).weights, sequences, length)
            self._add(name, "cache_bytes", "bytes", session.cache.bytes, sequences, length)
            if self.device.type == "cuda":
                cached = session.cache.bytes * (length + steps // 2) // session.capacity
                read = bytes_of_step(self.models[name]) + cached
                least = 1e3 * read / measured_ceilings(self.device, session.logits.dtype).memory
                share = least / timing.median
                self._add(name, "roofline_fraction", "fraction", share, sequences, length, better="higher", bytes=read)
        fast = {name: timing for name, timing in timings.items() if name != EAGER}
        if self.settings["parts"]:
            for name, timing in fast.items():
                for part, taken in part_times(self.models[name], sessions[name], rounds[name], timing.median).items():
                    self._add(name, f"time_{part}", "ms", taken, sequences, length)
        if self.settings["energy"]:
            for name in fast:
                self._energy(name, rounds[name][0], sequences * steps, sequences, length)

    def _first(self, name: str, session: Session, prompt: Tensor) -> Callable[[], Any]:
        def start() -> None:
            session.start(prompt)

        start()  # the first prompt makes the cache
        return start if name == EAGER else replay_of(start)

    def _energy(self, name: str, work: Callable[[], None], tokens: int, sequences: int, length: int) -> None:
        found = EnergyMeter(self.device).measure(work)
        if found is None:
            self.metrics.append(
                self._entry(name, "energy", "J/token", None, sequences, length, cause=UNAVAILABLE)
                | {"status": "not run"}
            )
            return
        energy, runs = found
        value = energy.joules / (runs * tokens)
        facts = {"source": energy.source, "seconds": energy.seconds}
        self._add(name, "energy", "J/token", value, sequences, length, n=runs * tokens, **facts)
        self._add(name, "power_idle", "W", energy.idle_watts, sequences, length, **facts)

    def _host(self, sequences: int) -> None:
        """Times the CPU's work for an MLP in a step of plain `generate`."""
        length = min(self.settings["prompts"])
        if self._out_of_time(sequences, length, "mlp_host_time"):
            return
        for name, model in ((EAGER, self._dense), (OURS, self._ours)):
            timing = host_times(model, sequences, self.settings["repeats"])
            self._add(name, "mlp_host_time", "ms", timing.median, sequences, length, timing=timing)

    def _generate(self, sequences: int) -> None:
        """Times whole calls of `generate`, as users call it: by default, and with `fast_decode`."""
        length, new = min(self.settings["prompts"]), self.settings["new_tokens"]
        prompt = self._prompt(sequences, length)
        for metric, dense, switch in (
            ("generate_rate", EAGER, {}),
            ("fast_generate_rate", COMPILED, {"custom_generate": blast.fast_decode}),
        ):
            for name in (dense, OURS):
                if self._out_of_time(sequences, length, metric, "tokens/s"):
                    continue
                model: Any = self._ours if name == OURS else self._dense
                taken = [self._call(model, prompt, new, switch) for _ in range(CALLS + 1)][1:]
                rate = sequences * new / sorted(taken)[CALLS // 2]
                self._add(name, metric, "tokens/s", rate, sequences, length, better="higher", n=CALLS, new_tokens=new)
                forget_sessions(model)

    def _call(self, model: Any, prompt: Tensor, new: int, switch: dict[str, Any]) -> float:
        """Seconds of a call of `generate`."""
        clock = time.perf_counter()
        model.generate(prompt, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None, **switch)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    def _prompt(self, sequences: int, length: int) -> Tensor:
        vocabulary = architectures.get(self.architecture).shape.vocab
        return torch.randint(vocabulary, (sequences, length), generator=self._generator).to(self.device)

    def _out_of_time(self, sequences: int, length: int, metric: str = "latency", unit: str = "ms") -> bool:
        if time.monotonic() - self.started < self.settings["seconds"]:
            return False
        cause = "the point ran out of time; raise 'seconds'"
        for name in self.models:
            entry = self._entry(name, metric, unit, None, sequences, length, cause=cause)
            self.metrics.append(entry | {"status": "not run", "unfinished": True})
        return True

    def _add(
        self, name: str, metric: str, unit: str, value: float, sequences: int, length: int, better: str = "lower",
        timing: Timing | None = None, n: int | None = None, **facts: Any,
    ) -> None:  # fmt: skip
        entry = self._entry(name, metric, unit, float(value), sequences, length, better, **facts)
        if timing is not None:
            entry |= {"low": timing.low, "high": timing.high, "spread": "q20-80", "n": timing.n}
        self.metrics.append(entry | ({"n": n} if n else {}))

    def _entry(
        self, name: str, metric: str, unit: str, value: float | None, sequences: int, length: int,
        better: str = "lower", **facts: Any,
    ) -> Entry:  # fmt: skip
        how = {key: self.settings[key] for key in ("steps", "compiled", "autotune", "attention", "mask")}
        about = {"prompt": length, **how, **(self._facts if name == OURS else {"weights": "random"}), **facts}
        return {
            "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
            "n": None, "better": better, "provider": name, "tokens": sequences, "batch": sequences,
            "dtype": self.settings["dtype"], "setting": about,
        }  # fmt: skip


def _round(session: Session, length: int, steps: int) -> Callable[[], None]:
    """Decodes `steps` tokens after a prompt of `length`."""

    def run() -> None:
        session.rewind(length)
        for _ in range(steps):
            session.step()

    return run
