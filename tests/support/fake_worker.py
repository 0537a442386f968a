"""Takes the place of `blast.experiment.run.worker` in tests of jobs: points sleep, fail or die as their `data` says.

Keys of `data`: `seconds` to sleep, `meets` (a point that has to start before this one ends), `result`, `fails` (cause)
or `dies` (a signal). Each line of `journal.txt` in the folder of the grid tells the start or the end of a point: what,
its id, the time, and its GPUs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path


def command(points, root, files, scratch, gpus=0) -> list[str]:
    """In place of `blast.experiment.run.launch.worker_command`."""
    return [sys.executable, "-S", __file__, "--grid-dir", str(root), "--gpus", str(gpus), *files]


def note(folder: Path, what: str, name: str) -> None:
    line = f"{what} {name} {time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\n"
    # A single write, so that lines of several processes do not mix.
    with (folder / "journal.txt").open("a") as journal:
        journal.write(line)


def end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


def run(folder: Path, file: Path) -> None:
    values = json.loads(file.read_text())
    note(folder, "start", values["id"])
    print(f"== {values['id']}", flush=True)
    asked = values["data"]
    time.sleep(asked.get("seconds", 0.0))
    deadline = time.monotonic() + 900
    while asked.get("meets") and f"start {asked['meets']} " not in (folder / "journal.txt").read_text():
        if time.monotonic() > deadline:
            asked = {"fails": f"{asked['meets']} does not run beside it."}
        time.sleep(0.01)
    if asked.get("dies"):
        os.kill(os.getpid(), asked["dies"])
    outcome = {"status": "ok", "result": asked.get("result", {"metrics": []})}
    for other in filter(None, (values["parent"] if values["start"] == "parent" else None, values.get("teacher"))):
        if json.loads((folder / "records" / f"{other}.json").read_text())["status"] != "ok":
            outcome = {"status": "failed", "cause": f"its parent '{other}' failed."}
    if asked.get("fails"):
        outcome = {"status": "failed", "cause": asked["fails"]}
    note(folder, "end", values["id"])
    written = folder / "points" / values["id"] / "outcome.json"
    written.with_suffix(".new").write_text(json.dumps(outcome))
    written.with_suffix(".new").replace(written)
    while written.exists():
        time.sleep(0.01)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    grid = Path(sys.argv[sys.argv.index("--grid-dir") + 1])
    for point in sys.argv[sys.argv.index("--gpus") + 2 :]:
        run(grid, Path(point))
