"""The report as a browser shows it without a network: on a desk, on a phone, and on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from report_case import LONG, mixed_grid, reported

from blast.experiment.plan.paths import CHECKOUT

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report in a browser")
    reported(root, mixed_grid(root / "default"))
    return root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, file: Path, width: int, height: int) -> tuple[Any, list[str]]:
    """The page in a window of that size, without a network, and what went wrong."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True, is_mobile=width < 500)
    context.set_default_timeout(1000 * PATIENCE)
    page, wrong = context.new_page(), []
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(file.as_uri())
    return page, wrong


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)], ids=["desk", "phone"])
def test_the_report_opens_without_a_network_and_is_no_wider_than_the_window(
    browser: Any, file: Path, width: int, height: int
) -> None:
    page, wrong = opened(browser, file, width, height)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert wrong == []
    assert page.locator("#verdict").is_visible()
    assert "1 failed" in page.locator("#verdict").inner_text()
    assert page.locator("#verdict").bounding_box()["y"] < height
    assert page.locator("#claims td", has_text="inference-speed-up").is_visible()
    assert page.locator("#claims .badge", has_text="met").first.is_visible()
    assert page.locator("#results_table td", has_text="results_table 99").is_visible()
    for picture in page.locator("img").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    for figure in page.locator("figure").all():
        caption = CHECKOUT / "workflow" / "report" / f"{figure.get_attribute('id')}.rst"
        expected = re.sub(r"[`*]", "", caption.read_text()).split()
        assert figure.locator("figcaption").inner_text().split() == expected


def test_on_a_phone_pictures_and_tables_are_moved_sideways_and_text_is_not(browser: Any, file: Path) -> None:
    page, _ = opened(browser, file, 390, 844)
    wide = page.locator("#results_table .wide")
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth && box.clientWidth < 390")
    picture = page.locator("#quality_vs_sparsity img")
    assert picture.evaluate("image => image.getBoundingClientRect().width") > 600
    for paragraph in page.locator("p, li, h1, h2, h3, figcaption").all():
        if (box := paragraph.bounding_box()) is not None:
            assert box["x"] + box["width"] <= 391, paragraph.inner_text()


def test_links_lead_to_the_parts_of_the_report(browser: Any, file: Path) -> None:
    page, _ = opened(browser, file, 1400, 900)
    for link in page.locator("nav a").all():
        part = page.locator(link.get_attribute("href"))
        assert part.count() == 1
        link.click()
        assert part.bounding_box()["y"] < 900


def test_the_report_is_printed_with_every_figure_and_with_short_tables(
    browser: Any, file: Path, tmp_path: Path
) -> None:
    page, _ = opened(browser, file, 1400, 900)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("#results_table td", has_text="results_table 59").is_visible()
    assert not page.locator("#results_table td", has_text="results_table 99").is_visible()
    assert page.locator("#results_table .paper").is_visible()
    printed = page.pdf(path=str(tmp_path / "report.pdf"), prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 15 < pages < 80
    assert LONG in page.content()
