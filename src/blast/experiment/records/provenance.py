"""Where a record was made and with what: commit, versions, lock file, machine. Its code: `records.fingerprint`."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from blast.files import file_digest

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "numpy",
    "safetensors",
    "tokenizers",
    "lm_eval",
    "mlflow",
    "snakemake",
)
# A checkout on a shared filesystem may be slow to look through.
GIT_S = 60


@cache
def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout, or `BLAST_COMMIT`; and whether there are uncommitted changes (None if not known)."""
    if given := os.environ.get("BLAST_COMMIT"):
        return given, None
    try:
        answer, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except subprocess.TimeoutExpired:
        print(
            f"git did not answer in {GIT_S} s, so records hold no commit; set BLAST_COMMIT to name it.",
            file=sys.stderr,
            flush=True,
        )
        return None, None
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return answer.strip(), bool(dirty.strip())


def _git(*command: str) -> str:
    """What git prints about the checkout."""
    root = Path(__file__).resolve().parents[4]
    asked = ["git", "-C", str(root), *command]
    return subprocess.run(asked, capture_output=True, text=True, timeout=GIT_S, check=True).stdout


@cache
def lock_digest() -> str | None:
    """Digest of `requirements.lock` in the checkout; None without one."""
    file = Path(__file__).resolve().parents[4] / "requirements.lock"
    return file_digest(file) if file.is_file() else None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor as the system gives it.

    A virtual machine may hide its number: `AMD EPYC` is several generations with other instructions. Then family and
    model are added, so that records of two of them never mix.
    """
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        lines = []
    # Those of the last core; they are all alike.
    told = {key.strip(): value.strip() for key, _, value in lines}
    name = told.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name) or not {"cpu family", "model"} <= told.keys():
        return name
    return f"{name} family {told['cpu family']} model {told['model']}"


def hardware() -> dict[str, str | None]:
    """`hardware` (a name fit for a folder), `gpu` and `driver` (None without one)."""
    import torch

    if not torch.cuda.is_available():
        return {"hardware": "cpu-" + _slug(cpu_name()), "gpu": None, "driver": None}
    name = torch.cuda.get_device_name()
    try:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout.split()[0]  # fmt: skip
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return {"hardware": _slug(name), "gpu": name, "driver": driver}


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
