"""The config file of a grid: its keys and their types, and how a file is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from blast.benchmark.settings import SUITES
from blast.errors import BlastError
from blast.experiment.plan.point_parts import TaskName
from blast.settings import (
    Bounds,
    Count,
    Later,
    ListOrOne,
    Name,
    NotEmpty,
    OneOf,
    PartOf,
    Pattern,
    Seed,
    Sparsity,
    plain,
    read,
)
from blast.sparsity.config import METHOD_DETAILS, METHODS, SparsifyConfig
from blast.training.distillation import Distillation
from blast.training.settings import TrainingSettings

DEFAULT_FILE = Path("config/config.yaml")
OCTAL = re.compile(r"[-+]?0[0-7_]+")

Block = Count | tuple[Count, Count]
MethodName = Annotated[str, OneOf("method", (*METHOD_DETAILS, "dense"))]
SuiteName = Annotated[str, OneOf("benchmark suite", tuple(SUITES))]
Variant = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*",
        "a word of letters (a-z), digits, '_', '-' and inner dots that begins with a letter or digit",
        longest=64,
    ),
]
GridName = Annotated[
    str,
    Pattern(
        "[a-z][a-z0-9_-]+",
        "two or more small letters (a-z), digits, '_' or '-' that begin with a letter",
        longest=64,
    ),
]
Folder = Annotated[
    str,
    Pattern(
        r"(?!~|(.*/)?\.\.(/|$))[^\x00-\x1f{}]+",
        "a folder; its path may not hold '..' or a brace, or begin with '~'",
        longest=200,
    ),
]
FROM_POINT = dict.fromkeys(("sparsity", "block", "steps", "seed"), "the point")
# What every method sets.
FROM_METHOD = dict.fromkeys(set.intersection(*map(set, METHODS.values())), "the method")
Training = Annotated[dict[str, Any], PartOf(TrainingSettings)]
Sparsify = Annotated[dict[str, Any], PartOf(SparsifyConfig, FROM_POINT | FROM_METHOD)]
# A block with a variant may change a choice of its methods: its points say so by their ids.
SparsifyOfBlock = Annotated[dict[str, Any], PartOf(SparsifyConfig, FROM_POINT)]


@dataclass(frozen=True)
class Evaluation:
    """How trained models are evaluated.

    Attributes:
        tasks: lm-eval tasks by dataset, instead of the tasks that the dataset names.
        batch: Fixed batch size. The last digits of a score depend on it.
        limit: Held-out sequences for our own loss; the first ones.
        items: Items of each lm-eval task, the first ones; without it, all.
        separate_test: Halves the held-out data, by document or image. The even half gives the learning curves and the
            metrics `validation_…`, to choose settings by. The odd half gives all other metrics, to judge by.
        train: Windows or images of the training data that the trained model is evaluated on too, for the metrics
            `train_…`. They are spread evenly, and images are not augmented.
    """

    tasks: dict[Name, tuple[TaskName, ...]] = field(default_factory=dict)
    batch: Count = 32
    limit: Count = 384
    items: Count | None = None
    separate_test: Annotated[bool, Later()] = False
    train: Annotated[Count | None, Later()] = None


EvaluationOfBlock = Annotated[dict[str, Any], PartOf(Evaluation)]


@dataclass(frozen=True)
class GridBlock:
    """A product of lists. The grid is the union of its blocks, each with the dense runs it is compared with.

    Attributes:
        architectures: Names of architectures, files of `src/blast/architectures` or their entries.
        datasets: Names of datasets, files of `src/blast/datasets`, of the same modality.
        sparsity: Shares of empty blocks; 0 is the dense model.
        methods: Methods of pruning. `dense` comes by itself.
        blocks: Sides of square blocks, or pairs `[out, in]`; each has to divide the MLP matrices.
        ffn: Inner widths of the MLPs of `small_dense`. Without it, the width with as many weights as the sparsity
            leaves, rounded up to a multiple of 32.
        seeds: Seeds of weights, batches and random masks.
        start: `scratch`: fresh weights. `pretrained`: the published weights, trained further. `published`: the
            published weights as they are; nothing is trained, so only dense and `one_shot` are possible.
        variant: A word added to the ids, for a block that gives the same points other settings.
        distillation: A teacher for all models of this block that are trained, `dense` in `methods` included; needs a
            `variant`.
        training: Training settings of this block alone; they win over those of the top level.
        evaluation: Evaluation settings of this block alone; they win over those of the top level.
        dense_run: The dense runs of this block. `own`: they have its `training` and `evaluation` too. `shared`: they
            have those of the top level, so that entries with other learning rates are compared with the same dense
            runs.
        sparsify: Pruning settings of this block alone; they win over those of the top level. With a `variant` they may
            also change what the method sets.
    """

    architectures: Annotated[tuple[Name, ...], NotEmpty()]
    datasets: Annotated[tuple[Name, ...], NotEmpty()]
    sparsity: Annotated[tuple[Sparsity, ...], NotEmpty()]
    methods: Annotated[tuple[MethodName, ...], NotEmpty()] = ("blast",)
    blocks: Annotated[tuple[Block, ...], NotEmpty()] = (16,)
    ffn: Annotated[tuple[Count, ...], ListOrOne()] = ()
    seeds: Annotated[tuple[Seed, ...], NotEmpty()] = (0,)
    start: Literal["scratch", "pretrained", "published"] = "scratch"
    variant: Variant | None = None
    distillation: Distillation | None = None
    training: Training = field(default_factory=dict)
    evaluation: EvaluationOfBlock = field(default_factory=dict)
    dense_run: Literal["own", "shared"] = "own"
    sparsify: SparsifyOfBlock = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in FROM_METHOD:
            if key in self.sparsify and self.variant is None:
                raise BlastError(
                    f"the key 'sparsify.{key}' is set by the method; remove it from this block, or give the block a "
                    "'variant', which names its points."
                )


@dataclass(frozen=True)
class Benchmark:
    """Timings of one suite: every combination of shape, sparsity, block and seed is a point.

    Attributes:
        suite: Name of a suite, a file of `src/blast/benchmark`.
        shapes: Architectures whose MLP, or whose whole model, is timed.
        sparsity: Shares of empty blocks.
        blocks: Sides of square blocks, or pairs `[out, in]`.
        tokens: Numbers of tokens; a point times all of them.
        dtype: Type of weights and activations; the suite may support fewer.
        repeats: Timed calls of each provider, in turn. The median and the 20 % and 80 % quantiles are recorded.
        seeds: Seeds of weights, masks and inputs.
        variant: A word added to the ids, for an entry that gives the same points other settings.
        settings: Settings of the suite.
    """

    suite: SuiteName
    shapes: Annotated[tuple[Name, ...], NotEmpty()]
    sparsity: Annotated[tuple[Sparsity, ...], NotEmpty()]
    blocks: Annotated[tuple[Block, ...], NotEmpty()]
    tokens: Annotated[tuple[Count, ...], NotEmpty()]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    repeats: Count = 20
    seeds: Annotated[tuple[Seed, ...], NotEmpty()] = (0,)
    variant: Variant | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """One grid.

    Attributes:
        name: Name of the grid and of its folder `results/<name>`.
        threads: Threads that torch uses in one job. The last digits of a number depend on it, so it is recorded.
        memory_gb: Memory that one job may take. It limits how many jobs run at once, whatever `--cores` says.
        figures: Folder for figures and tables.
        training: Training settings under `default`, a dataset, an architecture, or `architecture.dataset`. The most
            specific value wins.
        sparsify: Pruning settings of the whole grid.
        data: Settings of the preparation, by dataset.
        evaluation: How trained models are evaluated.
        points_per_job: Points that one process runs, under `default` or a dataset. With several points a job, small
            points share the start of a process.
        grid: Blocks of the grid.
        benchmarks: Timings.
    """

    name: GridName
    threads: Count = 1
    memory_gb: Annotated[float, Bounds(gt=0)] = 1.5
    figures: Folder = "paper_figures"
    training: dict[Name, Training] = field(default_factory=dict)
    sparsify: Sparsify = field(default_factory=dict)
    data: dict[Name, dict[str, Any]] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)
    points_per_job: dict[Name, Count] = field(default_factory=dict)
    grid: tuple[GridBlock, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()

    def __post_init__(self) -> None:
        if not self.grid and not self.benchmarks:
            raise BlastError("the config has neither 'grid' nor 'benchmarks', so there is nothing to do; add one.")

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain values, defaults included."""
        return plain(self)


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, except that what it takes for something else in silence is an error.

    A key given twice: the safe loader keeps the last one. `010` and `1:30`: it reads 8 and 90, as YAML 1.1 says.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping as it is written, before `<<` brings keys that it may override."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                written = (key.tag, key.value)
                if written in lines:
                    problem = f"the key '{key.value}' is given twice, first at line {lines[written]}"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                lines[written] = key.start_mark.line + 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number whose digits mean what they seem to mean."""
        whole = node.tag.endswith(":int")
        number = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if ":" in node.value or (whole and OCTAL.fullmatch(node.value)):
            problem = f"'{node.value}' is the number {number} in YAML; write that, or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number


for kind in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", StrictLoader.construct_number)


def load_values(file: Path) -> Any:
    """The values of a YAML file, not checked yet."""
    try:
        return yaml.load(file.read_bytes().decode("utf-8-sig"), StrictLoader)
    except OSError as error:
        raise BlastError(f"{file}: cannot be read ({error.strerror}); give the path of a config file.") from error
    except UnicodeDecodeError as error:
        raise BlastError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BlastError(f"{file}: is not valid YAML{line} ({problem}); correct it.") from error


def parse(values: Any, file: Path) -> Config:
    """Checks the values of a config.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    if not isinstance(values, Mapping):
        raise BlastError(
            f"{file}: the config is not a mapping of keys to values; see config/config.yaml for an example."
        )
    try:
        return read(Config, values)
    except BlastError as error:
        raise BlastError(f"{file}: {error}") from error


def read_config(file: Path) -> Config:
    """Reads and checks a config file; names in it are checked by `blast.experiment.plan.grid.expand`.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    return parse(load_values(Path(file)), Path(file))


def used_config(files: Sequence[Path | str], overrides: Mapping[str, Any], root: Path) -> tuple[Config, Path]:
    """The config that a run of the workflow uses.

    Args:
        files: The files given with `--configfile`; none means the default.
        overrides: The merged values of the workflow engine: those of the files and of `--config`.
        root: The checkout, with the default config.

    Returns:
        The checked config, and the file to name in errors.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    if not files:
        file = root / DEFAULT_FILE
        values = load_values(file)
        return parse({**values, **overrides} if isinstance(values, Mapping) else values, file), file
    for file in files:
        load_values(Path(file))  # the workflow engine accepts a key given twice
    return parse(overrides, Path(files[0])), Path(files[0])
