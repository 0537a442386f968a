"""A small invented grid, bundles of it, and bundles that were changed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fake_records as fake

from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record, write_record
from blast.files import file_digest, json_digest, write_json

DENSE = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
# It starts from the checkpoint of the dense one.
PRUNED = Point.from_dict(fake.make_point("vit-nano", "digits", "one_shot", 0.9, 0).to_dict() | {"start": "parent"})
TEXT = fake.make_point("llama-nano", "pystdlib", "blast", 0.9, 0)


def make(folder: Path) -> GridFolder:
    """A grid with a dense point with weights, one pruned from it, and one with language metrics."""
    grid = GridFolder(folder)
    for point in (DENSE, PRUNED, TEXT):
        work = grid.work(point.id)
        (work / "checkpoint").mkdir(parents=True)
        (work / "checkpoint" / "blast.safetensors").write_bytes(b"weights of " + point.id.encode())
        (work / "checkpoint" / "config.json").write_text("{}")
        (work / "masks.safetensors").write_bytes(b"the same masks")
        (work / "other.bin").write_bytes(b"not named")
        artifacts = {
            "checkpoint": {"path": "checkpoint", "digest": file_digest(work / "checkpoint" / "blast.safetensors")},
            "masks": {"path": "masks.safetensors", "digest": file_digest(work / "masks.safetensors")},
        }
        result = {"metrics": [{"metric": "top1", "value": 0.5}], "artifacts": artifacts}
        record = make_record(point, status="ok", result=result, run=fake.run_part())
        write_record(grid, record)
    language = {"status": "ok", "cause": None, "record_digest": record["record_digest"], "metrics": [], "left_out": {}}
    write_json(grid.language(TEXT.id), language)
    return grid


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def export(grid: GridFolder, out: Path, *more: str) -> Path:
    assert main(["export", str(grid.root), "--out", str(out), *more]) == 0
    return out


def bring(bundle: Path, here: Path, *more: str) -> int:
    return main(["import", str(bundle), "--grid-dir", str(here), *more])


def rewritten(bundle: Path, out: Path, change, forged: bool = True) -> Path:
    """A bundle with other members: `change` gets the headers and contents, and the manifest as a mapping.

    If it is forged, the manifest gets the digest that fits it.
    """
    with tarfile.open(bundle) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    manifest = json.loads(members[0][1])
    members = change(members, manifest) or members
    if forged:
        manifest["digest"] = json_digest({key: value for key, value in manifest.items() if key != "digest"})
    text = json.dumps(manifest).encode()
    members[0][0].size = len(text)
    with tarfile.open(out, "w") as tar:
        for member, content in [(members[0][0], text), *members[1:]]:
            tar.addfile(member, io.BytesIO(content))
    return out
