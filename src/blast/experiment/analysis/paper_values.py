"""The paper's values, read from `config/paper_values.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from blast.errors import BlastError, unknown_name

FILE = Path(__file__).resolve().parents[4] / "config" / "paper_values.csv"
RULES = ("sparsity", "majority", "ratio", "loss", "pretraining", "gpus")
KNOWN = ("abstract", "second-hand")


@dataclass(frozen=True)
class PaperValue:
    """One value of the paper, and which of our results may be compared with it.

    Attributes:
        id: Short name.
        claim: What is claimed.
        shown: The value as it is printed.
        value: The value as a number, in `unit`.
        unit: `fraction`, `percent` or `ratio` (times better than dense).
        rule: How we judge it, one of `RULES`; see `blast.experiment.analysis.claims`.
        suite: Suites whose rows count; empty for any.
        metric: Metric to compare; empty if the rule chooses it.
        model: Name in `blast.architectures` of the model it was measured on; empty if the paper names none.
        sparsity: Sparsity it was measured at; None if unknown.
        gpus: Number of GPUs it was measured on; None if it does not matter.
        known: Source of the value: `abstract` or `second-hand`.
        setting: What is known about the measurement.
    """

    id: str
    claim: str
    shown: str
    value: float
    unit: str
    rule: str
    suite: tuple[str, ...]
    metric: str
    model: str
    sparsity: float | None
    gpus: int | None
    known: str
    setting: str


def _read(line: dict[str, str]) -> PaperValue:
    for name, allowed in (("rule", RULES), ("known", KNOWN)):
        if line[name] not in allowed:
            raise unknown_name(name, line[name], allowed)
    numbers = {
        "value": float(line["value"]),
        "sparsity": float(line["sparsity"]) if line["sparsity"] else None,
        "gpus": int(line["gpus"]) if line["gpus"] else None,
    }
    return PaperValue(**(line | numbers | {"suite": tuple(line["suite"].split())}))


def read_paper_values(file: Path = FILE) -> list[PaperValue]:
    """Reads the paper's values.

    Raises:
        BlastError: if the file cannot be read, or a line lacks a column, has an unknown rule or a value that is no
            number.
    """
    try:
        with Path(file).open(newline="") as stream:
            lines = list(csv.DictReader(stream))
    except OSError as error:
        raise BlastError(f"{file}: cannot be read ({error.strerror}); restore it from git.") from error
    values = []
    for number, line in enumerate(lines, start=2):
        try:
            values.append(_read(line))
        except (KeyError, TypeError, ValueError) as error:
            raise BlastError(f"{file}: line {number} is not a valid paper value ({error}); correct it.") from error
    return values
