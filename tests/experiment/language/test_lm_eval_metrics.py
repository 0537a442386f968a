"""lm-eval's requests, scored elsewhere, give the same metrics as lm-eval itself on the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from language_case import REQUESTS, WINDOW, trained_model, trained_tokenizer, write_documents, write_lines

from blast.errors import BlastError
from blast.evaluation.requests import read_requests
from blast.evaluation.scores import Score, read_scores, write_scores
from blast.evaluation.scoring import score_requests
from blast.experiment.language import tasks_of_lm_eval
from blast.experiment.language.metrics import LmEvalMetrics, build_requests

TASKS = ["pystdlib_heldout", "pystdlib_next_line"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_documents(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokenizer(data):
    return trained_tokenizer(data)


@pytest.fixture(scope="module")
def model(tokenizer):
    return trained_model(tokenizer)


@pytest.fixture(scope="module")
def built(data, tokenizer, model, tmp_path_factory) -> SimpleNamespace:
    """Requests, their scores and the metrics, made once."""
    folder = tmp_path_factory.mktemp("built")
    requests, scores = folder / "requests.jsonl.gz", folder / "scores.json"
    build_requests(data, TASKS, data / "tokenizer", requests)
    score_requests(model, requests, scores, batch_size=8)
    return SimpleNamespace(requests=requests, scores=scores, metrics=metrics_of(requests, scores))


@pytest.fixture(scope="module")
def reference(data, tokenizer, model) -> dict:
    """Results of lm-eval with its own model class."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    # lm-eval's cache of logits confuses windows with the same input but another number of scored tokens. Our texts
    # overlap enough for that to happen (seen with the sources of Python 3.12).
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=WINDOW, device="cpu", logits_cache=False)
    with tasks_of_lm_eval.loaded_tasks(TASKS, tasks_of_lm_eval.read_documents(data, TASKS)) as tasks:
        return evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=1000)


def metrics_of(requests: Path, scores: Path) -> list[dict]:
    with LmEvalMetrics(requests) as lm_eval:
        return lm_eval.compute(scores)


def _scores_of(reference: dict, built: SimpleNamespace) -> tuple[list[tuple], list[Score]]:
    from lm_eval.api.instance import Instance

    from blast.experiment.language.stored_scores import key_of

    known = {r.key: s for r, s in zip(read_requests(built.requests), read_scores(built.scores).scores, strict=True)}
    theirs, ours = [], []
    for task in TASKS:
        kind = "loglikelihood_rolling" if task == "pystdlib_heldout" else "loglikelihood"
        for sample in reference["samples"][task]:
            for arguments, (answer,) in zip(sample["arguments"], sample["resps"], strict=True):
                theirs.append(answer if isinstance(answer, tuple) else (answer, None))
                ours.append(known[key_of(Instance(kind, {}, arguments, 0))])
    return theirs, ours


def test_log_likelihoods_and_greedy_flags_are_those_of_lm_eval(reference, built) -> None:
    theirs, ours = _scores_of(reference, built)
    assert len(theirs) == 2 * REQUESTS
    for (logprob, greedy), score in zip(theirs, ours, strict=True):
        # lm-eval sums in float32, which is worth 1e-4 at 1000 nats.
        assert score.logprob == pytest.approx(logprob, abs=1e-4, rel=2e-7)
        assert greedy is None or score.greedy == greedy
    assert {greedy for _, greedy in theirs} == {None, True, False}


def test_some_texts_are_longer_than_the_window(built) -> None:
    rolling = [r for r in read_requests(built.requests) if r.kind == "loglikelihood_rolling"]
    assert sum(len(r.continuation) > 2 * WINDOW for r in rolling) > 50


def test_metrics_and_their_standard_errors_are_those_of_lm_eval(reference, built) -> None:
    assert [(m["task"], m["metric"]) for m in built.metrics] == [
        ("pystdlib_heldout", "byte_perplexity"),
        ("pystdlib_heldout", "bits_per_byte"),
        ("pystdlib_next_line", "acc"),
        ("pystdlib_next_line", "acc_norm"),
    ]
    for entry in built.metrics:
        theirs = reference["results"][entry["task"]]
        # Relative, as they are sums of float32 numbers: a byte perplexity may be 100.
        assert entry["value"] == pytest.approx(theirs[f"{entry['metric']},none"], rel=1e-6, abs=1e-6)
        if entry["metric"].startswith("acc"):
            stderr = theirs[f"{entry['metric']}_stderr,none"]
            assert entry["high"] - entry["value"] == pytest.approx(stderr, abs=1e-6)
            assert entry["value"] - entry["low"] == pytest.approx(stderr, abs=1e-6)


