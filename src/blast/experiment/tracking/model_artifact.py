"""The model of a point in MLflow: code that loads its checkpoint, and the checkpoint itself if it is small.

The run of a trained point has the artifact `model`. A checkpoint of at most 16 MiB (`BLAST_MLFLOW_MODEL_MIB`) is copied
into it. Of a larger one, the artifact names the folder and the digest of the weights, so it loads where the results
are. A registered model has its checkpoint with it whatever its size, as a registry is read from anywhere.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.checkpoint.manifest import MANIFEST, weights_file
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import write_json
from blast.untrusted import member

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "model"
LARGEST_COPY = 16.0  # MiB
# What a checkpoint consists of besides its weights.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


def checkpoint_of(record: dict[str, Any], folder: GridFolder) -> Path | None:
    """The folder of the checkpoint of a record; None if it is not here.

    Raises:
        BlastError: if the record names a folder that is not its own.
    """
    named = (record["result"].get("artifacts") or {}).get("checkpoint")
    if record["status"] != "ok" or not named:
        return None
    place = member(folder.work(record["point"]["id"]), named["path"])
    files = place / MANIFEST, weights_file(place)
    return place if all(file.is_file() and not file.is_symlink() for file in files) else None


def save_model(place: Path, record: dict[str, Any], folder: GridFolder, copy: bool = False) -> bool:
    """Writes the model of a record as MLflow's format has it, without a pickle.

    Args:
        place: Folder to make.
        record: The record.
        folder: Folder of its grid.
        copy: Whether to copy the checkpoint whatever its size.

    Returns:
        Whether there is a checkpoint.

    Raises:
        BlastError: if the record names a folder that is not its own.
    """
    checkpoint = checkpoint_of(record, folder)
    if checkpoint is None:
        return False
    from mlflow import pyfunc
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ParamSchema, ParamSpec

    weights = weights_file(checkpoint)
    with tempfile.TemporaryDirectory(prefix="blast-model-") as scratch:
        given = Path(scratch) / "checkpoint"
        given.mkdir()
        if copy or _is_copied(checkpoint):
            for file in (weights, *(file for pattern in _SMALL_FILES for file in checkpoint.glob(pattern))):
                if not file.is_symlink():
                    shutil.copyfile(file, given / file.name)
        else:
            named = {"folder": str(checkpoint.absolute()), "weights": weights.name, "point": record["point"]["id"]}
            write_json(
                given / "checkpoint.json", named | {"digest": record["result"]["artifacts"]["checkpoint"]["digest"]}
            )
        with warnings.catch_warnings():
            # It asks for an example of an input, of which it would make a first prediction.
            warnings.simplefilter("ignore", UserWarning)
            pyfunc.save_model(
                str(place),
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts={"checkpoint": str(given)},
                # Given, so that MLflow does not load the model to find them out.
                pip_requirements=[f"{name}=={version}" for name, version in _requirements(record)],
                signature=ModelSignature(params=ParamSchema([ParamSpec("max_new_tokens", "long", 20)])),
                metadata={"point": record["point"]["id"], "record_digest": record["record_digest"]},
            )
    return True


def register(client: MlflowClient, run_id: str, name: str, record: dict[str, Any], folder: GridFolder) -> str:
    """Registers the model of a run, with its checkpoint, and returns its version.

    Args:
        client: Client of the store.
        run_id: The run of the record.
        name: Name in the registry; a version is added to one that exists.
        record: The record.
        folder: Folder of its grid.

    Raises:
        BlastError: if there is no checkpoint.
    """
    from mlflow.exceptions import MlflowException

    checkpoint, artifact = checkpoint_of(record, folder), MODEL
    if checkpoint is None:
        raise BlastError(
            f"{record['point']['id']}: there is no checkpoint in {folder.work(record['point']['id'])}, so there is no "
            "model to register; run the point here first."
        )
    if not _is_copied(checkpoint):
        # Beside `model`, which only names the checkpoint.
        artifact = f"registered_{MODEL}"
        with tempfile.TemporaryDirectory(prefix="blast-mlflow-") as gathered:
            save_model(Path(gathered) / artifact, record, folder, copy=True)
            client.log_artifacts(run_id, gathered)
    try:
        client.create_registered_model(name, description=f"Block-sparse models of the grid {record['point']['grid']}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    made = client.create_model_version(name, source, run_id, tags={"point_id": record["point"]["id"]})
    return str(made.version)


def _is_copied(checkpoint: Path) -> bool:
    """Whether a checkpoint is so small that each run has a copy."""
    return weights_file(checkpoint).stat().st_size <= _largest()


def _largest() -> float:
    given = os.environ.get("BLAST_MLFLOW_MODEL_MIB")
    try:
        return float(given or LARGEST_COPY) * (1 << 20)
    except ValueError:
        raise BlastError(f"BLAST_MLFLOW_MODEL_MIB={given}: this is no number of MiB; give one, such as 16.") from None


def _requirements(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The packages that the model needs, as the point had them. The suite itself has to be installed beside them."""
    known = record["run"].get("versions") or {}
    return [(name, known[name]) for name in ("torch", "transformers", "safetensors", "numpy") if known.get(name)]
