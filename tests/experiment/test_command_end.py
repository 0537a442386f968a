"""A full disk, a closed output and a reader that stops: one sentence for each, whatever the command."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from blast.errors import BlastError, unknown_name
from blast.experiment.cli import main
from blast.experiment.command_end import ended, system_sentence

ROOT = Path(__file__).resolve().parents[2]
GRID = "name: tiny\nbenchmarks: [{suite: mlp, shapes: [gpt2], sparsity: [0.9], blocks: [64], tokens: [1]}]\n"


@contextlib.contextmanager
def full_disk(size: int = 0) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: the system refuses as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "c.yaml").write_text(GRID)
    (tmp_path / "page.md").write_text("<!-- table: Nothing -->\n")
    (tmp_path / "taken").write_text("a file")
    assert main(["plan", "c.yaml", "--out", "points"]) == 0
    return tmp_path


WRITERS = {
    "plan": "plan c.yaml --out {out}",
    "bench": "bench mlp --config c.yaml --plan {out}",
    "job": "job points/mlp-gpt2.float32.s90.b64.seed0.json --out {out}",
    "fetch": "fetch digits --out {out}/digits.json",
    "prepare": "prepare digits --out {out}/digits.json",
}


def the_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of an error: the last line, and the only one of its kind."""
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.startswith("blast: ")
    # `fetch` names the licence first.
    assert all(line.startswith("digits: licence") for line in lines)
    return last


