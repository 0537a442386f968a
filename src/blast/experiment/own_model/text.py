"""The text that a model is pruned on: files, or a dataset of the suite, in the tokens of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast import datasets
from blast.datasets._text.language_data import LanguageData
from blast.datasets._text.prepare import TOKENIZER
from blast.datasets._text.tokenizer import end_of_text, load_tokenizer, token_bytes
from blast.download.cache import cache_root
from blast.errors import BlastError, unknown_name
from blast.files import json_digest, text_digest

if TYPE_CHECKING:
    import numpy as np

    from blast.experiment.own_model.opening import ModelSource

# Files are cut into this many pieces or more, and every tenth is held out.
HELD_OUT_EVERY = 10
FEWEST_PIECES = 20
LARGEST_PIECE = 20_000


def read_text(
    words: Sequence[str], source: ModelSource, length: int, say: Callable[[str], Any] = print
) -> LanguageData:
    """A text in the tokens of a model, with a held-out part.

    Of a dataset, its own held-out documents. Of files, every tenth of at least 20 pieces.

    Args:
        words: Paths of text files in UTF-8, or the name of one dataset.
        source: The model.
        length: Tokens of a sequence; both parts have to hold one.
        say: Prints a line of progress.

    Raises:
        BlastError: if a file is missing, empty, no text, or too short, the dataset holds no text, or the tokenizer has
            more tokens than the model.
    """
    if len(words) == 1 and not Path(words[0]).exists() and "/" not in words[0] and "." not in words[0]:
        data = _dataset(words[0], source, say)
    else:
        data = _files(words, source)
    for tokens, part in ((data.train, "for training"), (data.validation, "that is held out")):
        if len(tokens) <= length:
            raise BlastError(
                f"{' '.join(words)}: the part {part} has {len(tokens)} tokens, and one sequence needs {length + 1}; "
                "give more text, or a smaller --length."
            )
    return data


def _dataset(name: str, source: ModelSource, say: Callable[[str], Any]) -> LanguageData:
    """A dataset of the suite."""
    if name not in datasets.names():
        of_text = [known for known in datasets.names() if datasets.get(known).MODALITY == "language"]
        raise unknown_name("text: there is no such file and no dataset", name, of_text)
    module = datasets.get(name)
    if module.MODALITY != "language":
        raise BlastError(f"the dataset '{name}' is no text; give a text file, or for instance pystdlib.")
    module.fetch(cache_root(), say)
    # With a name, the tokens are those of a grid that uses the same model.
    tokenizer = source.name if source.folder is None else str(source.tokenizer.resolve())
    return module.load(cache_root(), {TOKENIZER: tokenizer})


def _files(words: Sequence[str], source: ModelSource) -> LanguageData:
    """Text files, tokenised now."""
    texts = [_read(Path(word)) for word in words]
    tokenizer = load_tokenizer(source.tokenizer)
    sizes, end = token_bytes(tokenizer), end_of_text(tokenizer, source.tokenizer)
    pieces = [piece for text in texts for piece in _pieces(text)]
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    documents = [[*encoding.ids, end] for encoding in encodings]
    held_out = documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    kept = [document for place, document in enumerate(documents) if place % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    train, validation = _joined(kept), _joined(held_out)
    counts = {
        f"{part}_{what}": count
        for part, chosen, tokens in (("train", kept, train), ("validation", held_out, validation))
        for what, count in (("documents", len(chosen)), ("tokens", len(tokens)), ("bytes", int(sizes[tokens].sum())))
    }
    digest = json_digest([text_digest(text) for text in texts] + [source.digest])
    return LanguageData(train, validation, sizes, end, source.tokenizer, digest, counts)


def _read(file: Path) -> str:
    """The text of a file.

    Raises:
        BlastError: if there is none.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BlastError(
            f"{file}: byte {error.start} is not UTF-8, so it is no text; give a text file in UTF-8."
        ) from None
    except OSError as error:
        raise BlastError(f"{file}: cannot be read ({error.strerror}); give the path of a text file.") from None
    if "\0" in text:
        raise BlastError(f"{file}: holds zero bytes, so it is no text; give a text file in UTF-8.")
    if not text.strip():
        raise BlastError(f"{file}: is empty; give a file with text.")
    return text


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of whole lines."""
    size = min(LARGEST_PIECE, max(1, len(text) // FEWEST_PIECES))
    piece = ""
    for line in text.splitlines(keepends=True):
        # A text without lines is cut anywhere.
        for start in range(0, len(line), size):
            piece += line[start : start + size] if len(line) > 2 * size else line
            if len(piece) >= size:
                yield piece
                piece = ""
            if len(line) <= 2 * size:
                break
    if piece.strip():
        yield piece


def _joined(documents: Sequence[Sequence[int]]) -> np.ndarray:
    import numpy as np

    return np.concatenate([np.array(document, dtype=np.int64) for document in [[], *documents]])
