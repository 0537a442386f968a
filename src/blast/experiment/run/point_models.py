"""The saved models of points: written, opened again, and those of other points that a point builds on."""

from __future__ import annotations

from torch import nn

from blast import architectures
from blast.checkpoint.checkpoint import load, save
from blast.errors import BlastError
from blast.experiment.run.point_run import PointRun
from blast.files import read_json
from blast.model.module_replacement import unwrapped
from blast.training.distillation import check_teacher
from blast.training.language_loss import head_of


def save_model(run: PointRun, model: nn.Module) -> None:
    """Writes the checkpoint of a point, with the tokenizer of its data."""
    run.say("trained", then="evaluating")
    tokenizer = getattr(run.data, "tokenizer_dir", None)
    save(model, run.folder.work(run.point.id) / "checkpoint", processing_class=tokenizer)


def load_model(run: PointRun) -> nn.Module:
    """The model of a point from its checkpoint, in the state it was saved in."""
    return load(run.folder.work(run.point.id) / "checkpoint").to(run.device)


def load_other(run: PointRun, other: str, what: str) -> nn.Module:
    """The model of another point of the grid, on the device of this one.

    Args:
        run: The point that needs it.
        other: Its id.
        what: What it is to this point, for errors, for instance `"dense parent"`.

    Raises:
        BlastError: if that point has not run, or failed.
    """
    remedy = f"run the point '{other}' first."
    record = read_json(run.folder.record(other), f"record of the {what}", remedy, ("status", "cause", "result"))
    if record["status"] != "ok":
        raise BlastError(f"its {what} '{other}' failed ({record['cause']}); mend that one first.")
    trained_on = record["result"]["dataset"]["digest"]
    if trained_on != run.data.digest:
        raise BlastError(
            f"its {what} '{other}' was trained on other data or with another tokenizer "
            f"({trained_on[:19]}… instead of {run.data.digest[:19]}…); run that one again first."
        )
    return load(run.folder.work(other) / "checkpoint").to(run.device)


def teacher_of(run: PointRun, model: nn.Module) -> nn.Module:
    """The teacher of a point that learns from one: a trained dense model of the grid, or published weights."""
    point, name = run.point, run.point.distillation["teacher"]
    if point.teacher is not None:
        name, teacher = point.teacher, load_other(run, point.teacher, "teacher")
    else:
        teacher = architectures.load(name, progress=run.say).to(run.device)
    if run.language:
        check_teacher(name, (len(head_of(teacher)[0]), len(head_of(unwrapped(model))[0])))
    elif point.teacher is None and (classes := architectures.get(name).shape.classes):
        check_teacher(name, (classes, run.data.num_classes))
    return teacher.eval().requires_grad_(False)
