"""One half of the held-out data selects, the other judges: nothing is in both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from blast.datasets._sentences.sentence_data import SentenceData
from blast.datasets._text.evaluation_documents import HELD_OUT_FILE, NEXT_LINE_FILE
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import Document, open_text, prepare_text
from blast.datasets._text.separate_test import documents_of_test
from blast.datasets._text.tokenizer import load_tokenizer
from blast.datasets._vision.image_folder import ImageFolderData
from blast.datasets._vision.vision_data import VisionData
from blast.errors import BlastError

HELD_OUT = 5


def lines_of(number: int) -> list[str]:
    """Lines that no other document has, enough for pieces and questions."""
    return [f"document {number} says line {line}: {'é ' * (line % 7)}{number * line}" for line in range(90)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[dict, LanguageData]:
    documents = [Document(f"t{n}", "\n".join(lines_of(n)) + "\n", n >= 3) for n in range(3 + HELD_OUT)]
    facts = prepare_text(
        tmp_path_factory.mktemp("cache"), "slice", lambda: documents, "sha256:x", {"vocab_size": 300, "held_out": 0.5}
    )
    return facts, open_text(facts)


@pytest.fixture(scope="module")
def data(prepared) -> LanguageData:
    return prepared[1]


def texts(data: LanguageData) -> list[str]:
    tokenizer = load_tokenizer(data.tokenizer_dir)
    return [tokenizer.decode(document[:-1].tolist()) for document in data.held_out_documents()]


def evaluation_documents(facts: dict) -> dict[str, list[dict]]:
    files = (HELD_OUT_FILE, NEXT_LINE_FILE)
    read = {file: (Path(facts["folder"]) / file).read_text().splitlines() for file in files}
    return {file: [json.loads(line) for line in lines] for file, lines in read.items()}


def test_held_out_documents_are_halved_by_their_number(data):
    validation, test = data.held_out_halves()
    whole = [("\n".join(lines_of(number)) + "\n") for number in range(3, 3 + HELD_OUT)]
    assert texts(data) == whole
    assert texts(validation) == whole[0::2]
    assert texts(test) == whole[1::2]
    assert len(validation.validation) + len(test.validation) == len(data.validation)
    for half in (validation, test):
        assert half.validation.dtype == data.validation.dtype
        assert np.array_equal(half.train, data.train)
        assert half.digest == data.digest
        assert half.counts["train_tokens"] == data.counts["train_tokens"]
    for what in ("documents", "bytes", "tokens"):
        parts = [half.counts[f"validation_{what}"] for half in (validation, test)]
        assert sum(parts) == data.counts[f"validation_{what}"]


def test_no_window_holds_text_of_both_halves(data):
    validation, test = (half.validation_chunks(20) for half in data.held_out_halves())
    tokenizer = load_tokenizer(data.tokenizer_dir)
    for chunks, numbers in ((validation, {3, 5, 7}), (test, {4, 6})):
        text = " ".join(tokenizer.decode(chunk.tolist()) for chunk in chunks)
        assert {n for n in range(3, 8) if f"document {n} says" in text} == numbers


def test_a_single_held_out_document_cannot_be_halved(data):
    alone = data._holding_out(data.held_out_documents()[:1])
    with pytest.raises(BlastError, match="only one document is held out"):
        alone.held_out_halves()


def test_evaluation_documents_are_those_of_the_test_half(prepared):
    facts, data = prepared
    documents = evaluation_documents(facts) | {"piqa.jsonl": [{"goal": "stays"}]}
    found = documents_of_test(documents, data)
    assert found["piqa.jsonl"] == documents["piqa.jsonl"]
    for file in (HELD_OUT_FILE, NEXT_LINE_FILE):
        # `t4#0`, `t4:17`: the third and the fifth held-out document are of the other half.
        expected = [row for row in documents[file] if row["name"].startswith(("t4", "t6"))]
        assert found[file] == expected
        assert 0 < len(expected) < len(documents[file])


def test_what_both_halves_hold_is_left_out(prepared):
    facts, data = prepared
    (row, *_), shared = evaluation_documents(facts)[HELD_OUT_FILE], "says line 1"
    with pytest.raises(BlastError, match=r"heldout\.jsonl: no evaluation document comes from the test half"):
        documents_of_test({HELD_OUT_FILE: [row | {"text": shared}]}, data)


def test_test_images_and_sentences_are_halved_by_their_number():
    numbers = torch.arange(5)
    images = numbers.to(torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    vision = VisionData(images, numbers, images, numbers, 5, (0.5,), (0.25,), "sha256:")
    folder = ImageFolderData([], [(str(n), n) for n in range(5)], 5, 8, "none", "sha256:")
    sentences = SentenceData(numbers[:, None], numbers, numbers[:, None], numbers, 5, -1, 5, Path(), "sha256:")
    for halves in (vision.held_out_halves(), sentences.held_out_halves()):
        assert [half.test()[1].tolist() for half in halves] == [[0, 2, 4], [1, 3]]
        assert [len(half.test()[0]) for half in halves] == [3, 2]
        assert all(torch.equal(half.train_labels, numbers) for half in halves)
    assert vision.held_out_halves()[1].test_images[:, 0, 0, 0].tolist() == [1, 3]
    assert sentences.held_out_halves()[1].test()[0].flatten().tolist() == [1, 3]
    assert [[label for _, label in half.held_out] for half in folder.held_out_halves()] == [[0, 2, 4], [1, 3]]


def test_one_image_cannot_be_halved():
    one = torch.zeros(1, dtype=torch.long)
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    for data in (
        VisionData(images, one, images, one, 5, (0.5,), (0.25,), "sha256:"),
        SentenceData(one[:, None], one, one[:, None], one, 5, -1, 5, Path(), "sha256:"),
        ImageFolderData([], [("0", 0)], 5, 8, "none", "sha256:"),
    ):
        with pytest.raises(BlastError, match="there is only one test"):
            data.held_out_halves()


def test_training_data_can_stand_in_for_the_held_out_data(data):
    chunks = data.training_part(4).validation_chunks(20, 4)
    there = (len(data.train) - 1) // 20
    expected = [data.train[place * 20 : place * 20 + 21] for place in (n * there // 4 for n in range(4))]
    assert np.array_equal(chunks.numpy(), np.stack(expected))


@pytest.mark.parametrize(("count", "chosen"), [(2, [0, 3]), (3, [0, 2, 4]), (100, [0, 1, 2, 3, 4, 5])])
def test_training_images_that_stand_in_are_spread_evenly_and_not_augmented(count, chosen):
    numbers, one = torch.arange(6), torch.zeros(1, dtype=torch.long)
    pictures = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vision = VisionData(pictures, numbers, pictures[:1], one, 6, (0.5,), (0.25,), "sha256:", "shift_flip")
    images, labels = vision.training_part(count).test()
    assert labels.tolist() == chosen
    assert torch.equal(images, (pictures[chosen].float() / 255 - 0.5) / 0.25)
    sentences = SentenceData(numbers[:, None], numbers, one[:, None], one, 6, -1, 6, Path(), "sha256:")
    assert sentences.training_part(count).test()[1].tolist() == chosen
    folder = ImageFolderData([(str(n), n) for n in range(6)], [("0", 0)], 6, 8, "shift", "sha256:")
    assert [label for _, label in folder.training_part(count).held_out] == chosen
