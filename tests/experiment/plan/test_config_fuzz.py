"""Any value that YAML can hold, in place of any value of a good config, gives a plan or one sentence."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand

GOOD = yaml.safe_load("""
name: tiny
threads: 1
memory_gb: 1.5
figures: drawn
training:
  default: {steps: 10, batch: 4, learning_rate: 0.01, length: 32, evaluate_every: 5, weight_decay: 0.1}
  gpt2-nano: {warmup: 0.1, clip: 1.0}
  gpt2-nano.pystdlib: {dtype: float32, processes: 1}
sparsify: {update_every: 5, targets: [mlp], tie_gate_up: true, hold: 0.5}
data: {pystdlib: {vocab_size: 512}, digits: {augment: none}}
evaluation: {tasks: {pystdlib: [pystdlib_heldout]}, batch: 8, limit: 4, items: 3}
points_per_job: {default: 2, digits: 3}
grid:
  - {architectures: [gpt2-nano], datasets: [pystdlib], sparsity: [0, 0.9], methods: [blast, one_shot], blocks: [16],
     seeds: [0], start: scratch, variant: a, training: {batch: 2}, sparsify: {hold: 0.25}}
  - {architectures: [vit-nano], datasets: [digits], sparsity: [0.5], blocks: [[8, 16]]}
benchmarks:
  - {suite: kernels, shapes: [gpt2], sparsity: [0.9], blocks: [64], tokens: [16], dtype: float32, repeats: 5,
     seeds: [0], variant: b, settings: {masks: [uniform], tied: [false], seconds: 5}}
""")


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to each value inside."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(inner, (*path, key))


NUMBERS = [0, 1, -1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None]
TEXTS = [
    "",
    " ",
    "1e-3",
    "1_000",
    "0x10",
    "1:30",
    "yes",
    "off",
    "~",
    "..",
    "a/b",
    "nan",
    "а",
    "é",
    "\n",
    "a" * 300,
    "٣",
    "²",
]
NAMES = ["blast", "dense", "gpt2-nano", "digits", "digits@gpt2-nano", "pystdlib@gpt2-nano", "default", "inf"]
ODD = [datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1), b"\xff", {1}, [], {}, [[]], [{}], [None], {"": 1}]
KEYS = [{1: 2}, {None: None}, {(1, 2): 3}, {True: 1}, {"default": {}}, [16, 16], [[16, 16, 16]]]
NEAR = st.sampled_from([*NUMBERS, *TEXTS, *NAMES, *ODD, *KEYS])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), NEAR)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def test_the_config_that_values_are_put_into_is_good():
    assert len(expand(parse(GOOD, Path("my.yaml"))).points) == 6


@given(path=st.sampled_from(sorted(paths(GOOD), key=str)), value=VALUES)
@example(path=("benchmarks", 0), value={"\n": None})
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_place_gives_a_plan_or_one_sentence(path, value):
    values = copy.deepcopy(GOOD)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        config = parse(values, Path("my.yaml"))
        plan = expand(config, "my.yaml")
    except BlastError as error:
        said = str(error)
        assert said.startswith("my.yaml: ")
        assert "\n" not in said
        assert len(said) < 800
        return
    # The plan is the same after it was written to a file.
    again = parse(json.loads(json.dumps(config.to_dict())), Path("my.yaml"))
    assert expand(again, "my.yaml") == plan
