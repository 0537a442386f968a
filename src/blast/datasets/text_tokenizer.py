"""A byte-level BPE trained on a dataset, saved as transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"


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
    """The tokenizer saved in `folder`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / FILE))


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, int64 `[vocabulary]`; 0 for the end of text.

    In a byte-level BPE each character of a token's spelling is one byte.
    """
    import numpy as np

    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token == END_OF_TEXT else len(token)
    return lengths
