"""Wrong words and wrong files on the command line: one sentence, code 2, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blast.experiment.cli import main

POINT = {"id": "a", "grid": "g", "stage": "train", "architecture": "gpt2-nano"}
FILES: dict[str, str | bytes] = {
    "empty": "",
    "bytes": bytes(range(256)),
    "three": "3",
    "deep": "[" * 100_000,
    "object": "{}",
    "list": "[]",
    "words": '["a"]',
    "format.json": json.dumps(POINT | {"format": [1]}),
    "half.json": json.dumps(POINT),
    "whole.json": json.dumps(POINT | {"dataset": "digits", "training": {}}),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(POINT).encode(),
    "timed.json": json.dumps(POINT | {"stage": "benchmark"}),
    "tab.yaml": "name: tiny\n\tgrid: 1\n",
    "latin.yaml": "name: caf\xe9\n".encode("latin-1"),
    "list.yaml": "- a\n- b\n",
    "windows.yaml": "name: tiny\r\nthreads: 1\r\nthreads: 2\r\n",
    "anchor.yaml": "name: *none\n",
    "space.yaml": "name: tiny\n'grid ': []\n",
    "lookalike.yaml": "n\u0430me: tiny\n",
    "grid/plan.json": "3",
    "grid/records/x.json": "3",
    "grid/data/digits.json": "3",
    "short/plan.json": "[]",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(words: str, capsys: pytest.CaptureFixture) -> tuple[int | str | None, str, str]:
    """Exit code, output and error of the command."""
    try:
        code = main(words.split(" "))
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("chek", "unknown verb 'chek'; did you mean 'check'?"),
        ("check --lst", "unknown option of `blast check` '--lst'; did you mean '--list'?"),
        ("check none.yaml", "none.yaml: cannot be read (No such file or directory); give the path of a config file."),
        ("check grid", "grid: this folder has no config.yaml, so no grid ran in it; give a config file."),
        ("check bytes", "bytes: byte 128 is not UTF-8; save the file as UTF-8."),
        ("check empty", "empty: the config is not a mapping of keys to values"),
        ("check list.yaml", "list.yaml: the config is not a mapping"),
        ("check tab.yaml", "tab.yaml: is not valid YAML at line 2"),
        ("check latin.yaml", "latin.yaml: byte 9 is not UTF-8"),
        ("check windows.yaml", "at line 3 (the key 'threads' is given twice, first at line 2)"),
        ("check anchor.yaml", "anchor.yaml: is not valid YAML at line 1 (found undefined alias 'none')"),
        ("check space.yaml", "unknown key 'grid '; did you mean 'grid'?"),
        ("check lookalike.yaml", "unknown key 'n\u0430me'; did you mean 'name'?"),
        ("plan none.yaml --out new", "none.yaml: cannot be read"),
        ("plan none.yaml", "none.yaml: cannot be read"),
        ("run none.yaml", "none.yaml: cannot be read"),
        ("run a.yaml b.yaml", "'a.yaml' and 'b.yaml' are both config files; give one"),
        ("status none.yaml", "none.yaml: cannot be read"),
        ("show a --config none.yaml", "none.yaml: cannot be read"),
        ("verify none", "none: is no folder; give the folder of a grid, such as results/default."),
        ("list nothing", "unknown kind of name 'nothing'; known: architectures"),
        ("job none.json --out new", "none.json: cannot be read as a point"),
        ("job grid --out new", "grid: cannot be read as a point"),
        ("job bytes --out new", "bytes: cannot be read as a point"),
        ("job empty --out new", "empty: cannot be read as a point"),
        ("job deep --out new", "deep: cannot be read as a point"),
        ("job list --out new", "list: [] is no mapping of keys to values; give one."),
        ("job three --out new", "three: 3 is no mapping of keys to values; give one."),
        ("job object --out new", "object: the key 'id' is missing; add it."),
        ("job format.json --out new", "format [1] is not the format 1 of this version"),
        ("job half.json --out new", "half.json: the key 'dataset' is missing; make the file again with `blast plan`."),
        ("job marked.json --out new", "marked.json: the key 'dataset' is missing"),
        ("job timed.json --out new", "timed.json: the key 'benchmark' is missing"),
        ("job whole.json whole.json --out new", "the point 'a' is given twice; give each point once."),
        ("job whole.json --out three", "three/points/a: cannot be used (Not a directory); give another path"),
        ("job a --plan none --out new", "none: this plan does not exist; run the workflow again."),
        ("job a --plan three --out new", "three: holds no list of points; delete it and run the workflow again."),
        ("job a --plan list --out new", "list: holds no list of points"),
        ("job a --plan words --out new", "words: 'a' is no mapping of keys to values; give one."),
        ("bench none", "unknown suite in "),
        ("bench kernels --config none", "none: cannot be read"),
        ("bench kernels --only none", "no point of kernels matches 'none'; `blast check --list` lists them."),
        ("fetch none --out new", "unknown dataset 'none'; known: "),
        ("fetch digits", "add --out FILE, or give a config file."),
        ("prepare none --out new", "unknown dataset 'none'; known: "),
        ('prepare digits --settings {"a":1} --out new', "unknown data setting 'a'; known: "),
        ("requests digits --tasks a --grid-dir none", "this dataset file does not exist; run again."),
        (
            "requests digits --tasks a --grid-dir grid",
            "this dataset file is damaged or half-written; delete it and run",
        ),
        ("language none --grid-dir grid", "grid/records/none.json: this record does not exist; run again"),
        (
            "language x --grid-dir grid",
            "grid/records/x.json: this record is damaged or half-written; delete it and run",
        ),
        ("mlflow none --grid-dir none", "none/records/none.json: this record does not exist; check the id and --grid"),
        ("verdict --grid-dir none --out new", "none/plan.json: this plan does not exist; run the workflow again."),
        ("verdict --grid-dir grid --out new", "grid/plan.json: holds no list of points"),
        ("verdict --grid-dir short --out new", "short/plan.json: holds no list of points"),
        (
            "import none --grid-dir new",
            "none: there is no such bundle or folder; give the file that `blast export` wrote.",
        ),
        ("import grid --grid-dir new", "grid/records/x.json: this record is damaged or half-written"),
        ("records export --grid-dir none", "none: there are no records to export; run the grid first."),
        ("records export --grid-dir grid", "grid/records/x.json: this record is damaged"),
        ("break-even --grid-dir none", "a table needs good records of the suite 'kernels' from one GPU"),
        ("tuned-plans --grid-dir none", "a table needs good records of the suite 'kernel_plans' from one GPU"),
        ("schema --tables none", "none: cannot be used (No such file or directory); give another path"),
        ("schema --tables grid", "grid: cannot be used (Is a directory); give another path"),
        ("schema --tables bytes", "bytes: this page is no text in UTF-8; give a page in Markdown."),
    ],
)
def test_a_wrong_file_or_name_is_one_sentence_and_writes_nothing(files, capsys, words, sentence):
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()}
    code, _, error = said(words, capsys)
    assert code == 2
    assert error.startswith("blast: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("check a.yaml b.yaml", "unrecognized arguments: b.yaml"),
        ("plan --out", "argument --out: expected one argument"),
        ("job whole.json --out new --total -3", "argument --total: '-3' is no whole number of at least 1"),
        ("job whole.json --out new --total many", "argument --total: 'many' is no whole number of at least 1"),
        ("requests digits --tasks a --items 0 --grid-dir grid", "argument --items: '0' is no whole number of at le"),
        ("prepare digits --settings 3 --out new", "argument --settings: '3' is no mapping in JSON, such as "),
        ("prepare digits --settings [] --out new", "argument --settings: '[]' is no mapping in JSON"),
        ("records", "the following arguments are required: VERB"),
    ],
)
def test_a_wrong_option_ends_with_one_sentence(files, capsys, words, sentence):
    code, out, error = said(words, capsys)
    assert code == 2
    assert not out
    assert error.startswith("usage: blast")
    assert sentence in error.splitlines()[-1]
    assert not (files / "new").exists()


def test_the_checkout_is_found_from_any_folder(files, capsys):
    code, out, _ = said("check", capsys)
    assert code == 0
    assert "config.yaml: valid; " in out
    assert said("bench kernels --only *-405b.*.s95.b128.seed0 --plan new", capsys)[0] == 0
    assert len(list((files / "new").iterdir())) == 1


def test_a_config_outside_of_the_checkout_may_have_any_name(files, capsys):
    folder = files / """my "clone's" $HOME {x} #é"""
    folder.mkdir()
    good = "name: tiny\nbenchmarks: [{suite: mlp, shapes: [gpt2], sparsity: [0.9], blocks: [64], tokens: [1]}]\n"
    (folder / "-a b.yaml").write_text(good)
    assert main(["plan", str(folder / "-a b.yaml"), "--out", str(folder / "points")]) == 0
    assert "1 points written" in capsys.readouterr().out
    assert len(list((folder / "points").iterdir())) == 1


@pytest.mark.parametrize("verb", ["language", "agreement", "mlflow", "rerun"])
@pytest.mark.parametrize("name", ["../../up", "/etc/passwd", "a/b", ".."])
def test_an_id_that_leads_out_of_the_grid_is_refused(files, capsys, verb, name):
    more = [] if verb == "rerun" else ["--grid-dir", "grid"]
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main([verb, name, *more])
    assert ended.value.code == 2
    assert f"'{name}' is no id of a point" in capsys.readouterr().err
    assert sorted(files.rglob("*")) == before
