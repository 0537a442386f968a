"""The `tensor_parallel` suite: one decoder layer over several GPUs, dense and block-sparse, in decoding.

It starts a process for each GPU. Each holds a part of the layer, split as `blast.load(…, tensor_parallel=True)` splits
it, with random weights. All run the same CUDA graph at one time, and the slowest counts. More GPUs than the machine has
are projected: the part of one of them is measured, and the all-reduce follows from those that were measured. What is
projected says so in its setting.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from blast import architectures
from blast.architectures.inference_memory import Sparse
from blast.benchmark.inputs.weights import sets_needed
from blast.benchmark.parallel.launch import run_together
from blast.benchmark.parallel.layer import Cached, LayerPart, Work, cache_for, layer_part, reference_mlp, work_of
from blast.benchmark.parallel.projection import AllReduce, Link, fitted
from blast.benchmark.parallel.timing import Round, captured, time_together
from blast.benchmark.timing.cuda_graphs import ERROR_BOUND, plain_memory, poisoned_memory
from blast.benchmark.timing.energy import UNAVAILABLE, EnergyMeter
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError, unknown_name
from blast.tensor_parallel.attention import heads_of
from blast.tensor_parallel.processes import HALVES, Processes

DENSE, OURS = "dense_eager", "ours"
# Seconds of a measurement of energy, and tokens that an output is checked with.
ENERGY_SECONDS, CHECKED = 2.0, 64
# Layers, and all-reduces, of one CUDA graph at least: its launch takes time too.
LEAST_CALLS = 8
# A process waits for the others while they compile kernels.
PATIENCE = 900.0

Entry = dict[str, Any]


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Times one layer of an architecture over several GPUs.

    Args:
        architecture: Name of a language model.
        sparsity: Share of empty blocks of its MLP; attention stays dense.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list: sequences that are decoded together), `dtype`, `repeats`, and the fields of
            `blast.benchmark.settings.TensorParallelSettings`.

    Returns:
        By provider, number of sequences and `gpus` (in the setting): of a step of the layer `layer_latency`,
        `compute_latency` (without all-reduces) and `mlp_latency` (of the MLP with its all-reduce), ms; `energy` of all
        GPUs, J a token; `weights_bytes` of the GPU that holds most, and `read_bytes` of all GPUs for a token. Of one
        all-reduce `all_reduce_latency`, with its backend as provider. Projected: `layer_latency`, and `latency` of a
        step of the whole model, ms.

    Raises:
        BlastError: for a model that is no language model, for an unknown dtype, or if the output of our MLP is wrong.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    if architectures.get(architecture).modality != "language":
        raise BlastError(f"the suite 'tensor_parallel' times language models; '{architecture}' is none.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    runnable = [degree for degree in sorted(set(settings["degrees"])) if gpus is None or degree <= gpus]
    given = {
        "architecture": architecture, "sparsity": sparsity, "block": list(block), "seed": seed, "degrees": runnable,
        "settings": settings,
    }  # fmt: skip
    found: list[Entry] = []
    if runnable:
        found = run_together(work, max(runnable), given, PATIENCE + settings["seconds"])
    for degree in sorted(set(settings["degrees"]) - set(runnable)):
        cause = f"it needs {degree} GPUs and this machine has {gpus}"
        found += [_missing("layer_latency", name, degree, cause, settings) for name in (DENSE, OURS)]
    return found


def work(processes: Processes, device: torch.device, given: dict[str, Any]) -> list[Entry]:
    """What each process runs; all of them call it."""
    settings = given["settings"]
    run = LayerRun(given, device)
    with torch.inference_mode(), plain_memory():
        for degree in given["degrees"]:
            group = dist.new_group(list(range(degree))) if 1 < degree < processes.size else processes.group
            if processes.rank < degree:
                run.degree(Processes(group if degree > 1 else None, processes.rank, degree))
            processes.gather("done")
        if processes.rank == 0:
            for degree in settings["projected"]:
                run.project(degree)
        processes.gather("done")
    return run.entries


class Model(NamedTuple):
    """Layers that run one after the other, dense or ours. Equal ones take turns, so that none finds its weights in the
    cache.

    Attributes:
        parts: The part of each layer, the same ones again after `sets`.
        caches: Keys and values of each.
        sets: How many different layers there are.
    """

    parts: list[LayerPart]
    caches: list[Cached]
    sets: int


class LayerRun:
    """Measures one layer in one process.

    Args:
        given: What `measure` was given.
        device: The device of the process.

    Attributes:
        entries: What was found.
    """

    def __init__(self, given: dict[str, Any], device: torch.device) -> None:
        self.given, self.device, self.settings = given, device, given["settings"]
        self.shape = architectures.get(given["architecture"]).shape
        self.dtype = getattr(torch, self.settings["dtype"])
        self.entries: list[Entry] = []
        self.reduced: list[AllReduce] = []
        shares = (len(given["degrees"]) + len(self.settings["projected"])) * len(self.settings["tokens"])
        self.seconds = self.settings["seconds"] / (4 * shares)

    def degree(self, processes: Processes) -> None:
        """Measures the layer over some processes."""
        if cause := self._cannot_split(processes.size):
            self.entries += [
                _missing("layer_latency", name, processes.size, cause, self.settings) for name in (DENSE, OURS)
            ]  # fmt: skip
            return
        parts = {name: self._part(name, processes.rank, processes.size) for name in (DENSE, OURS)}
        facts = {OURS: {"error": self._check(parts[OURS], processes)}, DENSE: {}}
        works = {name: processes.gather(work_of(part)) for name, part in parts.items()}
        for tokens in self.settings["tokens"]:
            self._time(parts, works, facts, tokens, processes)

    def project(self, degree: int) -> None:
        """Projects the layer to a number of GPUs: measures the part of one, and adds two all-reduces."""
        link, cause = fitted(self.reduced), self._cannot_split(degree)
        if link is None:
            cause = cause or "no all-reduce was measured; give a degree of at least 2 that this machine has"
        if cause is not None or link is None:
            for name in (DENSE, OURS):
                self.entries.append(_missing("layer_latency", name, degree, str(cause), self.settings, projected=True))
            return
        parts = {name: self._part(name, 0, degree) for name in (DENSE, OURS)}
        for tokens in self.settings["tokens"]:
            self._project(parts, link, tokens, degree)

    def _project(self, parts: dict[str, LayerPart], link: Link, tokens: int, degree: int) -> None:
        alone, x = Processes(None, 0, 1), self._inputs(tokens)
        models = {name: self._model(part, tokens, alone) for name, part in parts.items()}
        rounds: dict[str, tuple[Round, int]] = {
            name: (captured(lambda m=model: _steps(m, x, _own), self.device), len(model.parts))
            for name, model in models.items()
        }
        if self.shape.vocab is not None:
            heads = self._heads(-(-self.shape.vocab // degree))
            rounds["head"] = captured(lambda: [F.linear(x, head) for head in heads], self.device), len(heads)
        timings = time_together(rounds, alone, self.device, self.settings["repeats"], self.seconds)
        reduce = 1e3 * link.seconds(degree, self._reduced_bytes(tokens))
        how = {
            "projected": True, "all_reduce_ms": reduce, "link_us": 1e6 * link.latency, "link_gb_per_s": _rate(link),
            "assumes": "links between all GPUs as between those that were measured, and the part of the first GPU",
        }  # fmt: skip
        for name in models:
            compute = timings[name].median
            layer = compute + 2 * reduce
            self._add(name, "layer_latency", "ms", layer, tokens, degree, compute_ms=compute, **how)
            if "head" in timings:
                # An all-reduce of the embedding, and the logits, which are counted as one.
                head = timings["head"].median + 2 * reduce
                whole = self.shape.layers * layer + head
                self._add(name, "latency", "ms", whole, tokens, degree, layer_ms=layer, head_ms=head, **how)

    def _heads(self, rows: int) -> list[Tensor]:
        """Parts of the head, as many as are needed to find none in the cache."""
        sets = sets_needed(rows * self.shape.hidden * self.dtype.itemsize, self._cache())
        generator = torch.Generator(self.device).manual_seed(0)
        empty = torch.empty(sets, rows, self.shape.hidden, dtype=self.dtype, device=self.device)
        return list(empty.normal_(0, 0.02, generator=generator)) * math.ceil(LEAST_CALLS / sets)

    def _time(
        self, parts: dict[str, LayerPart], works: dict[str, list[Work]], facts: dict[str, Any], tokens: int,
        processes: Processes,
    ) -> None:  # fmt: skip
        x, size = self._inputs(tokens), processes.size
        models = {name: self._model(part, tokens, processes) for name, part in parts.items()}
        rounds: dict[str, tuple[Round, int]] = {}
        for name, model in models.items():
            add, count = processes.add_up, len(model.parts)
            rounds[f"{name} layer_latency"] = captured(lambda m=model, a=add: _steps(m, x, a), self.device), count
            rounds[f"{name} compute_latency"] = captured(lambda m=model: _steps(m, x, _own), self.device), count
            rounds[f"{name} mlp_latency"] = captured(lambda m=model, a=add: _mlps(m, x, a), self.device), count
        if size > 1:
            zeros = torch.zeros_like(x)
            many = range(LEAST_CALLS)
            rounds["all_reduce"] = captured(lambda: [processes.add_up(zeros) for _ in many], self.device), len(many)
        timings = time_together(rounds, processes, self.device, self.settings["repeats"], self.seconds)
        for name, model in models.items():
            cached = sum(each.nbytes for each in model.caches[0])
            read = (sum(work.weights for work in works[name]) + size * cached) / tokens
            about = facts[name] | {"sets": model.sets}
            for metric in ("layer_latency", "compute_latency", "mlp_latency"):
                timing = timings[f"{name} {metric}"]
                self._add(name, metric, "ms", timing.median, tokens, size, timing=timing, **about)
            self._add(name, "read_bytes", "bytes", read, tokens, size, cache=size * cached)
            held = [work.held for work in works[name]]
            self._add(name, "weights_bytes", "bytes", max(held), tokens, size, least=min(held), all=sum(held))
            if self.settings["energy"]:
                took = timings[f"{name} layer_latency"].median * len(model.parts)
                self._energy(name, rounds[f"{name} layer_latency"], took, tokens, processes)
        if size > 1:
            timing, count = timings["all_reduce"], self._reduced_bytes(tokens)
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            self._add(backend, "all_reduce_latency", "ms", timing.median, tokens, size, timing=timing, bytes=count)
            self.reduced.append(AllReduce(size, count, timing.median / 1e3))

    def _energy(self, name: str, work: tuple[Round, int], took: float, tokens: int, processes: Processes) -> None:
        """Joules of all GPUs for a token. Each process runs the work as often, because it holds all-reduces."""
        meter, size = EnergyMeter(self.device), processes.size
        if not all(processes.gather(meter.source is not None)):
            self.entries.append(_missing("energy", name, size, UNAVAILABLE, self.settings, "J/token", tokens))
            return
        rounds = max(1, math.ceil(1e3 * ENERGY_SECONDS / took))

        def many() -> None:
            for _ in range(rounds):
                work[0]()

        measured = meter.measure(many, seconds=0.0)
        assert measured is not None
        energy, runs = measured
        found = processes.gather((energy.joules, energy.idle_watts))
        made = runs * rounds * work[1] * tokens
        facts = {"source": energy.source, "seconds": energy.seconds, "of": "one layer"}
        self._add(name, "energy", "J/token", sum(joules for joules, _ in found) / made, tokens, size, **facts)
        self._add(name, "power_idle", "W", sum(watts for _, watts in found), tokens, size, **facts)

    def _part(self, name: str, rank: int, size: int) -> LayerPart:
        given = self.given
        sparse = Sparse(sparsity=given["sparsity"], block=tuple(given["block"]), tied=self.settings["tied"])
        return layer_part(
            self.shape, None if name == DENSE else sparse, rank, size, given["seed"], self.dtype, self.device
        )

    def _model(self, part: LayerPart, tokens: int, processes: Processes) -> Model:
        # The MLP is timed on its own too.
        sets = max(processes.gather(sets_needed(work_of(part).mlp, self._cache())))
        parts = [part, *(copy.deepcopy(part) for _ in range(sets - 1))]
        caches = [
            cache_for(part, tokens, self.settings["context"], self.dtype, self.device, number) for number in range(sets)
        ]
        turns = math.ceil(LEAST_CALLS / sets)
        return Model(parts * turns, caches * turns, sets)

    def _check(self, part: LayerPart, processes: Processes) -> float:
        """The error of our MLP's output, with all parts, from float32.

        Raises:
            BlastError: if it is over the bound.
        """
        x = self._inputs(CHECKED)
        expected = processes.add_up(reference_mlp(part.mlp, x))
        with poisoned_memory():
            out = processes.add_up(part.mlp(x))
        error = ((out.float() - expected).norm() / expected.norm()).item()
        if not error <= ERROR_BOUND[self.settings["dtype"]]:
            raise BlastError(
                f"the MLP of '{self.given['architecture']}' in {processes.size} parts is off by {error:.1e} from the "
                f"float32 reference (bound {ERROR_BOUND[self.settings['dtype']]:.0e}); nothing was timed."
            )
        return error

    def _inputs(self, tokens: int) -> Tensor:
        """`[tokens, hidden]`, the same in each process."""
        generator = torch.Generator().manual_seed(self.given["seed"])
        return torch.randn(tokens, self.shape.hidden, generator=generator).to(self.device, self.dtype)

    def _cache(self) -> int:
        """Bytes of the cache of the GPU; 0 on a CPU, where one set of weights is timed."""
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.device.type == "cuda" else 0

    def _reduced_bytes(self, tokens: int) -> int:
        return tokens * self.shape.hidden * (4 if self.dtype in HALVES else self.dtype.itemsize)

    def _cannot_split(self, size: int) -> str | None:
        config = SimpleNamespace(num_attention_heads=self.shape.heads, num_key_value_heads=self.shape.kv_heads)
        try:
            heads_of(config, 0, size)
        except BlastError as error:
            return str(error).rstrip(".")
        return None

    def _add(
        self, name: str, metric: str, unit: str, value: float, tokens: int, degree: int,
        timing: Timing | None = None, **facts: Any,
    ) -> None:  # fmt: skip
        entry = _entry(metric, name, unit, float(value), tokens, degree, self.settings, facts)
        if timing is not None:
            entry |= {"low": timing.low, "high": timing.high, "spread": "q20-80", "n": timing.n}
        self.entries.append(entry)


def _own(part: Tensor) -> Tensor:
    return part


def _steps(model: Model, x: Tensor, add_up: Any) -> Tensor:
    for part, cache in zip(model.parts, model.caches, strict=True):
        x = part(x, cache, add_up)
    return x


def _mlps(model: Model, x: Tensor, add_up: Any) -> None:
    for part in model.parts:
        add_up(part.mlp(x))


def _rate(link: Link) -> float | None:
    """Bandwidth in 10⁹ bytes a second; None if the fit has no share of it."""
    return 1e-9 / link.seconds_per_byte if link.seconds_per_byte else None


def _entry(
    metric: str, provider: str, unit: str, value: float | None, tokens: int | None, degree: int,
    settings: dict[str, Any], facts: dict[str, Any],
) -> Entry:  # fmt: skip
    about = {"gpus": degree, "context": settings["context"], "tied": settings["tied"]} | facts
    return {
        "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
        "n": None, "better": "lower", "provider": provider, "tokens": tokens, "batch": tokens,
        "dtype": settings["dtype"], "setting": about,
    }  # fmt: skip


def _missing(
    metric: str, provider: str, degree: int, cause: str, settings: dict[str, Any], unit: str = "ms",
    tokens: int | None = None, **facts: Any,
) -> Entry:  # fmt: skip
    entry = _entry(metric, provider, unit, None, tokens, degree, settings, {"cause": cause, **facts})
    return entry | {"status": "not run"}
