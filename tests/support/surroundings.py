"""What a test process inherits from whoever starts it, made the same everywhere.

Who starts the tests may be a terminal, a shell's background job, `nohup`, a hook of git, a service or a machine of CI.
They differ in signals that are ignored, the locale, `HOME`, the umask, open files and the environment.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# Settings of a user that change what is run or printed. `PYTHONPATH`, `PATH` and the proxies stay.
REMOVED = (
    *("BLAST_", "CLICOLOR", "GIT_", "HF_", "LC_", "MLFLOW_", "MPL", "PYTEST_ADDOPTS", "SLURM_", "SNAKEMAKE_", "XDG_"),
    *("COLUMNS", "FORCE_COLOR", "LANGUAGE", "LINES", "NO_COLOR"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONWARNINGS"),
    *("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"),
)
UTF8 = "C.UTF-8"
# Of git, whose own settings are in the HOME that tests do not see: who commits, and that others may own the checkout.
GIT = {"user.name": "tests", "user.email": "tests@localhost", "safe.directory": "*"}


def make_plain(home: Path) -> None:
    """Gives this process, and those that it starts, the surroundings that the tests are written for.

    Args:
        home: Folder to be `HOME`. It is kept, with what packages cache in it.
    """
    # An ignored or blocked signal is inherited by every process that a test starts.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Python itself ignores these two.
        if number not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened becomes the standard input or output of what a test starts.
            os.open(os.devnull, os.O_RDWR)
    for name in [name for name in os.environ if name.startswith(REMOVED)]:
        del os.environ[name]
    # Each process that a test starts would compile the package anew.
    sys.dont_write_bytecode = False
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        HOME=str(home),
        LANG=UTF8,
        LC_ALL=UTF8,
        TERM="dumb",
        TZ="UTC",
        MLFLOW_DISABLE_TELEMETRY="true",
        TOKENIZERS_PARALLELISM="false",
    )
    os.environ["GIT_CONFIG_COUNT"] = str(len(GIT))
    for number, (key, value) in enumerate(GIT.items()):
        os.environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    hosts = [one for one in (os.environ.get("no_proxy", ""), "127.0.0.1", "localhost") if one]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
    time.tzset()
    with suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, UTF8)
