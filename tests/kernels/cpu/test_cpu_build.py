"""The C++ kernels are built once, kept, and never in the way: without a compiler PyTorch computes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings

import blast_kernels.register  # noqa: F401
import pytest
import torch
from blast_kernels.cpu import build, launch
from patience import PATIENCE

needs_compiler = pytest.mark.skipif(
    not build.levels() or not any(shutil.which(name) for name in build.COMPILERS),
    reason="needs g++ or clang++ and an x86-64 processor with AVX2",
)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "_loaded", [])
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)


def run_layer() -> None:
    """One block of 32×32, in PyTorch or in C++."""
    block, x = torch.randn(1, 32, 32), torch.randn(5, 32)
    one, zero = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = torch.ops.blast.block_sparse_linear(x, block, one, zero, one, zero, zero)
    torch.testing.assert_close(out, x @ block[0].t())


@needs_compiler
def test_a_library_is_built_once_and_kept(monkeypatch, tmp_path):
    run_layer()
    (library,) = (tmp_path / "cache" / "kernels").glob("*.so")
    assert launch.kernels() is not None
    monkeypatch.setattr(launch, "_loaded", [])
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("it was built again"))
    run_layer()
    assert launch.kernels() is not None
    assert list((tmp_path / "cache" / "kernels").glob("*.so*")) != []
    assert library.exists()


def truncated(library):
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def one_byte_changed(library):
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def empty(library):
    library.write_bytes(b"")


def another_format(library):
    library.write_text("no library")


def a_folder(library):
    library.unlink()
    library.mkdir()


def without_its_digest(library):
    library.with_name(f"{library.name}.sha256").unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    library = tmp_path_factory.mktemp("built") / "cpu.so"
    build._compile(build.levels()[0], library)
    return library


@pytest.mark.fault(
    fault="The C++ library of the kernels is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is built again.",
    lost="time",
)
@needs_compiler
@pytest.mark.parametrize("damage", [truncated, one_byte_changed, empty, another_format, a_folder, without_its_digest])
def test_a_damaged_library_is_built_again_and_kept(monkeypatch, tmp_path, built, damage):
    times = []
    monkeypatch.setattr(build, "_compile", lambda level, to: times.append(shutil.copy(built, to)))
    assert build.load()
    (library,) = (tmp_path / "cache" / "kernels").glob("*.so")
    damage(library)
    for _ in range(2):
        assert build.load()
    assert len(times) == 2
    assert library.read_bytes() == built.read_bytes()


@pytest.mark.slow
@needs_compiler
def test_edited_sources_are_built_again(monkeypatch, tmp_path):
    launch.kernels()
    edited = tmp_path / "edited"
    shutil.copytree(os.path.dirname(build.__file__), edited)
    (edited / "vectors.h").write_text((edited / "vectors.h").read_text() + "\n// edited\n")
    monkeypatch.setattr(build, "__file__", str(edited / "build.py"))
    monkeypatch.setattr(launch, "_loaded", [])
    launch.kernels()
    assert len(list((tmp_path / "cache" / "kernels").glob("*.so"))) == 2


@pytest.mark.slow
@needs_compiler
def test_processes_that_start_together_build_once(tmp_path):
    compiler, log = tmp_path / "slow-compiler", tmp_path / "log"
    plain = next(path for path in map(shutil.which, build.COMPILERS) if path)
    compiler.write_text(f'#!/bin/sh\necho built >> {log}\nsleep 1\nexec {plain} "$@"\n')
    compiler.chmod(0o755)
    code = "from blast_kernels.cpu import launch; assert launch.kernels() is not None"
    environment = {**os.environ, "CXX": str(compiler)}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=PATIENCE) for process in started] == [0, 0, 0]
    assert log.read_text() == "built\n"


@needs_compiler
def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "file" / "below"))
    run_layer()
    assert launch.kernels() is not None


@needs_compiler
def test_a_damaged_library_does_no_harm(monkeypatch, tmp_path):
    launch.kernels()
    (library,) = (tmp_path / "cache" / "kernels").glob("*.so")
    # A new file: the old one is mapped into this process.
    library.unlink()
    library.write_bytes(b"\x7fELF and nothing more")
    monkeypatch.setattr(launch, "_loaded", [])
    run_layer()
    assert launch.kernels() is not None


def warned(message: str) -> None:
    """One warning with this message at the first call, none at the second, and right results at both."""
    with pytest.warns(UserWarning, match=message) as caught:
        run_layer()
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_layer()
    assert launch.kernels() is None


@needs_compiler
def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    warned(r"run in plain PyTorch .* there is no C\+\+ compiler; install one")


@needs_compiler
def test_a_compiler_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    warned(r"false cannot build the C\+\+ kernels .* install g\+\+")


@needs_compiler
def test_a_compiler_that_knows_older_processors_only_serves_those(monkeypatch, tmp_path):
    if build.levels() == ["avx2"]:
        pytest.skip("needs a processor with AVX-512")
    compiler = tmp_path / "old-compiler"
    plain = next(path for path in map(shutil.which, build.COMPILERS) if path)
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *avx512*) exit 1;; esac\nexec {plain} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    run_layer()
    (library,) = (tmp_path / "cache" / "kernels").glob("*.so")
    assert library.name.startswith("cpu-avx2-")


@needs_compiler
def test_kernels_that_compute_something_else_are_refused(monkeypatch):
    run = launch._run
    monkeypatch.setattr(launch, "_run", lambda *arguments: run(*arguments) * 1.01)
    with pytest.warns(UserWarning, match="compute something else"):
        assert launch.kernels() is None


def test_another_processor_is_told_that_pytorch_computes(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert build.levels() == []
    warned("need Linux and an x86-64 processor with AVX2")


@pytest.mark.parametrize("value", ["0", "off"])
def test_the_switch_turns_them_off_without_a_word(monkeypatch, value):
    monkeypatch.setenv(launch.SWITCH, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_layer()
    assert launch.kernels() is None


def test_a_limit_on_torchs_own_kernels_is_one_on_these(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert set(build.levels()) <= {"avx2"}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert build.levels() == []
