"""The checkout, and the paths of all files of a grid; no other module forms these names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# The folder with `config/`, `paper_figures/` and `results/recorded/`, whatever the working folder is.
CHECKOUT = Path(__file__).resolve().parents[4]
# In the work folder of a point: the scores of single windows or images of its test data.
ITEMS = "items.npz"
# In the work folder of a point that is not finished: its training state.
TRAINING_STATE = "training_state.pt"
# There too: how far it is, see `run.progress_file`.
PROGRESS = "progress.jsonl"
# There too: the result of the child process, until the job has made a record of it.
OUTCOME = "outcome.json"
# There too: the record of a training whose evaluation is made again, until the new record is there.
TRAINED = "trained.json"


def in_checkout(path: str) -> Path:
    """A path of the checkout, such as `config/config.yaml`: relative if the working folder has it, else absolute."""
    return Path(path) if Path(path).exists() else CHECKOUT / path


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none if it is not there."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


@dataclass(frozen=True)
class GridFolder:
    """The folder of one grid, usually `results/<grid>`."""

    root: Path

    def record(self, point: str) -> Path:
        """The record of a point."""
        return self.root / "records" / f"{point}.json"

    def language(self, point: str) -> Path:
        """The metrics that lm-eval computes from the scores of a point."""
        return self.root / "language" / f"{point}.json"

    def item_scores(self, point: str) -> Path:
        """The scores of single items of a point, for paired comparisons."""
        return self.root / "language" / f"{point}.items.npz"

    def agreement(self, point: str) -> Path:
        """The comparison of a point with stock lm-eval."""
        return self.root / "agreement" / f"{point}.json"

    def work(self, point: str) -> Path:
        """The folder of everything else of a point: checkpoint, scores, masks, training state."""
        return self.root / "points" / point

    def live(self, point: str) -> Path:
        """What a training tells while it runs: steps, losses and system metrics, one JSON value a line."""
        return self.root / "live" / f"{point}.jsonl"

    def told(self, point: str) -> Path:
        """The same of a training that came to its end; `live` is moved here."""
        return self.work(point) / "told.jsonl"

    def fetched(self, dataset: str) -> Path:
        """Facts of a downloaded dataset, or the error of its download."""
        return self.root / "data" / f"{dataset}.fetched.json"

    def data(self, dataset: str) -> Path:
        """Facts of a prepared dataset, or the error of its preparation."""
        return self.root / "data" / f"{dataset}.json"

    @property
    def runs(self) -> Path:
        """A folder for each run of the workflow, `1`, `2`, …; those of earlier runs are removed when one begins."""
        return self.root / "jobs"

    def stamp(self, run: int, stage: str, job: str) -> Path:
        """The file that a job makes at its end, the output of its rule; it leads from job to job within one run."""
        return self.runs / str(run) / stage / f"{job}.done"

    def view_keys(self, run: int) -> Path:
        """By view, the digest of what it shows when all other jobs of a run are done."""
        return self.runs / str(run) / "views.json"

    def requests(self, dataset: str) -> Path:
        """lm-eval's requests for a dataset as token ids."""
        return self.root / "requests" / f"{dataset}.jsonl.gz"

    def requests_key(self, dataset: str) -> Path:
        """The digest of what the requests of a dataset were made of."""
        return self.root / "requests" / f"{dataset}.key"

    def left_out(self, dataset: str) -> Path:
        """The reason why a task of a dataset has no requests, by task."""
        return self.root / "requests" / f"{dataset}.left_out.json"

    def failed(self, point: str) -> Path:
        """The record of a failed point, after the verdict moved it here."""
        return self.root / "failed" / f"{point}.json"

    def damaged(self, point: str) -> Path:
        """A record that cannot be read, after it was moved here; nothing reads it."""
        return self.root / "damaged" / f"{point}.json"

    def replaced(self, point: str, number: int) -> Path:
        """A record in whose place `blast import --replace` put another one; nothing reads it."""
        return self.root / "replaced" / f"{point}.{number}.json"

    def retry(self, point: str) -> Path:
        """A file that marks a point to run again although its record stays."""
        return self.root / "retry" / point

    def code(self, fingerprint: str) -> Path:
        """The digests of the modules that a fingerprint is made of, to say later which of them changed."""
        return self.root / "code" / f"{fingerprint.removeprefix('sha256:')[:16]}.json"

    def log(self, job: str) -> Path:
        """The log of a job."""
        return self.root / "logs" / f"{job}.log"

    @property
    def plan(self) -> Path:
        """The points of the grid."""
        return self.root / "plan.json"

    @property
    def imports(self) -> Path:
        """The points that MLflow has, a line for each import."""
        return self.root / "imports.jsonl"

    @property
    def todo(self) -> Path:
        """The jobs of the run of the workflow that goes on now."""
        return self.root / "todo.json"

    @property
    def config(self) -> Path:
        """The config with every default filled in."""
        return self.root / "config.yaml"

    @property
    def given(self) -> Path:
        """The config that a run was given, where `--set` changed keys of the file."""
        return self.root / "given.yaml"

    def view(self, name: str) -> Path:
        """What a picture or table of the grid was drawn from, and the digests of its files."""
        return self.root / "views" / f"{name}.json"

    @property
    def verdict(self) -> Path:
        """What the last run came to, if no point failed."""
        return self.root / "verdict.txt"

    @property
    def rows(self) -> Path:
        """The table of all records, in long form."""
        return self.root / "rows.csv"
