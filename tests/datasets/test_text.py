"""Text: splits by file, tokens that give the text back, evaluation documents, and several processes at once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from blast.datasets import pystdlib
from blast.datasets._text import prepare
from blast.datasets._text.evaluation_documents import cut, held_out_pieces, next_line_items
from blast.datasets._text.prepare import documents_digest, is_held_out, open_text, prepare_text
from blast.datasets._text.tokenizer import load_tokenizer
from blast.datasets.pystdlib import documents, library, sources
from blast.datasets.wikitext103 import articles
from blast.download.cache import build_once
from blast.errors import BlastError
from blast.files import locked

SETTINGS = {"vocab_size": 512, "held_out": 0.3}
MODULES = ("json", "logging", "email", "collections")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A few packages of the real standard library."""
    folder = tmp_path_factory.mktemp("library")
    for name in MODULES:
        shutil.copytree(library() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def facts(root, tmp_path_factory) -> dict:
    return _prepare(tmp_path_factory.mktemp("cache"), root)


@pytest.fixture(scope="module")
def data(facts):
    return open_text(facts)


def _prepare(cache: Path, root: Path) -> dict:
    texts = partial(documents, root, SETTINGS["held_out"])
    return prepare_text(cache, "slice", texts, documents_digest(texts()), SETTINGS)


def _entries(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_sources_are_the_librarys_own_without_tests():
    found = sources(library())
    assert "argparse.py" in found
    assert "json/decoder.py" in found
    assert found == sorted(found)
    assert not any(part in pystdlib.LEFT_OUT for path in found for part in path.split("/"))


def test_symbolic_links_are_not_followed(tmp_path):
    (tmp_path / "real.py").write_text("x = 1\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "real.py")
    assert sources(tmp_path) == ["real.py"]


def test_the_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = documents_digest(documents(tmp_path, 0.5))
    assert documents_digest(documents(tmp_path, 0.5)) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    assert documents_digest(documents(tmp_path, 0.5)) != first
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert documents_digest(documents(tmp_path, 0.5)) != first


def test_held_out_is_decided_by_the_name_and_near_its_share():
    # These must never change: a model trained earlier would be tested on what it has seen.
    names = ("argparse.py", "enum.py", "json/decoder.py", "shutil.py", "smtpd.py", "typing.py")
    assert [name for name in names if is_held_out(name, 0.1)] == ["enum.py", "smtpd.py"]
    share = np.mean([is_held_out(f"file{place}.py", 0.1) for place in range(5000)])
    assert 0.08 < share < 0.12


def test_no_held_out_text_is_trained_on(root, data):
    tokenizer = load_tokenizer(data.tokenizer_dir)
    end = tokenizer.token_to_id("<|endoftext|>")
    expected = {
        split: [d.text for d in documents(root, SETTINGS["held_out"]) if d.held_out == held_out]
        for split, held_out in (("train", False), ("validation", True))
    }
    assert not set(expected["train"]) & set(expected["validation"])
    for split, texts in expected.items():
        tokens = getattr(data, split)
        ends = np.flatnonzero(tokens == end)
        parts = np.split(tokens, ends + 1)[:-1]
        assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == texts


def test_tokens_stand_for_all_bytes_of_the_text(data):
    assert int(data.token_bytes[data.validation].sum()) == data.counts["validation_bytes"]
    assert data.bytes_of(torch.from_numpy(data.train.astype(np.int64))) == data.counts["train_bytes"]


def test_transformers_loads_the_tokenizer(data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_dir)
    text = "def f(x):\n\treturn 'é'  # <- \n"
    assert len(tokenizer) == data.vocab_size == SETTINGS["vocab_size"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == load_tokenizer(data.tokenizer_dir).encode(text).ids
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0


def test_a_batch_depends_on_seed_and_step_alone(data):
    first = data.train_batch(7, 4, 32, seed=1)
    data.train_batch(8, 4, 32, seed=1)
    assert torch.equal(first, data.train_batch(7, 4, 32, seed=1))
    assert not torch.equal(first, data.train_batch(8, 4, 32, seed=1))
    assert not torch.equal(first, data.train_batch(7, 4, 32, seed=2))
    assert first.shape == (4, 33)
    assert first.dtype == torch.int64


def test_validation_chunks_overlap_in_no_target_and_reach_the_end(data):
    chunks = data.validation_chunks(50)
    assert len(chunks) == (len(data.validation) - 1) // 50
    assert np.array_equal(chunks[:, 1:].flatten().numpy(), data.validation[1 : len(chunks) * 50 + 1])
    few = data.validation_chunks(50, limit=7)
    assert len(few) == 7
    assert all(any(torch.equal(one, chunk) for chunk in chunks) for one in few)


def test_windows_longer_than_the_text_are_refused(data):
    with pytest.raises(BlastError, match="too few for windows of 100000000"):
        data.train_batch(0, 1, 100_000_000, seed=0)


def test_preparing_twice_makes_the_same_and_only_once(root, facts, tmp_path, monkeypatch):
    again = _prepare(tmp_path, root)
    assert again["digests"] == facts["digests"]
    assert again["digest"] == facts["digest"]
    monkeypatch.setattr(prepare, "train_tokenizer", lambda *_: pytest.fail("made again"))
    assert _prepare(tmp_path, root) == again


def test_evaluation_documents_are_short_whole_lines_of_held_out_files(root, facts):
    texts = {d.name: d.text for d in documents(root, SETTINGS["held_out"]) if d.held_out}
    pieces = _entries(facts["evaluation"]["heldout"])
    assert len(pieces) == facts["counts"]["evaluation_pieces"] > 10
    for piece in pieces:
        assert 1000 < len(piece["text"].encode()) <= 2000
        assert piece["text"].endswith("\n")
        assert piece["text"] in texts[piece["name"].split("#")[0]]


def test_next_line_items_have_one_right_choice_among_four_different_ones(root, facts):
    texts = {d.name: d.text for d in documents(root, SETTINGS["held_out"]) if d.held_out}
    items = _entries(facts["evaluation"]["next_line"])
    assert len(items) == facts["counts"]["next_line_items"] > 20
    for item in items:
        text = texts[item["name"].split(":")[0]]
        lines = [line.rstrip() for line in text.split("\n")]
        choices, stripped = item["choices"], {choice.strip() for choice in item["choices"]}
        assert len(choices) == len(stripped) == 4
        assert all(len(choice) >= 12 for choice in stripped)
        assert all(choice in lines for choice in choices)
        assert item["context"] in text
        assert lines[int(item["name"].split(":")[1])] == choices[item["label"]]
        assert not stripped & {line.strip() for line in item["context"].splitlines()}
    assert {item["label"] for item in items} == {0, 1, 2, 3}


def test_a_form_feed_inside_a_document_does_not_end_a_line():
    text = "".join(f"value_{line} = compute({line})\n" + ("\x0c\n" if line % 7 == 0 else "") for line in range(80))
    items = next_line_items("page.py", text)
    assert items
    assert all(item["context"] in text for item in items)


def test_evaluation_documents_do_not_depend_on_the_order_of_files():
    texts = [(f"{name}.py", "".join(f"{name} = function_{line}()\n" for line in range(200))) for name in "abc"]
    assert held_out_pieces(texts) == held_out_pieces(reversed(texts))
    assert next_line_items(*texts[0]) == next_line_items(*texts[0])


def test_cut_keeps_lines_whole_and_leaves_out_what_is_too_long():
    text = "é" * 30 + "\n" + "x" * 200 + "\n" + "y\n" * 60
    pieces = cut(text, 100)
    assert all(len(piece.encode()) <= 100 for piece in pieces)
    assert "".join(pieces) in text.replace("x" * 200 + "\n", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab": 512}, "did you mean 'vocab_size'"),
        ({"vocab_size": 100}, "'vocab_size' is 100; give a whole number of at least 257"),
        ({"held_out": 1.5}, "'held_out' is 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(BlastError, match=message):
        pystdlib.SETTINGS.filled(settings)


def test_articles_begin_at_their_titles():
    rows = [" = One = \n", "text\n", " = = Part = = \n", "more\n", " = Two = \n", "end\n"]
    assert list(articles(iter(rows))) == ["".join(rows[:4]), "".join(rows[4:])]


def _build(folder: Path, log: Path) -> dict:
    def build(aside: Path) -> dict:
        with open(log, "a") as handle:
            handle.write("built\n")
        (aside / "content").write_text("whole")
        return {"value": 1}

    return build_once(folder, build)


def test_several_processes_build_once(tmp_path):
    folder, log = tmp_path / "made", tmp_path / "log"
    workers = [multiprocessing.get_context("fork").Process(target=_build, args=(folder, log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "built\n"
    assert (folder / "content").read_text() == "whole"


def test_the_next_build_replaces_what_a_killed_one_left(tmp_path):
    folder, log = tmp_path / "made", tmp_path / "log"
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "half").write_text("half")
    assert _build(folder, log) == {"value": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["content", "contents.json", "facts.json"]


def test_a_failed_build_leaves_nothing_that_looks_finished(tmp_path):
    def fail(aside: Path) -> dict:
        (aside / "half").write_text("half")
        raise BlastError("no")

    with pytest.raises(BlastError):
        build_once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists()
    with locked(tmp_path / "made"):
        pass
