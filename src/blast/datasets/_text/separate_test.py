"""Evaluation documents that come from the test half of the held-out documents alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast.datasets._text.evaluation_documents import HELD_OUT_FILE, NEXT_LINE_FILE
from blast.datasets._text.tokenizer import load_tokenizer
from blast.errors import BlastError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from blast.datasets._text.language_data import LanguageData

Rows = list[dict[str, Any]]


def _text_of(file: str, row: dict[str, Any]) -> str:
    """The text of an evaluation document as it stands in the held-out document that it was cut from."""
    return row["text"] if file == HELD_OUT_FILE else row["context"] + row["choices"][row["label"]]


def _as_decoded(tokenizer: Tokenizer, text: str) -> str:
    """A text as its tokens spell it; some tokenizers normalise."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def _texts(data: LanguageData, tokenizer: Tokenizer) -> str:
    """All held-out documents of some data as one text."""
    documents = (document[:-1].tolist() for document in data.held_out_documents())
    return "\0".join(tokenizer.decode(tokens, skip_special_tokens=False) for tokens in documents)


def documents_of_test(documents: dict[str, Rows], data: LanguageData) -> dict[str, Rows]:
    """Leaves out what settings may have been chosen by.

    Args:
        documents: Evaluation documents by file. Those that `write_evaluation` cut from held-out documents are looked
            at; those of published sets stay.
        data: The dataset that they were cut from.

    Returns:
        Of those cut from held-out documents, the ones that a document of odd number holds and none of even number.

    Raises:
        BlastError: if none is left of a file.
    """
    files = [file for file in documents if file in (HELD_OUT_FILE, NEXT_LINE_FILE)]
    if not files:
        return documents
    tokenizer = load_tokenizer(data.tokenizer_dir)
    validation, test = (_texts(half, tokenizer) for half in data.held_out_halves())
    kept = dict(documents)
    for file in files:
        texts = (_as_decoded(tokenizer, _text_of(file, row)) for row in documents[file])
        kept[file] = [
            row for row, text in zip(documents[file], texts, strict=True) if text in test and text not in validation
        ]
        if not kept[file]:
            raise BlastError(
                f"{file}: no evaluation document comes from the test half of the held-out text; "
                "leave 'separate_test' out, or hold out a larger share."
            )
    return kept
