"""What each claim of the paper needs to be tried: hardware, time, and the points or the command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blast.errors import unknown_name
from blast.experiment.analysis.paper_values import PaperValue, read_paper_values
from blast.experiment.columns import columns

COMPUTED, CPU, GPU, MANY = "computed", "a CPU", "a GPU", "many GPUs"
LARGE = "one GPU with 80 GB"


@dataclass(frozen=True)
class Need:
    """What one claim needs.

    Attributes:
        kind: `COMPUTED` (no run), `CPU`, `GPU` or `MANY`.
        hardware: In words.
        minutes: About how long it takes there; None if nobody has measured it.
        config: File in `config/` with its points; None for what is computed.
        points: Patterns of ids of the points that decide it.
        tolerance: Within what the measured value counts as the paper's.
        remark: What else a reviewer has to know.
    """

    kind: str
    hardware: str
    minutes: float | None
    config: str | None
    points: tuple[str, ...]
    tolerance: str
    remark: str = ""

    def command(self, claim: str) -> str:
        """The command that tries the claim."""
        if self.kind in (COMPUTED, CPU):
            return f"blast reproduce {claim}"
        if self.config is None:
            return "–"
        suite = self.points[0].split("-", 1)[0]
        if suite in ("kernels", "inference", "training_step", "tensor_parallel"):
            return f"blast bench {suite} --config config/{self.config}"
        return f"snakemake --cores 8 all --configfile config/{self.config}"


QUANTILES = "the whole interval of the ratio (20 to 80 % of the repetitions) reaches the value"
SEEDS = "the noise: the spread over seeds, or two standard errors with one seed"
EXACT = "none: bytes are counted exactly"
# The sizes of one point are enough for a share of pruned weights; this is the one that takes least time.
QUICKEST = ("vit-nano-wide.mnist.blast.s95.b16.seed0",)

NEEDS = {
    "sparsity": Need(CPU, "any CPU", 2, "config.yaml", QUICKEST, "half a percent, for whole blocks"),
    "loss": Need(
        CPU, "any CPU", 20, "config.yaml", ("*.dense.seed?", "*.blast.*"), SEEDS,
        "small models on small data; the paper's models need config/paper.yaml, a network, GPUs and days",
    ),
    "mlp_kernel": Need(GPU, LARGE, 18, "h100.yaml", ("kernels-*",), QUANTILES),
    "inference": Need(GPU, LARGE, None, "inference.yaml", ("inference-*",), QUANTILES, "not run yet"),
    "inference_many_gpus": Need(
        MANY, "16 GPUs, or 1 to 4 for a projection", None, "tensor_parallel.yaml", ("tensor_parallel-*",), QUANTILES,
        "not run yet; from fewer GPUs it is projected and counts as such",
    ),
    "pretraining": Need(GPU, LARGE, 10, "h100.yaml", ("training_step-*",), QUANTILES),
    "memory_v1": Need(COMPUTED, "any CPU", 0.2, None, (), EXACT, "computed from the sizes of the model"),
    "memory_v2": Need(COMPUTED, "any CPU", 0.2, None, (), EXACT, "computed from the sizes of the model"),
    "gpus": Need(COMPUTED, "any CPU", 0.2, None, (), EXACT, "computed from the sizes of the model"),
    "energy": Need(GPU, LARGE, None, "inference.yaml", ("inference-*",), QUANTILES, "not run yet"),
    "gpt2_xl": Need(GPU, LARGE, None, "paper.yaml", ("gpt2-xl.*",), SEEDS, "needs a network; days"),
    "qwen3": Need(GPU, LARGE, None, None, (), SEEDS, "the task of the paper is not known, so no config has it"),
}  # fmt: skip


def claim_of(name: str) -> tuple[PaperValue, Need]:
    """A claim and what it needs.

    Raises:
        BlastError: for an unknown claim; the nearest name is given.
    """
    values = {value.id: value for value in read_paper_values()}
    if name not in values:
        raise unknown_name("claim", name, values)
    return values[name], NEEDS[name]


def described() -> Iterator[str]:
    """All claims, with what each needs."""
    rows = [["claim", "paper", "what", "needs", "minutes", "command"]]
    for value in read_paper_values():
        need = NEEDS[value.id]
        minutes = "?" if need.minutes is None else f"{need.minutes:g}"
        rows.append([value.id, value.shown, value.claim, need.hardware, minutes, need.command(value.id)])
    yield from columns(rows, right=[4])
    yield "minutes: on two cores, or on one H100; ?: not measured. `blast reproduce CLAIM` runs what can run here."
