"""Measures what planning a grid costs: `python workflow/scripts/planning_cost.py [POINTS …] --out planning_cost.csv`.

For each size, a config of so many points is planned by `snakemake -n all` in a new folder: once with nothing done. The
column `cpu_s_over_linear` is the time by the time of the size before, over the sizes' ratio: 1 where it grows with the
points. Then every point gets a record, and `blast plan` and `blast status` look at them all: `first_cpu_s` is the first
look after the code or the records changed, which checks each record; the next ones know them by their bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.fingerprint import fingerprint, training_fingerprint
from blast.experiment.records.record import make_record

ROOT = Path(__file__).resolve().parents[2]
SIZES = (100, 1000, 10_000)
# One dense point and twenty pruned ones a seed.
SPARSITIES = [0.0, *(round(0.04 * step, 2) for step in range(1, 21))]
COLUMNS = ("points", "jobs", "cpu_s", "peak_mb", "first_cpu_s", "plan_cpu_s", "status_cpu_s", "cpu_s_over_linear")


def config(points: int, per_job: int) -> dict:
    """The config of a grid of about so many points on images of 8 by 8."""
    return {
        "name": f"points{points}",
        "figures": "drawn",
        "training": {"default": {"steps": 20, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}},
        "points_per_job": {"default": per_job},
        "grid": [
            {
                "architectures": ["vit-nano"],
                "datasets": ["digits"],
                "blocks": [16],
                "sparsity": SPARSITIES,
                "seeds": list(range(max(1, round(points / len(SPARSITIES))))),
            }
        ],
    }


def measure(points: int, per_job: int) -> dict[str, float]:
    """Plans one grid; returns its number of points and jobs, seconds of the processor, and the peak memory in MB."""
    values = config(points, per_job)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "grid.yaml")
        file.write_text(yaml.safe_dump(values))
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", folder]
        command += ["--configfile", str(file), "-n", "all"]
        said, used = _run(command, folder)
        write_records(values, Path(folder))
        blast = [sys.executable, "-m", "blast"]
        asked = {"first": "plan", "plan": "plan", "status": "status"}
        verbs = {f"{name}_cpu_s": _cpu(_run([*blast, verb, str(file)], folder)[1]) for name, verb in asked.items()}
    total = next(line for line in reversed(said.splitlines()) if line.startswith("total "))
    return {
        "points": len(values["grid"][0]["seeds"]) * len(SPARSITIES),
        "jobs": int(total.split()[1]),
        "cpu_s": _cpu(used),
        "peak_mb": round(_megabytes(used), 1),
        **verbs,
    }


def _run(command: list[str], folder: str) -> tuple[str, resource.struct_rusage]:
    """What a command prints, and what it uses."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
    said = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(said)
    return said, used


def write_records(values: dict, folder: Path) -> None:
    """Writes a record of each point of a config, as a run of some minutes leaves it."""
    plan = expand(parse(values, Path("grid.yaml")))
    records = GridFolder(folder / "results" / values["name"]).root / "records"
    records.mkdir(parents=True)
    curve = {"step": list(range(60)), "value": [2.0 - step / 60 for step in range(60)]}
    metrics = [{"metric": f"metric{number}", "unit": "nats", "value": 1.0, "n": 360} for number in range(10)]
    result = {"metrics": metrics, "curves": {"train_loss": curve, "validation_loss": curve}}
    for point in plan.points.values():
        codes = {"fingerprint": fingerprint(point), "training_fingerprint": training_fingerprint(point)}
        record = make_record(point, status="ok", result=result, run={"wall_s": 1.0, **codes})
        (records / f"{point.id}.json").write_text(json.dumps(record, indent=1))


def _cpu(used: resource.struct_rusage) -> float:
    return round(used.ru_utime + used.ru_stime, 2)


def _megabytes(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main(arguments: list[str] | None = None) -> int:
    """Prints a row for each size, and writes all of them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", type=int, default=SIZES)
    parser.add_argument("--per-job", type=int, default=1, help="points a job (default: 1, the most jobs)")
    parser.add_argument("--out", type=Path, help="CSV file for the rows")
    given = parser.parse_args(arguments)
    rows: list[dict[str, float]] = []
    for points in given.points:
        row = measure(points, given.per_job)
        if rows:
            last = rows[-1]
            row["cpu_s_over_linear"] = round(row["cpu_s"] / last["cpu_s"] / (row["points"] / last["points"]), 3)
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if given.out:
        with given.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
