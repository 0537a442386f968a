"""Damaged and interrupted checkpoints: an error of one sentence, and no loss of data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sparse_pairs import Plain, pair, plain
from sparsity_models import MODELS
from torch import nn

import blast
from blast.checkpoint.folder import replaced_folder
from blast.checkpoint.manifest import MANIFEST, WEIGHTS
from blast.errors import BlastError

every_model = pytest.mark.parametrize("kind", sorted(MODELS))


def _rewrite(folder: Path, change) -> None:
    """Alters blast.json and updates its digest, as an attacker would."""
    from blast.checkpoint.manifest import _digest

    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["digest"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"n_head": 2', '"n_head": 4'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), r"blast.safetensors is missing; restore it"),
        (lambda f: _cut(f / WEIGHTS), r"blast.safetensors has \d+ bytes instead of \d+, so it is incomplete"),
        (lambda f: _flip(f / WEIGHTS), r"blast.safetensors was altered after it was written"),
        (lambda f: (f / MANIFEST).unlink(), r"is not a blast checkpoint: blast.json is missing"),
        (lambda f: _cut(f / MANIFEST), r"blast.json is unfinished or not JSON"),
        (lambda f: _edit(f / MANIFEST), r"blast.json was altered after it was written"),
        (lambda f: (f / MANIFEST).write_text("[]"), r"blast.json is unfinished or not JSON"),
        (lambda f: _rewrite(f, lambda m: m.update(library="")), r"blast.json has no valid field 'library'; "),
        (lambda f: _rewrite(f, lambda m: m.pop("class")), r"blast.json has no valid field 'class'; "),
        (
            lambda f: _rewrite(f, lambda m: m.update(format=3)),
            r"has format version 3, and this blast reads version 1 and 2",
        ),
        (lambda f: shutil.rmtree(f), r"there is no such folder"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage, message: str, tmp_path: Path) -> None:
    blast.save(pair("gpt2")[1], tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(BlastError, match=message) as caught:
        blast.load(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)


@pytest.mark.parametrize(
    "named",
    [
        {"library": "os", "class": "system"},
        {"library": "torchvision", "class": "ResNet"},
        {"library": "transformers", "class": "AutoTokenizer"},
        {"library": "transformers", "class": "pipeline"},
    ],
)
def test_only_known_classes_are_ever_instantiated(named: dict, tmp_path: Path) -> None:
    blast.save(pair("gpt2")[1], tmp_path / "model")
    _rewrite(tmp_path / "model", lambda manifest: manifest.update(named))
    with pytest.raises(BlastError, match=r"which is not one blast builds|has no model class"):
        blast.load(tmp_path / "model")


def test_a_description_the_library_cannot_build_is_one_sentence(tmp_path: Path) -> None:
    blast.save(pair("vit")[1], tmp_path / "model")
    _rewrite(tmp_path / "model", lambda manifest: manifest["base"].update(depth=3))
    with pytest.raises(BlastError, match=r"cannot build VisionTransformer .*depth.*model=\.\.\.") as caught:
        blast.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    _, sparse, _ = pair("vit")
    digest = blast.save(sparse, tmp_path / "model")

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(BlastError, match=r"cannot be written \(No space left.*unchanged; free some space"):
        blast.save(sparse, tmp_path / "model")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert blast.save(blast.load(tmp_path / "model"), tmp_path / "copy") == digest


def test_the_old_checkpoint_is_put_back_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch) -> None:
    digest = blast.save(pair("vit")[1], tmp_path / "model")
    rename = Path.rename

    def no_new_folder(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise PermissionError("renaming is forbidden")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", no_new_folder)
    with pytest.raises(BlastError, match=r"cannot be written \(renaming is forbidden\)"):
        blast.save(pair("gpt2")[1], tmp_path / "model")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert blast.save(blast.load(tmp_path / "model"), tmp_path / "copy") == digest


def test_a_checkpoint_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "deep" / "model") as fresh:
        (fresh / WEIGHTS).write_bytes(b"x")
        assert not (tmp_path / "deep" / "model").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_saving_again_replaces_the_checkpoint_and_keeps_other_files(tmp_path: Path) -> None:
    blast.save(plain(), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "notes").mkdir()
    (tmp_path / "model" / "notes" / "a.txt").write_text("a")
    newer = plain()
    blast.save(newer, tmp_path / "model")
    assert torch.equal(blast.load(tmp_path / "model", model=Plain())(torch.ones(8)), newer(torch.ones(8)))
    found = sorted(path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*"))
    assert found == [MANIFEST, WEIGHTS, "notes", "notes/a.txt", "tokenizer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(BlastError, match="thesis contains other files than a blast checkpoint"):
        blast.save(plain(), tmp_path / "thesis")
    (tmp_path / "empty").mkdir()
    blast.save(plain(), tmp_path / "empty")
    assert (tmp_path / "empty" / MANIFEST).exists()


def test_state_that_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(BlastError, match=r"'0' \(Counting\) writes extra state"):
        blast.save(nn.Sequential(Counting(2, 2)), tmp_path / "model")
    with pytest.raises(BlastError, match=r"'0.weight' is on the meta device"):
        blast.save(nn.Sequential(nn.Linear(2, 2, device="meta")), tmp_path / "model")
