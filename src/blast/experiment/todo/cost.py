"""What points cost before they run: core-hours, GPU-hours and disk, from records of points like them, else a guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from blast import architectures
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import read_record
from blast.experiment.run.gpus import visible_gpus
from blast.experiment.todo.todo import PointLeft

# What a guess supposes of a core, a GPU, the start of a point, and a benchmark.
CORE_FLOPS, GPU_FLOPS, START, BENCHMARK = 20e9, 100e12, 12.0, 60.0
GUESS = f"{CORE_FLOPS / 1e9:g} GFLOP/s a core, {GPU_FLOPS / 1e12:g} TFLOP/s a GPU, {START:g} s to start a point"
# Tokens of a vocabulary that the dataset decides; records of other grids that are read at most.
VOCABULARY, MOST_READ = 4096, 200
# Records of one grid that are read, of points of one architecture, dataset and method.
MOST_ALIKE = 50


@dataclass
class Cost:
    """What points cost.

    Attributes:
        core_seconds: Seconds of processor cores.
        gpu_seconds: Seconds of GPUs.
        disk: Bytes that stay.
        like: How many of them were estimated from records.
        guessed: How many of them had no record like them.
    """

    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    disk: float = 0.0
    like: int = 0
    guessed: int = 0


@dataclass
class Records:
    """Records of points that ran, by how much another point is like them.

    Attributes:
        sources: How many records there are, by the name of their grid.
    """

    sources: Counter[str] = field(default_factory=Counter)
    _by_likeness: dict[tuple, list[tuple[float, float]]] = field(default_factory=dict)
    _medians: dict[tuple, tuple[float, float]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a record; one of a failed point says nothing."""
        point = record["point"]
        # Of a training that other code or other settings evaluated again, `wall_s` is that of the evaluation.
        if record["status"] != "ok" or "trained" in record["run"]:
            return
        self._medians.clear()
        self.sources[point["grid"]] += 1
        work = _work(point)
        for level, key in enumerate(_likenesses(point, bool(record["run"].get("gpu")))):
            # The nearest ones scale with the work of a training.
            self._by_likeness.setdefault((level, key), []).append((record["run"]["wall_s"] / work, _disk(record)))

    def like(self, point: Mapping[str, Any], gpu: bool) -> tuple[float, float] | None:
        """Seconds and bytes of a point, from those that are most like it; None if none is."""
        for level in enumerate(_likenesses(point, gpu)):
            if found := self._by_likeness.get(level):
                # Of thousands, the median is not taken again for each point.
                if level not in self._medians:
                    seconds, sizes = zip(*found, strict=True)
                    self._medians[level] = median(seconds), median(sizes)
                per_work, disk = self._medians[level]
                return per_work * _work(point), disk
        return None


def _likenesses(point: Mapping[str, Any], gpu: bool) -> list[tuple]:
    suite = (point.get("benchmark") or {}).get("suite")
    broad = (gpu, point["stage"], suite, point["architecture"])
    return [(*broad, point["dataset"], point["method"], point["start"]), (*broad, point["dataset"]), broad]


def _work(point: Mapping[str, Any]) -> float:
    """Tokens or images of a training; 1 where nothing is trained."""
    training = point.get("training") or {}
    if point["stage"] != "train" or point["start"] not in ("scratch", "pretrained"):
        return 1.0
    # `length` may be set for all datasets of a grid; images have none.
    length = 1 if _sees(point["architecture"]) else training.get("length", 1)
    return float(training.get("steps", 1) * training.get("batch", 1) * length)


def _disk(record: Mapping[str, Any]) -> float:
    metrics = record["result"].get("metrics") or []
    return float(sum(metric["value"] or 0 for metric in metrics if metric["metric"] == "checkpoint_bytes"))


def records_of(found: Iterable[PointLeft], folder: GridFolder) -> Iterator[dict[str, Any]]:
    """Records of a grid, of points that are alike the first ones alone: to read all of a large grid takes long.

    Args:
        found: What is left for each point of its plan.
        folder: Its folder.
    """
    alike: Counter[tuple] = Counter()
    for left in found:
        nearest = _likenesses(left.point.values, False)[0]
        if alike[nearest] == MOST_ALIKE:
            continue
        try:
            record = left.state.found or read_record(folder.record(left.point.id), planned=left.point)
        except BlastError:
            continue
        alike[nearest] += 1
        yield record


def other_records(folder: GridFolder) -> Iterable[dict[str, Any]]:
    """Records of the other grids beside a grid, some hundred at most."""
    files = [file for file in sorted(folder.root.parent.glob("*/records/*.json")) if file.parents[1] != folder.root]
    for file in files[:: 1 + len(files) // MOST_READ]:
        try:
            yield read_record(file)
        except BlastError:
            continue


def estimate(points: Iterable[Point], records: Records, others: Iterable[Mapping[str, Any]] = ()) -> Cost:
    """What points cost.

    Args:
        points: They will run on this machine.
        records: Records of points like them.
        others: Further records; they are read only if a point has none like it.
    """
    cost, gpus, unread = Cost(), bool(visible_gpus()), True
    for point in points:
        values = point.values
        found = records.like(values, gpus)
        if found is None and unread:
            unread = False
            for record in others:
                records.add(record)
            found = records.like(values, gpus)
        cost.like, cost.guessed = cost.like + (found is not None), cost.guessed + (found is None)
        seconds, disk = found or _guess(point, gpus)
        cost.disk += disk
        cost.core_seconds += seconds * max(1 if gpus else point.threads, point.processes)
        cost.gpu_seconds += seconds * point.processes * gpus
    return cost


def _guess(point: Point, gpu: bool) -> tuple[float, float]:
    """Seconds and bytes of a point, by its weights and what it reads."""
    if point.stage == "benchmark":
        return BENCHMARK, 0.0
    shape = architectures.get(point.architecture).shape
    attention = 2 * shape.layers * shape.hidden * shape.width_of_head * (shape.heads + shape.kv_heads)
    weights = shape.mlp_weights + attention + shape.hidden * (shape.vocab or VOCABULARY if not shape.channels else 0)
    tokens = _work(point.values) * ((shape.patches or 14) ** 2 if _sees(point.architecture) else 1)
    return START + 6 * weights * tokens / (GPU_FLOPS if gpu else CORE_FLOPS * point.threads), 4.0 * weights


def _sees(architecture: str) -> bool:
    return architectures.get(architecture).modality == "vision"


def in_hours(seconds: float) -> str:
    """`0.02`, `1.4`, `380`: hours with two digits that count."""
    hours = seconds / 3600
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.2g}"


def in_bytes(size: float) -> str:
    """`12 MB`, `1.3 GB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"
