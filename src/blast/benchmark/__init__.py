"""All timing. A suite is one file of this folder with `measure(architecture, sparsity, block, seed, settings)`.

It is found by its file name. Settings of its own are listed, with their defaults, in a literal `SETTINGS` of the file;
`measure` returns the entries of a record's `metrics`. An
entry with `unfinished: True` was to be timed and the time for it ran out: its point is tried again by the next run.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name

FOLDER = Path(__file__).parent


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Suites by name with the defaults of their own settings; reads the files without running them."""
    found = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        body = ast.parse(file.read_text()).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in body):
            found[file.stem] = next(
                (ast.literal_eval(node.value) for node in body if _assigns(node, "SETTINGS")),
                {},
            )
    return found


def settings_of(suite: str, given: dict[str, Any]) -> dict[str, Any]:
    """The own settings of a suite: its defaults, and over them what is given.

    Raises:
        BlastError: if there is no such suite or setting (the message gives the nearest), or a value has another type
            than its default.
    """
    if suite not in suites():
        raise unknown_name("benchmark suite", suite, suites())
    defaults = suites()[suite]
    for key, value in given.items():
        if key not in defaults:
            raise unknown_name(f"setting of the suite '{suite}'", key, defaults)
        kind = type(defaults[key])
        if not isinstance(value, (int, float) if kind is float else kind):
            raise BlastError(f"the setting '{key}' of the suite '{suite}' is {value!r}; give a {kind.__name__}.")
    return {**defaults, **given}


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets)
