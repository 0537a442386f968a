"""`--set key=value` changes keys of a config, which is then checked as the file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast.errors import BlastError
from blast.experiment.plan.grid import expand
from blast.experiment.plan.overrides import read_with

TEXT = """
name: tiny
training: {default: {steps: 60, batch: 16, learning_rate: 1.0e-3, evaluate_every: 20}}
grid:
  - {architectures: [vit-nano], datasets: [digits], sparsity: [0.9], blocks: [16]}
  - {architectures: [vit-nano-wide], datasets: [digits], sparsity: [0.9], blocks: [16]}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return tmp_path / "tiny.yaml"


def test_a_dotted_key_gets_another_value_and_the_file_stays(file):
    config, values = read_with(file, ["training.default.steps=80", "name=trial"])
    assert (config.training["default"]["steps"], config.name) == (80, "trial")
    assert values["training"]["default"]["steps"] == 80
    assert file.read_text() == TEXT


def test_a_key_of_the_blocks_is_a_sweep_in_each_of_them(file):
    config, _ = read_with(file, ["sparsity=[0.8,0.9]", "seeds=[0, 1]"])
    assert [block.sparsity for block in config.grid] == [(0.8, 0.9)] * 2
    assert len(expand(config).points) == 2 * 2 * 3


def test_one_block_is_named_by_its_number_and_every_one_by_a_star(file):
    config, _ = read_with(file, ["grid.*.seeds=[3]", "grid.1.training.steps=7"])
    assert [block.seeds for block in config.grid] == [(3,), (3,)]
    assert [dict(block.training) for block in config.grid] == [{}, {"steps": 7}]


def test_a_key_that_the_file_lacks_is_added(file):
    config, _ = read_with(file, ["sparsify.update_every=5", "threads=2"])
    assert (config.sparsify, config.threads) == ({"update_every": 5}, 2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("sparsities=[0.8]", "unknown key of --set 'sparsities'; did you mean 'sparsity'?"),
        ("traning.default.steps=80", "unknown key of --set 'traning'; did you mean 'training'?"),
        ("training.default.steps=many", "'training.default.steps' is 'many'; give a whole number"),
        ("training.default.stps=80", "unknown key 'stps'; did you mean 'steps'?"),
        ("sparsity=[1.5]", "'grid.0.sparsity.0' is 1.5; give a number"),
        ("threads", "give a key and a value, such as `--set training.default.steps=80`."),
        ("=3", "give a key and a value"),
        ("sparsity=[0.8", "the value is not valid YAML"),
        ("grid.2.seeds=[1]", "'2' is no entry of a list of 2; give a number below 2, or '*' for each."),
        ("name.of=3", "the key goes on below 'of', but there is a single value; shorten the key."),
    ],
)
def test_a_wrong_override_is_one_sentence(file, given, sentence):
    with pytest.raises(BlastError) as error:
        read_with(file, [given])
    assert sentence in str(error.value)
    assert "--set" in str(error.value)
