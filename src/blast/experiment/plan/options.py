"""What verbs of the command `blast` have in common: how one is added, options of many verbs, and types of values."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder, in_checkout
from blast.experiment.plan.point import PointId
from blast.settings import Count, Place
from blast.settings import check as check_value

if TYPE_CHECKING:
    from blast.experiment.plan.config import Config
    from blast.experiment.plan.grid import Plan

# Adds a verb, by its name (one word, or two) and its function, whose docstring is the help: what it does, an example.
AddVerb = Callable[[str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def plan_of(config: Path) -> Plan:
    """The expanded grid of a config file."""
    from blast.experiment.plan.config import read_config
    from blast.experiment.plan.grid import expand

    return expand(read_config(config), config)


def grid_of(what: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> Grid:
    """The grid of a config file, or of the folder of a grid that ran.

    Args:
        what: A config file, or a folder such as `results/default`.
        overrides: Each `key=value`, see `plan.overrides`.
        folder: Folder of the grid; None for `results/<name>`.

    Raises:
        BlastError: if there is no such config, or the folder holds none.
    """
    from blast.experiment.plan.grid import expand
    from blast.experiment.plan.overrides import read_with

    file = what
    if what.is_dir():
        folder, file = folder or what, GridFolder(what).config
        if not file.is_file():
            raise BlastError(f"{what}: this folder has no config.yaml, so no grid ran in it; give a config file.")
    config, _ = read_with(file, overrides)
    return Grid(file, config, expand(config, file), GridFolder(folder or Path("results") / config.name))


class Grid(NamedTuple):
    """A grid: its config file, the checked config, its points, and its folder."""

    file: Path
    config: Config
    plan: Plan
    folder: GridFolder


def add_config(verb: argparse.ArgumentParser, argument: bool = True, folders: bool = False) -> None:
    """Adds a config file as argument, and `--set` for keys of it.

    Args:
        verb: The parser of the verb.
        argument: Whether to add the argument.
        folders: Whether the folder of a grid may be given too.
    """
    more = {"help": "a config file, or the folder of a grid (default: config/config.yaml)"} if folders else {}
    if argument:
        verb.add_argument("config", **config_option() | more, nargs="?")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the config, as in training.default.steps=80 or sparsity=[0.8,0.9]; may be repeated",
    )


def config_option() -> dict[str, Any]:
    """The option for a config file."""
    return {"type": Path, "default": in_checkout("config/config.yaml"), "help": "default: config/config.yaml"}


def grid_option(required: bool = True) -> dict[str, Any]:
    """The option for the folder of a grid."""
    return {"type": Path, "required": required, "help": "folder of the grid, such as results/default"}


def recorded_option() -> dict[str, Any]:
    """The option for the recorded tables."""
    return {"type": Path, "default": in_checkout("results/recorded"), "help": "default: results/recorded"}


def count(text: str) -> int:
    """The value of an option that is a number of things."""
    try:
        return check_value(Count, text, Place("option"))
    except BlastError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1") from None


def point_id(text: str) -> str:
    """The value of an option that is the id of a point: it names files, and leads out of no folder."""
    try:
        return check_value(PointId, text, Place("option"))
    except BlastError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no id of a point; an id has letters, digits, '_', '-', '@' and inner dots"
        ) from None


def ids_option() -> dict[str, Any]:
    """The argument for ids of points."""
    return {"nargs": "+", "metavar": "ID", "type": point_id, "help": "ids of points"}


def mapping(text: str) -> dict[str, Any]:
    """The value of an option that is a mapping in JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is no mapping in JSON, such as '{{\"image_size\": 32}}'")
    return values
