"""A training point while it runs: its settings, its data and its model before the first step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from blast import datasets
from blast.distributed import is_first_rank
from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.evaluation.requests import SEPARATE_TEST, read_requests
from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.initial_model import start_model
from blast.experiment.run.measure import held_out_parts
from blast.experiment.run.progress_file import ProgressFile
from blast.files import folder_digest, read_json
from blast.training.launch import init_process_group, local_batch
from blast.training.settings import TrainingSettings


@dataclass(frozen=True)
class PointRun:
    """A training point while it runs.

    Attributes:
        point: What is run.
        folder: Folder of its grid.
        data: The prepared dataset.
        device: The GPU of this process, or the CPU.
        started: When it began, on the monotonic clock.
    """

    point: Point
    folder: GridFolder
    data: Any
    device: torch.device
    started: float

    @classmethod
    def begin(cls, point: Point, folder: GridFolder) -> PointRun:
        """Joins the other processes of the training, if there are any, and loads the data."""
        init_process_group()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        started = time.monotonic()
        run = cls(point, folder, _load_data(point, folder), device, started)
        run.check_requests()
        if is_first_rank():
            run.say("data ready", then="starting")
        return run

    @cached_property
    def progress(self) -> ProgressFile:
        """Where it tells how far it is."""
        return ProgressFile(self.folder.work(self.point.id) / PROGRESS)

    def say(self, what: str, then: str | None = None) -> None:
        """Writes into the log what is done and how long it took, and what it does then."""
        print(f"{what} after {time.monotonic() - self.started:.1f} s")
        if then:
            self.progress.phase(then)

    def check_requests(self) -> None:
        """Refuses lm-eval requests of another tokenizer or of other documents, before anything is trained."""
        file = self.folder.requests(self.point.dataset)
        if self.language and self.point.evaluation.get("tasks") and file.is_file():
            settings = read_requests(file).settings
            separate = bool(self.point.evaluation.get(SEPARATE_TEST))
            if bool(settings.get(SEPARATE_TEST)) != separate:
                raise BlastError(
                    f"{file}: these requests were made {'without' if separate else 'for'} a separate test, but the "
                    f"point '{self.point.id}' has {'one' if separate else 'none'}; delete the file and run again."
                )
            made_with = settings.get("tokenizer")
            if made_with is not None and made_with != folder_digest(self.data.tokenizer_dir):
                raise BlastError(
                    f"{file}: these requests were made with another tokenizer than that of the dataset "
                    f"'{self.point.dataset}' here, so their scores would be wrong; delete the file and run again."
                )

    @property
    def settings(self) -> TrainingSettings:
        """Settings of the training."""
        return TrainingSettings.from_dict(self.point.training)

    @property
    def language(self) -> bool:
        """Whether it is a language model, rather than a classifier."""
        return datasets.get(self.point.dataset).MODALITY == "language"

    @property
    def guessing(self) -> float:
        """Loss of guessing among all tokens, or all classes, in nats."""
        return math.log(self.data.vocab_size if self.language else self.data.num_classes)

    @cached_property
    def held_out(self) -> tuple[Any, Any]:
        """The data for the learning curves and the data for the metrics, see `held_out_parts`."""
        return held_out_parts(self.point, self.data)

    def build_model(self) -> nn.Module:
        """The model before its first step, on the CPU; the seed of the point decides its fresh weights."""
        torch.manual_seed(self.point.seed)
        return start_model(self.point.architecture, self.point.start, self.data, self.settings.length, self.point.ffn)

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a training step; of several processes, the share of this one."""
        settings, seed = self.settings, self.point.seed
        if self.language:
            tokens = self.data.train_batch(step, settings.batch, settings.length, seed)
            tokens = local_batch(tokens).to(self.device)
            return tokens[:, :-1], tokens[:, 1:]
        images, labels = self.data.train_batch(step, settings.batch, seed)
        return local_batch(images).to(self.device), local_batch(labels).to(self.device)


def _load_data(point: Point, folder: GridFolder) -> Any:
    """The prepared dataset; where the workflow found it out of reach, its reason is this point's cause."""
    facts = folder.data(point.dataset)
    if facts.is_file():
        try:
            known = read_json(facts, "dataset file", "run again.", ("status", "cause"))
        except BlastError:
            # Damaged facts say nothing; the dataset itself is verified below.
            known = {"status": "ok"}
        if known["status"] != "ok":
            raise BlastError(known["cause"])
    module = datasets.get(point.dataset)
    cache = cache_root()
    module.fetch(cache)
    module.prepare(cache, point.data)
    return module.load(cache, point.data)
