"""Faults of a config file: each is one sentence with file and key, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.config import read_config, used_config
from blast.experiment.plan.grid import expand

ROOT = Path(__file__).resolve().parents[3]
GOOD = """name: tiny
training: {default: {steps: 10, batch: 4, learning_rate: 0.01}}
grid:
  - {architectures: [gpt2-nano], datasets: [pystdlib], sparsity: [0, 0.9], blocks: [16]}
"""
TIMED = """name: timed
benchmarks:
  - {suite: kernels, shapes: [gpt2], sparsity: [0.9], blocks: [64], tokens: [16]}
"""


def planned(folder: Path, text: str | bytes):
    file = folder / "my.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(expand(read_config(file), file).points.values())


def fault(folder: Path, text: str | bytes) -> str:
    with pytest.raises(BlastError) as caught:
        planned(folder, text)
    said = str(caught.value)
    assert said.startswith(f"{folder / 'my.yaml'}: ")
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said


def with_key(text: str, key: str, value: str) -> str:
    """The config with a key more, at the top or (after a point) in its entry of `grid` or `benchmarks`."""
    if key.startswith("entry."):
        return text.replace("]}\n", f"], {key.removeprefix('entry.')}: {value}}}\n")
    return f"{text}{key}: {value}\n"


def test_the_configs_that_the_faults_are_put_into_are_good(tmp_path):
    assert planned(tmp_path, GOOD)
    assert planned(tmp_path, TIMED)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: tiny\n", "name: tiny\nname: other\n", "at line 2 (the key 'name' is given twice, first at line 1)"),
        ("steps: 10,", "steps: 10, batch: 8,", "at line 2 (the key 'batch' is given twice"),
        ("blocks: [16]", "blocks: [16], 'blocks': [32]", "at line 4 (the key 'blocks' is given twice"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(tmp_path, old, new, sentence):
    assert sentence in fault(tmp_path, GOOD.replace(old, new))


def test_a_merged_key_may_be_overridden(tmp_path):
    entry = GOOD.splitlines()[-1].removeprefix("  - ")
    text = GOOD.replace(f"  - {entry}", f"  - &first {entry}\n  - {{<<: *first, seeds: [7], sparsity: [0]}}")
    assert {point.seed for point in planned(tmp_path, text)} == {0, 7}


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "'0.001'", "1.0e-3", "0.001", ".1e-2"])
def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path, number):
    points = planned(tmp_path, GOOD.replace("0.01", number))
    assert {point.training["learning_rate"] for point in points} == {0.001}


@pytest.mark.parametrize("number", ["1_000", "0x3e8", "0b1111101000", "+1000", "1000.0", "'0100e1'"])
def test_a_whole_number_that_yaml_reads_as_it_seems_is_taken(tmp_path, number):
    (point, *_) = planned(tmp_path, GOOD.replace("steps: 10", f"steps: {number}"))
    assert repr(point.training["steps"]) == "1000"


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path):
    text = with_key(GOOD.replace("steps: 10", "steps: 1e3").replace("0.9]", "9e-1]"), "entry.seeds", "[1e1]")
    points = planned(tmp_path, with_key(text, "data", "{pystdlib: {vocab_size: 1e3}}"))
    for point in points:
        assert repr((point.training["steps"], point.seed, point.data)) == "(1000, 10, {'vocab_size': 1000})"
    assert [point.sparsity for point in points] == [0, 0.9]
    (timed,) = planned(tmp_path, with_key(TIMED, "entry.settings", "{seconds: 6e1}"))
    assert timed.benchmark["seconds"] == 60


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "1e19", "1.5", "true", "null", ".nan", "one"])
@pytest.mark.parametrize("text", [GOOD, TIMED])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, text, seed):
    said = fault(tmp_path, with_key(text, "entry.seeds", f"[0, {seed}]"))
    assert ".0.seeds.1' is " in said
    assert "give a whole number from 0 to 9223372036854775807." in said


def test_the_largest_seed_is_accepted(tmp_path):
    assert planned(tmp_path, with_key(GOOD, "entry.seeds", "[9223372036854775807]"))[0].seed == 2**63 - 1


@pytest.mark.parametrize(
    "word",
    ["lr/high", "../../out", "..", ".hidden", "''", "a b", "é", "a..b", "a.", "-x", "a\\b", "'a\n\n  b'", "x" * 65,
     "'a:b'", "'*'", "{a: b}", "[a]", "7", "true"],
)  # fmt: skip
def test_a_variant_that_is_no_file_name_is_refused(tmp_path, word):
    for text in (GOOD, TIMED):
        assert ".0.variant' is " in fault(tmp_path, with_key(text, "entry.variant", word))


@pytest.mark.parametrize("word", ["a", "Tokens32k", "lr-0.5", "a.b_c", "7b", "x" * 64])
def test_a_variant_that_is_a_file_name_ends_the_id(tmp_path, word):
    assert planned(tmp_path, with_key(TIMED, "entry.variant", word))[0].id.endswith(f".{word}")


@pytest.mark.parametrize("name", ["../up", "a/b", "a.b", "A", "_a", "''", "é1", "x" * 65, "3d", "12", "'ab\n\n  '"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    assert "the key 'name' is " in fault(tmp_path, GOOD.replace("name: tiny", f"name: {name}"))


@pytest.mark.parametrize("folder", ["..", "../paper", "a/../b", "a/..", "''", "[a]", "null"])
def test_a_folder_of_figures_that_leads_upwards_is_refused(tmp_path, folder):
    assert "the key 'figures' is " in fault(tmp_path, with_key(GOOD, "figures", folder))


@pytest.mark.parametrize("folder", ["paper_figures", "out/a..b", "/tmp/figures", "..a"])
def test_figures_is_a_path(tmp_path, folder):
    assert planned(tmp_path, with_key(GOOD, "figures", folder))


@pytest.mark.parametrize(
    ("text", "key", "value", "sentence"),
    [
        (GOOD, "threads", ".nan", "the key 'threads' is nan; give a whole number of at least 1."),
        (GOOD, "threads", "true", "the key 'threads' is True; give a whole number of at least 1."),
        (GOOD, "threads", "1.5", "the key 'threads' is 1.5; give a whole number"),
        (GOOD, "threads", "[1]", "the key 'threads' is [1]; give a whole number"),
        (GOOD, "memory_gb", ".inf", "the key 'memory_gb' is inf; give a number above 0."),
        (GOOD, "memory_gb", "1e999", "the key 'memory_gb' is '1e999'; give a number above 0."),
        (GOOD, "memory_gb", "0", "the key 'memory_gb' is 0; give a number above 0."),
        (GOOD, "memory_gb", "1_000.5.1", "the key 'memory_gb' is "),
        (GOOD, "sparsify", "null", "the key 'sparsify' is null; give a mapping of keys to values."),
        (GOOD, "sparsify", "{tie_gate_up: 1}", "the key 'sparsify.tie_gate_up' is 1; give true or false."),
        (
            GOOD,
            "sparsify",
            "{ranking: [matrix]}",
            "'sparsify.ranking' is ['matrix']; give one of: matrix, layer",
        ),
        (GOOD, "sparsify", "{targets: []}", "'sparsify.targets' is []; give a list with at least one entry."),
        (GOOD, "sparsify", "{hold: -0.0001}", "'sparsify.hold' is -0.0001; give a number from 0 to 1."),
        (GOOD, "sparsify", "{grow: swap}", "the key 'sparsify.grow' is set by the method; remove it here."),
        (
            GOOD,
            "entry.sparsify",
            "{keep_score: random}",
            "the key 'sparsify.keep_score' is set by the method; remove it from this block, or give",
        ),
        (GOOD, "sparsify", "{steps: 3}", "the key 'sparsify.steps' is set by the point; remove it here."),
        (GOOD, "sparsify", "{1: 2}", "the key 'sparsify' has the key 1, which is no text; write it in quotes"),
        (
            GOOD,
            "sparsify",
            "{update_evry: 2}",
            "in 'sparsify': unknown key 'update_evry'; did you mean 'update_ev",
        ),
        (GOOD, "data", "{pystdlib: {vocab: 1}}", "in 'data.pystdlib': unknown key 'vocab'; did you mean 'vocab_size'?"),
        (GOOD, "data", "{pystdlib: {vocab_size: 10}}", "'data.pystdlib.vocab_size' is 10; give a whole number of at l"),
        (GOOD, "data", "{pystdlib: {tokenizer: gpt3}}", "unknown architecture 'gpt3'; did you mean"),
        (GOOD, "data", "{digits: {vocab_size: 500}}", "in 'data.digits': unknown key 'vocab_size'"),
        (GOOD, "data", "{digits: {augment: shfit}}", "'data.digits.augment' is 'shfit'; did you mean 'shift'?"),
        (GOOD, "data", "{default: {}}", "unknown dataset 'default'"),
        (GOOD, "evaluation", "{limit: 0}", "the key 'evaluation.limit' is 0; give a whole number of at least 1."),
        (GOOD, "evaluation", "[]", "the key 'evaluation' is []; give a mapping of keys to values."),
        (GOOD, "evaluation", "{tasks: {pystdlib: piqa}}", "'evaluation.tasks.pystdlib' is 'piqa'; give a list."),
        (GOOD, "points_per_job", "{default: two}", "the key 'points_per_job.default' is 'two'; give a whole number"),
        (GOOD, "benchmarks", "{suite: mlp}", "the key 'benchmarks' is {'suite': 'mlp'}; give a list."),
        (GOOD, "entry.seeds", "[]", "the key 'grid.0.seeds' is []; give a list with at least one entry."),
        (GOOD, "entry.seeds", "3", "the key 'grid.0.seeds' is 3; give a list."),
        (GOOD, "entry.methods", "[blats]", "in 'grid.0.methods.0': unknown method 'blats'; did you mean 'blast'?"),
        (GOOD, "entry.methods", "[[blast]]", "the key 'grid.0.methods.0' is ['blast']; give text"),
        (GOOD, "entry.start", "scrtch", "the key 'grid.0.start' is 'scrtch'; did you mean 'scratch'?"),
        (GOOD, "entry.start", "no", "the key 'grid.0.start' is False; give one of: scratch, pretrained, published."),
        (GOOD, "entry.training", "{dtype: float16}", "'grid.0.training.dtype' is 'float16'; did you mean 'bfloat16'?"),
        (GOOD, "entry.training", "{compile: 'yes'}", "'grid.0.training.compile' is 'yes'; give true or false."),
        (GOOD, "entry.training", "{evaluate_every: 0}", "'grid.0.training.evaluate_every' is 0; give a whole number"),
        (TIMED, "entry.settings", "{fp8: 1}", "the key 'benchmarks.0.settings.fp8' is 1; give true or false."),
        (TIMED, "entry.settings", "{seconds: true}", "'benchmarks.0.settings.seconds' is True; give a number above 0."),
        (TIMED, "entry.settings", "{peers: [skt]}", "'benchmarks.0.settings.peers.0' is 'skt'; did you mean 'stk'?"),
        (TIMED, "entry.settings", "{tied: []}", "'benchmarks.0.settings.tied' is []; give a list with at least one"),
        (TIMED, "entry.settings", "null", "the key 'benchmarks.0.settings' is null; give a mapping"),
        (TIMED, "entry.dtype", "fp16", "the key 'benchmarks.0.dtype' is 'fp16'; did you mean 'float16'?"),
        (TIMED, "entry.repeats", "0", "the key 'benchmarks.0.repeats' is 0; give a whole number of at least 1."),
    ],
)
def test_a_wrong_value_names_its_key_and_what_to_give(tmp_path, text, key, value, sentence):
    assert sentence in fault(tmp_path, with_key(text, key, value))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("blocks: [16]", "blocks: [[16, 16, 16]]", "'grid.0.blocks.0' is [16, 16, 16]; give a list of 2 entries."),
        ("blocks: [16]", "blocks: [0]", "'grid.0.blocks.0' is 0; give a whole number of at least 1."),
        ("blocks: [16]", "blocks: [true]", "'grid.0.blocks.0' is True; give a whole number"),
        ("sparsity: [0, 0.9]", "sparsity: 0.9", "the key 'grid.0.sparsity' is 0.9; give a list."),
        ("sparsity: [0, 0.9]", "sparsity: []", "the key 'grid.0.sparsity' is []; give a list with at least one entry."),
        ("sparsity: [0, 0.9]", "sparsity: [.nan]", "'grid.0.sparsity.0' is nan; give a number from 0 to below 1."),
        ("sparsity: [0, 0.9], ", "", "the key 'grid.0.sparsity' is missing; add it."),
        ("[gpt2-nano]", "gpt2-nano", "the key 'grid.0.architectures' is 'gpt2-nano'; give a list."),
        ("[pystdlib]", "[pystdlib@gpt3]", "unknown architecture 'gpt3'; did you mean"),
        ("[gpt2-nano]", "['']", "'grid.0.architectures.0' is ''; give text that is not empty."),
        ("name: tiny\n", "", "the key 'name' is missing; add it."),
        ("steps: 10, ", "", "training of 'gpt2-nano' on 'pystdlib': the training setting 'steps' is missing; add it."),
        ("{default: {steps: 10, batch: 4, learning_rate: 0.01}}", "", "the key 'training' is null; give a mapping"),
        ("{steps: 10, batch: 4, learning_rate: 0.01}", "", "the key 'training.default' is null; give a mapping"),
        ("{steps: 10, batch: 4, learning_rate: 0.01}", "[steps]", "'training.default' is ['steps']; give a mapping"),
        ("default:", "defualt:", "in 'training': unknown key 'defualt'; did you mean 'default'?"),
        ("default:", "llama-nano.digit:", "in 'training': unknown dataset 'digit'; did you mean 'digits'?"),
        ("default:", "q:", "in 'training': unknown key 'q'; known: "),
        ("batch: 4", "batch: -4", "the key 'training.default.batch' is -4; give a whole number of at least 1."),
        ("0.01", "-1e-3", "the key 'training.default.learning_rate' is '-1e-3'; give a number above 0."),
        ("0.01", "1" * 400, "the key 'training.default.learning_rate' is "),
        ("grid:\n", "grid:\n\t", "is not valid YAML at line 4"),
        ("steps: 10", "steps: 0100", "at line 2 ('0100' is the number 64 in YAML; write that, or put it in quotes)"),
        ("steps: 10", "steps: -010", "'-010' is the number -8 in YAML"),
        ("batch: 4", "batch: 1:30", "at line 2 ('1:30' is the number 90 in YAML; write that"),
        ("0.01", "1:30.5", "'1:30.5' is the number 90.5 in YAML"),
        ("0.01", "2026-13-45", "is not valid YAML (month must be in 1..12)"),
        ("name: tiny", "name: [tiny", "is not valid YAML at line"),
        ("name: tiny", "name: !!python/name:os.system tiny", "is not valid YAML at line 1"),
        ("name: tiny", "name: ti\0ny", "is not valid YAML"),
        ("name: tiny", "? [a]\n: b\nname: tiny", "is not valid YAML at line 1 (found unhashable key)"),
        ("grid:", "---\ngrid:", "is not valid YAML at line 3"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path, old, new, sentence):
    assert old in GOOD
    assert sentence in fault(tmp_path, GOOD.replace(old, new))


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    assert "byte 6 is not UTF-8; save the file as UTF-8." in fault(tmp_path, b"name: \xff\xfe")
    assert "not a mapping of keys to values" in fault(tmp_path, "")
    assert "not a mapping of keys to values" in fault(tmp_path, "just a word")
    assert "is not valid YAML" in fault(tmp_path, "[" * 3000)
    with pytest.raises(BlastError, match="cannot be read"):
        read_config(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    assert planned(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())


def test_an_error_does_not_print_pages(tmp_path):
    assert len(fault(tmp_path, with_key(GOOD, "threads", "x" * 10_000))) < 400


def test_the_workflow_refuses_a_key_given_twice_in_any_of_its_files(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(GOOD)
    second.write_text("threads: 2\nthreads: 3\n")
    merged = {"name": "tiny", "threads": 3, "benchmarks": [{"suite": "mlp", "shapes": ["gpt2"], "sparsity": [0.9],
                                                            "blocks": [64], "tokens": [1]}]}  # fmt: skip
    assert used_config([first], merged, tmp_path)[0].threads == 3
    with pytest.raises(BlastError, match=r"second.yaml: .*the key 'threads' is given twice"):
        used_config([first, second], merged, tmp_path)


def test_values_given_to_the_workflow_override_the_default_config():
    config, file = used_config([], {"threads": "3", "name": "other"}, ROOT)
    assert (config.threads, config.name, file.name) == (3, "other", "config.yaml")
    assert config.grid


def test_nothing_is_written_for_a_config_with_a_fault(tmp_path, capsys):
    file, out = tmp_path / "a.yaml", tmp_path / "deep" / "points"
    file.write_text(with_key(GOOD, "entry.variant", "../../../outside"))
    assert main(["plan", str(file), "--out", str(out)]) == 2
    assert "variant" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.*")] == ["a.yaml"]


@pytest.mark.parametrize("task", ["../../x", "/etc/passwd", "", "a/b", ".hidden"])
def test_a_task_whose_name_leads_out_of_its_folder_is_refused(tmp_path, task):
    said = fault(tmp_path, GOOD + f"evaluation: {{tasks: {{pystdlib: ['{task}']}}}}\n")
    assert f"the key 'evaluation.tasks.pystdlib.0' is '{task}'; give a task name of letters, digits" in said


def test_a_task_that_does_not_exist_is_named_by_check(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(GOOD + "evaluation: {tasks: {pystdlib: [pystdlib_helduot]}}\n")
    assert main(["check", str(tmp_path / "my.yaml")]) == 2
    said = capsys.readouterr().err
    assert "unknown evaluation task 'pystdlib_helduot'; did you mean 'pystdlib_heldout'?" in said
