"""Builds the C++ kernels with the compiler of this machine, once, and loads them.

The library is kept in `$BLAST_CACHE/kernels` (`~/.cache/blast/kernels`), under a digest of its sources and flags, for
each kind of processor. Its own digest lies beside it: a damaged library is built again. It uses nothing of torch but
its threads, so it serves every version of torch. Several processes may ask for it at once: one builds it, the others
wait. Where the cache cannot be written, each process builds its own.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

SOURCES = ("product.cpp", "many.h", "few.h", "operands.h", "tiles.h", "vectors.h")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-exceptions", "-fno-math-errno", "-ffp-contract=fast", "-w")
AVX2 = ("avx2", "fma")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
# Kinds of processors, the best first: what the compiler calls their instructions, and what Linux calls them.
LEVELS = {
    "avx512_bf16": ((*AVX512, "avx512bf16"), (*AVX512, "avx512_bf16")),
    "avx512": (AVX512, AVX512),
    "avx2": (AVX2, AVX2),
}
COMPILERS = ("g++", "c++", "clang++")
# Seconds. A build takes about two, and others may wait in a queue for a slow one.
BUILD_TIMEOUT, LOCK_TIMEOUT = 120, 300


class UnavailableError(Exception):
    """Why the C++ kernels cannot be used here, as a sentence that says what to do."""


def levels() -> list[str]:
    """The kinds of processors that this one can stand in for, the best first.

    `ATEN_CPU_CAPABILITY`, which limits torch's own kernels, limits them too.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    known = _processor_flags()
    allowed = torch.backends.cpu.get_cpu_capability()
    return [
        level
        for level, (_, flags) in LEVELS.items()
        if known.issuperset(flags) and (allowed.startswith("AVX512") or (level == "avx2" and allowed == "AVX2"))
    ]


def load() -> ctypes.CDLL:
    """The kernels, built if the cache does not hold them.

    Raises:
        UnavailableError: without a fitting processor or compiler, or if the build fails.
    """
    possible = levels()
    if not possible:
        raise UnavailableError("the C++ kernels need Linux and an x86-64 processor with AVX2")
    cause = UnavailableError("nothing was built")
    for level in possible:
        try:
            return _loaded(level)
        except UnavailableError as error:  # an old compiler may know older processors only
            cause = error
    raise cause


def _loaded(level: str) -> ctypes.CDLL:
    digest = hashlib.sha256(repr((FLAGS, LEVELS[level])).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    name = f"cpu-{level}-{digest.hexdigest()[:16]}.so"
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=LOCK_TIMEOUT):
            library = folder / name
            if not _is_whole(library):
                partial = folder / f"{name}.{os.getpid()}"
                _compile(level, partial)
                if library.is_dir() and not library.is_symlink():
                    shutil.rmtree(library)
                built = hashlib.sha256(partial.read_bytes()).hexdigest()
                os.replace(partial, library)
                _digest_file(library).write_text(built)
        return ctypes.CDLL(str(library))
    except (OSError, Timeout, NotImplementedError, RuntimeError):
        # A cache that cannot be written, locked or loaded from, or a damaged file in it.
        return _build_apart(level)


def _is_whole(library: Path) -> bool:
    """Whether a library is what was built: a damaged one would crash the process, or compute something else."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == _digest_file(library).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _build_apart(level: str) -> ctypes.CDLL:
    """The kernels, built for this process alone."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="blast-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _compile(level, folder / "cpu.so")
        return ctypes.CDLL(str(folder / "cpu.so"))
    except OSError as error:
        raise UnavailableError(
            f"the C++ kernels cannot be built or loaded ({error}); set BLAST_CACHE to a folder"
        ) from error


def _compile(level: str, to: Path) -> None:
    compiler = _compiler()
    flags = (*FLAGS, *(f"-m{name}" for name in LEVELS[level][0]))
    command = [*compiler, *flags, str(Path(__file__).parent / SOURCES[0]), "-o", str(to)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(
            f"the C++ compiler {compiler[0]} cannot run ({error}); install g++, or set CXX"
        ) from error
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise UnavailableError(
            f"{compiler[0]} cannot build the C++ kernels ({told}); install g++ 9 or later, or set CXX"
        )


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX", "").split()
    for command in [chosen, *([name] for name in COMPILERS)]:
        if command and shutil.which(command[0]):
            return command
    raise UnavailableError("there is no C++ compiler; install one (Debian, Ubuntu: apt install g++), or set CXX")


def _cache_folder() -> Path:
    return Path(os.environ.get("BLAST_CACHE") or "~/.cache/blast").expanduser().absolute() / "kernels"


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
