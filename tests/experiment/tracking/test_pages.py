"""What a user sees in a browser: the table of runs under their grid, a curve, an artifact."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from mlflow_grid import write_point
from mlflow_pages import CHROMIUM, browser, fetch, open_page, serving

from blast.experiment.plan.paths import GridFolder
from blast.files import write_atomically

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `make ui` prints for a grid of two points and a verdict."""
    root = tmp_path_factory.mktemp("pages")
    folder = GridFolder(root / "results" / "tiny")
    for name in ("first.point.of.the.grid", "second.point.of.the.grid"):
        write_point(folder, name, steps=40)
    write_atomically(folder.verdict, "2 points, none failed\n")
    with serving(root) as found:
        yield found


def run_id(address: str, name: str) -> str:
    base, experiment = address.split("/#/")[0], re.search(r"experiments/(\d+)", address)[1]
    query = {"experiment_ids": [experiment], "filter": f"attributes.run_name = '{name}'"}
    found = fetch(base + "/ajax-api/2.0/mlflow/runs/search", query).decode()
    return re.search(r'"run_id": *"(\w+)"', found)[1]


def test_the_table_shows_the_points_under_their_grid(address: str) -> None:
    with browser() as page:
        open_page(page, address, "second.point.of.the.grid")
        for text in ("grid tiny", "first.point.of.the.grid", "sparsity/achieved", "16x32"):
            assert page.get_by_text(text).first.is_visible(), text


def test_a_curve_of_a_run_is_drawn(address: str) -> None:
    run = run_id(address, "first.point.of.the.grid")
    with browser() as page:
        open_page(page, f"{address.split('/runs?')[0]}/runs/{run}/model-metrics", "curves/train_loss")
        page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")


def test_the_masks_of_a_run_are_seen_and_its_description_leads_to_its_record(address: str) -> None:
    run = run_id(address, "first.point.of.the.grid")
    with browser() as page:
        open_page(page, f"{address.split('/runs?')[0]}/runs/{run}/artifacts/masks/last.png", "last.png")
        page.locator("img[src*='last.png'], img[src^='blob:']").first.wait_for()
        open_page(page, f"{address.split('/runs?')[0]}/runs/{run}", "figures and tables of the grid")
        link = page.get_by_role("link", name="record", exact=True).first.get_attribute("href")
        assert "get-artifact?path=record.json" in link
        assert b'"record_digest"' in fetch(f"{address.split('/#/')[0]}/{link.lstrip('/')}")


def test_the_run_of_the_grid_tells_the_verdict(address: str) -> None:
    parent = run_id(address, "grid tiny")
    with browser() as page:
        open_page(page, f"{address.split('/runs?')[0]}/runs/{parent}", "none failed")
