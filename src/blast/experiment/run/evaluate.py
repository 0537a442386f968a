"""Evaluates a point again from its checkpoint, where only its evaluation changed since it was trained."""

from __future__ import annotations

from typing import Any

from blast.checkpoint.manifest import weights_file
from blast.experiment.plan.paths import TRAINED, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.provenance import hardware
from blast.experiment.records.state import Left, state_of
from blast.experiment.run.point_models import load_model
from blast.experiment.run.point_result import Result, evaluate_saved
from blast.experiment.run.point_run import PointRun
from blast.files import file_digest, write_json
from blast.training.history import History
from blast.training.launch import destroy_process_group

# Of the run of a record: what belongs to the training and stays true of the model.
OF_TRAINING = ("hardware", "gpu", "driver", "training_seconds", "side_by_side")
# Of the run of a record: what tells of the process that trained the model.
TRAINED_BY = ("started", "finished", "wall_s", "commit", "dirty", "host", "versions")


def evaluate_again(point: Point, folder: GridFolder) -> tuple[Result | None] | None:
    """Evaluates the checkpoint of a point that is trained already.

    The learning curves, masks and times of the training are kept. `run.trained` of the record says which process
    trained the model; hardware and GPU stay those of the training, and `run.evaluated_on` names those of now.

    Args:
        point: As it is planned now.
        folder: Folder of its grid, with the record of the training.

    Returns:
        The `result` part of its record, in a tuple; `(None,)` in the other processes of several. None if the point has
        to be trained: its settings or its code changed, its data did, or the checkpoint is not that of its record.
    """
    state = state_of(point, folder)
    if state.left is not Left.EVALUATION or state.record is None:
        return None
    before, run_before = state.record["result"], state.record["run"]
    weights = weights_file(folder.work(point.id) / before["artifacts"]["checkpoint"]["path"])
    if file_digest(weights) != before["artifacts"]["checkpoint"]["digest"]:
        print("the checkpoint is not the one of the record: trained again", flush=True)
        return None
    # If the evaluation fails, the record of the failure takes the place of the one of the training.
    write_json(folder.work(point.id) / TRAINED, state.record)
    run = PointRun.begin(point, folder)
    if before["dataset"]["digest"] != run.data.digest:
        print("the data changed: trained again", flush=True)
        return None
    if not destroy_process_group():
        return (None,)
    print("only the evaluation changed: the checkpoint is evaluated again", flush=True)
    result = evaluate_saved(run, load_model(run), History(), before["parameters"], before["sparsity"])
    result["curves"] = before["curves"]
    if masks := before["artifacts"].get("masks"):
        result["artifacts"]["masks"] = masks
    kept: dict[str, Any] = {key: run_before[key] for key in OF_TRAINING if key in run_before}
    if (now := hardware()["hardware"]) != run_before.get("hardware"):
        kept["evaluated_on"] = now
    trained = run_before.get("trained") or {key: run_before[key] for key in TRAINED_BY if key in run_before}
    result["run"] = {**kept, **result["run"], "trained": trained}
    return (result,)
