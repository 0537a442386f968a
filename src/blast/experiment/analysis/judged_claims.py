"""The paper's claims with our findings, kept until something that they are made of changes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.records.provenance import commit
from blast.files import file_digest, json_digest, write_json

if TYPE_CHECKING:  # findings that are kept need no pandas
    import pandas as pd

FORMAT = 1
# What the findings are made of, besides the records: the paper's values, prices, committed configs, and the code.
CODE = ("config/*.csv", "config/*.yaml", "src/blast/**/*.py", "src/blast/**/*.yaml")
OF_GRID = ("plan.json", "records/*.json", "failed/*.json", "language/*.json", "language/*.npz")
OF_RECORDED = ("*/*.csv", "*/*.json")

Claim = dict[str, Any]


def judged(grid_dir: Path, recorded_dir: Path) -> list[Claim]:
    """The paper's claims, each with our findings.

    Reading all recorded rows takes seconds, so the findings are kept until something that they are made of changes.

    Args:
        grid_dir: `results/<grid>`; may be missing.
        recorded_dir: `results/recorded`; may be missing.

    Returns:
        For each claim `id`, `claim`, `paper`, `value`, `unit`, `known`, `setting` and `findings`, each of which has
        `verdict`, `ours` and `setting`; `not_counted` says why the local results do not count, or is None.
    """
    key = _key(grid_dir, recorded_dir)
    file = cache_root() / "claims" / f"{key.removeprefix('sha256:')[:32]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["claims"]
    claims = _judge(grid_dir, recorded_dir)
    # A cache that cannot be written is no fault of the comparison.
    with suppress(BlastError):
        write_json(file, {"format": FORMAT, "key": key, "claims": claims})
    return claims


def _key(grid_dir: Path, recorded_dir: Path) -> str:
    files = [*_matching(CHECKOUT, CODE), *_matching(grid_dir, OF_GRID), *_matching(recorded_dir, OF_RECORDED)]
    places = [str(folder.absolute()) for folder in (grid_dir, recorded_dir)]
    return json_digest([FORMAT, places, commit()[0], {str(file): file_digest(file) for file in files}])


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]


def _judge(grid_dir: Path, recorded_dir: Path) -> list[Claim]:
    from blast.experiment.analysis.evidence import evidence

    return claims_of(*evidence(grid_dir, recorded_dir))


def claims_of(counted: pd.DataFrame, not_counted: str | None = None) -> list[Claim]:
    """What `judged` returns, made of the rows that count."""
    from blast.experiment.analysis.claims import judge
    from blast.experiment.analysis.paper_values import read_paper_values

    return [
        {
            "id": value.id,
            "claim": value.claim,
            "paper": value.shown,
            "value": value.value,
            "unit": value.unit,
            "known": value.known,
            "setting": value.setting,
            "not_counted": not_counted,
            "findings": [
                {"verdict": finding.verdict, "ours": finding.ours, "setting": finding.setting}
                for finding in judge(value, counted)
            ],
        }
        for value in read_paper_values()
    ]