@pytest.mark.slow
@pytest.mark.fault(
    fault="The disk is full, in a verb of `blast` that writes.",
    topic="Disks, outputs and commands",
    happens="It exits with 2. The same command works when there is space.",
    reads="blast: …: cannot be … (…); free some space",
    lost="nothing",
)
@pytest.mark.parametrize("verb", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_same_command_works_when_there_is_space(place, capsys, verb, reads):
    command = WRITERS[verb].format(out="new").split()
    with full_disk():
        code = main(command)
    assert code == 2
    said = the_sentence(capsys)
    assert "(File too large); free some space" in said
    reads(said)
    assert not [file for file in (place / "new").rglob("*") if file.suffix == ".json"]
    # As the message says.
    assert main(command) == 0


@pytest.mark.fault(
    fault="A file lies in the place of a folder.",
    topic="Disks, outputs and commands",
    happens="It exits with 2. The file stays.",
    reads="blast: …: cannot be … (Not a directory); give another path",
    lost="nothing",
)
@pytest.mark.parametrize("verb", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_one_sentence(place, capsys, verb, reads):
    command = WRITERS[verb].format(out="taken/new").split()
    assert main(command) == 2
    said = the_sentence(capsys)
    assert "give another path" in said
    reads(said)
    assert (place / "taken").read_text() == "a file"


@pytest.mark.fault(
    fault="The disk fills while a figure is drawn.",
    topic="Disks, outputs and commands",
    happens="The old figure stays. There is no half file.",
    reads="error: …: cannot be written (…); free some space or change the permissions, then draw it again.",
    lost="nothing",
)
@pytest.mark.parametrize("size", [0, 100, 4000, 9000])
def test_a_disk_that_fills_while_a_figure_is_drawn_is_one_sentence(tmp_path, capsys, size, reads):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from paper_figures.views._write import save_figure

    def draw() -> int:
        figure = Figure()
        figure.subplots().plot([0, 1])
        save_figure(figure, tmp_path, "drawn")
        return 0

    (tmp_path / "drawn.pdf").write_bytes(b"of yesterday")
    with full_disk(size):
        assert ended("error", draw, code=1) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(File too large); free some space" in error
    assert error.endswith("then draw it again.\n")
    reads(error)
    assert {file.name for file in tmp_path.iterdir()} <= {"drawn.pdf", "drawn.png"}
    assert (tmp_path / "drawn.pdf").read_bytes() == b"of yesterday" or size == 9000
    assert ended("error", draw, code=1) == 0


def of_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("BLAST", f"'{sys.executable}' -m blast")
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", ["list", "check --list", "schema", "--help"])
def test_a_reader_that_stops_is_no_error(verb, unbuffered):
    found = of_shell(f"BLAST {verb} | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (found.stdout, found.stderr) == ("0\n", "")


@pytest.mark.slow
@pytest.mark.fault(
    fault="The reader of the output stops, as in `blast job … | head`.",
    topic="Disks, outputs and commands",
    happens="The work goes on. It exits with 0.",
    lost="nothing",
)
def test_a_job_goes_on_when_nobody_reads_what_it_prints(place):
    point = place / "points" / "mlp-gpt2.float32.s90.b64.seed0.json"
    found = of_shell(f"BLAST job {point} --out {place}/new | true; echo ${{PIPESTATUS[0]}}")
    assert (found.stdout, found.stderr) == ("0\n", "")
    assert (place / "new" / "records" / point.name).is_file()


@pytest.mark.fault(
    fault="The output goes to a full disk.",
    topic="Disks, outputs and commands",
    happens="The work is done. It exits with 2.",
    reads=(
        "blast: a part of the output could not be written (No space left on device); free some "
        "space, or send the output elsewhere, and run it again."
    ),
    lost="the printed lines alone",
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_said_and_is_an_error(unbuffered, reads):
    found = of_shell("BLAST list > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert found.returncode == 2
    reads(found.stderr)
    assert found.stderr == (
        "blast: a part of the output could not be written (No space left on device); free some space, or send the "
        "output elsewhere, and run it again.\n"
    )


@pytest.mark.fault(
    fault="The output or the input is closed.",
    topic="Disks, outputs and commands",
    happens="The work goes on with the usual exit code.",
    lost="nothing",
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_change_nothing(closed):
    assert of_shell(f"BLAST list {closed}").returncode == 0
    assert of_shell(f"BLAST check none.yaml {closed}").returncode == 2


def test_a_file_never_takes_the_place_of_a_closed_output(tmp_path):
    """Else what a library prints, also one in C, would be written into a record."""
    code = (
        "import os; from blast.experiment.command_end import ended\n"
        f"def run():\n    handle = open({str(tmp_path / 'record')!r}, 'w')\n"
        "    os.write(2, b'a warning')\n    return 0\n"
        "ended('blast', run)"
    )
    of_shell(f"""'{sys.executable}' -c "{code}" >&- 2>&-""")
    assert (tmp_path / "record").read_text() == ""


class SafetensorsError(Exception):
    """As the Rust code of safetensors raises it."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file: cannot be written (No space left on device); free"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: cannot be used (Read-only file system); change"),
        (OSError(errno.EEXIST, "File exists", "a"), "a: cannot be used (File exists); give another path, or move away"),
        (SafetensorsError("I/O error: No space left on device (os error 28)"), "a file cannot be written (No space"),
        (RuntimeError("unexpected pos 64 vs 0"), None),
        (OSError(errno.EIO, "Input/output error"), None),
    ],
)
def test_errors_of_the_system_are_known_whatever_library_raises_them(error, sentence):
    found = system_sentence(error)
    assert found is None if sentence is None else found.startswith(sentence)
    wrapped = ValueError("a wrapper")
    wrapped.__cause__ = error
    assert system_sentence(wrapped) == found


@pytest.mark.fault(
    fault="The disk is full while a point runs.",
    topic="Disks, outputs and commands",
    happens="The point has a failed record with the cause.",
    reads=(
        "a file cannot be written (No space left on device); free some space, then run the same "
        "command again: what is done is kept."
    ),
    lost="nothing",
)
def test_the_cause_of_a_point_that_met_a_full_disk_says_what_to_do(tmp_path, monkeypatch, reads):
    from blast.experiment.plan.paths import GridFolder
    from blast.experiment.plan.point import Point
    from blast.experiment.run import worker

    def full(*_: object) -> None:
        raise SafetensorsError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(worker, "run_point", full)
    point = Point(id="a", grid="g", stage="train", architecture="gpt2-nano", dataset="digits", training={})
    outcome = worker.outcome_of(point, GridFolder(tmp_path))
    reads(outcome["cause"])
    assert outcome == {
        "status": "failed",
        "cause": "a file cannot be written (No space left on device); free some space, then run the same command "
        "again: what is done is kept.",
    }


def test_a_bug_is_no_sentence_even_if_an_error_of_the_system_came_before():
    def bug() -> int:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            return {}["missing"]

    with pytest.raises(KeyError):
        ended("blast", bug)


@pytest.mark.fault(
    fault="A name is unknown, and thousands are known.",
    topic="Disks, outputs and commands",
    happens="The nearest ones are named.",
    reads="unknown point '…'; the nearest of … known: …",
    lost="nothing",
)
def test_an_unknown_name_lists_the_nearest_of_many(reads):
    known = [f"gpt2-nano.pystdlib.s{number}.seed0" for number in range(10_000)]
    said = str(unknown_name("point", "zebra", known))
    assert said.startswith("unknown point 'zebra'; the nearest of 10000 known: gpt2-nano.")
    assert len(said) < 400
    reads(said)
    assert "did you mean 'gpt2-nano.pystdlib.s17.seed0'?" in str(unknown_name("point", "gpt2-nano.pystdlib.s17", known))
    assert len(str(unknown_name("point", "z" * 10_000, known))) < 700
    assert str(unknown_name("dtype", "zz", ["a", "b"])) == "unknown dtype 'zz'; known: a, b."
    assert isinstance(unknown_name("dtype", "zz", []), BlastError)
