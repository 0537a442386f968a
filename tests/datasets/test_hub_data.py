"""Data of the hub from local copies in its own layout: texts, sentences, photographs, evaluation sets."""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from hub_copies import VOCABULARY, copy_glue, copy_photographs, copy_texts, copy_weights, sentences, write_parquet

from blast import architectures, datasets
from blast.datasets import imagenet, mrpc, rte, sst2, wikitext103
from blast.datasets._evaluation import sets
from blast.datasets._text import prepare
from blast.datasets._text.token_shards import ShardWriter, TokenShards, open_shards
from blast.datasets._text.tokenizer import load_tokenizer
from blast.download.sources import RemoteFile
from blast.errors import BlastError
from blast.files import file_digest, json_digest


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    copy_texts(folder)
    for data in (sst2._DATA, mrpc._DATA, rte._DATA):
        copy_glue(folder, data)
    copy_weights("llama-3.2-1b", folder)
    return folder


@pytest.mark.parametrize("name", ["wikitext103", "openwebtext"])
def test_parquet_files_become_packed_tokens_with_digests(name, cache):
    module, settings = datasets.get(name), {"vocab_size": VOCABULARY}
    if name == "openwebtext":
        settings["held_out"] = 0.3
    fetched = module.fetch(cache)
    assert fetched["files"] == (3 if name == "wikitext103" else 2)
    facts = module.prepare(cache, settings)
    data = module.load(cache, settings)
    tokenizer = load_tokenizer(data.tokenizer_dir)
    end = tokenizer.token_to_id("<|endoftext|>")
    documents = np.split(data.train, np.flatnonzero(data.train == end) + 1)[:-1]
    assert len(documents) == facts["counts"]["train_documents"]
    texts = [tokenizer.decode(document[:-1].tolist()) for document in documents]
    if name == "wikitext103":
        lines = sentences(40)
        assert texts == [f" = Title {place} = \n{line}" for place, line in enumerate(lines)]
    for file, digest in facts["digests"].items():
        assert digest == file_digest(Path(facts["folder"]) / file)


def test_a_text_in_the_tokens_of_a_published_model(cache):
    module = datasets.get("wikitext103@llama-3.2-1b")
    module.fetch(cache)
    own = datasets.get("wikitext103").prepare(cache, {"vocab_size": 300})
    theirs = module.prepare(cache, {"vocab_size": 300})
    published = load_tokenizer(architectures.tokenizer_folder("llama-3.2-1b", cache))
    assert (own["vocab_size"], theirs["vocab_size"]) == (300, published.get_vocab_size())
    assert own["digest"] != theirs["digest"]
    assert own["source_digest"] == theirs["source_digest"]
    data = module.load(cache, {})
    assert data.bytes_of(torch.from_numpy(data.validation.astype(np.int64))) == theirs["counts"]["validation_bytes"]


def test_a_long_tokenisation_reports_its_progress(cache, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "PROGRESS_EVERY_S", 0.0)
    datasets.get("wikitext103").prepare(cache, {"vocab_size": 290})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 10
    assert all(line.startswith("wikitext103: ") and line.endswith(" MB of text tokenised") for line in lines)


def test_a_tokenizer_that_an_image_dataset_cannot_have_is_refused():
    with pytest.raises(BlastError, match="'mnist' holds images"):
        datasets.get("mnist@gpt2")


@pytest.mark.parametrize("module", [sst2, mrpc, rte])
def test_sentences_become_padded_tokens_and_labels(module, cache):
    module.fetch(cache)
    facts = module.prepare(cache, {"vocab_size": VOCABULARY, "length": 80})
    data = module.load(cache, {"vocab_size": VOCABULARY, "length": 80})
    assert facts["counts"] == data.counts == {"train": 48, "test": 12}
    tokenizer = load_tokenizer(data.tokenizer_dir)
    for row, label in zip(data.test_tokens, data.test_labels, strict=True):
        text = tokenizer.decode([token for token in row.tolist() if token != data.pad_token])
        assert text.startswith(("bad ", "good ")[label])
        assert text.count(".\n") == len(module._DATA.columns)
    tokens, labels = data.train_batch(0, 8, seed=0)
    assert tokens.shape[0] == len(labels) == 8
    assert (tokens[:, -1] != data.pad_token).any()
    assert torch.equal(tokens, data.train_batch(0, 8, seed=0)[0])


def test_twenty_photographs_are_read_from_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("BLAST_IMAGENET", str(copy_photographs(tmp_path / "pictures")))
    facts = imagenet.prepare(tmp_path, {"image_size": 32})
    data = imagenet.load(tmp_path, {"image_size": 32, "augment": "shift_flip"})
    assert facts["counts"] == {"train": 16, "test": 4}
    images = data.train_batch(3, 5, seed=1)[0]
    assert images.shape == (5, 3, 32, 32)
    assert torch.equal(images, data.train_batch(3, 5, seed=1)[0])
    assert data.test(2)[1].tolist() == [0, 1]
    assert sorted(torch.cat([found for _, found in data.test_batches(3)]).tolist()) == [0, 1, 2, 3]


