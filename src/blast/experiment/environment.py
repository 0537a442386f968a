"""What a report of a bug has to say of the machine: versions, commit, GPUs, disk, caches; no secrets, no names."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from blast.download.cache import cache_root
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.plan.resources import usable_cores, usable_memory
from blast.experiment.records import provenance

PACKAGES = ("torch", "torchvision", "triton", "transformers", "safetensors", "numpy", "snakemake", "mlflow", "lm_eval")
# Variables that change what a run does; none of them is a secret, and of addresses the password is left out.
VARIABLES = (
    "BLAST_CACHE",
    "BLAST_COMMIT",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MLFLOW_TRACKING_URI",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTHONPATH",
    "TRITON_INTERPRET",
    "XDG_CACHE_HOME",
)


def describe() -> Iterator[tuple[str, str]]:
    """Each thing and what it is here."""
    commit, dirty = provenance.commit()
    yield "commit", f"{commit or 'unknown'}{' with changes' if dirty else ''}"
    lock = provenance.lock_digest()
    yield "lock file", f"{lock[:19]}" if lock else "none"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "python", f"{platform.python_version()} at {_home(Path(sys.executable))}"
    versions = provenance.versions()
    for name in PACKAGES:
        yield name, versions.get(name) or "not installed"
    yield "processor", f"{_processor()}; {usable_cores()} of {os.cpu_count()} cores usable"
    yield "memory", f"{usable_memory():.1f} GB free"
    yield "GPU", "; ".join(_gpus()) or "none that nvidia-smi lists"
    for name, place in (("checkout", CHECKOUT), ("cache", cache_root()), ("working folder", Path.cwd())):
        yield name, f"{_home(place)}, {_disk(place)}"
    for name in VARIABLES:
        if value := os.environ.get(name):
            yield name, _address(value) if "://" in value else _home(Path(value)) if "/" in value else value


def _address(value: str) -> str:
    """An address without user, password and anything behind the path."""
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _disk(place: Path) -> str:
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    used = shutil.disk_usage(there)
    return f"{used.free / 1e9:.1f} of {used.total / 1e9:.1f} GB free{'' if there == place else ' (not there yet)'}"


def _home(place: Path) -> str:
    """A path without the name of the user."""
    home = str(Path.home())
    text = str(place)
    return f"~{text.removeprefix(home)}" if home != "/" and text.startswith(f"{home}/") else text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]
