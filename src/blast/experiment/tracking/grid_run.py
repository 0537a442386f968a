"""The run of a whole grid: its figures, tables, claims and verdict. All runs of the grid are nested in it."""

from __future__ import annotations

import csv
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.language import read_made
from blast.experiment.tracking.experiments import GridExperiment
from blast.experiment.tracking.links import artifact_link
from blast.files import file_digest, json_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What a picture and a table are shown as; the other files of a view are for papers.
_KINDS = {".png": "figures", ".md": "tables", ".csv": "tables"}
_MOST_CLAIMS = 40
_CLAIM_COLUMNS = ("claim", "paper", "ours", "verdict", "our_setting")


def complete_grid_run(client: MlflowClient, experiment: GridExperiment, folder: GridFolder) -> None:
    """Gives the run of a grid what the grid has now; nothing is written if that is there already.

    Args:
        client: Client of the store.
        experiment: The experiment of the grid.
        folder: Folder of the grid.
    """
    from mlflow.entities import Metric, RunTag

    run = experiment.parent
    files, verdict = _drawn(folder), _verdict(folder)
    texts = {"verdict.txt": "\n".join(verdict) + "\n"} if verdict else {}
    key = json_digest([{name: file_digest(file) for name, file in files.items()}, verdict, _counts(folder)])
    if client.get_run(run.info.run_id).data.tags.get("grid_digest") == key:
        return
    with tempfile.TemporaryDirectory(prefix="blast-mlflow-") as gathered:
        for name, file in files.items():
            place = Path(gathered) / name
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
        for name, text in texts.items():
            (Path(gathered) / name).write_text(text, encoding="utf-8")
        if files or texts:
            client.log_artifacts(run.info.run_id, gathered)
    note = _note(experiment, folder, files, verdict)
    tags = {"mlflow.note.content": note, "verdict": verdict[0][:500] if verdict else "not finished", "grid_digest": key}
    # The time of the numbers is fixed, so that importers which write them at once write the same.
    counts = [Metric(name, value, run.info.start_time, 0) for name, value in _counts(folder).items()]
    client.log_batch(run.info.run_id, counts, tags=[RunTag(name, value) for name, value in tags.items()])


def _config(folder: GridFolder) -> dict[str, Any]:
    with suppress(OSError, ValueError, yaml.YAMLError):
        found = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _drawn(folder: GridFolder) -> dict[str, Path]:
    """The pictures and tables of the grid as the workflow noted them, by their name in the run."""
    place = folder.root.absolute().parents[1] / str(_config(folder).get("figures", "paper_figures"))
    found = {}
    for note in sorted((folder.root / "views").glob("*.json")):
        files = read_made(note).get("files")
        for name, digest in files.items() if isinstance(files, dict) else ():
            kind, file = _KINDS.get(Path(name).suffix), place / Path(name).name
            # Another grid may have drawn over it.
            if kind and file.is_file() and not file.is_symlink() and file_digest(file) == digest:
                found[f"{kind}/{file.name}"] = file
    return found


def _verdict(folder: GridFolder) -> list[str]:
    """The verdict of the last run, a line each; with failed points there is none but their names."""
    with suppress(OSError, ValueError):
        return folder.verdict.read_text(encoding="utf-8").splitlines()
    failed = sorted(file.stem for file in (folder.root / "failed").glob("*.json"))
    return [f"{len(failed)} points failed", *(f"FAILED {name}" for name in failed)] if failed else []


def _counts(folder: GridFolder) -> dict[str, float]:
    """How many points have a record, and how many failed."""
    count = {name: len(list((folder.root / name).glob("*.json"))) for name in ("records", "failed")}
    return {"points_done": float(count["records"]), "points_failed": float(count["failed"])}


def _note(experiment: GridExperiment, folder: GridFolder, files: dict[str, Path], verdict: list[str]) -> str:
    """The description: verdict, claims, and links to pictures and tables."""
    run = experiment.parent.info.run_id
    parts = [f"**Grid `{experiment.grid}`**: {verdict[0] if verdict else 'the verdict comes at the end of the run.'}"]
    parts += [f"- {line}" for line in verdict[1:20]]
    for kind in ("figures", "tables"):
        names = [name for name in files if name.startswith(f"{kind}/") and not name.endswith(".csv")]
        if names:
            links = " · ".join(artifact_link(Path(name).stem, run, name) for name in names)
            parts += ["", f"{kind.capitalize()}: {links}"]
    parts += ["", f"Folder: `{folder.root}`"]
    if claims := files.get("tables/claims.csv"):
        parts += ["", *_claims(claims)]
    return "\n".join(parts)[:5000]


def _claims(file: Path) -> list[str]:
    """The table of claims in Markdown: what the paper says and what was measured."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))[:_MOST_CLAIMS]
    columns = [name for name in _CLAIM_COLUMNS if any(row.get(name) for row in rows)]
    if not columns:
        return []
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines]
