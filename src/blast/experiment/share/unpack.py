"""Takes in a bundle, or the folder of another machine. Nothing in it is trusted; refused, it changes nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blast.errors import BlastError
from blast.evaluation.item_scores import read_item_scores
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.import_records import Imported, import_records
from blast.experiment.records.record import read_language, read_record
from blast.experiment.share.manifest import LARGEST, NAME, Manifest
from blast.files import CHUNK, replacing
from blast.untrusted import NotPlainFileError, check_plain, parse_json

AGAIN = "copy it again, or ask for it again."
# Bytes of the extension of a header, which holds the size of a file of more than 8 GB.
LARGEST_EXTENSION = 1 << 16


def import_from(source: Path, folder: GridFolder, replace: bool = False, digest: str | None = None) -> Imported:
    """Copies the records of another machine into a grid, from a folder or from a bundle.

    Args:
        source: A folder laid out like `results/<grid>`, or a file that `blast export` wrote.
        folder: The grid.
        replace: See `import_records`.
        digest: Begin of the digest that the bundle has to have; None for any.

    Raises:
        BlastError: if something of it is damaged or not as it should be; one sentence, and nothing is changed.
    """
    if source.is_dir():
        if digest:
            raise BlastError(f"{source}: a folder has no digest; leave --digest out, or give a bundle.")
        return import_records(source, folder, replace)
    with unpacked(source, folder.root, digest) as staged:
        languages = [name for name in _names(staged) if _check_language(staged, name)]
        try:
            done = import_records(staged.root, folder, replace)
        except BlastError as error:
            raise _of_bundle(error, staged) from error
        for name in languages:
            # Metrics that are here stay, unless their record was replaced.
            if name not in done.known or not folder.language(name).is_file():
                for file, place in ((staged.language(name), folder.language(name)),
                                    (staged.item_scores(name), folder.item_scores(name))):  # fmt: skip
                    if file.is_file():
                        with replacing(place) as temporary:
                            shutil.copyfile(file, temporary)
    return done


def _names(folder: GridFolder) -> list[str]:
    return sorted(file.stem for file in (folder.root / "records").glob("*.json"))


def _of_bundle(error: BlastError, staged: GridFolder) -> Exception:
    """The error of a file in the unpacked bundle, which is gone when it is read."""
    said = str(error)
    if not said.startswith(str(staged.root)):
        return BlastError(said.replace(str(staged.root), "the bundle"))
    reason, _, _ = said.removeprefix(str(staged.root)).lstrip("/: ").rpartition(";")
    return _DamagedError(reason)


def _check_language(staged: GridFolder, name: str) -> bool:
    """Whether a point has language metrics of its record; refuses damaged ones."""
    if not staged.language(name).is_file():
        return False
    try:
        language = read_language(staged.language(name))
        if staged.item_scores(name).is_file():
            read_item_scores(staged.item_scores(name))
    except BlastError as error:
        raise _DamagedError(f"the language metrics of '{name}' cannot be read") from error
    try:
        return language.get("record_digest") == read_record(staged.record(name))["record_digest"]
    except BlastError as error:
        raise _of_bundle(error, staged) from error


@contextmanager
def unpacked(source: Path, near: Path, digest: str | None = None) -> Iterator[GridFolder]:
    """A bundle as the folder of a grid, whole and verified; it is removed at the end.

    Args:
        source: The bundle.
        near: The folder is made on the disk of this path.
        digest: See `import_from`.

    Raises:
        BlastError: if it is no bundle, is damaged, or is too large for the disk.
    """
    home = next(place for place in near.absolute().parents if place.is_dir())
    try:
        check_plain(source)
        size = source.stat().st_size
        with source.open("rb") as stream, tempfile.TemporaryDirectory(prefix=".blast-import-", dir=home) as place:
            with _opened(stream) as tar:
                manifest = _manifest(tar, size)
                _check_digest(manifest, digest)
                _check_space(manifest, home)
                _unpack(tar, manifest, Path(place))
            yield GridFolder(Path(place, "grid"))
    except FileNotFoundError as error:
        if error.filename not in (source, str(source)):
            raise
        raise BlastError(
            f"{source}: there is no such bundle or folder; give the file that `blast export` wrote."
        ) from error
    except NotPlainFileError as error:
        raise BlastError(f"{source}: {error}; give the file that `blast export` wrote.") from error
    except _DamagedError as error:
        raise BlastError(
            f"{source}: this bundle is damaged or altered ({str(error).removesuffix('.')}); {AGAIN}"
        ) from error


class _DamagedError(Exception):
    """What is wrong with a bundle."""


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, which has to be an ordinary file."""
    if tar.fileobj is not None:
        _check_header(tar.fileobj, tar.offset)
    try:
        member = tar.next()
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError, MemoryError) as error:
        raise _DamagedError("it is no whole tar file") from error
    # Members are not kept: a bundle may have many.
    tar.members = []  # type: ignore[attr-defined]
    if member is not None and not (member.isreg() and not member.issparse()):
        raise _DamagedError("it holds something else than ordinary files")
    return member


