"""A byte-level BPE trained on a dataset, saved as transformers reads it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from blast.errors import BlastError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
# Parts of a tokenizer that say whether its tokens are spelled in bytes.
PARTS_WITH_BYTES = ("pre_tokenizer", "decoder")
SINGLE_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Trains a byte-level BPE and saves it to `folder`.

    Args:
        texts: Training texts, and nothing held out.
        vocab_size: Tokens, the 256 bytes and the end of text included.
        folder: Made if missing; `AutoTokenizer.from_pretrained(folder)` reads it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # Every byte is a token, so that any text can be written and no token is unknown.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        # Windows are cut by whoever scores; a limit here would only warn.
        "model_max_length": 1 << 30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`.

    Raises:
        BlastError: if its file is missing or damaged.
    """
    from tokenizers import Tokenizer

    file = Path(folder) / FILE
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more special
        raise BlastError(f"{file}: its tokenizer cannot be read ({error}); save it again.") from error


def copy_tokenizer(source: Path, folder: Path) -> Tokenizer:
    """Copies a saved tokenizer, so that prepared data keep theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(source).iterdir()):
        if path.suffix in (".json", ".jinja", ".txt") and path.name != "facts.json":
            shutil.copyfile(path, folder / path.name)
    return load_tokenizer(folder)


def end_of_text(tokenizer: Tokenizer, folder: Path) -> int:
    """The token that ends a document: the tokenizer's own end-of-sequence token.

    Raises:
        BlastError: if the tokenizer names none.
    """
    config = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = config.get("eos_token") or config.get("sep_token")
    text = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(text) if text else None
    if found is None:
        raise BlastError(f"the tokenizer in {folder} names no end-of-text token; choose another one.")
    return found


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, int64 `[vocabulary]`; 0 for the end of text and its like.

    In a byte-level BPE each character of a token's spelling is one byte; tokens added to it are plain text. In others
    (SentencePiece) a token is spelled as text, with "▁" for a space and `<0x0A>` for a single byte.
    """
    import numpy as np

    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    byte_level = '"ByteLevel"' in json.dumps([json.loads(tokenizer.to_str())[part] for part in PARTS_WITH_BYTES])
    for token, index in vocabulary.items():
        lengths[index] = len(token) if byte_level else _text_bytes(token)
    for index, token in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if token.special else len(token.content.encode())
    return lengths


def _text_bytes(token: str) -> int:
    """Bytes of a token that is spelled as text."""
    return 1 if SINGLE_BYTE.fullmatch(token) else len(token.replace("▁", " ").encode())
