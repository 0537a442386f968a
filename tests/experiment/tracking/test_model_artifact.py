"""The model of a run loads back through MLflow, sparse as it was saved, and predicts what the checkpoint predicts."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import transformers
from language_case import trained_tokenizer
from mlflow_grid import artifacts, runs_of, write_point
from mlflow_models import image_model, is_sparse, language_model, write_checkpoint

import blast
from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.store import tracking_uri


def load(folder: GridFolder, uri: str | None = None) -> mlflow.pyfunc.PyFuncModel:
    mlflow.set_tracking_uri(tracking_uri(folder.root.parent))
    (run,) = runs_of(folder)
    return mlflow.pyfunc.load_model(uri or f"runs:/{run.info.run_id}/model")


@pytest.fixture(autouse=True)
def uri_comes_back() -> None:
    yield
    mlflow.set_tracking_uri(None)


def test_a_language_model_continues_texts_and_gives_logits_of_token_ids(
    mlflow_folder: GridFolder, tmp_path: Path
) -> None:
    place = write_checkpoint(mlflow_folder, "p1", language_model(), trained_tokenizer(tmp_path))
    assert not import_grid(mlflow_folder.root).faults
    (run,) = runs_of(mlflow_folder)
    files = [file for file in artifacts(run).rglob("*") if file.is_file()]
    assert (artifacts(run) / "model" / "MLmodel").is_file()
    assert not [file for file in files if file.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    model = load(mlflow_folder)
    assert is_sparse(model)
    ids = [[1, 2, 3], [4, 5, 6]]
    expected = blast.load(place)(torch.tensor(ids)).logits[:, -1].detach().numpy()
    np.testing.assert_allclose(model.predict(ids), expected, rtol=1e-5, atol=1e-6)
    (text,) = model.predict(["def main("], params={"max_new_tokens": 4})
    words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    prompt = torch.tensor([words.encode("def main(", add_special_tokens=False)])
    out = blast.load(place).generate(prompt, max_new_tokens=4, do_sample=False)
    assert text == words.decode(out[0, prompt.shape[1] :])


def test_a_model_of_images_gives_the_probabilities_of_classes(mlflow_folder: GridFolder) -> None:
    place = write_checkpoint(mlflow_folder, "p1", image_model())
    import_grid(mlflow_folder.root)
    model = load(mlflow_folder)
    assert is_sparse(model)
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)
    found = model.predict(images)
    expected = blast.load(place)(torch.from_numpy(images)).softmax(-1).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(BlastError, match="came without a tokenizer; give token ids, or pixels"):
        model.predict(["a text"])


def test_a_large_checkpoint_is_named_and_not_copied(mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_MLFLOW_MODEL_MIB", "0.001")
    place = write_checkpoint(mlflow_folder, "p1", image_model())
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    assert not list(artifacts(run).rglob("*.safetensors"))
    assert is_sparse(load(mlflow_folder))
    (place / "blast.safetensors").write_bytes(b"of a later run")
    with pytest.raises(BlastError, match=r"this checkpoint is another than that of the run.*blast mlflow --register"):
        load(mlflow_folder)
    os.rename(place, place.with_name("away"))
    with pytest.raises(BlastError, match=r"is not on this machine; copy the folder here"):
        load(mlflow_folder)


def test_a_registered_model_has_its_checkpoint_with_it(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLAST_MLFLOW_MODEL_MIB", "0.001")
    place = write_checkpoint(mlflow_folder, "p1", image_model())
    asked = ["mlflow", "--register", "digits model", "p1", "--grid-dir", str(mlflow_folder.root)]
    for version in (1, 2):
        assert main(asked) == 0
        assert f'mlflow.pyfunc.load_model("models:/digits model/{version}")' in capsys.readouterr().out
    os.rename(place, place.with_name("away"))
    assert is_sparse(load(mlflow_folder, "models:/digits model/1"))


def test_a_point_without_a_checkpoint_has_no_model_to_register(
    mlflow_folder: GridFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_point(mlflow_folder, "p1")
    assert main(["mlflow", "--register", "none", "p1", "--grid-dir", str(mlflow_folder.root)]) == 2
    assert "so there is no model to register; run the point here first." in capsys.readouterr().err


def test_one_id_is_registered_under_a_name(mlflow_folder: GridFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlflow", "--register", "name", "p1", "p2", "--grid-dir", str(mlflow_folder.root)]) == 2
    assert "give the id of one point after the name" in capsys.readouterr().err
    assert main(["mlflow", "--grid-dir", str(mlflow_folder.root)]) == 2
    assert "give the ids of points to import, or --follow" in capsys.readouterr().err
