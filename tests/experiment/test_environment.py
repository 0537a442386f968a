"""`blast env`: what a report of a bug needs, and nothing that is secret."""

from __future__ import annotations

from pathlib import Path

from blast.experiment import environment
from blast.experiment.cli import main


def test_a_report_has_versions_commit_machine_and_places(capsys):
    assert main(["env"]) == 0
    names = [line[:15].strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("commit", "lock file", "python", "torch", "processor", "memory", "GPU", "checkout", "cache"):
        assert name in names


def test_a_report_has_no_password_no_token_and_no_name_of_a_user(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:geheim@host.example:5000/store?token=abc#x")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("BLAST_CACHE", str(Path.home() / "cache"))
    told = dict(environment.describe())
    assert told["MLFLOW_TRACKING_URI"] == "https://host.example:5000/store"
    text = "\n".join(told.values())
    assert not any(word in text for word in ("anna", "geheim", "abc", "hf_secret"))
    assert told["BLAST_CACHE"].startswith("~/")


def test_a_package_that_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(environment.provenance, "versions", lambda: {"torch": "2.15.0"})
    told = dict(environment.describe())
    assert (told["torch"], told["mlflow"]) == ("2.15.0", "not installed")
