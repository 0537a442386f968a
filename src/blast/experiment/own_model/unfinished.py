"""What a stopped command has done, in a folder beside its result, so that the same command goes on from there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.files import read_json, write_json

SUFFIX = ".unfinished"
PLAN = "plan.json"
STATE = "training_state.pt"
# In the folder of a finished model: what it cost and gained, and the key of the command that made it.
REPORT = "prune.json"
KEYS = ("key",)


class Unfinished:
    """The folder `<out>.unfinished`.

    Args:
        out: The folder of the result.
        key: Digest of everything that determines the result.

    Attributes:
        folder: Its path.

    Raises:
        BlastError: if it is from another command.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.folder = out.with_name(out.name + SUFFIX)
        self.key = key
        self._plan = self.folder / PLAN
        if self._plan.is_file() and self.read()["key"] != key:
            raise BlastError(
                f"{self.folder} is from another command (other model, text or options); repeat that command, "
                "delete the folder, or give another --out."
            )

    @property
    def state_file(self) -> Path:
        """The file of the training state."""
        return self.folder / STATE

    def read(self) -> dict[str, Any] | None:
        """What `write` kept; None if nothing was."""
        if not self._plan.is_file():
            return None
        return read_json(self._plan, "plan of a stopped command", "delete it and run again.", KEYS)

    def write(self, values: dict[str, Any]) -> None:
        """Keeps values that the next run of the same command needs."""
        write_json(self._plan, {"key": self.key, **values})

    def remove(self) -> None:
        """Deletes the folder of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_place(out: Path) -> None:
    """Refuses a folder that holds something else than a model that `blast prune` made.

    Raises:
        BlastError: if there is such a thing.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / REPORT).is_file()):
        return
    if out.exists():
        raise BlastError(f"{out} exists and holds something else than a pruned model; give another folder as --out.")


def finished_report(out: Path, key: str) -> dict[str, Any] | None:
    """The report of a model that the same command made before; None if there is none.

    Raises:
        BlastError: if the folder holds a model that another command made.
    """
    if not (out / REPORT).is_file():
        return None
    found = read_json(out / REPORT, "report of a pruned model", "delete the folder.", KEYS)
    if found["key"] != key:
        raise BlastError(
            f"{out} holds a model that another command pruned (other model, text or options); "
            "delete it, or give another folder as --out."
        )
    return found
