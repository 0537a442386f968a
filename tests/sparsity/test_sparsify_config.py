from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.sparsity.config import METHODS, SparsifyConfig
from blast.sparsity.schedule import swap_limit, target_sparsity

CONFIGS = st.builds(
    lambda final, start, steps, hold, every, schedule: SparsifyConfig(
        sparsity=final,
        initial_sparsity=start * final,
        block=16,
        steps=steps,
        hold=hold,
        update_every=every,
        schedule=schedule,
    ),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.integers(1, 200),
    st.floats(0, 1),
    st.integers(1, 30),
    st.sampled_from(["cubic", "linear", "constant"]),
)


@settings(deadline=None, max_examples=50)
@given(CONFIGS)
def test_the_schedule_never_falls_and_ends_at_the_final_sparsity(config):
    values = [target_sparsity(config, step) for step in range(config.steps)]
    assert all(later >= sooner - 1e-12 for sooner, later in pairwise(values))
    assert values[-1] == config.sparsity
    assert all(value == config.sparsity for value in values[config.steps - config.hold_steps :])
    assert all(0 <= value < 1 for value in values)


@settings(deadline=None, max_examples=30)
@given(CONFIGS)
def test_swap_limit_falls_to_nothing_along_a_half_cosine(config):
    values = [swap_limit(config, step) for step in range(config.steps)]
    assert values[0] == config.swap_share
    assert all(later <= sooner for sooner, later in pairwise(values))


def test_the_cubic_schedule_follows_its_formula():
    config = SparsifyConfig(sparsity=0.9, block=16, steps=100, hold=0.2, initial_sparsity=0.1)
    assert target_sparsity(config, 0) == pytest.approx(0.1)
    assert target_sparsity(config, 40) == pytest.approx(0.9 - 0.8 * 0.5**3)
    assert target_sparsity(config, 79) < 0.9
    assert target_sparsity(config, 80) == 0.9


def test_the_linear_schedule_is_half_way_at_half_time():
    config = SparsifyConfig(sparsity=0.8, block=16, steps=100, hold=0.0, schedule="linear")
    assert target_sparsity(config, 50) == pytest.approx(0.4)


def test_a_config_survives_json():
    config = SparsifyConfig(sparsity=0.95, block=(32, 128), steps=10, targets=("mlp", "*.q_proj"), tie_gate_up=True)
    again = SparsifyConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest() == config.digest()
    assert again.digest() != SparsifyConfig(sparsity=0.95, block=32, steps=10).digest()


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(BlastError, match="unknown sparsify setting 'sparsty'; did you mean 'sparsity'"):
        SparsifyConfig.from_dict({"sparsty": 0.9, "block": 16, "steps": 10})


def test_a_missing_key_is_named():
    with pytest.raises(BlastError, match="'block' is missing; add it"):
        SparsifyConfig.from_dict({"sparsity": 0.9})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "'sparsity' is 1.0; give a number from 0 to below 1"),
        ({"sparsity": -0.1}, "'sparsity' is -0.1"),
        ({"sparsity": float("nan")}, "'sparsity' is nan"),
        ({"sparsity": "much"}, "'sparsity' is 'much'"),
        ({"initial_sparsity": 0.95}, "above the final sparsity"),
        ({"hold": 1.5}, "'hold' is 1.5"),
        ({"swap_share": -1}, "'swap_share' is -1"),
        ({"steps": 0}, "'steps' is 0"),
        ({"update_every": 2.5}, "'update_every' is 2.5"),
        ({"dense_first": -1}, "'dense_first' is -1"),
        ({"seed": True}, "'seed' is True"),
        ({"tie_gate_up": "yes"}, "'tie_gate_up' is 'yes'"),
        ({"schedule": "cubik"}, "'schedule' is 'cubik'; did you mean 'cubic'"),
        ({"grow": "rigl"}, "'grow' is 'rigl'; give one of: union, swap, none"),
        ({"ranking": "global"}, "'ranking' is 'global'; give one of"),
        ({"targets": []}, "'targets' is"),
        ({"targets": [3]}, "'targets.0' is 3"),
        ({"block": 0}, "block is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, message):
    with pytest.raises(BlastError, match=message):
        SparsifyConfig.from_dict({"sparsity": 0.9, "block": 16, "steps": 10, **settings})


def test_blast_and_rigl_swap_differ_in_growth_alone():
    blast, rigl = METHODS["blast"], METHODS["rigl_swap"]
    assert blast.keys() == rigl.keys()
    assert {key for key in blast if blast[key] != rigl[key]} == {"grow"}


def test_every_method_is_a_valid_config():
    for method in METHODS:
        assert SparsifyConfig.from_method(method, sparsity=0.9, block=16, steps=10).sparsity == 0.9
    with pytest.raises(BlastError, match="did you mean 'one_shot'"):
        SparsifyConfig.from_method("oneshot", sparsity=0.9, block=16, steps=10)


def test_reading_a_config_does_not_import_torch():
    code = "import sys, blast.sparsity.config, blast.sparsity.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