def _check_header(stream: IO[bytes], place: int) -> None:
    """Refuses what `tarfile` would read at once however long it is: a file has to follow, with one short extension."""
    for allowed in ((b"0", b"\0", b"x"), (b"0",)):
        stream.seek(place)
        header = stream.read(tarfile.BLOCKSIZE)
        if len(header) < tarfile.BLOCKSIZE:
            return
        kind = header[156:157]
        if kind not in allowed:
            raise _DamagedError("it holds something else than ordinary files")
        if kind != b"x":
            return
        size = header[124:136].strip(b"\0 ")
        if not re.fullmatch(rb"[0-7]{1,11}", size) or int(size, 8) > LARGEST_EXTENSION:
            raise _DamagedError("the extension of a header is too long")
        place += tarfile.BLOCKSIZE * (1 + -(-int(size, 8) // tarfile.BLOCKSIZE))


def _opened(stream: IO[bytes]) -> tarfile.TarFile:
    # It reads the first header when it is opened.
    _check_header(stream, 0)
    stream.seek(0)
    try:
        return tarfile.open(fileobj=stream, mode="r:")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise _DamagedError("it is no whole tar file") from error


def _manifest(tar: tarfile.TarFile, packed: int) -> Manifest:
    member = _next(tar)
    if member is None or member.name != NAME or not 0 <= member.size <= min(LARGEST, packed):
        raise _DamagedError("it does not begin with a manifest")
    try:
        stream = tar.extractfile(member)
        content = stream.read() if stream else b""
        return Manifest.from_dict(parse_json(content), packed)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise _DamagedError(str(error) if isinstance(error, BlastError) else "its manifest cannot be read") from error


def _check_digest(manifest: Manifest, digest: str | None) -> None:
    if digest and not manifest.digest.removeprefix("sha256:").startswith(digest.removeprefix("sha256:")):
        raise _DamagedError(f"its digest is {manifest.digest}, not {digest[:80]}")


def _check_space(manifest: Manifest, home: Path) -> None:
    # Once where it is unpacked, and once where it is copied to.
    need, free = 2 * sum(each.size for each in manifest.files.values()), shutil.disk_usage(home).free
    if need > free:
        raise BlastError(f"{home}: the import needs {need:,} bytes and the disk has {free:,}; free some space.")


def _unpack(tar: tarfile.TarFile, manifest: Manifest, place: Path) -> None:
    """Writes each content, compares it with its digest, and puts it where it belongs."""
    waiting = manifest.contents
    paths: dict[str, list[str]] = {}
    for path, content in manifest.files.items():
        paths.setdefault(content.name, []).append(path)
    while (member := _next(tar)) is not None:
        content = waiting.pop(member.name, None)
        if content is None:
            raise _DamagedError("it holds a content twice, or one that its manifest does not name")
        if member.size != content.size:
            raise _DamagedError(f"a content has {member.size:,} bytes instead of {content.size:,}")
        file = place / "content"
        if _copy(tar, member, file) != content.digest:
            raise _DamagedError(f"a content is not the one of its digest, as of {paths[member.name][0]}")
        for number, path in enumerate(paths[member.name]):
            target = place / "grid" / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise _DamagedError("two files of it have one path")
                if number + 1 < len(paths[member.name]):
                    shutil.copyfile(file, target)
                else:
                    os.replace(file, target)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise _DamagedError("a file of it is a folder of another") from error
    if waiting:
        raise _DamagedError(f"{len(waiting)} of {len(manifest.contents)} contents are missing")


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> str:
    """Writes the content of a member and returns its digest."""
    state = hashlib.sha256()
    try:
        source = tar.extractfile(member)
        if source is None:
            raise _DamagedError("a content cannot be read")
        with file.open("wb") as target:
            while chunk := source.read(CHUNK):
                state.update(chunk)
                target.write(chunk)
    except tarfile.TarError as error:
        raise _DamagedError("it ends too early") from error
    return f"sha256:{state.hexdigest()}"
