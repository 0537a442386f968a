"""Requests of a dataset that was damaged since it was prepared: it is made again first, or refused if it differs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from blast import datasets
from blast.download import contents
from blast.download.cache import build_once
from blast.errors import BlastError
from blast.experiment.data.prepare import build_dataset_requests
from blast.experiment.plan.paths import GridFolder
from blast.files import write_json


@pytest.fixture
def place(tmp_path, monkeypatch) -> SimpleNamespace:
    """A grid with a prepared dataset whose only document is `text`, and the documents that requests were built of."""
    state = SimpleNamespace(text="whole", fetched=0, seen=[], grid=GridFolder(tmp_path / "grid"))

    def prepare(cache: Path, settings: dict) -> dict:
        def build(aside: Path) -> dict:
            (aside / "heldout.jsonl").write_text(state.text)
            return {"digest": f"sha256:{state.text}", "settings": settings}

        folder = tmp_path / "prepared"
        return build_once(folder, build) | {"folder": str(folder), "tokenizer_dir": str(folder)}

    def fetch(cache: Path, progress: object) -> dict:
        state.fetched += 1
        return {}

    def build_requests(folder: Path, *_: object, **__: object) -> None:
        state.seen.append((folder / "heldout.jsonl").read_text())

    monkeypatch.setattr(datasets, "get", lambda name: SimpleNamespace(prepare=prepare, fetch=fetch))
    monkeypatch.setattr("blast.experiment.language.metrics.build_requests", build_requests)
    monkeypatch.setattr("blast.experiment.language.tasks_of_lm_eval.sets_of", lambda task: [])
    facts = prepare(tmp_path, {"held_out": 0.1})
    write_json(state.grid.data("text"), {"status": "ok", "cause": None, "facts": facts})
    state.folder = tmp_path / "prepared"
    contents._WHOLE.clear()
    return state


def gone(folder: Path) -> None:
    (folder / "heldout.jsonl").unlink()


def altered(folder: Path) -> None:
    (folder / "heldout.jsonl").write_text("whOle")


@pytest.mark.fault(
    fault="A prepared set is damaged or missing when lm-eval's requests are built.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is made again first.",
    lost="time",
)
@pytest.mark.parametrize("damage", [gone, altered, shutil.rmtree])
def test_a_damaged_dataset_is_made_again_before_requests_are_built_of_it(place, damage):
    build_dataset_requests("text", ["text_heldout"], place.grid)
    assert place.fetched == 0
    damage(place.folder)
    contents._WHOLE.clear()
    build_dataset_requests("text", ["text_heldout"], place.grid)
    assert place.seen == ["whole", "whole"]


@pytest.mark.fault(
    fault="A prepared set is damaged, and its sources differ now.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused.",
    reads=(
        "…: this prepared dataset was damaged, and what its sources give now is another one; "
        "remove data/….json from the folder of the grid and run again: its points are redone."
    ),
    lost="nothing",
)
def test_a_dataset_that_has_become_another_one_is_refused_with_what_to_do(place, reads):
    gone(place.folder)
    place.text = "another"
    contents._WHOLE.clear()
    with pytest.raises(
        BlastError, match=r"is another one; remove data/text\.json from the folder of the grid"
    ) as raised:
        build_dataset_requests("text", ["text_heldout"], place.grid)
    reads(str(raised.value))
    assert not place.seen
