"""From a config to the points of its grid, and the jobs that run them."""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from blast import architectures, datasets
from blast.benchmark.settings import settings_of
from blast.errors import BlastError, unknown_name
from blast.evaluation.requests import SEPARATE_TEST
from blast.experiment.plan.block_checks import check_permutation, check_teacher
from blast.experiment.plan.config import Benchmark, Config, GridBlock
from blast.experiment.plan.jobs import Job, make_jobs
from blast.experiment.plan.point import Point
from blast.files import canonical_json
from blast.settings import Place, plain
from blast.sparsity.config import METHOD_DETAILS, METHODS, SparsifyConfig
from blast.training.distillation import DENSE
from blast.training.settings import TrainingSettings

SMALL_DENSE = "small_dense"
# Widths of small dense models are multiples of this, which tensor cores handle well.
WIDTH_STEP = 32
# Modalities of the datasets that an architecture can train on, by its own modality.
FITS = {"language": ("language", "classification"), "encoder": ("classification",), "vision": ("vision",)}


@dataclass(frozen=True)
class Plan:
    """All points of a grid by id, in order, and the jobs that run them."""

    points: dict[str, Point]
    jobs: tuple[Job, ...]

    @property
    def datasets(self) -> list[str]:
        """Datasets that the grid needs, in order of first use."""
        return list(dict.fromkeys(point.dataset for point in self.points.values() if point.dataset))

    @cached_property
    def _first(self) -> dict[str, Point]:
        """By dataset, its first point with tasks, else its first point."""
        first: dict[str, Point] = {}
        for point in self.points.values():
            known = first.get(point.dataset or "")
            if known is None or (point.evaluation.get("tasks") and not known.evaluation.get("tasks")):
                first[point.dataset or ""] = point
        return first

    def data_settings(self, dataset: str) -> dict[str, Any]:
        """Given settings of the preparation of one dataset."""
        return self._first[dataset].data

    def tasks(self, dataset: str) -> list[str]:
        """lm-eval tasks of one dataset; none for images. A point has all of them or none."""
        tasks: list[str] = self.evaluation(dataset).get("tasks", [])
        return tasks

    def items(self, dataset: str) -> list[str]:
        """The options of `blast requests` that limit the items of the tasks; empty for all items."""
        found = self.evaluation(dataset)
        items = ["--items", str(found["items"])] if found.get("items") else []
        return [*items, "--separate-test"] if found.get(SEPARATE_TEST) else items

    def evaluation(self, dataset: str) -> dict[str, Any]:
        """The evaluation of the points with tasks, else of any point."""
        return self._first[dataset].evaluation


def share_label(sparsity: float) -> str:
    """`s95` for .95, `s97p5` for .975."""
    return f"s{100 * sparsity:.6g}".replace(".", "p")


def block_label(block: tuple[int, int]) -> str:
    """`b16`, or `b32x128` for a rectangle."""
    return f"b{block[0]}" if block[0] == block[1] else f"b{block[0]}x{block[1]}"


def _as_pair(block: int | tuple[int, int]) -> tuple[int, int]:
    return (block, block) if isinstance(block, int) else (block[0], block[1])


def check_block(architecture: str, block: tuple[int, int], transposed_down: bool = False) -> None:
    """Refuses a block that does not tile the MLP matrices.

    Args:
        architecture: Whose matrices.
        block: `[out, in]`.
        transposed_down: Whether blocks of the down projection are `[in, out]`.

    Raises:
        BlastError: with a matrix, its shape, and the square blocks that divide it.
    """
    matrices = architectures.prunable(architecture)
    for number, (role, rows, cols) in enumerate(matrices):
        sides = block[::-1] if transposed_down and number == len(matrices) - 1 else block
        if rows % sides[0] or cols % sides[1]:
            legal = ", ".join(map(str, architectures.legal_blocks(architecture))) or "none"
            raise BlastError(
                f"block {sides[0]}x{sides[1]} does not divide the '{role}' matrix {rows}x{cols} of '{architecture}'; "
                f"square blocks that do: {legal}."
            )


