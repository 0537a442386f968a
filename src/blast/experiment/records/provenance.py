"""Where a number comes from: commit, code, versions, machine."""

from __future__ import annotations

import ast
import datetime
import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from importlib.util import find_spec
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
# The parts of the library whose code decides what a stage measures.
MODULES = {
    "train": (
        "block_sparse",
        "sparsity",
        "layers",
        "model",
        "checkpoint",
        "download",
        "architectures",
        "datasets",
        "training",
        "evaluation",
        "experiment/run/initial_model.py",
        "experiment/run/train.py",
    ),
    "benchmark": ("benchmark", "block_sparse", "layers", "model", "sparsity", "architectures"),
    "language": (
        "evaluation",
        "datasets/_evaluation",
        "experiment/language",
    ),
}
# Training depends on what a kernel computes, which its twin defines, not on how fast: a tuned kernel retrains nothing.
KERNELS = {
    "train": ("common/*.py", "linear/ops.py", "linear/reference.py", "mlp_training/*.py"),
    "benchmark": ("**/*.py",),
}


def code_text(source: str) -> str:
    """The code alone: comments, blank lines and docstrings change nothing that is measured.

    The same for every version of Python, so that a record that another machine made is known here for what it is
    (`ast.dump` has other fields in 3.11, 3.12 and 3.13).
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return _plain(tree)


def _plain(node: object) -> str:
    if isinstance(node, list):
        return f"[{','.join(map(_plain, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Fields that are empty are new ones, as far as versions differ.
    fields = (f"{name}={_plain(value)}" for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({','.join(fields)})"


@cache
def fingerprint(stage: str) -> str:
    """Digest of the code that a stage runs; an edit of a comment does not change it."""
    package = Path(__file__).resolve().parents[2]
    files: list[Path] = []
    for part in MODULES[stage]:
        place = package / part
        files += sorted(place.rglob("*.py")) + sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
    kernels = find_spec("blast_kernels")
    if kernels and kernels.submodule_search_locations:
        folder = Path(next(iter(kernels.submodule_search_locations)))
        files += [file for pattern in KERNELS.get(stage, ()) for file in sorted(folder.glob(pattern))]
    sha = hashlib.sha256()
    for file in files:
        text = file.read_text()
        sha.update(file.name.encode() + b"\0" + (code_text(text) if file.suffix == ".py" else text).encode())
    return "sha256:" + sha.hexdigest()


@cache
def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether it has uncommitted changes; `BLAST_COMMIT` where there is no git."""
    if given := os.environ.get("BLAST_COMMIT"):
        return given, None
    root = Path(__file__).resolve().parents[4]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return answer.stdout.strip(), bool(dirty.stdout.strip())


@cache
def lock_digest() -> str | None:
    """Digest of the lock file of the checkout, if there is one."""
    file = Path(__file__).resolve().parents[4] / "requirements.lock"
    return file_digest(file) if file.is_file() else None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_name() -> str:
    """Name of the processor as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
