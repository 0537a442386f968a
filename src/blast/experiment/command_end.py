"""How every command of the suite ends: what a person can mend is one sentence and an exit code, never a traceback.

`ended("blast", run)` is around each command; a script of the workflow has its own prefix and code. It holds what all
commands have in common: errors of ours, a full or read-only disk, whoever finds it, a reader that stops reading, a
closed or full output, a package that is missing, and Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from blast.errors import STOPPED, STOPPED_CODE, BlastError

_AGAIN = "then run the same command again: what is done is kept."
# What to do by the number of an error of the system.
_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"free some space, {_AGAIN}")
_CLOSED = dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "change its permissions, or give another path.")
_TAKEN = dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "give another path, or move away what is there.")
_REMEDIES = _FULL | _CLOSED | _TAKEN
_NOT_INSTALLED = (
    "the package '{}' is not installed in this environment; run `make env` for a new environment with all packages, or "
    "`pip install -e '.[experiment]'` in this one."
)


def ended(prefix: str, run: Callable[[], int], code: int = 2) -> int:
    """Runs a command and returns its exit code.

    A reader that stops reading, as in `blast list | head`, stops no work and is no error. An output that cannot be
    written, to a full disk for instance, is one: the work is done, and then a sentence says what was lost.

    Args:
        prefix: What a sentence begins with, usually the name of the command.
        run: The command.
        code: Exit code of an error that a person can mend.
    """
    with _guarded_output() as output:
        try:
            found = run()
        except BlastError as error:
            found, sentence = code, str(error)
        except ModuleNotFoundError as error:
            # A missing module of ours is a bug.
            if (error.name or "blast").startswith("blast"):
                raise
            found, sentence = code, _NOT_INSTALLED.format(error.name)
        except KeyboardInterrupt:
            found, sentence = STOPPED_CODE, STOPPED
        except Exception as error:
            if (sentence := system_sentence(error)) is None:
                raise
            found = code
        else:
            sentence = None
        if sentence is not None:
            print(f"{prefix}: {sentence}", file=sys.stderr)
        output.flush()
        if output.fault is not None and not isinstance(output.fault, BrokenPipeError):
            lost = f"{output.fault.strerror}); free some space, or send the output elsewhere, and run it again"
            print(f"{prefix}: a part of the output could not be written ({lost}.", file=sys.stderr)
            found = found or code
    return found


def system_sentence(error: BaseException | None) -> str | None:
    """The sentence for an error of the file system; None if it is another error.

    Libraries that write files in other languages (safetensors, torch) raise errors of their own: these are known by
    the words of the system in them.
    """
    while error is not None:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _REMEDIES):
            place = error.filename if error.filename is not None else "a file"
            other = "give another path, or change its permissions."
            remedy = _REMEDIES.get(error.errno or 0, other)
            verb = "cannot be written" if error.errno in _FULL else "cannot be used"
            return f"{os.fsdecode(place)}: {verb} ({error.strerror}); {remedy}"
        for number in (*_FULL, errno.EROFS):
            if os.strerror(number) in str(error):
                return f"a file cannot be written ({os.strerror(number)}); {_REMEDIES[number]}"
        error = error.__cause__
    return None


class _Guard:
    """An output of this process that takes what is written also when nobody can receive it; `fault` is why."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self._try(lambda: self._stream.writelines(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], Any]) -> None:
        if self.fault is not None:
            return
        try:
            action()
        except OSError as error:
            self.fault = error
            # Python writes what is left in its buffer at the end, and child processes write to the same place.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def guard_output() -> _Guard:
    """Lets this process go on when its output or its errors cannot be written; returns the guard of its output.

    A process whose standard streams are closed gets empty ones: the next file that it opens would take their place,
    and what libraries print would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, stream if isinstance(stream, _Guard) else _Guard(stream))
    return sys.stdout  # type: ignore[return-value]


@contextlib.contextmanager
def _guarded_output() -> Iterator[_Guard]:
    before = sys.stdout, sys.stderr
    try:
        yield guard_output()
    finally:
        # Also of a `--help`, which ends with SystemExit.
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
