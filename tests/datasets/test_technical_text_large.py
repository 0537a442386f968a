"""The large technical text: packages read as documents, and nothing in training that the small one holds out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from blast import datasets
from blast.datasets import technical_text, technical_text_large
from blast.datasets._text import text_packages
from blast.datasets._text.repeats import HeldOutText, SeenParagraphs, paragraph_key
from blast.datasets._text.text_packages import TextPackage, read_documents
from blast.datasets._text.tokenizer import load_tokenizer
from blast.datasets._text.web_page import paragraphs
from blast.download.sources import SourceError
from blast.errors import BlastError
from blast.files import write_json

SETTINGS = {"vocab_size": 400, "held_out": 0.2}
SECTIONS = 30


def sentence(place: int) -> str:
    """A sentence that no other section has, long enough to count as a repeat."""
    how = "is mounted, cleaned and oiled, and in the end replaced by a new one"
    return f"Section {place} explains how the {place}th part of the machine {how}."


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(("gz", "dz")) else content)
    return root


def page(*parts: str) -> str:
    body = "".join(f"<p>{part}</p>" for part in parts)
    return f"<html><head><title>no</title></head><body><nav>Home</nav><p>Next</p>{body}</body></html>"


@pytest.fixture
def packages(monkeypatch):
    """Two small packages beside a small `technical_text`; returns what was downloaded, one name a download."""
    asked: list[str] = []
    other = "This paragraph of the other package is long enough to count, and it stands in two of its pages and texts."
    contents = {
        "machine-doc": {
            **{
                f"usr/share/doc/machine-doc/html/page{place:02d}.html": page(
                    sentence(place), other, f"Page {place} has more to say. " * 12
                )
                for place in range(SECTIONS)
            },
            "usr/share/doc/machine-doc/copyright": "no " * 100,
        },
        "dict-machine": {
            "usr/share/dictd/machine.dict.dz": "".join(f"word{n}\n   what word {n} means here\n" for n in range(400))
        },
    }

    def unpack(package: str, work: Path) -> tuple[Path, str]:
        asked.append(package)
        return write(work / "unpacked", contents[package]), f"{package}_1.0_all.deb"

    monkeypatch.setattr(text_packages, "unpack_debian", unpack)
    monkeypatch.setattr(
        technical_text_large, "PACKAGES", (TextPackage("machine-doc", "MIT"), TextPackage("dict-machine", "BSD"))
    )
    return asked


@pytest.fixture
def cache(packages, tmp_path) -> Path:
    """A cache with a `technical_text` of thirty sections, which was fetched before."""
    folder = technical_text.raw(tmp_path)
    for package, _, _ in technical_text.PARTS:
        write_json(folder / f"{package}.json", {"package": f"{package}_1.0_all.deb"})
        (folder / package).mkdir()
    sections = {
        f"usr/share/doc/anarchism/html/sec{n}.html": page(sentence(n), f"Prose of section {n}. " * 12)
        for n in range(SECTIONS)
    }
    write(folder / "anarchism", sections)
    technical_text_large.fetch(tmp_path)
    return tmp_path


def test_it_is_fetched_once_with_progress_and_begun_again_where_it_stopped(cache, packages):
    assert packages == ["machine-doc", "dict-machine"]
    said: list[str] = []
    facts = technical_text_large.fetch(cache, said.append)
    assert packages == ["machine-doc", "dict-machine"]
    assert said == []
    assert facts["packages"]["machine-doc"] == "machine-doc_1.0_all.deb"
    assert facts["packages"]["anarchism"] == "anarchism_1.0_all.deb"
    (technical_text_large.raw(cache) / "dict-machine.json").unlink()
    technical_text_large.fetch(cache, said.append)
    assert packages[2:] == ["dict-machine"]
    assert said == ["technical_text_large: fetching the Debian package dict-machine"]


def test_what_is_held_out_is_that_of_the_small_text_and_nothing_of_it_is_trained_on(cache):
    small = [document for document in technical_text.documents(cache, 0.2) if document.held_out]
    large = list(technical_text_large.documents(cache, 0.2))
    assert small
    assert [document for document in large if document.held_out] == small
    trained = "\n".join(document.text for document in large if not document.held_out)
    held_out = {n for n in range(SECTIONS) if any(sentence(n) in document.text for document in small)}
    assert held_out
    for number in range(SECTIONS):
        # The other package has all the sentences of the small text.
        assert trained.count(sentence(number)) == (0 if number in held_out else 1)
        assert f"Page {number} has more to say." in trained


def test_paragraphs_that_repeat_are_trained_on_once(cache):
    documents = technical_text_large.documents(cache, 0.2)
    trained = "\n".join(document.text for document in documents if document.name.startswith("machine-doc"))
    assert trained.count("stands in two of its pages") == 1
    assert "Home" not in trained


def test_the_prepared_data_hold_the_same_validation_tokens_and_more_to_train_on(cache, monkeypatch):
    tokenizer = datasets.get("technical_text").load(cache, SETTINGS).tokenizer_dir
    for module in ("_text.prepare",):
        monkeypatch.setattr(f"blast.datasets.{module}.published_tokenizer", lambda *_: tokenizer)
    small, large = (datasets.get(name).load(cache, SETTINGS) for name in ("technical_text", "technical_text_large"))
    assert np.array_equal(small.validation, large.validation)
    assert large.counts["train_tokens"] > 2 * small.counts["train_tokens"]
    assert np.array_equal(large.train[: len(small.train)], small.train)
    text = load_tokenizer(large.tokenizer_dir).decode(large.train[len(small.train) :].tolist())
    assert "what word 399 means here" in text
    for name in ("heldout.jsonl", "next_line.jsonl"):
        files = [Path(datasets.get(d).prepare(cache, SETTINGS)["folder"]) / name for d in
                 ("technical_text", "technical_text_large")]  # fmt: skip
        assert files[0].read_bytes() == files[1].read_bytes()


def test_opening_it_reads_none_of_the_texts_of_packages_again(cache):
    first = technical_text_large.load(cache, SETTINGS)
    for file in technical_text_large.raw(cache).glob("*.jsonl"):
        file.unlink()
    assert technical_text_large.load(cache, SETTINGS).digest == first.digest


def test_a_package_that_cannot_be_fetched_or_holds_no_text_is_named(packages, tmp_path, monkeypatch):
    def refuse(package, work):
        raise SourceError("apt-get says: E: no network")

    monkeypatch.setattr(text_packages, "unpack_debian", refuse)
    with pytest.raises(
        BlastError, match=r"Debian package machine-doc: apt-get says: E: no network\); take 'technical_t"
    ):
        TextPackage("machine-doc", "MIT").fetch(tmp_path, "technical_text_large")
    monkeypatch.setattr(text_packages, "unpack_debian", lambda package, work: (work, "machine-doc_1.0_all.deb"))
    with pytest.raises(BlastError, match=r"machine-doc_1\.0_all\.deb holds no text; its layout has changed"):
        TextPackage("machine-doc", "MIT").fetch(tmp_path, "technical_text_large")
    assert [path.name for path in tmp_path.iterdir()] == ["machine-doc.json.lock"]
    with pytest.raises(BlastError, match=r"the texts of machine-doc are not in .*; fetch them first"):
        list(TextPackage("machine-doc", "MIT").documents(tmp_path))


def test_documents_of_a_package_are_english_texts_and_pages_and_cut_where_they_are_long(tmp_path):
    english = "The guide of the machine is in this folder, and it is for you. " * 8
    french = "Le guide de la machine est dans les dossiers et il est pour vous. " * 8
    root = write(
        tmp_path,
        {
            "usr/share/doc/a/guide.txt.gz": english,
            "usr/share/doc/a/guide.fr.html": page(english + "1"),
            "usr/share/doc/a/french.md": french,
            "usr/share/doc/a/greek.rst": "Η μηχανή είναι εδώ " * 30,
            "usr/share/doc/a/de/guide.txt": english + "2",
            "usr/share/doc/a/html/_sources/guide.rst.txt": english + "3",
            "usr/share/doc/a/changelog.txt.gz": english + "4",
            "usr/share/doc/a/genindex.html": page(english + "5"),
            "usr/share/doc/a/data.bin": english + "6",
            "usr/share/doc/a/short.txt": "Too short.",
            "usr/share/doc/a/functions-datetime.html": page(english + "7"),
            "usr/share/doc/a/broken.txt.gz": "x",
            "usr/share/doc/a/long.txt": "\n\n".join(f"{n} {english}" for n in range(400)),
        },
    )
    (root / "usr/share/doc/a/broken.txt.gz").write_bytes(b"no gzip")
    (root / "usr/share/doc/a/link.txt").symlink_to(root / "usr/share/doc/a/long.txt")
    found = {document.name: document for document in read_documents(root, "a")}
    files = {name.rpartition("/")[2].partition("#")[0] for name in found}
    assert files == {"guide.txt.gz", "functions-datetime.html", "long.txt"}
    long = [document.text for name, document in found.items() if "long.txt" in name]
    assert len(long) > 1
    assert all(len(text) < 1.1 * text_packages.DOCUMENT for text in long)
    assert "\n\n".join(text.removesuffix("\n") for text in long) == "\n\n".join(
        f"{n} {english}".rstrip("\n") for n in range(400)
    )


def test_a_page_is_its_paragraphs_without_navigation_and_scripts():
    text = (
        "<html><head><title>T</title><style>p {}</style><body class=x><nav><ul><li>Home</ul></nav>"
        "<h1>One  two</h1><script>if (a < b) no();</script><p>three <b>f</b>our<br>five<p>six &amp; seven"
        "<pre>a  = 1\n\n  b</pre><table><tr><td>1<td>2</tr></table><footer>no</footer><script/>end"
    )
    assert paragraphs(text) == ["One two", "three four", "five", "six & seven", "a  = 1\n\n  b", "1 2", "end"]
    assert paragraphs("<p>kept") == ["kept"]


def test_seen_paragraphs_never_take_a_new_one_for_an_old_one_and_may_forget():
    long = [f"{n} " + "words " * 30 for n in range(50)]
    seen = SeenParagraphs()
    assert seen.new([*long, *long, "short", "short"]) == [*long, "short", "short"]
    assert seen.new([long[0].replace(" ", "\n  ")]) == []
    # One slot: only the last one is remembered.
    small = SeenParagraphs(slots=1)
    assert small.new([*long, long[-1], long[0]]) == [*long, long[0]]
    assert paragraph_key("a  b\n") == paragraph_key("a b") != paragraph_key("ab")


@pytest.mark.parametrize("start", range(0, 60, 7))
def test_a_paragraph_gives_held_out_text_away_by_a_run_of_29_words(start):
    words = [f"word{n}" for n in range(100)]
    held_out = HeldOutText()
    held_out.add(" ".join(words), ["a paragraph of the document of 40 characters", "short"])
    for before in range(12):
        others = [f"other{n}" for n in range(before)]
        assert " ".join([*others, *words[start : start + 29], "end"]) in held_out
        assert "\n".join([*others, *words[start : start + 19], "end"]) not in held_out
    assert "a paragraph  of the document of\n40 characters" in held_out
    assert "short" not in held_out


def test_the_packages_are_each_named_once_with_a_licence():
    names = [package.name for package in technical_text_large.PACKAGES]
    assert len(names) == len(set(names))
    assert not set(names) & {package for package, _, _ in technical_text.PARTS}
    assert all(package.licence for package in technical_text_large.PACKAGES)
    assert all(package.licence in technical_text_large.LICENCE for package in technical_text_large.PACKAGES)


def test_the_documents_are_kept_in_ascii_lines(cache):
    lines = (technical_text_large.raw(cache) / "dict-machine.jsonl").read_bytes().splitlines()
    assert all(line.isascii() and json.loads(line)["paragraphs"] for line in lines)
