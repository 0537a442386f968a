"""The command `blast`: its verbs by what one wants to do, their help, and its start and end.

The verbs stand in `commands/` and in the `commands.py` of their rooms, each of which adds its own with `add_verbs`.
The docstring of a verb is its help: the first line says what the verb does, the rest gives an example.
"""

from __future__ import annotations

import argparse
import inspect
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import NoReturn

from blast.errors import unknown_name
from blast.experiment.command_end import ended
from blast.experiment.commands import about, grid, machines, run, stages
from blast.experiment.compare import commands as compare
from blast.experiment.gpu_tables import commands as gpu_tables
from blast.experiment.own_model import commands as own_model
from blast.experiment.plan.options import AddVerb
from blast.experiment.report import commands as report
from blast.experiment.reproduce import commands as reproduce
from blast.experiment.share import commands as share
from blast.experiment.tracking import commands as tracking

Verb = Callable[[argparse.Namespace], int]

# Each group of verbs, by what one wants to do, and the modules that add them.
GROUPS = {
    "Prune a language model of yours": [own_model],
    "Plan, run and watch a grid of experiments": [run, grid],
    "Compare, summarise, share and reproduce results": [compare, report, share, reproduce],
    "Work on several machines": [machines],
    "Measure kernels on a GPU": [gpu_tables],
    "Run one stage by hand, as jobs of the workflow do": [stages, tracking],
    "Look things up": [about],
}
DESCRIPTION = (
    "Prunes a language model of yours, and runs experiments with block-sparse transformers.\n"
    "A grid is what one config file asks for. A point is one training run or one benchmark of it."
)
EPILOG = "`blast VERB --help` explains a verb, with an example. Every page of the docs is in docs/."


class _Parser(argparse.ArgumentParser):
    """The parser of the command; its help has the verbs in groups."""

    groups: dict[str, list[tuple[str, str]]]

    def format_help(self) -> str:
        start = 4 + max(len(name) for verbs in self.groups.values() for name, _ in verbs)
        wrap = textwrap.TextWrapper(
            width=max(60, min(120, shutil.get_terminal_size().columns)), subsequent_indent=" " * start
        )
        lines = ["usage: blast VERB …", "", DESCRIPTION]
        for title, verbs in self.groups.items():
            lines += ["", f"{title}:"]
            for name, line in verbs:
                lines += wrap.wrap(f"{f'  {name}':<{start}}{line}")
        return "\n".join([*lines, "", EPILOG, ""])


def parser() -> argparse.ArgumentParser:
    """The parser of the command, with every verb."""
    made = _Parser(prog="blast", description=DESCRIPTION)
    made.groups = {}
    verbs = made.add_subparsers(required=True, metavar="VERB", parser_class=argparse.ArgumentParser)
    pairs: dict[str, argparse._SubParsersAction] = {}

    def add_to(group: list[tuple[str, str]]) -> AddVerb:
        def add(name: str, function: Verb) -> argparse.ArgumentParser:
            text = inspect.getdoc(function) or ""
            first, _, second = name.partition(" ")
            if second and first not in pairs:
                pair = verbs.add_parser(first, help=f"See `blast {name} --help`.")
                pairs[first] = pair.add_subparsers(required=True, metavar="VERB")
            verb = (pairs[first] if second else verbs).add_parser(
                second or first,
                help=text.splitlines()[0],
                description=text,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            verb.set_defaults(run=function)
            group.append((name, text.splitlines()[0]))
            return verb

        return add

    for title, modules in GROUPS.items():
        made.groups[title] = []
        for module in modules:
            module.add_verbs(add_to(made.groups[title]))
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code. An error that the user can correct is one sentence and code 2."""
    return ended("blast", lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    made = parser()
    verbs = _verbs_of(made)
    if not arguments:
        print(made.format_help(), end="")
        return 2
    if not arguments[0].startswith("-") and arguments[0] not in verbs:
        raise unknown_name("verb", arguments[0], verbs)
    options, unknown = made.parse_known_args(arguments)
    options.command = made
    if unknown:
        _refuse(unknown[0], verbs[arguments[0]])
    if threading.current_thread() is threading.main_thread():
        # A shell starts its background jobs with SIGINT ignored; `kill -INT` stops the command all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return options.run(options)


def _verbs_of(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: verb
        for action in made._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, verb in action.choices.items()
    }


def _refuse(word: str, verb: argparse.ArgumentParser) -> NoReturn:
    """Ends the command for a word that a verb does not take."""
    if word.startswith("-"):
        raise unknown_name(f"option of `{verb.prog}`", word.partition("=")[0], verb._option_string_actions)
    verb.error(f"unrecognized arguments: {word}")
