"""`--set key=value`: keys of a config file that a command gives other values, checked as the file is checked."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.config import Config, GridBlock, StrictLoader, load_values, parse

# What stands for every entry of a list.
EVERY = "*"


def read_with(file: Path, given: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Reads a config file with some keys set to other values.

    Args:
        file: The file.
        given: Each `key=value`. The value is YAML: `80`, `[0.8, 0.9]`, `{steps: 80}`. The key has parts separated by
            dots: `training.default.steps`, `grid.0.seeds`, `grid.*.seeds`. A key of the blocks of `grid` alone, such as
            `sparsity`, stands for `grid.*.sparsity`.

    Returns:
        The checked config, and its values before they were checked.

    Raises:
        BlastError: one sentence with the key and the remedy.
    """
    file, values = Path(file), load_values(file)
    if not given or not isinstance(values, Mapping):
        return parse(values, file), values
    values = copy.deepcopy(dict(values))
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BlastError(f"--set {text}: give a key and a value, such as `--set training.default.steps=80`.")
        _set(values, _parts(key.strip(), values), _value(text, value), text)
    return parse(values, Path(f"{file} with --set {' '.join(given)}")), values


def _value(text: str, value: str) -> Any:
    try:
        return yaml.load(value, StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BlastError(f"--set {text}: the value is not valid YAML ({problem}); correct it.") from error


def _parts(key: str, values: Mapping[str, Any]) -> list[str]:
    """The parts of a key, from the top of the config."""
    parts = key.split(".")
    of_config, of_block = (frozenset(field.name for field in dataclasses.fields(kind)) for kind in (Config, GridBlock))
    if parts[0] in of_config:
        return parts
    if parts[0] in of_block and values.get("grid"):
        return ["grid", EVERY, *parts]
    raise unknown_name("key of --set", parts[0], of_config | of_block)


def _set(node: Any, parts: Sequence[str], value: Any, text: str) -> None:
    """Sets a key within mappings and lists; mappings that are missing are made."""
    head, rest = parts[0], parts[1:]
    if isinstance(node, list):
        places = range(len(node)) if head == EVERY else [_number(head, len(node), text)]
        for place in places:
            if rest:
                _set(node[place], rest, value, text)
            else:
                node[place] = copy.deepcopy(value)
    elif isinstance(node, dict):
        if not rest:
            node[head] = copy.deepcopy(value)
            return
        if node.get(head) is None:
            node[head] = {}
        _set(node[head], rest, value, text)
    else:
        raise BlastError(f"--set {text}: the key goes on below '{head}', but there is a single value; shorten the key.")


def _number(head: str, count: int, text: str) -> int:
    if not head.isdecimal() or int(head) >= count:
        raise BlastError(
            f"--set {text}: '{head}' is no entry of a list of {count}; give a number below {count}, or '*' for each."
        )
    return int(head)
