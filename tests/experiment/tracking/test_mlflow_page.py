"""What docs/mlflow.md prints is run: its commands parse, and its example of a loaded model is executed.

The command of the server is that of `test_tracking_server`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from language_case import trained_tokenizer
from mlflow_grid import runs_of
from mlflow_models import image_model, language_model, write_checkpoint

from blast.experiment.cli import parser as blast_parser
from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.model_artifact import LARGEST_COPY
from blast.experiment.tracking.store import tracking_uri
from blast.experiment.tracking.view import view_of

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "mlflow.md").read_text()
COMMANDS = re.findall(r"^blast .*$", PAGE, re.MULTILINE)
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_of_mlflow_parses(command: str) -> None:
    options = blast_parser().parse_args(shlex.split(command)[1:])
    assert options.run.__module__ == "blast.experiment.tracking.commands"


def test_the_page_shows_both_options_of_the_verb() -> None:
    assert [option for command in COMMANDS for option in ("--follow", "--register") if option in command] == [
        "--follow",
        "--register",
    ]


def test_the_page_names_the_columns_and_the_limit_of_the_code() -> None:
    assert f"at most {LARGEST_COPY:g} MiB" in PAGE
    for name in ("ours_ms", "dense_ms", "speed_up", "speed_up_most", "at_tokens"):
        assert f"`{name}`" in PAGE
        assert f"metrics.`{name}`" in view_of("benchmark")


@pytest.mark.parametrize("kind", ["language", "image"])
def test_the_example_of_a_loaded_model_runs(mlflow_folder: GridFolder, tmp_path: Path, kind: str) -> None:
    if kind == "language":
        write_checkpoint(mlflow_folder, "p1", language_model(), trained_tokenizer(tmp_path))
    else:
        write_checkpoint(mlflow_folder, "p1", image_model())
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    images = np.zeros((2, 3, 8, 8), np.float32)
    names: dict[str, Any] = {"images": images}
    mlflow.set_tracking_uri(tracking_uri(mlflow_folder.root.parent))
    try:
        ran = 0
        for line in EXAMPLE.replace("runs:/RUN/", f"runs:/{run.info.run_id}/").splitlines():
            of_images = "predict(images)" in line
            if "predict" not in line or of_images == (kind == "image"):
                exec(line, names)
                ran += "predict" in line
    finally:
        mlflow.set_tracking_uri(None)
    assert ran == (2 if kind == "language" else 1)
