"""Full and read-only disks and readers that stop, in the workflow: one sentence each, and its remedy works."""

from __future__ import annotations

import subprocess
from pathlib import Path

import faults
import pytest
from disks import grow, read_only, small_disk
from patience import PATIENCE
from workflow_place import Place

pytestmark = pytest.mark.slow
GRID = {
    "name": "tiny",
    "benchmarks": [{"suite": "mlp", "shapes": ["gpt2"], "sparsity": [0.9], "blocks": [64], "tokens": [1]}],
}
POINT = "mlp-gpt2.float32.s90.b64.seed0"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "place")
    made.write(GRID)
    return made


def said(found: subprocess.CompletedProcess[str]) -> list[str]:
    """What was printed of errors, one line each; a traceback would be more."""
    assert "Traceback" not in found.stdout + found.stderr
    return [line for line in found.stderr.splitlines() if line.startswith(("blast: ", "error: "))]


@pytest.mark.fault(
    fault="A part of the results is read-only.",
    topic="Disks, outputs and commands",
    happens="The workflow exits with 1. It runs when the folder is writable.",
    reads="blast: …results/…; …change … permissions, …",
    lost="nothing",
)
@pytest.mark.parametrize("part", ["logs", "records", "jobs", "."])
def test_a_read_only_part_of_the_results_is_one_sentence(place: Place, part: str, reads: faults.Reads) -> None:
    folder = place.folder / "results" / "tiny" / part
    folder.mkdir(parents=True)
    with read_only(folder):
        found = place.run("points")
    assert found.returncode == 1
    (sentence,) = said(found)
    assert "results/tiny" in sentence
    assert "change its permissions" in sentence or "change the permissions" in sentence
    reads(sentence)
    # As the message says.
    assert place.run("points").returncode == 0
    assert (place.folder / "results" / "tiny" / "records" / f"{POINT}.json").is_file()


@pytest.mark.fault(
    fault="A file lies in the place of a folder of the results.",
    topic="Disks, outputs and commands",
    happens="The workflow exits with 1. It runs when the file is moved away.",
    reads="blast: results/…: cannot be used (File exists); give another path, or move away what is there.",
    lost="nothing",
)
def test_a_file_in_the_place_of_a_folder_of_the_results_is_one_sentence(place: Place, reads: faults.Reads) -> None:
    taken = place.folder / "results" / "tiny" / "logs"
    taken.parent.mkdir(parents=True)
    taken.write_text("a file")
    found = place.run("points")
    assert found.returncode == 1
    (sentence,) = said(found)
    assert "results/tiny/logs" in sentence
    assert "move away what is there" in sentence
    reads(sentence)
    # As the message says.
    taken.rename(place.folder / "away")
    assert place.run("points").returncode == 0


@pytest.mark.fault(
    fault="`.snakemake` is read-only.",
    topic="Disks, outputs and commands",
    happens="The workflow exits with 1. It runs when the folder is writable.",
    reads=(
        "blast: ….snakemake…: cannot be used (Read-only file system); change its permissions, or give another path."
    ),
    lost="nothing",
)
def test_snakemakes_own_folder_that_cannot_be_written_is_one_sentence(place: Place, reads: faults.Reads) -> None:
    (place.folder / ".snakemake").mkdir()
    with read_only(place.folder / ".snakemake"):
        found = place.run("points")
    assert found.returncode == 1
    (sentence,) = said(found)
    assert ".snakemake" in sentence
    assert "change its permissions" in sentence
    reads(sentence)
    assert place.run("points").returncode == 0


@pytest.mark.fault(
    fault="The disk fills while the workflow draws figures.",
    topic="Disks, outputs and commands",
    happens="It exits with 1. No half file is left, and the next run draws them.",
    reads="error: …: cannot be written (No space left on device); free some space or change the permissions, then …",
    lost="nothing",
)
@pytest.mark.parametrize("kib", [0, 40])
def test_a_disk_that_fills_while_figures_are_drawn(place: Place, kib: int, reads: faults.Reads) -> None:
    place.write({**GRID, "figures": "figs/drawn"})
    views = [f"figs/drawn/{name}" for name in ("claims.md", "accuracy_vs_sparsity.pdf", "training_curves.pdf")]
    with small_disk(place.folder / "figs", 8 + kib):
        found = place.run(*views)
        assert found.returncode == 1
        sentences = said(found)
        assert sentences
        for sentence in sentences:
            assert "figs/" in sentence
            assert "(No space left on device); free some space" in sentence
            reads(sentence)
        assert not list((place.folder / "figs").rglob(".*.tmp"))
        # As the message says.
        grow(place.folder / "figs", 20_000)
        assert place.run(*views).returncode == 0
        assert all((place.folder / view).stat().st_size for view in views)


@pytest.mark.fault(
    fault="The reader of the output stops, as in `snakemake … | head`.",
    topic="Disks, outputs and commands",
    happens="The workflow goes on. It exits with 0.",
    lost="nothing",
)
def test_a_reader_that_stops_does_not_stop_the_workflow(place: Place) -> None:
    # The first line comes before the Snakefile is read: a reader that stops before it stops Snakemake itself.
    command = f"'{place.python}' -m snakemake --cores 2 points --configfile grid.yaml 2>&1 | head -n 1"
    found = subprocess.run(
        ["bash", "-c", command + "; echo ${PIPESTATUS[0]}"],
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.stdout.endswith("\n0\n")
    assert found.stdout.count("\n") == 2
    assert found.stderr == ""
    assert (place.folder / "results" / "tiny" / "records" / f"{POINT}.json").is_file()


@pytest.mark.fault(
    fault="A target of the workflow is unknown.",
    topic="Disks, outputs and commands",
    happens="The workflow exits with 1.",
    reads="blast: unknown target '…'; did you mean '…'?",
    lost="nothing",
)
def test_an_unknown_target_names_the_nearest_of_many(place: Place, reads: faults.Reads) -> None:
    found = place.run("nonsense/xyz")
    assert found.returncode == 1
    (sentence,) = said(found)
    assert "unknown target 'nonsense/xyz'; " in sentence
    assert len(sentence) < 900
    found = place.run("pionts")
    reads(said(found)[0])
    assert said(found) == ["blast: unknown target 'pionts'; did you mean 'points'?"]
    # As the message says.
    assert place.run("points").returncode == 0
