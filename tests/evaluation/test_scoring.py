"""Scoring of ready-made requests: windows, batches, and the files that hold requests and scores."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.requests import Request, RequestFile, read_requests
from blast.evaluation.scores import Score, ScoreFile, read_scores, write_scores
from blast.evaluation.scoring import score, score_requests, windows

VOCABULARY = 11


class Bigram(nn.Module):
    """Gives each token a fixed distribution over the next, so that the right scores are plain sums."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.dropout(self.table[input_ids]))


def request(context: list[int], continuation: list[int], kind: str = "loglikelihood") -> Request:
    key = f"{kind}{context}{continuation}"
    return Request(key, "some_task", kind, context, continuation)


def rolling(tokens: list[int]) -> Request:
    return request([0], tokens, "loglikelihood_rolling")


def expected(model: Bigram, tokens: list[int], scored: int) -> tuple[float, bool]:
    table = model.table.detach().double().log_softmax(-1)
    pairs = list(pairwise(tokens))[len(tokens) - 1 - scored :]
    return sum(float(table[a, b]) for a, b in pairs), all(int(table[a].argmax()) == b for a, b in pairs)


def test_scores_are_the_sums_of_log_probabilities_of_the_continuation_alone() -> None:
    model = Bigram()
    greedy = int(model.table[3].argmax())
    requests = [request([1, 2], [3, 4]), request([5], [6]), request([1, 2, 3], [greedy]), rolling([7, 8, 9])]
    found = score(model, requests, batch_size=2, max_length=8)
    for asked, one in zip(requests, found, strict=True):
        value, flag = expected(model, asked.context + asked.continuation, len(asked.continuation))
        assert one.logprob == pytest.approx(value, abs=1e-5)
        assert one.greedy is flag
    assert found[2].greedy is True


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6), st.booleans()), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
)
def test_scores_depend_on_neither_batch_size_nor_order(lengths: list[tuple[int, int, bool]], batch_size: int) -> None:
    model = Bigram()
    make = torch.Generator().manual_seed(len(lengths))
    requests = []
    for context, continuation, whole in lengths:
        tokens = torch.randint(VOCABULARY, (context + continuation,), generator=make).tolist()
        requests.append(rolling(tokens) if whole else request(tokens[:context], tokens[context:]))
    found = score(model, requests, batch_size, max_length=6)
    turned = score(model, requests[::-1], 1, max_length=6)[::-1]
    for a, b in zip(found, turned, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert a.greedy == b.greedy


def test_batches_are_sorted_by_length_and_of_the_fixed_size() -> None:
    model = Bigram()
    score(model, [request([1] * n, [2]) for n in (1, 5, 3, 2, 4)], batch_size=2, max_length=8)
    assert model.calls == [(2, 5), (2, 3), (1, 1)]


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 40), max_length=st.integers(1, 12))
def test_a_rolling_text_has_each_token_predicted_once_with_as_much_context_as_fits(
    length: int, max_length: int
) -> None:
    tokens = list(range(100, 100 + length))
    cut = windows(rolling(tokens), max_length)
    assert [t for piece, scored in cut for t in piece[-scored:]] == tokens
    for piece, scored in cut:
        assert 0 < scored < len(piece) <= max_length + 1
    for piece, _ in cut[1:]:
        assert len(piece) == max_length + 1


def test_a_long_context_loses_its_beginning_and_never_the_continuation() -> None:
    assert windows(request(list(range(20)), [1, 2]), 5) == [([16, 17, 18, 19, 1, 2], 2)]


def test_an_empty_text_scores_zero() -> None:
    assert score(Bigram(), [rolling([])], max_length=4) == [Score(0.0, True)]


def test_scoring_turns_dropout_off_and_puts_the_training_state_back() -> None:
    model = Bigram().train()
    first = score(model, [rolling([1, 2, 3])], max_length=4)
    assert first == score(model, [rolling([1, 2, 3])], max_length=4)
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (request([1], [2] * 9), "9 to score does not fit a window of 8"),
        (request([1], []), "0 to score"),
        (request([], [1]), "0 tokens of context"),
        (request([1], [2], "generate_until"), "generate_until"),
    ],
)
def test_a_request_that_cannot_be_scored_is_named(bad: Request, words: str) -> None:
    with pytest.raises(BlastError, match=words):
        score(Bigram(), [bad], max_length=8)


