"""MLflow's own pages for tests: `make ui` in a folder, requests to it, and a headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patience import PATIENCE

from blast.experiment.tracking.experiments import GRID_RUN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1600,1000 --virtual-time-budget=30000"
)


@contextlib.contextmanager
def serving(root: Path, grid: str = "tiny", **environment: str) -> Iterator[str]:
    """Address that `make ui` prints of a grid in a folder, with the server behind it; its output goes into `root/log`.

    Args:
        root: The folder that holds `results`.
        grid: Name of the grid.
        environment: More variables of the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "blast.experiment.tracking.ui", "--port", str(port)]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if line.startswith(f"{grid}: ")).strip().removeprefix(f"{grid}: ")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fetch(address.split("/#/")[0] + "/health")
                break
            except OSError:
                assert process.poll() is None, (root / "log").read_text()
                assert time.monotonic() < deadline, (root / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def fetch(address: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        return answer.read()


def points(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs without those of whole grids, as the server gives them."""
    return [run for run in runs if GRID_RUN not in {tag["key"] for tag in run["data"]["tags"]}]


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A page of a headless Chromium, as Playwright gives it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = chromium.new_page(viewport={"width": 1500, "height": 720})
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        chromium.close()


def open_page(page: Any, address: str, text: str) -> None:
    """Opens an address and waits until a text is seen; MLflow's assistant, which covers a part, is closed."""
    page.goto(address)
    page.get_by_text(text).first.wait_for()
    with contextlib.suppress(Exception):
        page.get_by_role("button", name="Close").first.click(timeout=3000)
