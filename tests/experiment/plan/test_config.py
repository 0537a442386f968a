from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from blast.benchmark.settings import SUITES, settings_of
from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.config import parse, read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.key_tables import with_tables
from blast.experiment.plan.schema import described_fields, schema, settings_classes
from blast.settings import field_hints

ROOT = Path(__file__).resolve().parents[3]
GOOD = {
    "name": "tiny",
    "training": {"default": {"steps": 10, "batch": 4, "learning_rate": 0.01}},
    "grid": [{"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], "sparsity": [0, 0.9], "blocks": [16]}],
}


def changed(path: str, value: object) -> dict:
    values = json.loads(json.dumps(GOOD))
    *way, last = path.split(".")
    place = values
    for part in way:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return values


def fault(values: object) -> str:
    with pytest.raises(BlastError) as caught:
        expand(parse(values, Path("my.yaml")), "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml"), text
    assert "\n" not in text
    return text


def test_a_misspelt_key_names_the_nearest_one():
    assert "did you mean 'architectures'?" in fault(changed("grid.0.architecures", ["gpt2-nano"]))
    assert "did you mean 'training'?" in fault(changed("trainig", {}))


def test_a_misspelt_training_setting_names_the_nearest_one():
    assert "did you mean 'learning_rate'?" in fault(changed("training.default.learnig_rate", 1))


def test_a_misspelt_pruning_setting_names_the_nearest_one():
    assert "did you mean 'update_every'?" in fault(changed("sparsify", {"update_evry": 5}))


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1, "much"])
def test_sparsity_outside_its_range_is_refused_with_its_key(share):
    assert "grid.0.sparsity" in fault(changed("grid.0.sparsity", [share]))


def test_a_block_that_does_not_divide_names_those_that_do():
    text = fault(changed("grid.0.blocks", [48]))
    assert "48x48" in text
    assert "square blocks that do: 8, 16, 32, 64, 128" in text


