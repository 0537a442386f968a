"""Links between the pages of MLflow, for descriptions of runs: they work behind any address, as they are relative."""

from __future__ import annotations

import urllib.parse

# Without it, MLflow 3 opens its pages for language-model traces.
WORKFLOW = "workflowType=machine_learning"


def artifact_link(text: str, run: str, path: str) -> str:
    """A link, in Markdown, that opens a file of a run."""
    return f"[{text}](get-artifact?path={urllib.parse.quote(path)}&run_uuid={run})"


def run_link(text: str, experiment: str, run: str, tab: str = "") -> str:
    """A link, in Markdown, that opens the page of a run, or one of its tabs such as `artifacts`."""
    place = f"#/experiments/{experiment}/runs/{run}{'/' + tab if tab else ''}"
    return f"[{text}]({place}?{WORKFLOW})"
