"""lm-eval's tasks on our rows: stock prompts, right answers, a limit, and tasks whose rows no source has."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from blast.datasets._evaluation import sets
from blast.datasets._text.tokenizer import train_tokenizer
from blast.errors import BlastError
from blast.experiment.data.prepare import build_dataset_requests
from blast.experiment.language.metrics import build_requests
from blast.experiment.language.stage import compute_language_metrics
from blast.experiment.language.tasks_of_lm_eval import loaded_tasks, read_documents, sets_of, task_names, task_text
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.rows import record_rows
from blast.files import write_json

STOCK = Path(lm_eval.__file__).parent / "tasks"
WRONG = ("distractor1", "distractor2", "distractor3")
# Two documents a task: the first row, and the beginning of its first request and all its answers as lm-eval asks them.
CASES = {
    "hellaswag": (
        {"activity_label": "Tea", "ctx_a": "A man.", "ctx_b": "he", "endings": ["sits.", "runs."], "label": "1"},
        "Tea: A man. He",
        [" sits.", " runs."],
    ),
    "piqa": (
        {"goal": "Open it", "sol1": "turn", "sol2": "eat", "label": 0},
        "Question: Open it\nAnswer:",
        [" turn", " eat"],
    ),
    "arc_easy": (
        {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        "Question: Which?\nAnswer:",
        [" x", " y", " z"],
    ),
    "arc_challenge": (
        {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        "Question: Why?\nAnswer:",
        [" x", " y"],
    ),
    "sciq": (
        {"question": "Who?", "support": "Text.", "correct_answer": "d", **dict(zip(WRONG, "abc", strict=True))},
        "Text.\nQuestion: Who?\nAnswer:",
        [" a", " b", " c", " d"],
    ),
    "winogrande": (
        {"sentence": "Ann thanked Bea as _ helped.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        "Ann thanked Bea as Ann",
        [" helped."],
    ),
    "boolq": (
        {"passage": "It is.", "question": "is it", "label": 1},
        "It is.\nQuestion: is it?\nAnswer:",
        [" no", " yes"],
    ),
    "openbookqa": (
        {"question_stem": "Ice is", "choices": {"text": ["cold", "hot"], "label": ["A", "B"]}, "answerKey": "A"},
        "Ice is",
        [" cold", " hot"],
    ),
    "lambada": ({"text": "He gave her the stone"}, "He gave her the", [" stone"]),
    "mmlu": (
        {"subject": "high_school_physics", "question": "g?", "choices": ["1", "10", "5", "0"], "answer": 1},
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "g?\nA. 1\nB. 10\nC. 5\nD. 0\nAnswer:",
        [" A", " B", " C", " D"],
    ),
    "sst2": (
        {"sentence": "a fine film", "label": 1},
        "a fine film\nQuestion: Is this sentence positive or negative?\nAnswer:",
        [" negative", " positive"],
    ),
    "mrpc": (
        {"sentence1": "It rains.", "sentence2": "Rain falls.", "label": 1},
        "Sentence 1: It rains.\nSentence 2: Rain falls.\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        [" no", " yes"],
    ),
    "rte": (
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
        "It rains.\nQuestion: It is wet. True or False?\nAnswer:",
        [" True", " False"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, (row, _, _) in CASES.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 2)
    (folder / "heldout.jsonl").write_text(json.dumps({"name": "a", "text": "some held out text\n"}) + "\n")
    # Every byte has a token, so any prompt can be given back.
    train_tokenizer(["x"], 257, folder / "tokenizer")
    return folder


def _text(data: Path, tokens: list[int]) -> str:
    from blast.datasets._text.tokenizer import load_tokenizer

    return load_tokenizer(data / "tokenizer").decode(tokens)


def test_all_tasks_are_there_and_read_a_published_set():
    assert set(CASES) < set(task_names())
    assert all(sets_of(name) == [name] for name in CASES)
    assert sets_of("text_heldout") == sets_of("pystdlib_next_line") == []


def test_prompts_are_built_as_lm_eval_builds_them(data, tmp_path):
    built = build_requests(data, list(CASES), data / "tokenizer", tmp_path / "requests.jsonl.gz", limit=1)
    for name, (_, prompt, answers) in CASES.items():
        asked = [request for request in built if request.task == name]
        assert _text(data, asked[0].context) == prompt, name
        found = [_text(data, request.continuation) for request in asked]
        assert found == (answers * 2 if name == "winogrande" else answers), name
    assert len(list(built)) == sum(len(case[2]) for case in CASES.values()) + 1


@pytest.mark.parametrize("name", CASES)
def test_the_stock_task_decides_prompts_and_metrics(name, data):
    stock = load_yaml(STOCK / task_text(name).split("@LM_EVAL@/")[1].split('"')[0], resolve_func=False)
    with loaded_tasks([name], read_documents(data, [name])) as tasks:
        config = tasks[name].config
        for key in ("output_type", "doc_to_text", "doc_to_choice"):
            ours = getattr(config, key)
            if not callable(ours):
                assert ours == stock.get(key)
        assert [entry["metric"] for entry in config.metric_list] == [entry["metric"] for entry in stock["metric_list"]]
        chance = (config.metadata or {}).get("chance", {})
        assert chance or name == "lambada"


@pytest.fixture
def grid(data, tmp_path, monkeypatch) -> GridFolder:
    """A grid whose dataset is `data`, on a machine where HellaSwag is out of reach."""

    def prepare(name, cache=None, progress=None):
        if name == "hellaswag":
            raise BlastError("the evaluation set hellaswag could not be fetched: no network.")
        return {"file": str(data / f"{name}.jsonl")}

    monkeypatch.setattr(sets, "prepare", prepare)
    folder = GridFolder(tmp_path / "grid")
    facts = {"folder": str(data), "tokenizer_dir": str(data / "tokenizer")}
    write_json(folder.data("text"), {"status": "ok", "cause": None, "facts": facts})
    return folder


def test_a_task_without_rows_is_left_out_and_told(grid):
    left_out = build_dataset_requests("text", ["hellaswag", "piqa", "text_heldout"], grid, items=1)
    assert list(left_out) == ["hellaswag"]
    assert json.loads(grid.left_out("text").read_text()) == left_out
    assert grid.requests("text").is_file()


def test_without_any_rows_there_are_no_requests_and_the_reason_reaches_the_metrics(grid, monkeypatch):
    build_dataset_requests("text", ["hellaswag"], grid)
    assert not grid.requests("text").exists()
    record = {"status": "ok", "point": {"dataset": "text"}, "record_digest": "sha256:1"}
    monkeypatch.setattr("blast.experiment.language.stage.read_record", lambda file: record)
    compute_language_metrics(grid, ["one"])
    made = json.loads(grid.language("one").read_text())
    assert (made["status"], made["cause"]) == (
        "failed",
        "the evaluation set hellaswag could not be fetched: no network.",
    )


def test_a_task_left_out_is_a_failed_row_beside_the_others():
    point = {"id": "p", "grid": "g", "stage": "train", "architecture": "gpt2"}
    record = {"status": "ok", "cause": None, "point": point, "result": {}, "run": {}, "record_digest": "sha256:1"}
    language = {"status": "ok", "record_digest": "sha256:1", "left_out": {"hellaswag": "no network."}}
    language["metrics"] = [{"metric": "acc", "task": "piqa", "value": 0.5, "unit": "fraction"}]
    rows = record_rows(record, language)
    assert [(row["task"], row["status"]) for row in rows] == [("piqa", "ok"), ("hellaswag", "failed")]
    assert "no network" in rows[1]["setting"]
