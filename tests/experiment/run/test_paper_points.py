"""Points that start from published weights, run on local copies: texts, sentences, images, and without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_copies import copy_glue, copy_photographs, copy_texts, copy_weights

from blast.datasets import rte, sst2
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.worker import run_point

TRAINING = {"steps": 6, "batch": 4, "length": 32, "learning_rate": 1e-3, "evaluate_every": 3, "evaluate_limit": 4}
CONFIG = {
    "name": "copies",
    "training": {"default": TRAINING},
    "sparsify": {"update_every": 2},
    "data": {
        "imagenet": {"image_size": 32},
        "sst2": {"vocab_size": 300, "length": 40},
        "rte": {"vocab_size": 300, "length": 60},
    },
    "evaluation": {"tasks": {"wikitext103": []}, "limit": 4, "batch": 4},
    "grid": [
        {
            "architectures": ["llama-3.2-1b"],
            "datasets": ["wikitext103"],
            "start": "pretrained",
            "methods": ["blast", "one_shot"],
            "sparsity": [0.75],
        },
        {"architectures": ["smollm2-135m"], "datasets": ["wikitext103"], "start": "published", "sparsity": [0]},
        {"architectures": ["vit-b-16"], "datasets": ["imagenet"], "start": "pretrained", "sparsity": [0.5]},
        {"architectures": ["gpt2"], "datasets": ["sst2", "rte"], "start": "pretrained", "sparsity": [0.5]},
        {"architectures": ["minilm"], "datasets": ["sst2"], "sparsity": [0.75], "blocks": [128]},
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    copy_texts(folder)
    for data in (sst2._DATA, rte._DATA):
        copy_glue(folder, data)
    copy_photographs(folder / "raw" / "imagenet")
    for name in ("gpt2", "llama-3.2-1b", "smollm2-135m", "vit-b-16"):
        copy_weights(name, folder)
    return folder


@pytest.fixture(scope="module")
def plan():
    return expand(parse(CONFIG, Path("copies.yaml")))


@pytest.fixture(scope="module")
def results(cache, plan, tmp_path_factory):
    """The result of every point, and the folder they were made in."""
    folder = GridFolder(tmp_path_factory.mktemp("results"))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLAST_CACHE", str(cache))
        patch.delenv("BLAST_IMAGENET", raising=False)
        for point in plan.points.values():
            found[point.id] = run_point(point, folder)
            record = {"status": "ok", "cause": None, "point": point.to_dict(), "result": found[point.id]}
            folder.record(point.id).parent.mkdir(parents=True, exist_ok=True)
            folder.record(point.id).write_text(json.dumps(record))
    return found


def _values(result: dict) -> dict[str, float]:
    return {entry["metric"]: entry["value"] for entry in result["metrics"]}


def test_ids_name_the_start_and_the_tokenizer(plan):
    assert list(plan.points)[:3] == [
        "llama-3.2-1b.wikitext103@llama-3.2-1b.dense.seed0.pretrained",
        "llama-3.2-1b.wikitext103@llama-3.2-1b.blast.s75.b16.seed0.pretrained",
        "llama-3.2-1b.wikitext103@llama-3.2-1b.one_shot.s75.b16.seed0.pretrained",
    ]
    assert "vit-b-16.imagenet.blast.s50.b16.seed0.pretrained" in plan.points
    starts = {point.id: point.start for point in plan.points.values()}
    assert starts["llama-3.2-1b.wikitext103@llama-3.2-1b.one_shot.s75.b16.seed0.pretrained"] == "parent"


@pytest.mark.slow
def test_every_point_runs_and_is_evaluated(plan, results):
    for point in plan.points.values():
        values = _values(results[point.id])
        wanted = {"loss", "bits_per_byte"} if "wikitext103" in point.dataset else {"top1", "top5"}
        assert wanted <= values.keys()
        if point.sparsity:
            assert results[point.id]["sparsity"]["achieved"] == pytest.approx(point.sparsity, abs=0.13)


def test_a_record_keeps_where_the_weights_came_from(plan, results):
    for point in plan.points.values():
        weights = results[point.id].get("weights")
        assert (weights is not None) == (point.start in ("pretrained", "published"))
        if weights:
            assert weights["digest"].startswith("sha256:")
            assert weights["licence"]


def test_published_weights_are_evaluated_as_they_are(results, cache, monkeypatch):
    from blast import architectures, datasets
    from blast.evaluation.loss import evaluate_language

    result = results["smollm2-135m.wikitext103@smollm2-135m.dense.seed0.published"]
    data = datasets.get("wikitext103@smollm2-135m").load(cache, {})
    model = architectures.load("smollm2-135m", cache)
    loss = evaluate_language(model, data, length=32, limit=4, batch=4)[0]["value"]
    assert _values(result)["loss"] == pytest.approx(loss)
    assert not result["curves"]


def test_training_changes_published_weights(results):
    trained = results["llama-3.2-1b.wikitext103@llama-3.2-1b.dense.seed0.pretrained"]
    assert trained["curves"]["train_loss"]["value"][-1] < trained["curves"]["train_loss"]["value"][0]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], "start": "pretrained", "sparsity": [0.5]},
            "'gpt2-nano' has no published weights",
        ),
        (
            {"architectures": ["gpt2"], "datasets": ["pystdlib"], "start": "published", "sparsity": [0.5]},
            "'start: published' trains nothing, but the method 'blast'",
        ),
        (
            {"architectures": ["gpt2"], "datasets": ["pystdlib@qwen3-1.7b"], "start": "pretrained", "sparsity": [0.5]},
            "in the tokens of 'qwen3-1.7b'",
        ),
        ({"architectures": ["minilm"], "datasets": ["pystdlib"], "sparsity": [0.5]}, "'minilm' is an encoder model"),
        ({"architectures": ["gpt2"], "datasets": ["sst22"], "sparsity": [0.5]}, "did you mean 'sst2'"),
    ],
)
def test_an_impossible_start_is_refused(block, message):
    from blast.errors import BlastError

    with pytest.raises(BlastError, match=message):
        expand(parse(CONFIG | {"grid": [block]}, Path("copies.yaml")))
