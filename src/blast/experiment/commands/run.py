"""The verb `run`: starts Snakemake with the right profile, and shows how far it is."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.options import AddVerb, add_config, config_option, count
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.resources import usable_cores
from blast.files import write_atomically

# Seconds between two looks at the files of a run.
PAUSE = 0.5
# Executors whose plugins `make clusters` installs.
CLUSTERS = ("slurm", "kubernetes")
# What stops a run: Ctrl-C, `kill`, a terminal that closes.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(options: argparse.Namespace) -> int:
    """Runs a grid through Snakemake, with bars on a terminal and plain lines elsewhere; a stopped run goes on.

    Words that do not end with .yaml are targets, such as `points`, `tables` or the path of a figure. What follows `--`
    goes to Snakemake. Ctrl-C stops all jobs; the same command goes on from there.

    Example: blast run config/smoke.yaml
    Example: blast run config/smoke.yaml points --cores 4 --set name=trial --set training.default.steps=80
    """
    from blast.experiment.plan.overrides import read_with

    file, targets, more = _words(options.words)
    config, values = read_with(file, options.set)
    folder = GridFolder(Path("results") / config.name)
    with _config_file(file, values, options.set, folder, options.dry_run) as used:
        command = _command(used, targets, more, options)
        if options.dry_run:
            return subprocess.run(command, env=_environment(), check=False).returncode
        return _watched(command, folder, whole=targets == ["all"], plain=options.plain)


def _words(words: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """The config file, the targets, and the options for Snakemake."""
    rest, more = list(words), []
    start = next((place for place, word in enumerate(rest) if word.startswith("-")), len(rest))
    rest, more = rest[:start], rest[start:]
    configs = [word for word in rest if word.endswith((".yaml", ".yml"))]
    if len(configs) > 1:
        raise BlastError(f"'{configs[0]}' and '{configs[1]}' are both config files; give one, as one run is one grid.")
    targets = [word for word in rest if word not in configs]
    return Path(configs[0]) if configs else config_option()["default"], targets or ["all"], more


@contextmanager
def _config_file(file: Path, values: Any, overrides: Sequence[str], folder: GridFolder, dry: bool) -> Iterator[Path]:
    """The config file for Snakemake; with `--set`, one in the folder of the grid, where jobs read it too."""
    if not overrides:
        yield file
        return
    import yaml

    text = f"# {file} with --set {' '.join(overrides)}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not dry:
        write_atomically(folder.given, text)
        yield folder.given
        return
    with tempfile.TemporaryDirectory() as place:
        write_atomically(Path(place) / file.name, text)
        yield Path(place) / file.name


def _command(config: Path, targets: Sequence[str], more: Sequence[str], options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(CHECKOUT / "Snakefile"), *targets]
    command += ["--configfile", str(config)]
    if options.profile:
        _check_plugin(profile := _profile(options.profile))
        command += ["--profile", str(profile)]
    if options.cores or not options.profile:
        command += ["--cores", str(options.cores or usable_cores())]
    return [*command, *(["--dry-run"] if options.dry_run else []), *more]


def _profile(name: str) -> Path:
    """The folder of a profile: one of `profiles/` by its name, or any by its path."""
    profiles = CHECKOUT / "profiles"
    known = sorted(file.parent.name for file in profiles.glob("*/config*.yaml"))
    if name in known:
        return profiles / name
    if Path(name).is_dir():
        return Path(name)
    raise unknown_name("profile", name, known)


def _check_plugin(profile: Path) -> None:
    """Refuses a profile whose jobs need a plugin that is not installed; Snakemake would print all of its options."""
    import yaml

    for file in sorted(profile.glob("config*.yaml")):
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        executor = given.get("executor") if isinstance(given, dict) else None
        if executor in CLUSTERS and find_spec(f"snakemake_executor_plugin_{executor}") is None:
            raise BlastError(f"{file}: Snakemake's plugin for '{executor}' is not installed; run 'make clusters'.")


def _environment() -> dict[str, str]:
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1", **os.environ}


def _watched(command: Sequence[str], folder: GridFolder, whole: bool, plain: bool) -> int:
    """Runs Snakemake and shows how far it is; returns its exit code."""
    from blast.experiment.commands.display import display_of
    from blast.experiment.todo.watch import Watch

    watch = Watch(folder, time.time(), whole)
    # In a group of its own, so that Ctrl-C reaches it once, by way of this process, whatever started it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(),
        start_new_session=True,
    )
    with display_of(process.stdout, plain) as display, _stopped_with(process, display.say):
        while process.poll() is None:
            began = time.monotonic()
            if (look := watch.look()) is not None:
                display.show(look)
            # Looking at a large grid takes a small share of the time.
            time.sleep(max(PAUSE, 20 * (time.monotonic() - began)))
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@contextmanager
def _stopped_with(process: subprocess.Popen[bytes], say: Any) -> Iterator[None]:
    """Stops a process group where this process is told to stop: at first as Ctrl-C does, the third time at once."""
    told = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told += 1
        if told == 1:
            say("stopping all jobs; what is done is kept, and the same command goes on from there.")
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT if told < 3 else signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_verbs(verb: AddVerb) -> None:
    """Adds the verb.

    Args:
        verb: Adds one verb.
    """
    made = verb("run", run)
    made.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG.yaml|TARGET",
        help="a config file (default: config/config.yaml), and targets",
    )
    add_config(made, argument=False)
    made.add_argument("--cores", type=count, metavar="N", help="cores to use (default: all that this process may use)")
    made.add_argument("--profile", metavar="NAME", help="a folder of profiles/, such as slurm, or the path of one")
    made.add_argument("-n", "--dry-run", action="store_true", help="only tell what Snakemake would run")
    made.add_argument("--plain", action="store_true", help="plain lines on a terminal too")
