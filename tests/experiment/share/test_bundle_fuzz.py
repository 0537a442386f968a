"""Random changes to a bundle: it is refused in one sentence or taken in whole, and nothing lands elsewhere."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from fake_bundle import bring, export, files, make, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ["../up", "/tmp/up", "manifest.json", "objects/../../up", "objects/" + "0" * 64, "", ".", "a\x00b", "x" * 300]
TYPES = [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.GNUTYPE_SPARSE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
]


@cache
def bundle() -> tuple[bytes, dict[str, bytes]]:
    """A bundle, and what it holds."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        made = export(make(Path(place, "there")), Path(place, "a.tar"), "--checkpoints", "parents")
        assert bring(made, Path(place, "here")) == 0
        return made.read_bytes(), files(Path(place, "here"))


def check(place: Path, odd: Path) -> None:
    """A bundle is refused in one sentence, and nothing is there; or all of it is."""
    before = files(place)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = bring(odd, place / "grids" / "here")
    found = {path: content for path, content in files(place).items() if path not in before}
    if code:
        assert code == 2
        assert said.getvalue().startswith("blast: ")
        assert said.getvalue().count("\n") == 1
        assert not found
    else:
        assert {path.removeprefix("grids/here/"): content for path, content in found.items()} == bundle()[1]


@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_bytes_that_change_anywhere_are_noticed(at, content):
    whole = bytearray(bundle()[0])
    whole[at % len(whole) : at % len(whole) + len(content)] = content
    with tempfile.TemporaryDirectory() as place:
        Path(place, "odd.tar").write_bytes(whole)
        check(Path(place), Path(place, "odd.tar"))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_members_of_any_kind_and_name_stay_in_their_place(data):
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "a.tar")
        whole.write_bytes(bundle()[0])

        def change(members: list, manifest: dict) -> list:
            number = data.draw(st.integers(1, len(members) - 1))
            member, content = members[number]
            kind = data.draw(st.sampled_from(["name", "type", "twice", "gone", "path", "value"]))
            if kind == "name":
                member.name = data.draw(st.sampled_from(NAMES))
            elif kind == "type":
                member.type = data.draw(st.sampled_from(TYPES))
                member.linkname = "../../up"
            elif kind == "twice":
                members.append((member, content))
            elif kind == "gone":
                del members[number]
            elif kind == "path":
                path = data.draw(st.sampled_from(sorted(manifest["files"])))
                manifest["files"][data.draw(st.sampled_from(NAMES) | st.text(max_size=9))] = manifest["files"].pop(path)
            else:
                key = data.draw(st.sampled_from(sorted(manifest)))
                manifest[key] = data.draw(
                    st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=2)
                )
            return members

        # A name that no tar can hold is no case.
        with contextlib.suppress(ValueError, tarfile.TarError):
            check(Path(place), rewritten(whole, Path(place, "odd.tar"), change))
