"""Where a checkpoint is written: links, relative paths, several processes, full disks, and models on other devices."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from patience import PATIENCE
from sparse_pairs import Plain, inputs_of, output_of, pair, plain
from torch import nn

import blast
from blast.checkpoint.manifest import LARGEST, MANIFEST, WEIGHTS
from blast.errors import BlastError


def same(folder: Path, model: nn.Module) -> bool:
    loaded = blast.load(folder, model=Plain()).state_dict()
    return all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for model in (plain(), plain()):
        blast.save(model, tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert same(tmp_path / "disk" / "model", model)
        assert same(tmp_path / "link", model)


def test_a_relative_path_is_that_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    blast.save(model, "../a model/é")
    assert same(tmp_path / "a model" / "é", model)


def test_threads_that_save_to_one_folder_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    models, faults = [plain() for _ in range(4)], []

    def save(model: nn.Module) -> None:
        try:
            for _ in range(5):
                blast.save(model, tmp_path / "model")
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert any(same(tmp_path / "model", model) for model in models)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_keeps_its_checkpoint(code: int, tmp_path: Path, monkeypatch) -> None:
    model = plain()
    blast.save(model, tmp_path / "model")

    def refuse(*_, **__):
        raise OSError(code, errno.errorcode[code])

    for name in ("mkdir", "rename"):
        monkeypatch.setattr(Path, name, refuse)
        with pytest.raises(BlastError, match=r"model cannot be written \(E\w+\), and what was there is unchanged"):
            blast.save(plain(), tmp_path / "model")
        monkeypatch.undo()
        assert same(tmp_path / "model", model)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


LIMITED = """
import resource, sys
import torch
import blast
blast.save(torch.nn.Sequential(torch.nn.Linear(4, 4)), sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    blast.save(torch.nn.Sequential(torch.nn.Linear(400, 400)), sys.argv[1])
except blast.BlastError as error:
    print(error)
print(blast.load(sys.argv[1], model=torch.nn.Sequential(torch.nn.Linear(4, 4))))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_the_weights_is_one_sentence(tmp_path: Path) -> None:
    place = str(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", LIMITED, place], capture_output=True, text=True, timeout=PATIENCE)
    assert "cannot be written (" in done.stdout.splitlines()[0], done.stderr
    assert "in_features=4" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_the_old_format_is_replaced_whole(tmp_path: Path) -> None:
    from shutil import copytree

    old = Path(__file__).parents[1] / "fixtures" / "formats-2026-11" / "checkpoint-gpt2"
    copytree(old, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    loaded = blast.load(tmp_path / "model")
    blast.save(loaded, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {MANIFEST, WEIGHTS, "config.json", "notes.txt"}
    again = blast.load(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())


def test_a_dense_model_of_the_user_in_the_folder_is_kept(tmp_path: Path) -> None:
    blast.save(plain(), tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "model" / name).write_text("mine")
    blast.save(plain(), tmp_path / "model")
    assert {(tmp_path / "model" / name).read_text() for name in ("model.safetensors", "config.json")} == {"mine"}


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_saved_and_comes_back_to_the_gpu(tmp_path: Path) -> None:
    import transformers

    _, sparse, _ = pair("llama")
    sparse.cuda().bfloat16()
    expected = output_of(sparse, inputs_of("llama").cuda())
    blast.save(sparse, tmp_path / "model")
    loaded = blast.load(tmp_path / "model", device="cuda")
    assert torch.equal(output_of(loaded, inputs_of("llama").cuda()), expected)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="auto")
    assert {tensor.device.type for tensor in (*opened.parameters(), *opened.buffers())} == {"cuda"}
    assert torch.equal(output_of(opened, inputs_of("llama").cuda()), expected)
    blast.export_dense(opened, tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", device_map="cuda")
    assert torch.equal(dense.model.layers[0].mlp.up_proj.weight, opened.model.layers[0].mlp.up_proj.weight)


def test_links_beside_a_checkpoint_stay_links_and_what_they_point_to_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "data").write_text("data")
    blast.save(plain(), tmp_path / "model")
    links = {"folder": "../large", "file": "../large/data", "nothing": "nowhere"}
    for name, target in links.items():
        (tmp_path / "model" / name).symlink_to(target)
    (tmp_path / "model" / "own").mkdir()
    (tmp_path / "model" / "own" / "inner").symlink_to("../../large")
    blast.save(plain(), tmp_path / "model")
    for name, target in (*links.items(), ("own/inner", "../../large")):
        assert (tmp_path / "model" / name).readlink() == Path(target)


def test_a_manifest_larger_than_any_is_not_read(tmp_path: Path) -> None:
    blast.save(plain(), tmp_path / "model")
    with (tmp_path / "model" / MANIFEST).open("r+b") as sparse:
        sparse.truncate(LARGEST + 1)
    with pytest.raises(BlastError, match=r"is unfinished or not JSON written by blast.save"):
        blast.load(tmp_path / "model")
