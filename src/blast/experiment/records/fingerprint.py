"""The fingerprint of a point: a digest of the code that decides its numbers.

It follows imports, so no list of files is kept by hand. From the function that runs the point (`entry_of`) it reaches
every top-level function, class and constant of `blast` and `blast_kernels` that is named on the way, imports inside
functions included (`records.code_graph`). Modules found by name are added: the family of an architecture, a dataset, a
benchmark suite. Of such a module those definitions count that the reached code asks for (`module.load`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from blast.experiment.plan.point import Point
from blast.experiment.records.code_cache import KERNELS, CodeCache, installed_roots
from blast.experiment.records.code_graph import CodeGraph, Counts, Module, Name

# What a kernel computes is defined by its reference; how fast it does so changes no trained model. A training point
# therefore leaves out the parts of `blast_kernels` that only decide speed: optional imports (`try: … except
# ImportError`, the Triton kernels, without which everything runs) and modules and packages of these names.
SPEED = frozenset({"heuristics", "tables", "tuned"})
RUN = "blast.experiment.run"
# They tell of a training while it runs, and decide no number.
TELLING = frozenset({f"{RUN}.step_file", f"{RUN}.system_metrics"})
# Everything behind this function looks at a model that is trained and saved.
EVALUATION = Name(f"{RUN}.point_result", "evaluate_saved")


def entry_of(point: Point) -> str:
    """The function that runs a point, as `module:name`; the worker calls exactly this one."""
    if point.stage == "benchmark":
        return f"{RUN}.benchmark:run_benchmark_point"
    if point.start == "parent":
        return f"{RUN}.prune:run_one_shot_point"
    return f"{RUN}.train:run_dense_point" if point.sparsify is None else f"{RUN}.prune:run_pruned_point"


def _trains(name: Name, optional: bool) -> bool:
    """Whether a definition decides a trained model, rather than how it is evaluated."""
    return name != EVALUATION and _decides_numbers(name, optional)


def _decides_numbers(name: Name, optional: bool) -> bool:
    """Whether a definition counts for a training point, see `SPEED`."""
    if name.module in TELLING:
        return False
    package, *parts = name.module.split(".")
    return package != KERNELS or not (optional or SPEED & set(parts))


class Fingerprints:
    """Fingerprints of points by the code of a tree.

    Args:
        roots: Folder of each package, by its import name: `blast`, and `blast_kernels` if it is there.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.code = CodeGraph(roots)
        self._package = Path(roots["blast"])

    def of_point(self, point: Point) -> str:
        """Digest of the code that decides the numbers of a point."""
        return self.code.digest(self.reached(point))

    def of_training(self, point: Point) -> str:
        """Digest of the code that decides the trained model of a point, and its curves; not of its evaluation."""
        return self.code.digest(self.reached(point, _trains))

    def modules(self, point: Point) -> dict[str, str]:
        """By module, a short digest of the code of it that decides the numbers of a point."""
        return self.code.digests(self.reached(point))

    def reached(self, point: Point, counts: Counts = _decides_numbers) -> set[Name]:
        """The definitions that decide the numbers of a point.

        Args:
            point: The point.
            counts: Which definitions count for a point that trains; all count for a benchmark.
        """
        entries = [Name(*entry_of(point).split(":")), Name(f"{RUN}.worker", "set_up_torch")]
        if point.start == "parent":
            # It starts from the checkpoint of its dense parent.
            entries.append(Name(f"{RUN}.train", "run_dense_point"))
        if point.stage == "benchmark":
            return self.code.reached(entries, self._found_by_name(point), lambda name, _: name.module not in TELLING)
        return self.code.reached(entries, self._found_by_name(point), counts)

    def of_language(self, tasks: Sequence[str]) -> str:
        """Digest of what builds the requests of lm-eval tasks and makes metrics of their scores."""
        folder = self._package / "experiment" / "language" / "tasks"
        files = [file for task in tasks if (file := folder / f"{task}.yaml").is_file()]
        included = {part for file in files for part in folder.glob("_*.yaml") if part.name in file.read_text()}
        entries = [
            Name("blast.experiment.language.stage", "compute_language_metrics"),
            Name("blast.experiment.data.prepare", "build_dataset_requests"),
        ]
        return self.code.digest(self.code.reached(entries, counts=_decides_numbers), [*files, *included])

    def families(self, architecture: str) -> list[str]:
        """The modules of `blast.architectures` that list an architecture; all of them if none names it."""
        files = sorted((self._package / "architectures").glob("[!_]*.py"))
        modules = {name: self.code.module(name) for name in (f"blast.architectures.{file.stem}" for file in files)}
        found = {name: module for name, module in modules.items() if module and "ARCHITECTURES" in module.definitions}
        return [name for name, module in found.items() if _names(module, architecture)] or list(found)

    def _found_by_name(self, point: Point) -> list[str]:
        dataset, _, tokenizer = (point.dataset or "").partition("@")
        architectures = {point.architecture, tokenizer, point.data.get("tokenizer")} - {"", None}
        modules = [module for name in sorted(architectures) for module in self.families(name)]
        modules += [f"blast.datasets.{dataset}"] if dataset else []
        modules += [f"blast.benchmark.{point.benchmark['suite']}"] if point.benchmark else []
        return modules


def _names(module: Module, architecture: str) -> bool:
    """Whether a string of a module is the name of an architecture, or an f-string may be."""
    for node in (part for body in module.definitions.values() for stmt in body for part in ast.walk(stmt)):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values]
            if parts != [".+"] and re.fullmatch("".join(parts), architecture):
                return True
        elif isinstance(node, ast.Constant) and node.value == architecture:
            return True
    return False


@cache
def _installed() -> Fingerprints:
    return Fingerprints(installed_roots())


@cache
def _cache() -> CodeCache:
    return CodeCache()


_known: dict[tuple[Any, ...], Any] = {}


def _once(what: str, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What is found in the code as it was when this process looked first."""
    if (what, *key) not in _known:
        _known[what, *key] = _cache().get((what, *key), make)
    return _known[what, *key]


def _key(point: Point) -> tuple[Any, ...]:
    """Points with the same key have the same fingerprint."""
    suite = (point.benchmark or {}).get("suite")
    return entry_of(point), point.architecture, point.dataset, suite, point.data.get("tokenizer")


def fingerprint(point: Point) -> str:
    """Digest of the code that decides the numbers of a point, as it is installed here."""
    return str(_once("numbers", _key(point), lambda: _installed().of_point(point)))


def module_digests(point: Point) -> dict[str, str]:
    """By module, a short digest of the code of it that decides the numbers of a point, as it is installed here."""
    return dict(_once("modules", _key(point), lambda: _installed().modules(point)))


def training_fingerprint(point: Point) -> str:
    """Digest of the code that decides the trained model of a point, as it is installed here."""
    return str(_once("training", _key(point), lambda: _installed().of_training(point)))


def language_fingerprint(tasks: Sequence[str]) -> str:
    """Digest of what builds the requests of lm-eval tasks and makes metrics of their scores, as installed here."""
    return str(_once("language", tuple(tasks), lambda: _installed().of_language(tasks)))