def test_bits_per_byte_carries_a_standard_error_over_documents(built, data) -> None:
    import numpy as np

    perplexity, bits, acc, _ = built.metrics
    size = sum(len(row["text"].encode()) for row in tasks_of_lm_eval.read_documents(data, TASKS)["heldout.jsonl"])
    assert (bits["n"], bits["unit"], bits["better"], bits["spread"]) == (REQUESTS, "bits/byte", "lower", "stderr")
    assert bits["setting"]["bytes"] == size
    assert bits["setting"]["window"] == WINDOW
    assert (acc["n"], acc["unit"], acc["better"]) == (REQUESTS // 4, "fraction", "higher")
    assert acc["setting"]["chance"] == 0.25
    rolling = [r for r in read_requests(built.requests) if r.kind == "loglikelihood_rolling"]
    nats = np.array([-s.logprob for s in read_scores(built.scores).scores[: len(rolling)]])
    texts = tasks_of_lm_eval.read_documents(data, TASKS)["heldout.jsonl"]
    sizes = np.array([len(row["text"].encode()) for row in texts])
    leave_one_out = (nats.sum() - nats) / (sizes.sum() - sizes) / np.log(2)
    jackknife = np.sqrt((REQUESTS - 1) / REQUESTS * ((leave_one_out - leave_one_out.mean()) ** 2).sum())
    assert bits["high"] - bits["value"] == pytest.approx(jackknife, rel=0.03)
    lower, upper = 2 ** bits["low"], 2 ** bits["high"]
    assert perplexity["high"] - perplexity["low"] == pytest.approx(upper - lower, rel=0.01)


def test_the_same_inputs_give_the_same_request_file(built, data, tmp_path) -> None:
    build_requests(data, TASKS, data / "tokenizer", tmp_path / "again.jsonl.gz")
    assert (tmp_path / "again.jsonl.gz").read_bytes() == built.requests.read_bytes()


def test_scores_of_other_requests_are_rejected(built, data, tmp_path) -> None:
    build_requests(data, TASKS, data / "tokenizer", tmp_path / "few.jsonl.gz", limit=5)
    assert len(read_requests(tmp_path / "few.jsonl.gz")) == 5 + 5 * 4
    with pytest.raises(BlastError, match="made for other requests"):
        metrics_of(tmp_path / "few.jsonl.gz", built.scores)


def test_a_score_that_is_not_finite_is_rejected(built, tmp_path) -> None:
    text = built.scores.read_text()
    first = json.loads(text)["scores"][0][0]
    (tmp_path / "bad.json").write_text(text.replace(str(first), "NaN", 1))
    with pytest.raises(BlastError, match=r"bad\.json: 1 of \d+ log-likelihoods are not finite"):
        metrics_of(built.requests, tmp_path / "bad.json")


def test_loading_tasks_leaves_nothing_in_the_cache_of_the_user(data, tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with tasks_of_lm_eval.loaded_tasks(TASKS, tasks_of_lm_eval.read_documents(data, TASKS)) as tasks:
        assert list(tasks) == TASKS
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def own_tasks(tmp_path, monkeypatch) -> Path:
    """A copy of the folder of tasks, to add to and to change."""
    folder = tmp_path / "tasks"
    shutil.copytree(Path(tasks_of_lm_eval.__file__).with_name("tasks"), folder)
    monkeypatch.setattr(tasks_of_lm_eval, "_folder", lambda: folder)
    return folder


FEW_SHOT = """
task: last_word
dataset_path: json
dataset_kwargs:
  data_files: {test: "@DATA@/words.jsonl", train: "@DATA@/examples.jsonl"}
  cache_dir: "@DATA@"
output_type: loglikelihood
test_split: test
fewshot_split: train
num_fewshot: 2
doc_to_text: "{{text}}"
doc_to_target: " {{word}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def test_a_few_shot_task_is_added_by_one_file_and_gives_the_same_metrics_twice(
    own_tasks, data, model, tmp_path
) -> None:
    (own_tasks / "last_word.yaml").write_text(FEW_SHOT)
    write_lines(data / "words.jsonl", [{"text": f"{w} {w} {w}", "word": w} for w in "abcdefgh"])
    write_lines(data / "examples.jsonl", [{"text": f"{w} {w}", "word": w} for w in "stuvwxyz"])
    assert "last_word" in tasks_of_lm_eval.task_names()
    requests, scores = tmp_path / "r.jsonl.gz", tmp_path / "s.json"
    build_requests(data, ["last_word"], data / "tokenizer", requests)
    score_requests(model, requests, scores, max_length=WINDOW)
    with LmEvalMetrics(requests) as lm_eval:
        first = lm_eval.compute(scores)
        assert lm_eval.compute(scores) == first
    perplexity, acc = first
    assert perplexity["spread"] == "stderr"
    assert (acc["n"], acc["setting"]["num_fewshot"]) == (8, 2)


def test_a_task_that_changed_since_its_requests_were_built_is_rejected(own_tasks, built) -> None:
    file = own_tasks / "pystdlib_next_line.yaml"
    file.write_text(file.read_text().replace('target_delimiter: ""', 'target_delimiter: " "'))
    with pytest.raises(BlastError, match="'pystdlib_next_line' has a request that is not in the request file"):
        metrics_of(built.requests, built.scores)


def test_a_task_that_generates_text_is_rejected(own_tasks, data, tokenizer, tmp_path) -> None:
    text = FEW_SHOT.replace("output_type: loglikelihood", "output_type: generate_until").replace("last_word", "writes")
    text = text.replace("metric: perplexity, aggregation: perplexity", "metric: exact_match, aggregation: mean")
    text = text.replace("  - {metric: acc, aggregation: mean, higher_is_better: true}\n", "")
    (own_tasks / "writes.yaml").write_text(text.replace("num_fewshot: 2", "num_fewshot: 0"))
    write_lines(data / "words.jsonl", [{"text": "a", "word": "a"}])
    write_lines(data / "examples.jsonl", [{"text": "a", "word": "a"}])
    with pytest.raises(BlastError, match="'writes' asks for generate_until"):
        build_requests(data, ["writes"], data / "tokenizer", tmp_path / "r.jsonl.gz")


def test_a_task_without_its_own_cache_folder_is_rejected(own_tasks, data, tokenizer, tmp_path) -> None:
    file = own_tasks / "pystdlib_heldout.yaml"
    file.write_text(file.read_text().replace('  cache_dir: "@DATA@"\n', ""))
    with pytest.raises(BlastError, match=r"pystdlib_heldout\.yaml: the key cache_dir is missing"):
        build_requests(data, TASKS, data / "tokenizer", tmp_path / "r.jsonl.gz")


@pytest.mark.parametrize(
    ("tasks", "folder", "words"),
    [
        (["pystdlib_nextline"], "", "unknown evaluation task 'pystdlib_nextline'; did you mean 'pystdlib_next_line'"),
        ([], "", "no evaluation task was given"),
        (TASKS, "elsewhere", "elsewhere/heldout.jsonl: these evaluation documents do not exist"),
    ],
)
def test_requests_that_cannot_be_built_say_why(tasks, folder, words, data, tokenizer, tmp_path) -> None:
    with pytest.raises(BlastError, match=words):
        build_requests(data / folder, tasks, data / "tokenizer", tmp_path / "r.jsonl.gz")


@pytest.mark.parametrize(("content", "words"), [("", "it holds no document"), ('{"text": "a"}\n{"te', "damaged")])
def test_documents_that_cannot_be_read_are_named(content, words, data, tokenizer, tmp_path) -> None:
    (tmp_path / "heldout.jsonl").write_text(content)
    with pytest.raises(BlastError, match=rf"heldout\.jsonl: {words}"):
        build_requests(tmp_path, ["pystdlib_heldout"], data / "tokenizer", tmp_path / "r.jsonl.gz")


def test_a_missing_tokenizer_is_named(data, tmp_path) -> None:
    with pytest.raises(BlastError, match="nowhere: no tokenizer could be loaded"):
        build_requests(data, TASKS, tmp_path / "nowhere", tmp_path / "r.jsonl.gz")


def test_an_answer_without_a_token_is_named(data, tokenizer, tmp_path) -> None:
    rows = [{"context": "a", "choices": ["b", answer], "label": 0} for answer in ("c", "")]
    write_lines(tmp_path / "next_line.jsonl", rows)
    with pytest.raises(BlastError, match=r"number 1\) whose answer '' has no token of its own"):
        build_requests(tmp_path, ["pystdlib_next_line"], data / "tokenizer", tmp_path / "r.jsonl.gz")


def test_scores_can_be_written_from_requests_and_a_list(built, tmp_path) -> None:
    requests = read_requests(built.requests)
    write_scores(tmp_path / "s.json", requests, read_scores(built.scores).scores)
    values = [entry["value"] for entry in metrics_of(built.requests, tmp_path / "s.json")]
    assert values == [entry["value"] for entry in built.metrics]


@pytest.mark.parametrize("label", [2, -1])
def test_an_answer_that_is_none_of_the_choices_is_named(label, data, tokenizer, tmp_path) -> None:
    row = {"context": "a", "choices": ["b", "c"]}
    write_lines(tmp_path / "next_line.jsonl", [{**row, "label": 0}, {**row, "label": label}])
    with pytest.raises(BlastError, match=rf"number 1\) whose answer {label} is none of its 2 choices"):
        build_requests(tmp_path, ["pystdlib_next_line"], data / "tokenizer", tmp_path / "r.jsonl.gz")


def test_documents_that_do_not_fit_their_task_are_named(data, tokenizer, tmp_path) -> None:
    write_lines(tmp_path / "next_line.jsonl", [{"context": ["a"], "choices": ["b", "c"], "label": 0}])
    with pytest.raises(BlastError, match=r"cannot build the requests of pystdlib_next_line .*next_line\.jsonl"):
        build_requests(tmp_path, ["pystdlib_next_line"], data / "tokenizer", tmp_path / "r.jsonl.gz")
    assert not (tmp_path / "r.jsonl.gz").exists()


def test_documents_without_an_answer_are_named(data, tokenizer, tmp_path) -> None:
    write_lines(tmp_path / "next_line.jsonl", [{"context": "a", "choices": ["b", "c"]}])
    with pytest.raises(BlastError, match=r"number 0\) whose answer 'label' is none of its 2 choices"):
        build_requests(tmp_path, ["pystdlib_next_line"], data / "tokenizer", tmp_path / "r.jsonl.gz")