def equal_weights_ffn(architecture: str, sparsity: float) -> int:
    """The inner width at which dense MLPs have as many weights as the sparsity leaves, rounded up to a multiple of 32.

    The number of MLP weights is proportional to the inner width.
    """
    shape = architectures.get(architecture).shape
    # Rounded first: 0.05 * 5120 is a little above 256 in floating point.
    return WIDTH_STEP * math.ceil(round(shape.ffn * (1 - sparsity) / WIDTH_STEP, 9))


def _settings(config: Config, block: GridBlock, architecture: str, dataset: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    base = datasets.base_name(dataset)
    for key in ("default", base, architecture, f"{architecture}.{base}"):
        merged.update(config.training.get(key, {}))
    merged.update(block.training)
    try:
        return plain(TrainingSettings.from_dict(merged))
    except BlastError as error:
        raise BlastError(f"training of '{architecture}' on '{base}': {error}") from error


def _sparsify(
    config: Config, block: GridBlock, method: str, sparsity: float, shape: tuple[int, int], training: dict, seed: int
) -> dict:
    # With `wsd` the masks are fixed when the learning rate begins to fall.
    tied = (
        {"hold": training.get("decay", TrainingSettings.decay)}
        if training.get("learning_rate_schedule") == "wsd"
        else {}
    )
    # The preset of a method wins, because methods are compared; only a block with a variant may change it.
    values = {**tied, **config.sparsify, **METHODS[method], **block.sparsify}
    values |= {"sparsity": sparsity, "block": list(shape), "steps": training["steps"]}
    return _checked_sparsify(canonical_json(values)) | {"seed": seed}


@cache
def _checked_sparsify(values: str) -> dict:
    """Pruning settings with their defaults; points that differ in their seed alone are checked once."""
    return SparsifyConfig.from_dict(json.loads(values)).to_dict()


def _evaluation(config: Config, block: GridBlock, dataset: str) -> dict[str, Any]:
    chosen = replace(config.evaluation, **block.evaluation)
    tasks = list(chosen.tasks.get(datasets.base_name(dataset), datasets.get(dataset).EVALUATION))
    evaluation = {"tasks": tasks, "batch": chosen.batch, "limit": chosen.limit}
    # Keys that came later stand in a point only where they are used: the digests of older records stay.
    if chosen.items and tasks:
        evaluation["items"] = chosen.items
    if chosen.separate_test:
        evaluation[SEPARATE_TEST] = True
    if chosen.train:
        evaluation["train"] = chosen.train
    return evaluation


def _common(config: Config, architecture: str, dataset: str) -> dict[str, Any]:
    base = datasets.base_name(dataset)
    return {
        "grid": config.name,
        "stage": "train",
        "architecture": architecture,
        "dataset": dataset,
        "threads": config.threads,
        "data": datasets.check_settings(base, config.data.get(base, {}), Place("key", ("data", base))),
    }


def _check_names(block: GridBlock) -> None:
    """Checks that names exist and fit each other, and that blocks divide the matrices."""
    for architecture, dataset in itertools.product(block.architectures, block.datasets):
        wanted, given = architectures.get(architecture).modality, datasets.get(dataset).MODALITY
        if given not in FITS[wanted]:
            article = "an" if wanted[0] in "aeiou" else "a"
            raise BlastError(
                f"'{architecture}' is {article} {wanted} model and '{dataset}' a {given} dataset; "
                "put them in different blocks of 'grid'."
            )
        if tokens := datasets.tokenizer_of(dataset):
            architectures.get(tokens)
        _check_start(block, architecture, dataset)
        if any(sparsity > 0 for sparsity in block.sparsity):
            for shape in block.blocks:
                check_block(architecture, _as_pair(shape))


def _check_sections(config: Config) -> None:
    """Checks the keys that are names of datasets or architectures, and the settings of datasets."""
    for key in config.training:
        _check_training_key(key)
    of_blocks = (key for block in config.grid for key in block.evaluation.get("tasks", {}))
    for key in [*config.evaluation.tasks, *of_blocks, *(key for key in config.points_per_job if key != "default")]:
        datasets.get(key)
    for name, given in config.data.items():
        settings = datasets.check_settings(name, given, Place("key", ("data", name)))
        if settings.get("tokenizer"):
            architectures.get(settings["tokenizer"])


def _check_training_key(key: str) -> None:
    architecture, _, dataset = key.rpartition(".")
    if key in {"default", *architectures.names(), *datasets.names()}:
        return
    if architecture not in architectures.names():
        error = unknown_name("key", key, {"default", *architectures.names(), *datasets.names()})
    elif dataset not in datasets.names():
        error = unknown_name("dataset", dataset, datasets.names())
    else:
        return
    raise BlastError(f"in 'training': {error}")


def _check_start(block: GridBlock, architecture: str, dataset: str) -> None:
    """Refuses a start from weights that do not exist, and methods that train where nothing is trained."""
    if block.start == "scratch":
        return
    if SMALL_DENSE in block.methods:
        raise BlastError(
            f"'{SMALL_DENSE}' has narrower MLPs than the published '{architecture}'; write 'start: scratch' for it."
        )
    if architectures.get(architecture).weights is None:
        raise BlastError(f"'{architecture}' has no published weights; write 'start: scratch' for it.")
    tokens = datasets.tokenizer_of(dataset)
    if tokens not in (None, architecture):
        raise BlastError(
            f"'{dataset}' is in the tokens of '{tokens}', which the published '{architecture}' does not know; "
            f"write '{datasets.base_name(dataset)}'."
        )
    trained = [method for method in block.methods if method != "dense" and not METHOD_DETAILS[method].prunes_parent]
    if block.start == "published" and trained and any(block.sparsity):
        untrained = ", ".join(method for method in METHODS if METHOD_DETAILS[method].prunes_parent)
        raise BlastError(
            f"'start: published' trains nothing, but the method '{trained[0]}' prunes while training; "
            f"take 'start: pretrained', or one of: dense, {untrained}."
        )


def _train_points(config: Config, block: GridBlock) -> Iterator[Point]:
    start = f".{block.start}" if block.start != "scratch" else ""
    # Entries that differ in pruning alone share a dense run.
    suffix = f"{start}.{block.variant}" if block.variant else start
    for architecture, named, seed in itertools.product(block.architectures, block.datasets, block.seeds):
        # Published weights work with the tokens of their own tokenizer only.
        dataset = named if block.start == "scratch" else datasets.with_tokenizer(named, architecture)
        common = _common(config, architecture, dataset) | {"seed": seed}
        own = (block.training or block.evaluation) and block.dense_run == "own"
        block_of_dense = block if own else replace(block, training={}, evaluation={})
        training = _settings(config, block, architecture, dataset)
        evaluation = _evaluation(config, block, dataset)
        dense = f"{architecture}.{dataset}.dense.seed{seed}{suffix if own else start}"
        yield Point(
            id=dense,
            training=_settings(config, block_of_dense, architecture, dataset),
            evaluation=_evaluation(config, block_of_dense, dataset),
            start=block.start,
            **common,
        )
        of_parent = {"training": training, "evaluation": evaluation, "parent": dense, **common}
        of_parent |= _taught(block, dense)
        if block.distillation and "dense" in block.methods:
            label = f"{architecture}.{dataset}.dense.seed{seed}{suffix}"
            yield Point(id=label, start=block.start, **of_parent)
        pruned = [method for method in block.methods if METHODS.get(method) is not None]
        sparsities = [sparsity for sparsity in block.sparsity if sparsity > 0]
        if SMALL_DENSE in block.methods:
            for sparsity in sparsities:
                for ffn in block.ffn or (equal_weights_ffn(architecture, sparsity),):
                    label = (
                        f"{architecture}.{dataset}.{SMALL_DENSE}.{share_label(sparsity)}.ffn{ffn}.seed{seed}{suffix}"
                    )
                    yield Point(id=label, method=SMALL_DENSE, sparsity=sparsity, ffn=ffn, **of_parent)
        for method, sparsity, side in itertools.product(pruned, sparsities, block.blocks):
            shape = _as_pair(side)
            yield Point(
                id=f"{architecture}.{dataset}.{method}.{share_label(sparsity)}.{block_label(shape)}.seed{seed}{suffix}",
                method=method,
                sparsity=sparsity,
                block=shape,
                start="parent" if METHOD_DETAILS[method].prunes_parent else block.start,
                sparsify=_sparsify(config, block, method, sparsity, shape, training, seed),
                **of_parent,
            )


def _taught(block: GridBlock, dense: str) -> dict[str, Any]:
    """The fields of a point that learns from a teacher; empty without one."""
    if block.distillation is None:
        return {}
    return {
        "distillation": plain(block.distillation),
        "teacher": dense if block.distillation.teacher == DENSE else None,
    }


def _benchmark_points(config: Config, number: int, suite: Benchmark) -> Iterator[Point]:
    settings = {"suite": suite.suite, "tokens": list(suite.tokens), "dtype": suite.dtype, "repeats": suite.repeats}
    settings |= settings_of(suite.suite, suite.settings, Place("key", ("benchmarks", number, "settings")))
    suffix = f".{suite.variant}" if suite.variant else ""
    for name, seed, sparsity, side in itertools.product(suite.shapes, suite.seeds, suite.sparsity, suite.blocks):
        shape = _as_pair(side)
        check_block(name, shape, settings.get("down_block") == "transposed")
        yield Point(
            id=f"{suite.suite}-{name}.{suite.dtype}.{share_label(sparsity)}.{block_label(shape)}.seed{seed}{suffix}",
            grid=config.name,
            stage="benchmark",
            architecture=name,
            method="blast",
            sparsity=sparsity,
            block=shape,
            seed=seed,
            threads=config.threads,
            benchmark=settings,
        )


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for cycles: tens of thousands of points and records are made, and none is garbage."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@without_garbage_collection()
def expand(config: Config, file: Path | str = "config") -> Plan:
    """Makes all points of a config, each once, and their jobs.

    Args:
        config: A checked config.
        file: Name of the config in errors.

    Raises:
        BlastError: on an unknown name, a block that does not fit, or two points of one id with different settings;
            one sentence that begins with the file.
    """
    points: dict[str, Point] = {}
    try:
        _check_sections(config)
        for block in config.grid:
            _check_names(block)
            check_teacher(block)
            check_permutation(config, block)
        for point in itertools.chain(
            *(_train_points(config, block) for block in config.grid),
            *(_benchmark_points(config, number, suite) for number, suite in enumerate(config.benchmarks)),
        ):
            if points.setdefault(point.id, point) != point:
                raise BlastError(
                    f"two blocks of the config give the point '{point.id}' different settings; "
                    "name one of them with 'variant'."
                )
        _check_evaluations(points)
    except BlastError as error:
        raise BlastError(f"{file}: {error}") from error
    return Plan(points, make_jobs(config, points.values()))


def _check_evaluations(points: dict[str, Point]) -> None:
    """Refuses points of one dataset with different tasks: the requests of a dataset are built once."""
    first: dict[tuple[str, str], Any] = {}
    for point in points.values():
        seen = {SEPARATE_TEST: point.evaluation.get(SEPARATE_TEST, False)}
        if point.evaluation.get("tasks"):
            seen |= {key: point.evaluation.get(key) for key in ("tasks", "items")}
        for key, value in seen.items():
            other = first.setdefault((point.dataset or "", key), value)
            if other != value:
                hint = "; a block can have no tasks ([]), but no other ones" if key == "tasks" else ""
                raise BlastError(
                    f"points of the dataset '{point.dataset}' have different 'evaluation.{key}', {other} and "
                    f"{value}; give all the same{hint}."
                )
