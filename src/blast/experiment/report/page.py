"""Writes the report of a grid as one HTML file: pictures are in it, and it loads nothing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jinja2

from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.report.origin import config_of, datasets_of, environments_of
from blast.experiment.report.places import places_of, recorded_places
from blast.experiment.report.points import FAILED, GOOD, MISSING, PointState, states_of, verdict_of
from blast.experiment.report.views import PRINTED_ROWS, Picture, Table, shown_views
from blast.files import write_atomically

CLAIMS = "claims"
# Points that are listed; a page with more is slow to open on a phone.
LISTED = 500


def write_report(folder: GridFolder, drawn: Path, recorded: Path, file: Path, checkout: Path = CHECKOUT) -> None:
    """Writes the report. The same files give the same bytes.

    Args:
        folder: Folder of the grid.
        drawn: The folder with its figures and tables.
        recorded: `results/recorded`, whose results the figures show too.
        file: The HTML file to write.
        checkout: The folder with the views and their captions.

    Raises:
        BlastError: if the grid has no plan, or the file cannot be written.
    """
    views = shown_views(checkout / "paper_figures" / "views", checkout / "workflow" / "report", drawn)
    states = states_of(folder)
    write_atomically(file, render(folder, states, views, recorded), "run the same command again")


def render(folder: GridFolder, states: Sequence[PointState], views: Sequence[Picture | Table], recorded: Path) -> str:
    """The text of the report; see `write_report`."""
    state, verdict = verdict_of(list(states))
    claims = next((view for view in views if view.name == CLAIMS and isinstance(view, Table)), None)
    drawn = [view for view in views if view.name != CLAIMS and _is_drawn(view)]
    ended = [run["finished"] for run in (each.run for each in states) if run and run.get("finished")]
    return _template().render(
        grid=states[0].point.grid if states else folder.root.name,
        state=state,
        verdict=verdict,
        date=max(ended, default="")[:10],
        claims=claims and claims.with_first("claim", "verdict", "paper", "ours"),
        verdict_kind=verdict_kind,
        places=places_of(states),
        recorded=recorded_places(recorded),
        faults=[each for each in states if each.state != GOOD and each.causes],
        missing=[each for each in states if each.state == MISSING],
        remedy=any(each.state in (FAILED, MISSING) for each in states),
        states=states[:LISTED],
        not_listed=max(0, len(states) - LISTED),
        categories=[(name, list(group)) for name, group in groupby(drawn, key=lambda view: view.category)],
        empty=[view.title for view in views if isinstance(view, Picture) and view.empty],
        not_drawn=[view.title for view in views if not (_is_drawn(view) or (isinstance(view, Picture) and view.empty))],
        datasets=datasets_of(folder, states),
        environments=environments_of(states),
        config=config_of(folder),
        printed_rows=PRINTED_ROWS,
    )


def _is_drawn(view: Picture | Table) -> bool:
    return bool(view.png and not view.empty if isinstance(view, Picture) else view.columns)


def verdict_kind(text: str) -> str:
    """The class of a verdict on a claim, which colours it."""
    return {"met": "good", "not met": "failed", "undecided": "bad"}.get(text, "none")


@functools.cache
def _template() -> jinja2.Template:
    files = jinja2.PackageLoader("blast.experiment.report", "")
    # Every text is escaped: names and causes may come from the records of others.
    made = jinja2.Environment(
        loader=files, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made.tests["picture"] = lambda view: isinstance(view, Picture)
    return made.get_template("page.html", globals={"css": files.get_source(made, "style.css")[0]})
