"""Which part of the data gives which number: with a separate test, and with training data measured too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from blast import datasets
from blast.datasets._vision.vision_data import VisionData
from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.evaluation.item_scores import read_item_scores
from blast.evaluation.metric import of_part
from blast.evaluation.requests import RequestFile, read_requests
from blast.evaluation.top_k import evaluate_vision
from blast.experiment.data.prepare import build_dataset_requests, prepare_dataset
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.measure import measure
from blast.experiment.run.point_models import load_model
from blast.experiment.run.point_run import PointRun
from blast.experiment.run.worker import run_point

TRAINING = {"steps": 4, "batch": 4, "learning_rate": 0.001, "evaluate_every": 4, "evaluate_limit": 1000}


def plan(separate: bool | None, architecture: str = "vit-nano", dataset: str = "digits", **evaluation):
    values = {
        "name": "halves",
        "training": {"default": TRAINING},
        "grid": [{"architectures": [architecture], "datasets": [dataset], "sparsity": [0]}],
    }
    values["evaluation"] = evaluation | ({} if separate is None else {"separate_test": separate})
    return expand(parse(values, "grid.yaml"))


def only(separate: bool | None, **names) -> Point:
    (point,) = plan(separate, **names).points.values()
    return point


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[bool, dict]:
    found = {}
    for separate in (False, True):
        folder = GridFolder(tmp_path_factory.mktemp(f"separate_{separate}"))
        found[separate] = run_point(only(separate), folder)
        found[separate]["items"] = folder.work(only(separate).id) / found[separate]["artifacts"]["items"]["path"]
    return found


def by_name(result: dict) -> dict[str, dict]:
    return {entry["metric"]: entry for entry in result["metrics"]}


def test_the_scores_of_single_images_are_those_of_the_test_data(results):
    for result in results.values():
        items, top1 = read_item_scores(result["items"])[0]["held_out"], by_name(result)["top1"]
        assert items.correct["top1"].mean() == pytest.approx(top1["value"])
        assert (len(items), items.chance) == (top1["n"], {"top1": 0.1})
        assert items.nats.mean() == pytest.approx(by_name(result)["loss"]["value"], abs=0.005)


def test_points_of_before_keep_their_form():
    assert only(None) == only(False)
    assert "separate_test" not in only(False).evaluation
    assert only(True).digest != only(False).digest
    assert only(True).evaluation["separate_test"] is True


def test_both_halves_are_measured_and_together_they_are_the_whole(results):
    whole, halves = by_name(results[False]), by_name(results[True])
    assert "validation_top1" not in whole
    for name in ("top1", "top5"):
        test, validation = halves[name], halves[f"validation_{name}"]
        assert test["n"] == validation["n"] == 180
        assert whole[name]["n"] == 360
        # The same model: training did not change.
        assert (test["value"] + validation["value"]) / 2 == pytest.approx(whole[name]["value"], abs=1e-12)
    assert results[True]["dataset"] == results[False]["dataset"]


def test_the_learning_curve_is_that_of_the_validation_half(results, tmp_path, monkeypatch):
    whole, halves = (results[separate]["curves"]["validation_loss"]["value"] for separate in (False, True))
    validation, _ = datasets.get("digits").load(cache_root()).held_out_halves()
    # A run that has no other images than those of the validation half.
    monkeypatch.setattr(VisionData, "test", lambda self, limit=None, test=VisionData.test: test(validation, limit))
    alone = run_point(only(False), GridFolder(tmp_path))["curves"]["validation_loss"]["value"]
    assert halves == alone
    assert halves != whole


def test_the_metrics_without_a_prefix_are_those_of_the_test_half(tmp_path):
    point, folder = only(True), GridFolder(tmp_path)
    run_point(point, folder)
    run = PointRun.begin(point, folder)
    model = load_model(run)
    validation, test = run.held_out
    found = measure(point, model, validation, test)
    assert found[:3] == evaluate_vision(model, test, batch=32)
    assert found[3:] == of_part("validation", evaluate_vision(model, validation, batch=32))


class Bigram(torch.nn.Module):
    """A language model that has counted which token follows which in some training tokens."""

    def __init__(self, tokens: torch.Tensor, vocabulary: int) -> None:
        super().__init__()
        counts = torch.full((vocabulary, vocabulary), 0.1)
        counts.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1), accumulate=True)
        self.table = torch.nn.Parameter(counts.log())

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_the_loss_on_training_text_is_below_that_on_held_out_text():
    point = only(True, architecture="gpt2-nano", dataset="pystdlib", train=40, limit=30)
    assert point.evaluation["train"] == 40
    assert "train" not in only(True).evaluation
    data = datasets.get("pystdlib").load(cache_root(), {"vocab_size": 512})
    # All that is measured of the training text has been counted.
    start, length = data.training_part(40).validation_chunks(point.training["length"], 40), point.training["length"]
    model = Bigram(start.flatten(), data.vocab_size)
    found = {entry["metric"]: entry for entry in measure(point, model, *data.held_out_halves())}
    assert list(found) == [
        *("loss", "bits_per_byte", "perplexity"),
        *("validation_final_loss", "validation_bits_per_byte", "validation_perplexity"),
        *("train_final_loss", "train_bits_per_byte", "train_perplexity"),
    ]
    assert found["train_final_loss"]["value"] < min(found[name]["value"] for name in ("loss", "validation_final_loss"))
    assert found["train_final_loss"]["n"] == 40
    assert found["train_final_loss"]["setting"]["tokens"] == 40 * length
    assert found["loss"]["n"] == found["validation_final_loss"]["n"] == 30
    assert found["loss"]["value"] != found["validation_final_loss"]["value"]
    expected = F.cross_entropy(model(start[:, :-1]).logits.flatten(0, 1), start[:, 1:].flatten()).item()
    assert found["train_final_loss"]["value"] == pytest.approx(expected, rel=1e-5)


def test_the_accuracy_on_training_images_is_measured_where_it_is_asked_for(tmp_path):
    result = run_point(only(None, train=100), GridFolder(tmp_path))
    found = by_name(result)
    assert [name for name in found if name.startswith("train_")] == ["train_top1", "train_top5", "train_final_loss"]
    assert (found["train_top1"]["n"], found["top1"]["n"]) == (100, 360)


def test_requests_hold_the_test_half_alone_and_others_are_refused(tmp_path):
    """Through the options of the workflow's rule."""
    folder = GridFolder(tmp_path)
    made = plan(True, "gpt2-nano", "pystdlib")
    assert made.items("pystdlib") == ["--separate-test"]
    assert plan(False, "gpt2-nano", "pystdlib").items("pystdlib") == []
    prepare_dataset("pystdlib", {}, None, folder.data("pystdlib"))
    tasks = made.tasks("pystdlib")
    build_dataset_requests("pystdlib", tasks, folder, items=3)
    every = read_requests(folder.requests("pystdlib"))
    with pytest.raises(BlastError, match=r"made without a separate test, but the point .* has one; delete the file"):
        PointRun.begin(only(True, architecture="gpt2-nano", dataset="pystdlib"), folder)
    build_dataset_requests("pystdlib", tasks, folder, items=3, separate_test=True)
    half: RequestFile = read_requests(folder.requests("pystdlib"))
    assert "separate_test" not in every.settings
    for file, rows in every.documents.items():
        names, kept = ([row["name"] for row in some] for some in (rows, half.documents[file]))
        assert set(kept) < set(names)
        assert 0.2 < len(kept) / len(names) < 0.8
    run = PointRun.begin(only(True, architecture="gpt2-nano", dataset="pystdlib"), folder)
    assert run.held_out[1].counts["validation_documents"] < run.data.counts["validation_documents"]
    with pytest.raises(BlastError, match=r"made for a separate test, but the point .* has none; delete the file"):
        PointRun.begin(only(False, architecture="gpt2-nano", dataset="pystdlib"), folder)
