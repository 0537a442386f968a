"""Writes the mutants of a seed as JSON. Runs in an environment that has cosmic-ray: see `make mutate`."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from sites import Place, Unmutated, draw, modules

ROOT = Path(__file__).resolve().parents[2]


@cache
def changes(source: str, cosmetic: bool) -> dict[Place, list[tuple[str, int]]]:
    """The changes of one operator that a module can have, by place: name of the operator and its occurrence."""
    unmutated, nodes = Unmutated(source, cosmetic), list(ast_nodes(get_ast(source)))
    found: dict[Place, list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if name == "core/NoOp" or kind.arguments():
            continue
        operator = kind()
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(places):
            place = Place(*start)
            if (name, place) not in unmutated:
                found[place].append((name, occurrence))
    return found


def sites(root: Path) -> dict[str, list[tuple[str, Place, str]]]:
    """A site of each place of each module: the module, the place, and the text of its line."""
    found = {}
    for file in modules(root):
        name, source = file.relative_to(root).as_posix(), file.read_text()
        lines = source.splitlines()
        found[name] = [(name, place, lines[place.line - 1]) for place in changes(source, name.startswith("paper_"))]
    return found


def mutants(root: Path, count: int, seed: str) -> Iterator[dict[str, str | int]]:
    """The mutants that are drawn, each with the whole text of its module and a diff."""
    found = sites(root)
    everywhere = draw(found, sum(map(len, found.values())), seed)
    applied = (mutant for name, place, _ in everywhere if (mutant := mutant_at(root, name, place, seed)) is not None)
    return islice(applied, count)


def mutant_at(root: Path, name: str, place: Place, seed: str) -> dict[str, str | int] | None:
    """The mutant of one place, or None if cosmic-ray cannot write it (it fails at `except a.B`)."""
    source = (root / name).read_text()
    at_place = changes(source, name.startswith("paper_"))[place]
    [(operator, occurrence)] = draw({name: at_place}, 1, seed)
    try:
        text = mutate_code(source, get_operator(operator)(), occurrence)
    except AttributeError:
        return None
    diff = difflib.unified_diff(source.splitlines(), text.splitlines(), name, name, lineterm="", n=1)
    return {
        "id": hashlib.sha256(f"{name}\n{source}\n{text}".encode()).hexdigest()[:16],
        "module": name,
        "line": place.line,
        "operator": operator.removeprefix("core/"),
        "text": text,
        "diff": "\n".join(list(diff)[2:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", required=True)
    options = parser.parse_args()
    json.dump(list(mutants(ROOT, options.count, options.seed)), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
