"""Where the files of a grid lie; nothing else forms these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Training state of a point that is not finished, in its work folder.
TRAINING_STATE = "training_state.pt"
# What the child process of a job says of a point, until the job has made a record of it.
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class GridFolder:
    """The folder of one grid, usually `results/<grid>`."""

    root: Path

    def record(self, point: str) -> Path:
        """The record of a point."""
        return self.root / "records" / f"{point}.json"

    def language(self, point: str) -> Path:
        """What lm-eval made of a point's scores."""
        return self.root / "language" / f"{point}.json"

    def work(self, point: str) -> Path:
        """Everything else of a point: checkpoint, scores, masks, training state."""
        return self.root / "points" / point

    def data(self, dataset: str) -> Path:
        """Facts of a prepared dataset, or why there are none."""
        return self.root / "data" / f"{dataset}.json"

    def stamp(self, stage: str, job: str) -> Path:
        """Says that a stage of a job is done; this is what Snakemake looks at."""
        return self.root / "jobs" / stage / f"{job}.done"

    def requests(self, dataset: str) -> Path:
        """lm-eval's requests for a dataset as token ids."""
        return self.root / "requests" / f"{dataset}.jsonl.gz"

    def left_out(self, dataset: str) -> Path:
        """Why lm-eval tasks of a dataset have no requests, by task."""
        return self.root / "requests" / f"{dataset}.left_out.json"

    def failed(self, point: str) -> Path:
        """Where the verdict puts the record of a failed point."""
        return self.root / "failed" / f"{point}.json"

    def retry(self, point: str) -> Path:
        """Says that a point whose record stays is to be tried again."""
        return self.root / "retry" / point

    def log(self, job: str) -> Path:
        """Log of a job."""
        return self.root / "logs" / f"{job}.log"

    @property
    def rows(self) -> Path:
        """All records as one long-form table."""
        return self.root / "rows.csv"
