"""Makes the pictures of docs/mlflow.md from a grid that was run.

    python tests/support/mlflow_screens.py results smoke vit-nano.digits.blast.s90.b16.seed0

They go to docs/images/. It needs Chromium, and imports what the folder holds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mlflow_pages import browser, fetch, open_page, serving
from PIL import Image

from blast.experiment.tracking.links import WORKFLOW

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def main(results: str, grid: str, point: str) -> None:
    """Opens the table, the curves and the run of the grid, and saves what is seen."""
    with serving(Path(results).resolve().parent, grid=grid) as address, browser() as page:
        base, place = address.split("/#/")[0], address.split("/runs?")[0]

        def run_of(name: str) -> str:
            query = {"experiment_ids": [place.split("/")[-1]], "filter": f"attributes.run_name = '{name}'"}
            found = fetch(base + "/ajax-api/2.0/mlflow/runs/search", query).decode()
            return re.search(r'"run_id": *"(\w+)"', found)[1]

        def save(name: str) -> None:
            # Charts are drawn after their names are there.
            page.wait_for_timeout(5000)
            file = IMAGES / f"{name}.png"
            page.screenshot(path=file)
            with Image.open(file) as shot:
                # No wider than a page.
                shot.thumbnail((1400, 1400))
                shot.convert("RGB").quantize(64).save(file, optimize=True)
            print(f"{file}: {file.stat().st_size >> 10} KiB")

        page.set_viewport_size({"width": 1760, "height": 640})
        open_page(page, address, point)
        save("mlflow_table")
        page.set_viewport_size({"width": 1400, "height": 640})
        open_page(page, f"{place}/runs/{run_of(point)}/model-metrics?{WORKFLOW}", "curves/train_loss")
        page.get_by_placeholder("Search metric charts").fill("loss|sparsity_achieved")
        save("mlflow_curve")
        page.set_viewport_size({"width": 1400, "height": 900})
        open_page(page, f"{place}/runs/{run_of(f'grid {grid}')}?{WORKFLOW}", "points_done")
        page.get_by_text("Show more").first.click()
        save("mlflow_grid")


if __name__ == "__main__":
    main(*sys.argv[1:])
