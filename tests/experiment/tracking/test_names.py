"""Names of metrics and parameters in MLflow are legal, readable and unique."""

from __future__ import annotations

from mlflow_grid import metric

from blast.experiment.tracking import names


def test_timings_have_unique_names() -> None:
    timing = {"unit": "ms", "provider": "ours", "dtype": "float32", "low": 1.0, "high": 3.0, "spread": "q20-80"}
    entries = [
        metric("latency", float(value), **timing, tokens=tokens) for value, tokens in ((1, 1), (2, 128), (4, 128))
    ]
    found = names.metrics(entries)
    assert found["latency_ms/ours float32 tokens1"] == 1.0
    assert found["latency_ms/ours float32 tokens128"] == 2.0
    assert found["latency_ms/ours float32 tokens128_2"] == 4.0
    assert found["latency_ms/ours float32 tokens1_q20"] == 1.0
    assert len(found) == 9


def test_names_are_legal_for_mlflow() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    for word in ("a=b", "x/../y", "/lead", "per%", "ö(ä)", "a//b", "…"):
        _validate_metric_name(names.metric_name(metric(word, 1.0, provider=word)))
        _validate_metric_name(names.metric_name(metric("acc", 1.0, task=word)))
        for name in names.parameters({"training": {word: 1}}):
            _validate_param_name(name)


def test_shared_and_skewed_masks_are_part_of_the_name():
    entry = {"metric": "latency", "unit": "ms", "provider": "ours", "dtype": "bfloat16", "tokens": 16, "value": 1.0}
    forms = [
        entry | {"tied": False, "setting": {"mask": "uniform"}},
        entry | {"tied": True, "setting": {"mask": "uniform"}},
        entry | {"tied": True, "setting": {"mask": "skewed"}},
        entry | {"provider": "stk", "value": None},
    ]
    assert list(names.metrics(forms)) == [
        "latency_ms/ours bfloat16 tokens16",
        "latency_ms/ours tied bfloat16 tokens16",
        "latency_ms/ours tied skewed masks bfloat16 tokens16",
    ]


def test_a_benchmark_has_columns_with_its_latency_and_its_speed_up() -> None:
    latency = {"metric": "latency", "unit": "ms", "task": None, "dtype": "float32"}
    entries = [
        latency | {"provider": "ours", "tokens": 16, "value": 2.0},
        latency | {"provider": "ours", "tokens": 16, "tied": True, "value": 1.0},
        latency | {"provider": "dense_eager", "tokens": 16, "value": 6.0},
        latency | {"provider": "dense_compiled", "tokens": 16, "value": 5.0},
        latency | {"provider": "stk", "tokens": 16, "value": 0.1},
        latency | {"provider": "ours", "tokens": 128, "value": 3.0},
        latency | {"provider": "dense_eager", "tokens": 128, "value": 12.0},
        latency | {"provider": "ours", "tokens": 1, "value": None},
        {"metric": "bytes", "unit": "bytes", "provider": "ours", "tokens": 1, "value": 5.0},
    ]
    found = names.headlines(entries)
    assert found == {"ours_ms": 2.0, "dense_ms": 5.0, "speed_up": 2.5, "speed_up_most": 4.0, "at_tokens": 16.0}
    assert names.headlines(entries[:1]) == {"ours_ms": 2.0}
    assert names.headlines([]) == {}
