"""What the files of a grid show as done, besides the records of points: data and requests.

All is compared by content: results that were copied, with other times, are as done as before.
"""

from __future__ import annotations

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.fingerprint import language_fingerprint
from blast.experiment.records.language import read_made
from blast.files import json_digest


def is_prepared(dataset: str, plan: Plan, folder: GridFolder) -> bool:
    """Whether the facts of a dataset are there, and of its settings; older ones do not tell theirs."""
    facts = read_made(folder.data(dataset))
    return facts.get("status") == "ok" and facts.get("settings") == plan.data_settings(dataset)


def requests_key(dataset: str, plan: Plan) -> str:
    """Digest of what decides the requests of lm-eval for a dataset."""
    tasks = plan.tasks(dataset)
    asked = [tasks, plan.items(dataset), plan.data_settings(dataset), language_fingerprint(tasks)]
    return json_digest(asked)


def has_requests(dataset: str, plan: Plan, folder: GridFolder) -> bool:
    """Whether the requests of lm-eval for a dataset are there, and of what is asked now."""
    try:
        made_of = folder.requests_key(dataset).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    there = folder.requests(dataset).is_file() or set(read_made(folder.left_out(dataset))) >= set(plan.tasks(dataset))
    return there and made_of == requests_key(dataset, plan)