@pytest.mark.parametrize(
    ("key", "wrong", "near"),
    [("architectures", "gpt2-nan", "gpt2-nano"), ("datasets", "pystdlb", "pystdlib"), ("methods", "blats", "blast")],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(key, wrong, near):
    assert f"did you mean '{near}'?" in fault(changed(f"grid.0.{key}", [wrong]))


def test_a_vision_dataset_for_a_language_model_is_refused():
    assert "'gpt2-nano' is a language model and 'digits' a vision dataset" in fault(
        changed("grid.0.datasets", ["digits"])
    )


def timed(**more) -> dict:
    entry = {"suite": "kernels", "shapes": ["gpt2"], "sparsity": [0.9], "blocks": [64], "tokens": [16], **more}
    return {"name": "timed", "benchmarks": [entry]}


def test_suites_are_the_files_that_measure():
    measuring = {
        file.stem
        for file in (ROOT / "src" / "blast" / "benchmark").glob("*.py")
        if any(getattr(node, "name", "") == "measure" for node in ast.parse(file.read_text()).body)
    }
    assert measuring == set(SUITES)


def test_an_unknown_suite_or_setting_of_one_is_refused_and_the_nearest_named():
    assert "unknown benchmark suite 'kernel'; did you mean 'kernels'?" in fault(timed(suite="kernel"))
    assert "did you mean 'peers'?" in fault(timed(settings={"peer": ["stk"]}))
    assert "the key 'benchmarks.0.settings.tied' is True; give a list." in fault(timed(settings={"tied": True}))


def test_a_benchmark_point_carries_every_setting_of_its_suite():
    values = timed(settings={"peers": ["stk"]}, variant="peers")
    (point,) = expand(parse(values, Path("my.yaml")), "my.yaml").points.values()
    assert point.id == "kernels-gpt2.float32.s90.b64.seed0.peers"
    assert point.benchmark == {**settings_of("kernels"), "suite": "kernels", "tokens": [16], "dtype": "float32",
                               "repeats": 20, "peers": ["stk"]}  # fmt: skip


def test_blast_bench_writes_the_points_of_a_suite_in_order_and_runs_none(tmp_path, capsys):
    config = str(ROOT / "config" / "h100.yaml")
    words = ["bench", "kernels", "--config", config, "--plan", str(tmp_path), "--only", "*-405b.*.s95.b128.seed0"]
    assert main(words) == 0
    (file,) = tmp_path.iterdir()
    assert file.name == "0000-kernels-llama-3.1-405b.bfloat16.s95.b128.seed0.json"
    assert main([*words[:-1], "nothing"]) == 2
    assert "no point of kernels matches 'nothing'" in capsys.readouterr().err


def test_an_empty_config_is_refused():
    assert "nothing to do" in fault({"name": "empty"})
    assert "not a mapping" in fault(["a"])


def test_two_settings_for_one_point_are_refused_unless_a_variant_names_them():
    values = changed("grid", [GOOD["grid"][0], GOOD["grid"][0] | {"training": {"steps": 20}}])
    assert "name one of them with 'variant'" in fault(values)
    values["grid"][1]["variant"] = "long"
    plan = expand(parse(values, Path("my.yaml")))
    assert plan.points["gpt2-nano.pystdlib.dense.seed0.long"].training["steps"] == 20
    assert plan.points["gpt2-nano.pystdlib.blast.s90.b16.seed0.long"].parent == "gpt2-nano.pystdlib.dense.seed0.long"


def test_a_file_that_is_no_yaml_names_the_line(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("name: x\ngrid: [\n")
    with pytest.raises(BlastError, match=r"broken.yaml: is not valid YAML at line"):
        read_config(file)


def test_blast_check_says_one_sentence_and_exits_with_2(tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(changed("grid.0.blocs", [16])))
    assert main(["check", str(file)]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert "did you mean 'blocks'?" in answer.err


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_of_the_repository_expands(file):
    assert expand(read_config(file), file).points


def test_the_schema_in_the_repository_is_the_one_of_the_code():
    assert (ROOT / "config" / "schema.json").read_text() == schema(), "run `make schema`"


def test_the_tables_of_the_readme_are_those_of_the_code():
    text = (ROOT / "config" / "README.md").read_text()
    assert with_tables(text) == text, "run `make schema`"


def test_the_readme_names_every_key_of_the_schema_and_no_other():
    text = (ROOT / "config" / "README.md").read_text()
    tables = re.findall(r"<!-- keys of \w+ -->\n((?:\|.*\n)+)", text)
    named = set(re.findall(r"^\| `(\w+)` \|", "".join(tables), re.MULTILINE))
    whole = json.loads(schema())
    assert named == {key for part in [whole, *whole["$defs"].values()] for key in part["properties"]}
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", text, re.MULTILINE)) >= set(SUITES)


@pytest.mark.parametrize("settings", settings_classes(), ids=lambda settings: settings.__name__)
def test_every_key_has_a_description_and_no_description_is_left_over(settings):
    assert list(described_fields(settings)) == list(field_hints(settings))
    for key, text in described_fields(settings).items():
        assert text[-1] in ".", key
        assert max(len(sentence.split()) for sentence in re.split(r"[.;] ", text)) <= 30, key


VALIDATOR = Draft202012Validator(json.loads(schema()))


def test_the_schema_is_one():
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_an_editor_finds_no_fault_in_a_config_of_the_repository(file):
    assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    assert not [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(file.read_text()))]


@pytest.mark.parametrize(
    "values",
    [
        changed("training.default.learnig_rate", 1),
        changed("training.default.dtype", "float16"),
        changed("sparsify", {"grow": "swap"}),
        changed("sparsify", {"hold": 2}),
        changed("data", {"pystdlib": {"vocab": 1}}),
        changed("grid.0.seeds", [-1]),
        changed("grid.0.methods", ["blats"]),
        changed("grid.0.variant", "a/b"),
        changed("figures", "../x"),
        timed(settings={"peers": ["skt"]}),
        timed(settings={"masks": ["every_hidden_live"]}),
        timed(suite="mlp", settings={"peers": []}),
    ],
)
def test_an_editor_marks_what_the_reader_refuses(values):
    assert fault(values)
    assert list(VALIDATOR.iter_errors(values))


def test_an_editor_accepts_what_the_reader_accepts():
    for values in (GOOD, timed(), timed(settings={"peers": ["stk"], "seconds": 1.5}), timed(suite="mlp", settings={})):
        assert not list(VALIDATOR.iter_errors(values))
        assert expand(parse(values, Path("my.yaml"))).points
