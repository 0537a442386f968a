"""A point: one fully resolved run of the grid, as a JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from blast.errors import BlastError
from blast.evaluation.requests import SEPARATE_TEST
from blast.experiment.plan.point_parts import check_parts
from blast.files import canonical_json, json_digest, text_digest
from blast.settings import Count, Later, Pattern, Seed, Sparsity, plain, read
from blast.untrusted import MIB, NotPlainFileError, parse_json, read_bytes

FORMAT = 1
# These name files and folders, so they are names on every system and lead out of none.
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9_@-]*(\.[A-Za-z0-9_@-]+)*"
PointId = Annotated[str, Pattern(FILE_NAME, "an id of letters, digits, '_', '-', '@' and inner dots", longest=200)]
PointName = Annotated[str, Pattern(FILE_NAME, "a name of letters, digits, '_', '-', '@' and inner dots", longest=100)]
# The largest point has some kilobytes, and the plan of 10,000 points some tens of megabytes.
LARGEST, LARGEST_PLAN = MIB, 1024 * MIB


@dataclass(frozen=True)
class Point:
    """One run, with every setting resolved; it can run on any machine.

    Attributes:
        id: Readable name, unique in its grid; also the name of its files.
        grid: Name of the grid it belongs to.
        stage: `train` (train, prune, evaluate) or `benchmark`.
        architecture: Name in `blast.architectures` (for a benchmark: the shape that is timed).
        dataset: Name in `blast.datasets`; None for a benchmark.
        method: `dense` or a name in `blast.sparsity.config.METHOD_DETAILS`.
        sparsity: Target share of empty blocks, in [0, 1).
        block: Block shape `[out, in]`; None for a dense point.
        start: `scratch`: fresh weights. `pretrained`: the published weights, trained further. `published`: those
            weights, not trained. `parent`: the checkpoint of the parent, not trained further.
        parent: Id of the dense run that this run is compared with.
        sparsify: Fields of `SparsifyConfig`; None for a dense point.
        distillation: Fields of `blast.training.distillation.Distillation`; None without a teacher.
        teacher: Id of the dense run that is the teacher; None without one, and for published weights.
        ffn: Inner width of the MLPs of a `small_dense` point; None for the architecture's own.
        training: Fields of `blast.training.settings.TrainingSettings`; None for a benchmark.
        evaluation: Fields of `blast.experiment.plan.config.Evaluation`; `tasks` are those of the dataset.
        data: Settings of the preparation of the dataset.
        benchmark: Settings of the benchmark suite; None for a training point.
        threads: Threads that torch may use.
    """

    id: PointId
    grid: PointName
    stage: Literal["train", "benchmark"]
    architecture: PointName
    dataset: PointName | None = None
    method: PointName = "dense"
    sparsity: Sparsity = 0.0
    block: tuple[Count, Count] | None = None
    seed: Seed = 0
    threads: Count = 1
    start: Literal["scratch", "pretrained", "published", "parent"] = "scratch"
    parent: PointId | None = None
    sparsify: dict[str, Any] | None = None
    distillation: Annotated[dict[str, Any] | None, Later()] = None
    teacher: Annotated[PointId | None, Later()] = None
    ffn: Annotated[Count | None, Later()] = None
    training: dict[str, Any] | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        values: dict[str, Any] = plain(self)
        return values

    @cached_property
    def values(self) -> dict[str, Any]:
        """The JSON form, made once; not to be changed."""
        return self.to_dict()

    @property
    def processes(self) -> int:
        """Processes that train this point, each on its share of the batch; 1 where nothing is trained."""
        trained = self.stage == "train" and self.start in ("scratch", "pretrained")
        return (self.training or {}).get("processes", 1) if trained else 1

    @property
    def needs(self) -> list[str]:
        """Ids of the points whose checkpoints this one reads."""
        return [other for other in (self.parent if self.start == "parent" else None, self.teacher) if other]

    @cached_property
    def digest(self) -> str:
        """Digest of all settings; the name of the grid is not one of them."""
        return text_digest(self.text)

    @cached_property
    def text(self) -> str:
        """All settings but the name of the grid, as the JSON text that digests are taken of."""
        return canonical_json(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The JSON form without the name of the grid."""
        return {key: value for key, value in self.values.items() if key != "grid"}

    @property
    def training_digest(self) -> str:
        """Digest of the settings that decide the trained model and its curves: `digest` without the evaluation.

        A separate test counts, as the curves are those of the other half of the held-out data.
        """
        values = self.settings
        values["evaluation"] = {SEPARATE_TEST: True} if self.evaluation.get(SEPARATE_TEST) else {}
        return json_digest(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "point") -> Point:
        """Reads the JSON form.

        Args:
            values: As `to_dict` gives it.
            source: Name in errors, usually the file.

        Raises:
            BlastError: for another format version, an unknown or missing key, or a wrong value.
        """
        if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
            raise BlastError(
                f"{source}: format {values['format']} is not the format {FORMAT} of this version; "
                "make the file again with `blast plan`."
            )
        try:
            return read(cls, values)
        except BlastError as error:
            raise BlastError(f"{source}: {error}") from error

    @classmethod
    def read(cls, file: Path) -> Point:
        """Reads a point file, which may come from anywhere.

        Raises:
            BlastError: if the file cannot be read, is a link or too large, or is no point; one sentence.
        """
        try:
            values = parse_json(read_bytes(file, LARGEST))
        except (OSError, ValueError, RecursionError) as error:
            problem = " ".join(str(error).split())[:200]
            raise BlastError(
                f"{file}: cannot be read as a point ({problem}); make it again with `blast plan`."
            ) from error
        point = cls.from_dict(values, source=str(file))
        try:
            check_parts(point.to_dict())
        except BlastError as error:
            raise BlastError(f"{file}: {error}") from error
        needed = ("dataset", "training") if point.stage == "train" else ("benchmark",)
        for key in needed:
            if getattr(point, key) is None:
                raise BlastError(f"{file}: the key '{key}' is missing; make the file again with `blast plan`.")
        return point


def read_plan(file: Path) -> dict[str, Point]:
    """The points of a grid by id, from its `plan.json`.

    Raises:
        BlastError: if the file is missing or damaged.
    """
    remedy = "delete it and run the workflow again."
    try:
        values = parse_json(read_bytes(file, LARGEST_PLAN))
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this plan does not exist; run the workflow again.") from error
    except NotPlainFileError as error:
        raise BlastError(f"{file}: {error}; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BlastError(f"{file}: this plan is damaged or half-written; {remedy}") from error
    if not isinstance(values, list) or not values:
        raise BlastError(f"{file}: holds no list of points; {remedy}")
    points = [Point.from_dict(entry, source=str(file)) for entry in values]
    by_id = {point.id: point for point in points}
    if len(by_id) < len(points):
        raise BlastError(f"{file}: names a point twice; {remedy}")
    return by_id