def test_shards_read_as_one_array(tmp_path):
    tokens = np.arange(1000, dtype="<u2")
    with ShardWriter(tmp_path, "train", limit=90) as writer:
        for part in np.split(tokens, range(40, 1000, 40)):
            writer.write(part)
    assert writer.files[:2] == ["train.bin", "train.00001.bin"]
    shards = open_shards(tmp_path, writer.files, "<u2")
    assert isinstance(shards, TokenShards)
    assert len(shards) == 1000
    places = np.random.default_rng(0).integers(0, 960, 50)[:, None] + np.arange(33)
    assert np.array_equal(shards[places], tokens[places])
    assert np.array_equal(shards[100:900:7], tokens[100:900:7])
    assert sum((tmp_path / file).stat().st_size for file in writer.files) == 2000


ROWS = {
    "hellaswag": {
        "ind": 3, "activity_label": "Tea", "ctx_a": "A man.", "ctx_b": "he", "endings": list("abcd"), "label": "2"
    },
    "piqa": {"goal": "Open a jar", "sol1": "turn it", "sol2": "eat it", "label": 0},
    "arc_easy": {"id": "x", "question": "Which?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
    "boolq": {"question": "is it", "answer": True, "passage": "It is."},
    "mmlu": {"question": "2+2?", "subject": "arithmetic", "choices": list("1234"), "answer": 3},
}  # fmt: skip


@pytest.fixture
def small_sets(monkeypatch, tmp_path):
    """The sets of `ROWS` with the digests of three rows each, and a package that holds the same rows."""
    stream = {}
    for name, row in ROWS.items():
        found = sets.BY_NAME[name]
        rows = [found.row(row)] * 3
        monkeypatch.setitem(sets.BY_NAME, name, replace(found, digest=json_digest(rows, escaped=True), count=3))
        table = pyarrow.Table.from_pylist([row] * 3)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        member = f"{sets.PACKAGED}{found.packaged.replace('*', 'some')}data-00000-of-00001.arrow"
        stream[member] = sink.getvalue().to_pybytes()
    folder = tmp_path / "packaged" / "evaluation"
    folder.mkdir(parents=True)
    wheel = folder / sets.WHEEL.name
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, content in stream.items():
            archive.writestr(member, content)
    monkeypatch.setattr(sets, "WHEEL", RemoteFile(wheel.name, file_digest(wheel)))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_the_hub_and_the_package_give_the_same_rows_and_digest(name, small_sets, tmp_path_factory):
    packaged = sets.prepare(name, small_sets)
    assert packaged["source"].startswith("PyPI package")
    other = tmp_path_factory.mktemp("other")
    found = sets.get(name)
    file = found.files[0].replace("[!a]*", "biology").replace("*validation*", "data/validation")
    file = file.replace("-*", "-00000-of-00001")
    write_parquet(found.hub, other, file, {key: [value] * 3 for key, value in ROWS[name].items()})
    if len(found.files) > 1:
        empty = pyarrow.Table.from_pylist([ROWS[name]])[:0].to_pydict()
        write_parquet(found.hub, other, "anatomy/test-00000-of-00001.parquet", empty)
    hub = sets.prepare(name, other)
    assert hub["source"].startswith("http")
    assert hub["digest"] == packaged["digest"]
    assert Path(hub["file"]).read_bytes() == Path(packaged["file"]).read_bytes()
    assert len([json.loads(line) for line in Path(hub["file"]).read_text().splitlines()]) == 3


def test_lines_of_json_may_hold_other_line_separators(small_sets, monkeypatch):
    known = sets.get("lambada")
    text = "one\u2028two three"
    rows = [known.row({"text": text})]
    monkeypatch.setitem(sets.BY_NAME, "lambada", replace(known, digest=json_digest(rows, escaped=True), count=1))
    file = known.hub.folder(small_sets) / known.files[0]
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = sets.prepare("lambada", small_sets)
    assert facts["count"] == 1
    assert facts["source"].startswith("http")


def test_other_rows_under_the_same_name_are_refused_and_the_package_is_taken(small_sets):
    write_parquet(
        sets.get("piqa").hub, small_sets, "data/validation-00000-of-00001.parquet",
        {"goal": ["other"], "sol1": ["a"], "sol2": ["b"], "label": [1]},
    )  # fmt: skip
    assert sets.prepare("piqa", small_sets)["source"].startswith("PyPI package")


def test_a_set_that_no_source_has_names_each_with_its_reason(small_sets, monkeypatch):
    monkeypatch.setattr(sets, "_packaged_rows", _no_package)
    with pytest.raises(BlastError) as caught:
        sets.prepare("piqa", small_sets)
    message = str(caught.value)
    assert "evaluation set piqa" in message
    assert "refused" in message
    assert "no package here" in message
    assert "\n" not in message


def _no_package(*_):
    raise BlastError("no package here.")


def _fetch_and_prepare(cache: Path, log: Path) -> None:
    original = wikitext103._DATA.rows
    count = 0

    def counted(self, *arguments):
        nonlocal count
        count += 1
        return original(*arguments)

    type(wikitext103._DATA).rows = counted
    wikitext103.fetch(cache)
    wikitext103.prepare(cache, {"vocab_size": VOCABULARY})
    with open(log, "a") as handle:
        handle.write(f"{count}\n")


def test_two_processes_prepare_one_text_once(tmp_path):
    copy_texts(tmp_path)
    log = tmp_path / "log"
    workers = [
        multiprocessing.get_context("fork").Process(target=_fetch_and_prepare, args=(tmp_path, log)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Two splits, read for the tokenizer and for the tokens, by one of them.
    assert sorted(log.read_text().split()) == ["0", "4"]