def test_scores_that_are_not_finite_fail_in_one_sentence() -> None:
    model = Bigram()
    model.table.data[4] = float("nan")
    with pytest.raises(BlastError, match="1 of 2 log-likelihoods are not finite"):
        score(model, [request([4], [1]), request([3], [1])], max_length=8)


def test_a_model_without_a_longest_input_asks_for_it() -> None:
    with pytest.raises(BlastError, match="pass max_length"):
        score(Bigram(), [request([4], [1])])


@pytest.fixture
def asked() -> RequestFile:
    documents = {"a.jsonl": [{"text": "line\u2028separator\n"}, {"text": "é"}]}
    return RequestFile(["some_task"], [request([1], [2, 3]), rolling([4, 5])], documents, {"limit": None})


def test_request_files_come_back_equal_and_have_the_same_bytes_each_time(tmp_path, asked) -> None:
    digest = asked.write(tmp_path / "a.jsonl.gz")
    asked.write(tmp_path / "b.jsonl.gz")
    assert read_requests(tmp_path / "a.jsonl.gz") == asked
    assert digest == asked.digest
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    # The time in the header of a gzip file.
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]


@pytest.mark.fault(
    fault="A request file is half-written.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is refused.",
    reads="…: this request file is damaged or half-written; delete it and build the requests again.",
    lost="nothing",
)
def test_a_half_written_request_file_says_so_and_how_to_mend_it(tmp_path, asked, reads) -> None:
    file = tmp_path / "a.jsonl.gz"
    asked.write(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(
        BlastError, match=r"a\.jsonl\.gz: this request file is damaged .*build the requests again"
    ) as raised:
        read_requests(file)
    reads(str(raised.value))


def test_an_altered_request_file_is_refused(tmp_path, asked) -> None:
    file = tmp_path / "a.jsonl.gz"
    asked.write(file)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"[2,3]", b"[2,4]")))
    with pytest.raises(BlastError, match="altered"):
        read_requests(file)


@pytest.mark.parametrize("name", ["scores.json", "scores.json.gz"])
def test_scores_come_back_equal_and_say_how_they_were_made(tmp_path, asked, name) -> None:
    asked.write(tmp_path / "r.jsonl.gz")
    found = score_requests(Bigram(), tmp_path / "r.jsonl.gz", tmp_path / name, batch_size=2, max_length=8)
    assert read_scores(tmp_path / name) == found
    assert found.settings == {"window": 8, "batch": 2, "dtype": "float32"}
    found.check_against(asked)


def test_scores_of_other_requests_are_refused(tmp_path, asked) -> None:
    other = RequestFile(asked.tasks, asked.requests, {}, asked.settings)
    found = write_scores(tmp_path / "s.json", other, [Score(-1.0, False)] * 2)
    with pytest.raises(BlastError, match="made for other requests"):
        found.check_against(asked)
    with pytest.raises(BlastError, match="1 scores for 2 requests"):
        ScoreFile(asked.digest, [Score(-1.0, False)]).check_against(asked)
    with pytest.raises(BlastError, match=r"1 of 2 .* not finite"):
        ScoreFile(asked.digest, [Score(-1.0, False), Score(float("inf"), False)]).check_against(asked)


def test_a_half_written_score_file_says_so(tmp_path, asked) -> None:
    file = tmp_path / "s.json"
    write_scores(file, asked, [Score(-1.0, False)] * 2)
    file.write_text(file.read_text()[:-10])
    with pytest.raises(BlastError, match="damaged or half-written"):
        read_scores(file)
    file.write_text(json.dumps({"format": 9, "requests": "", "scores": [], "settings": {}}))
    with pytest.raises(BlastError, match="format 9"):
        read_scores(file)
    with pytest.raises(BlastError, match="does not exist"):
        read_scores(tmp_path / "none.json")


def test_planning_with_evaluation_tasks_imports_neither_torch_nor_lm_eval() -> None:
    code = (
        "import sys; import blast.evaluation, blast.evaluation.statistics, blast.evaluation.requests; "
        "from blast.experiment.language.tasks_of_lm_eval import task_names; assert 'pystdlib_heldout' in task_names(); "
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert found.stdout.strip() == "[]"
