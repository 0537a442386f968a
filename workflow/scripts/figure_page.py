"""Writes the page of figures: `python workflow/scripts/figure_page.py`, with `--pictures` also its small pictures."""

from __future__ import annotations

import argparse
import io
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import paper_figures  # noqa: E402
from blast.errors import BlastError  # noqa: E402
from blast.experiment.command_end import ended  # noqa: E402
from blast.experiment.report.views import Picture, shown_views  # noqa: E402
from blast.files import write_atomically  # noqa: E402

WIDTH, COLOURS = 640, 96
# From a run of the default grid: nothing recorded has masks over time.
BY_HAND = ("block_masks",)
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def section(images: Path) -> str:
    """The part of the page with every figure: what it shows, the command that draws it, and its picture."""
    captions = ROOT / "workflow" / "report"
    views = [view for view in shown_views(paper_figures.FOLDER, captions, ROOT) if isinstance(view, Picture)]
    lines = []
    for category, group in groupby(views, key=lambda view: view.category):
        lines += [f"## {category}", ""]
        for view in group:
            text = (captions / f"{view.name}.rst").read_text(encoding="utf-8")
            picture = f"![{view.title}](images/{view.name}.png)"
            shown = picture if (images / f"{view.name}.png").is_file() else "Nothing is recorded for it yet."
            command = f"`snakemake --cores 1 paper_figures/{view.name}.pdf`"
            lines += [f"### {view.title}", "", shown, "", text.replace("``", "`").strip(), "", command, ""]
    return "\n".join(lines)


def draw_pictures(images: Path) -> None:
    """Draws all figures of the recorded results, small and in few colours."""
    from PIL import Image

    from blast.experiment.records.table import load_table

    table = load_table(ROOT / "results" / "no grid", ROOT / "results" / "recorded")
    for name in paper_figures.figures():
        module = paper_figures.load(name)
        figure = module.draw(paper_figures.rows_of(module, table))
        if name in BY_HAND or figure.get_label():
            continue
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png")
        image = Image.open(drawn).convert("RGB")
        width = min(WIDTH, image.width)
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        # The other methods of Pillow give a line of a rare colour that of its neighbours.
        image = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(small, format="PNG", optimize=True)
        write_atomically(images / f"{name}.png", small.getvalue())


def main(arguments: list[str] | None = None) -> int:
    """Renews the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="draw the pictures too, from results/recorded")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "figures.md")
    given = parser.parse_args(arguments)
    images = given.page.parent / "images"
    try:
        if given.pictures:
            draw_pictures(images)
        before, _, rest = given.page.read_text(encoding="utf-8").partition(BEGIN)
        write_atomically(given.page, before + BEGIN + "\n" + section(images) + END + rest.partition(END)[2])
    except BlastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(ended("error", main, code=1))
