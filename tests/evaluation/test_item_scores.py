"""The file with the scores of single items: nothing is lost but digits, and a damaged one is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from blast.errors import BlastError
from blast.evaluation.item_scores import ItemScores, read_item_scores, write_item_scores


def a_set(n: int, text: bool = False) -> ItemScores:
    random = np.random.default_rng(n)
    sizes = random.integers(3, 70_000 if text else 200, n)
    correct = {} if text else {"acc": random.random(n) < 0.4, "acc_norm": random.random(n) < 0.5}
    chance = {} if text else {"acc": 0.25, "acc_norm": 0.25}
    return ItemScores(random.gamma(2, 20, n), sizes, correct, chance, int(sizes.sum() // 4), f"sha256:{n}")


def test_items_are_read_back_and_equal_ones_give_equal_bytes(tmp_path):
    sets = {"lambada": a_set(101), "text": a_set(7, text=True)}
    write_item_scores(tmp_path / "new" / "a.npz", sets, {"point": "p"})
    write_item_scores(tmp_path / "b.npz", sets, {"point": "p"})
    assert (tmp_path / "new" / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found, facts = read_item_scores(tmp_path / "b.npz")
    assert facts == {"point": "p"}
    assert list(found) == list(sets)
    for task, items in sets.items():
        assert np.abs(found[task].nats - items.nats).max() <= 0.005 + 1e-9
        assert np.array_equal(found[task].bytes, items.bytes)
        assert {name: list(right) for name, right in found[task].correct.items()} == {
            name: list(right) for name, right in items.correct.items()
        }
        assert (found[task].chance, found[task].tokens, found[task].digest) == (
            items.chance, items.tokens, items.digest,
        )  # fmt: skip
    assert (found["lambada"].metric, found["text"].metric) == ("acc_norm", None)


def test_an_item_takes_few_bytes(tmp_path):
    write_item_scores(tmp_path / "a.npz", {"hellaswag": a_set(10_000)}, {})
    assert (tmp_path / "a.npz").stat().st_size < 4.5 * 10_000


@pytest.mark.parametrize("fault", ["missing", "half", "text", "format", "short"])
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, fault):
    file = tmp_path / "a.npz"
    if fault != "missing":
        write_item_scores(file, {"lambada": a_set(50)}, {})
    if fault == "half":
        file.write_bytes(file.read_bytes()[:300])
    elif fault == "text":
        file.write_text("no archive")
    elif fault in ("format", "short"):
        with np.load(file) as stored:
            arrays = dict(stored)
        header = json.loads(arrays["header"].tobytes()) | ({"format": 9} if fault == "format" else {})
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        if fault == "short":
            arrays["lambada.bytes"] = arrays["lambada.bytes"][:-1]
        np.savez_compressed(file, **arrays)
    with pytest.raises(BlastError, match=r"a\.npz: these scores of items .*blast language"):
        read_item_scores(file)
