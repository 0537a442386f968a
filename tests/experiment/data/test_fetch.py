"""`blast fetch CONFIG`: sizes and licences first, then all that can be had, and a sentence for each that cannot."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hub_copies import NINE, copy_texts, copy_weights
from mute_server import connections

from blast import datasets
from blast.download import registries, sources
from blast.experiment.cli import main
from blast.experiment.data.fetch import artifacts_of, describe, megabytes
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand

PAPER = Path(__file__).resolve().parents[3] / "config" / "paper.yaml"
SMALL = """
name: copies
training: {default: {steps: 6, batch: 4, learning_rate: 1.0e-3}}
evaluation: {tasks: {wikitext103: [text_heldout, piqa]}}
grid:
  - {architectures: [llama-3.2-1b], datasets: [wikitext103], start: pretrained, sparsity: [0]}
  - {architectures: [gpt2-nano], datasets: [pystdlib], sparsity: [0]}
"""


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """A cache of its own, and no way out: no hub, no package client."""
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("BLAST_IMAGENET", raising=False)
    monkeypatch.setattr(registries, "_run", _no_network)
    monkeypatch.setattr(socket, "getaddrinfo", _no_names)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def _no_network(command, folder):
    raise sources.SourceError(f"{registries._client(command)} says: network unreachable")


def _no_names(host, *rest, known=socket.getaddrinfo, **named):
    if host != "127.0.0.1":
        raise socket.gaierror(-2, "Name or service not known")
    return known(host, *rest, **named)


def _artifacts(file: Path):
    return artifacts_of(expand(read_config(file), file), Path("/nowhere"), print)


def test_the_paper_needs_nine_architectures_and_its_datasets():
    artifacts = {artifact.what for artifact in _artifacts(PAPER)}
    assert {f"weights {name}" for name in NINE} < artifacts
    data = "openwebtext wikitext103 technical_text imagenet cifar10 cifar100 mnist fashion_mnist sst2 mrpc rte"
    assert {f"dataset {name}" for name in data.split()} < artifacts
    sets = "lambada hellaswag piqa arc_easy arc_challenge sciq winogrande boolq openbookqa mmlu"
    assert {f"evaluation {name}" for name in sets.split()} < artifacts


def test_sizes_and_licences_are_said_and_what_is_shared_counted_once():
    artifacts = _artifacts(PAPER)
    lines = describe(artifacts, Path("/nowhere"))
    by_name = {line.split("  ")[0]: line for line in lines}
    assert "24.2 GB" in by_name["dataset openwebtext"]
    assert "Llama 3.2 Community License" in by_name["weights llama-3.2-1b"]
    total = sum({artifact.shared: artifact.bytes for artifact in artifacts}.values())
    assert f"at most {megabytes(total)} in all" in "\n".join(lines)
    assert total < sum(artifact.bytes for artifact in artifacts)
    assert all(artifact.licence and artifact.sources for artifact in artifacts)


def test_licences_to_accept_first_are_listed_with_what_to_do():
    told = [line for line in describe(_artifacts(PAPER), Path("/nowhere")) if line.startswith("before you fetch")]
    assert len(told) == 2
    assert any("image-net.org" in line and "BLAST_IMAGENET" in line for line in told)
    assert any("meta-llama/Llama-3.2-1B" in line and "HF_TOKEN" in line for line in told)


def test_sizes_alone_fetch_nothing(offline, capsys):
    assert main(["fetch", str(offline / "small.yaml"), "--sizes"]) == 0
    assert "dataset wikitext103" in capsys.readouterr().out
    assert not (offline / "cache").exists()


def test_each_artifact_that_cannot_be_fetched_prints_one_sentence_and_the_rest_is_fetched(offline, capsys):
    copy_texts(offline / "cache")
    copy_weights("llama-3.2-1b", offline / "cache")
    assert main(["fetch", str(offline / "small.yaml")]) == 1
    out, err = capsys.readouterr()
    for name in ("dataset wikitext103", "dataset pystdlib", "weights llama-3.2-1b", "tokenizer llama-3.2-1b"):
        assert f"{name} is in the cache" in out
    assert "4 of 5 are in" in out
    (sentence,) = [line for line in err.splitlines() if line.startswith("blast: ")]
    assert sentence.startswith("blast: evaluation piqa: ")
    assert "refused" in sentence
    assert "pip says: network unreachable" in sentence


@pytest.mark.parametrize("silent", [False, True])
def test_without_a_hub_each_source_prints_its_error_and_a_silent_hub_is_asked_once(
    offline, silent, capsys, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        if silent:
            monkeypatch.setattr(sources, "ANSWER_S", 1.0)
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr(datasets.get("imagenet"), "folder", lambda cache: offline / "nothing")
        assert main(["fetch", str(PAPER)]) == 1
        assert connections(mute) == int(silent)
    failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blast: ")]
    assert len(failures) > 20
    reasons = ("refused", "no answer", "unreachable", "image-net.org", "not known")
    assert all(any(reason in line for reason in reasons) for line in failures)


def test_the_facts_of_one_dataset_are_written_to_a_file(offline):
    assert main(["fetch", "pystdlib", "--out", str(offline / "facts.json")]) == 0
    assert (offline / "facts.json").is_file()
    assert main(["fetch", "pystdlib"]) == 2
