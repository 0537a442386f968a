"""A grid with figures and tables as `blast report` reads them. Nothing was measured."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
from PIL import Image, PngImagePlugin

from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.report.page import write_report
from blast.experiment.todo.views import find_views

FAILED, SKIPPED = "gpt2-nano.pystdlib.random.s95.b16.seed0", "vit-nano.digits.blast.s80.b16.seed0"
VIEWS = CHECKOUT / "paper_figures" / "views"
LONG = "a-name-that-" + "goes-on-and-" * 12 + "ends"
CLAIMS = f"""The local grid does not count.

| claim | paper | ours | our setting | verdict |
|---|---|---|---|---|
| inference-speed-up | up to 16.7 | 20.0 | 405B \\| 1 token | met |
| pretraining | 1.11 | – | {LONG} | not run |
"""


def draw_everything(drawn: Path, without: tuple[str, ...] = ()) -> None:
    """Stands for every figure and table: a picture of the size of a page, one of nothing, tables of 100 rows."""
    drawn.mkdir(parents=True, exist_ok=True)
    for number, view in enumerate(find_views(VIEWS, drawn)):
        if view.name in without:
            continue
        if view.is_figure:
            about = PngImagePlugin.PngInfo()
            if view.name == "energy":
                about.add_text("Description", "not run")
            picture = Image.new("RGB", (1400, 300 + 20 * number), (255, 255 - 4 * number, 200))
            picture.save(drawn / f"{view.name}.png", pnginfo=about)
        else:
            columns = ["model", "value", LONG, *(f"column {place}" for place in range(number % 12))]
            rows = [[f"{view.name} {row}", f"{row}.5 %", LONG, *["0.1"] * (len(columns) - 3)] for row in range(100)]
            lines = [columns, ["---"] * len(columns), *rows]
            text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
            (drawn / f"{view.name}.md").write_text(text)
    if "claims" not in without:
        (drawn / "claims.md").write_text(CLAIMS)


def reported(root: Path, folder: Path, without: tuple[str, ...] = ()) -> str:
    """The report of a grid, which is written to `root/report.html`."""
    draw_everything(root / "drawn", without)
    write_report(GridFolder(folder), root / "drawn", CHECKOUT / "results" / "recorded", root / "report.html")
    return (root / "report.html").read_text()


def mixed_grid(folder: Path) -> Path:
    """The invented default grid with a point that failed and one that was not run."""
    return fake.write_grid(folder, fail=FAILED, skip=SKIPPED)
