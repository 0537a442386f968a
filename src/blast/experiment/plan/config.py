"""The config file of a grid: typed, strict, and its faults told in one sentence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from blast.errors import BlastError

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0)]
Block = Side | tuple[Side, Side]
Name = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A mapping without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GridBlock(Strict):
    """A product of lists; the grid is the union of its blocks, each with the dense runs it is compared with."""

    architectures: list[Name] = Field(min_length=1, description="Names of architectures.")
    datasets: list[Name] = Field(min_length=1, description="Names of datasets.")
    methods: list[Name] = Field(default=["blast"], description="Methods; 'dense' comes by itself.")
    sparsity: list[Sparsity] = Field(min_length=1, description="Shares of empty blocks; 0 is the dense model.")
    blocks: list[Block] = Field(default=[16], min_length=1, description="Block sides, or [out, in] pairs.")
    seeds: list[int] = Field(default=[0], min_length=1)
    start: Literal["scratch", "pretrained", "published"] = Field(
        default="scratch",
        description="Fresh weights; published ones trained further; or published ones as they are, not trained.",
    )
    variant: str | None = Field(default=None, description="A word added to the ids, for a block with other settings.")
    training: dict[str, Any] = Field(default={}, description="Training settings of this block alone.")
    sparsify: dict[str, Any] = Field(default={}, description="Settings of the pruning of this block alone.")


class Benchmark(Strict):
    """Timings of one suite over shapes, sparsities and blocks."""

    suite: Name = Field(description="Name of a suite in blast.benchmark.")
    shapes: list[Name] = Field(min_length=1, description="Architectures whose MLP is timed.")
    sparsity: list[Sparsity] = Field(min_length=1)
    blocks: list[Block] = Field(min_length=1)
    tokens: list[Side] = Field(min_length=1)
    dtype: str = "float32"
    repeats: Side = Field(default=20, description="Timed runs of each provider, interleaved.")
    seeds: list[int] = Field(default=[0], min_length=1)
    variant: str | None = Field(default=None, description="A word added to the ids, where two differ in settings only.")
    settings: dict[str, Any] = Field(default={}, description="Settings of the suite's own, see its file.")


class Evaluation(Strict):
    """How trained models are evaluated."""

    tasks: dict[Name, list[Name]] = Field(default={}, description="lm-eval tasks by dataset; else the dataset's own.")
    batch: Side = Field(default=32, description="Fixed batch size; scores move with it in the last digits.")
    limit: Side = Field(default=384, description="Held-out sequences for our own loss; the first ones.")
    items: Side | None = Field(default=None, description="Items of each lm-eval task; the first ones, or all.")


class Config(Strict):
    """One grid."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]+$")] = Field(
        description="Name of the grid and of its folder in results/."
    )
    threads: Side = Field(default=1, description="Threads torch uses in one job; recorded.")
    memory_gb: Annotated[float, Field(gt=0)] = Field(
        default=1.5, description="Memory one job may take; bounds how many run at once."
    )
    figures: str = Field(default="paper_figures", description="Folder the pictures and tables are written to.")
    training: dict[Name, dict[str, Any]] = Field(
        default={},
        description="Settings under 'default', a dataset, an architecture or 'architecture.dataset'; the later wins.",
    )
    sparsify: dict[str, Any] = Field(default={}, description="Settings of the pruning for every block.")
    data: dict[Name, dict[str, Any]] = Field(default={}, description="Settings of the preparation, by dataset.")
    evaluation: Evaluation = Evaluation()
    points_per_job: dict[Name, Side] = Field(
        default={}, description="Points one process runs, under 'default' or a dataset."
    )
    grid: list[GridBlock] = Field(default=[])
    benchmarks: list[Benchmark] = Field(default=[])

    @model_validator(mode="after")
    def _not_empty(self) -> Config:
        if not self.grid and not self.benchmarks:
            raise ValueError("the config has neither 'grid' nor 'benchmarks', so there is nothing to do")
        return self


def _model_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model that a validation error's location lies in."""
    current: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        current = {"grid": GridBlock, "benchmarks": Benchmark, "evaluation": Evaluation}.get(part)
        if current is None:
            return None
    return current


def _sentence(file: Path, error: Any) -> str:
    where = ".".join(
        str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-", "tuple["))
    )
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        model = _model_at(error["loc"])
        known = sorted(model.model_fields) if model else []
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(known)}."
        return f"{file}: unknown key '{where}'; {hint}"
    if error["type"] == "missing":
        return f"{file}: the key '{where}' is missing; add it."
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    place = f" '{where}' is {error['input']!r}:" if where else ""
    return f"{file}:{place} {message}; correct it (see config/README.md)."


def parse(values: Any, file: Path) -> Config:
    """Checks the values of a config.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    if not isinstance(values, dict):
        raise BlastError(
            f"{file}: the config is not a mapping of keys to values; see config/config.yaml for an example."
        )
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BlastError(_sentence(file, first)) from error


def read_config(file: Path) -> Config:
    """Reads and checks a config file; names in it are checked by `blast.experiment.plan.grid.expand`.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    file = Path(file)
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise BlastError(f"{file}: cannot be read ({error.strerror}); give the path of a config file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise BlastError(
            f"{file}: is not valid YAML{line} ({getattr(error, 'problem', error)}); correct it."
        ) from error
    return parse(values, file)


DEFAULT_FILE = Path("config/config.yaml")


def used_config(files: Sequence[Path | str], overrides: dict[str, Any]) -> tuple[Config, Path]:
    """The config that a run of the workflow uses.

    Args:
        files: What was given with `--configfile`; none means the default.
        overrides: The merged values as the workflow engine has them: the files', and those of `--config`.

    Returns:
        The checked config, and the file to name in errors.

    Raises:
        BlastError: one sentence with file, key and remedy.
    """
    if files:
        read_config(Path(files[0]))
        return parse(dict(overrides), Path(files[0])), Path(files[0])
    config = read_config(DEFAULT_FILE)
    if overrides:
        config = parse({**config.model_dump(mode="json", exclude_unset=True), **overrides}, DEFAULT_FILE)
    return config, DEFAULT_FILE


def schema() -> str:
    """The JSON schema of a config file, as text; `config/schema.json` holds it."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"
