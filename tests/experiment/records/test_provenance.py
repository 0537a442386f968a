"""A record names the code it is from."""

from __future__ import annotations

import subprocess

import pytest

from blast.experiment.records import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit, in which `provenance` believes to lie; and a function that runs git in it."""
    place = tmp_path / "src" / "blast" / "experiment" / "records"
    place.mkdir(parents=True)
    (place / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(place / "provenance.py"))
    monkeypatch.delenv("BLAST_COMMIT", raising=False)

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    for cached in (provenance.commit, provenance.lock_digest):
        cached.cache_clear()
    yield tmp_path, git
    for cached in (provenance.commit, provenance.lock_digest):
        cached.cache_clear()


def test_the_commit_is_that_of_the_checkout_and_an_edit_makes_it_dirty(checkout):
    root, git = checkout
    assert provenance.commit() == (git("rev-parse", "HEAD"), False)
    (root / "new.py").write_text("")
    provenance.commit.cache_clear()
    assert provenance.commit() == (git("rev-parse", "HEAD"), True)


def test_a_commit_that_is_given_is_believed(checkout, monkeypatch):
    monkeypatch.setenv("BLAST_COMMIT", "abc123")
    assert provenance.commit() == ("abc123", None)


def test_without_git_or_a_checkout_nothing_is_invented(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == (None, None)
    assert provenance.lock_digest() is None


def test_versions_name_python_and_what_is_installed():
    import platform

    import torch

    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "no-such-package" not in found


@pytest.mark.parametrize(("driver", "said"), [("555.42", "echo 555.42; echo 555.42"), (None, "exit 9"), (None, "true")])
def test_a_gpu_is_named_with_its_driver_where_it_is_known(monkeypatch, tmp_path, driver, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 (SXM)")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{said}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert provenance.hardware() == {"hardware": "nvidia-h200-sxm", "gpu": "NVIDIA H200 (SXM)", "driver": driver}


def test_a_git_that_does_not_answer_is_told_and_leaves_the_commit_out(checkout, monkeypatch, tmp_path, capsys):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_S", 0.2)
    assert provenance.commit() == (None, None)
    assert "records hold no commit; set BLAST_COMMIT to name it" in capsys.readouterr().err


CORE = "processor\t: {core}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n\n"


@pytest.mark.parametrize(
    ("name", "family", "found"),
    [
        ("AMD EPYC 7763 64-Core Processor", 25, "AMD EPYC 7763 64-Core Processor"),
        ("AMD EPYC", 25, "AMD EPYC family 25 model 1"),
        ("AMD EPYC", 26, "AMD EPYC family 26 model 1"),
    ],
)
def test_two_processors_that_a_virtual_machine_names_alike_are_told_apart(tmp_path, name, family, found):
    file = tmp_path / "cpuinfo"
    file.write_text("".join(CORE.format(core=core, family=family, model=1, name=name) for core in range(2)))
    assert provenance.cpu_name(file) == found


def test_a_system_that_tells_no_family_gives_its_name_alone(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Imaginary\n")
    assert provenance.cpu_name(file) == "Imaginary"
    assert provenance.cpu_name(tmp_path / "missing") == (
        provenance.platform.processor() or provenance.platform.machine()
    )
