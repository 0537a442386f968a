"""The stage `language` of single points."""

from __future__ import annotations

import json

import fake_records as fake

from blast.experiment.language.stage import compute_language_metrics
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import record_digest
from blast.files import write_json

DENSE = "gpt2-nano.pystdlib.dense.seed0"


def test_a_point_without_tasks_has_no_metrics_of_lm_eval_and_is_no_failure(tmp_path):
    folder = GridFolder(fake.write_grid(tmp_path / "default"))
    record = json.loads(folder.record(DENSE).read_text())
    record["point"]["evaluation"]["tasks"] = []
    point = Point.from_dict(record["point"])
    record |= {"point_digest": point.digest, "record_digest": record_digest(point, record["result"], "ok")}
    write_json(folder.record(DENSE), record)
    compute_language_metrics(folder, [DENSE])
    entry = json.loads(folder.language(DENSE).read_text())
    assert (entry["id"], entry["status"], entry["cause"], entry["metrics"]) == (DENSE, "ok", None, [])
    assert entry["record_digest"] == record["record_digest"]
