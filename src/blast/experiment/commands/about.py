"""The verbs that tell what there is: names, keys of configs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.options import AddVerb


def list_names(options: argparse.Namespace) -> int:
    """Lists the names that a config may use, with a line about each.

    Example: blast list datasets methods
    """
    from blast.experiment.listing import KINDS, catalogue

    for kind in options.kinds or KINDS:
        print(f"{kind}:")
        for name, description in catalogue(kind).items():
            print(f"  {name:<20} {description}")
    return 0


def schema(options: argparse.Namespace) -> int:
    """Prints the JSON schema of config files, or renews the tables of keys in a page.

    Example: blast schema > config/schema.json
    """
    from blast.experiment.plan.key_tables import with_tables
    from blast.experiment.plan.schema import schema as text
    from blast.files import write_atomically

    if options.tables:
        try:
            page = options.tables.read_text(encoding="utf-8")
        except ValueError:
            raise BlastError(f"{options.tables}: this page is no text in UTF-8; give a page in Markdown.") from None
        write_atomically(options.tables, with_tables(page))
    else:
        print(text(), end="")
    return 0


def env(options: argparse.Namespace) -> int:
    """Prints what a report of a bug needs: versions, commit, processor, GPUs, disk, caches; no secrets.

    Example: blast env
    """
    from blast.experiment.environment import describe

    for name, value in describe():
        print(f"{name:<15} {value}")
    return 0


def completion(options: argparse.Namespace) -> int:
    """Prints a script with which a shell completes verbs, options and file names.

    Example: blast completion bash > ~/.local/share/bash-completion/completions/blast
    """
    import shtab

    for action in _actions(options.command):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(options.command, shell=options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs that tell what there is.

    Args:
        verb: Adds one verb.
    """
    made = verb("list", list_names)
    made.add_argument(
        "kinds", nargs="*", metavar="KIND", help="architectures, datasets, methods, suites, figures, … (default: all)"
    )
    verb("env", env)
    made = verb("completion", completion)
    made.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    made = verb("schema", schema)
    made.add_argument("--tables", type=Path, metavar="PAGE", help="page to renew, usually config/README.md")
