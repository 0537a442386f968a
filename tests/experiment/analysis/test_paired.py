"""The paired verdict on items whose answer is known: the same model, a worse one, too few items, a set at chance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from blast.evaluation.item_scores import ItemScores
from blast.experiment.analysis.paired import ACCURACY, BITS, POOLED, compare, judge, overall, relative_perplexity


def questions(n: int, share: float, seed: int = 0, chance: float = 0.25) -> ItemScores:
    """Items of which a share is answered rightly."""
    random = np.random.default_rng([seed, n])
    return ItemScores(
        random.gamma(4, 5, n), random.integers(10, 60, n), {"acc": random.random(n) < share}, {"acc": chance}, 8 * n,
        f"sha256:{n}",
    )  # fmt: skip


def text(n: int = 64) -> ItemScores:
    random = np.random.default_rng(n)
    return ItemScores(random.normal(1200, 200, n), np.full(n, 2000), {}, {}, 500 * n, f"sha256:text{n}")


def worse(items: ItemScores, percent: float, flipped: float = 0.0, seed: int = 1) -> ItemScores:
    """The same items, each less likely by about `percent`, and a share of the right answers lost."""
    random = np.random.default_rng(seed)
    factor = 1 + percent / 100 + random.normal(0, 0.05, len(items))
    lost = {name: right & (random.random(len(items)) >= flipped) for name, right in items.correct.items()}
    return replace(items, nats=items.nats * factor, correct=lost)


def by_place(found) -> dict:
    return {(entry.measure, entry.task): entry for entry in found}


def test_a_model_compared_with_itself_is_within():
    sets = {"text": text(), "a": questions(3000, 0.6), "b": questions(900, 0.7)}
    found = compare([sets], [sets])
    assert [(entry.measure, entry.task) for entry in found] == [
        (BITS, "text"), (BITS, "a"), (BITS, "b"), (ACCURACY, "a"), (ACCURACY, "b"), (ACCURACY, POOLED),
    ]  # fmt: skip
    for entry in found:
        assert (entry.verdict, entry.reason) == ("within", None)
        assert (entry.relative, entry.low, entry.high) == pytest.approx((0, 0, 0), abs=1e-9)
        assert entry.value == entry.dense
        assert entry.error == pytest.approx(entry.dense_error)
        assert entry.error > 0
    assert [entry.kept for entry in found[3:]] == pytest.approx([1, 1, 1])
    assert overall(found) == "within"


def test_a_clearly_worse_model_is_outside_by_both_measures():
    dense = {"text": text(), "a": questions(3000, 0.6)}
    pruned = {task: worse(items, 10, flipped=0.2) for task, items in dense.items()}
    found = by_place(compare([pruned], [dense]))
    assert {entry.verdict for entry in found.values()} == {"outside"}
    assert overall(list(found.values())) == "outside"
    assert found[BITS, "a"].relative == pytest.approx(10, abs=1)
    assert found[BITS, "a"].low < found[BITS, "a"].relative < found[BITS, "a"].high
    assert found[ACCURACY, POOLED].relative == pytest.approx(20, abs=3)
    margin = (found[ACCURACY, "a"].value - 0.25) / (found[ACCURACY, "a"].dense - 0.25)
    assert found[ACCURACY, "a"].kept == pytest.approx(margin)
    assert found[ACCURACY, "a"].kept_low < margin < found[ACCURACY, "a"].kept_high


def test_values_and_errors_are_those_of_their_definitions():
    dense, ours = questions(2000, 0.6), worse(questions(2000, 0.6), 3, flipped=0.1)
    found = by_place(compare([{"a": ours}], [{"a": dense}]))
    bits, accuracy = found[BITS, "a"], found[ACCURACY, "a"]
    assert bits.value == pytest.approx(ours.nats.sum() / ours.bytes.sum() / math.log(2))
    assert bits.relative == pytest.approx(100 * (ours.nats.sum() / dense.nats.sum() - 1))
    assert accuracy.value == ours.correct["acc"].mean()
    assert accuracy.error == pytest.approx(math.sqrt(accuracy.value * (1 - accuracy.value) / 2000), rel=0.06)
    # Paired: the interval is much narrower than that of two independent models.
    assert bits.high - bits.low < 100 * 4 * math.hypot(bits.error, bits.dense_error) / bits.dense / 2


def test_pairing_decides_what_separate_standard_errors_could_not():
    dense = {"a": questions(1500, 0.5)}
    found = by_place(compare([{"a": worse(dense["a"], 1.0)}], [dense]))[BITS, "a"]
    assert found.verdict == "within"
    assert 100 * found.error / found.value > 1.25  # alone: 1 % and two standard errors pass 2.25 %


def test_too_few_items_are_undecided_even_if_nothing_changed():
    sets = {"text": text(20), "a": questions(150, 0.6)}
    found = by_place(compare([sets], [sets]))
    assert (found[BITS, "text"].verdict, found[BITS, "text"].reason) == (
        "undecided", "20 items are too few; at least 30 are needed",
    )  # fmt: skip
    assert found[ACCURACY, POOLED].verdict == "undecided"
    assert found[ACCURACY, POOLED].reason.startswith("150 items are too few; at least 2")
    assert overall(list(found.values())) == "undecided"


def test_a_loss_near_the_limit_is_undecided():
    dense = {"a": questions(300, 0.6)}
    found = by_place(compare([{"a": worse(dense["a"], 2.25)}], [dense]))[BITS, "a"]
    assert found.low < 2.25 < found.high
    assert (found.verdict, found.reason) == ("undecided", None)


def test_a_set_on_which_dense_is_near_chance_has_no_verdict_and_is_not_pooled():
    dense = {"easy": questions(2000, 0.6), "hard": questions(2000, 0.27, seed=3)}
    pruned = {"easy": worse(dense["easy"], 0, flipped=0.3), "hard": dense["hard"]}
    found = by_place(compare([pruned], [dense]))
    hard = found[ACCURACY, "hard"]
    assert (hard.verdict, hard.reason) == (None, "dense is less than 4 standard errors above chance")
    assert math.isnan(hard.kept)
    assert math.isnan(hard.relative)
    assert hard.error > 0
    assert found[ACCURACY, POOLED].items == 2000
    assert found[ACCURACY, POOLED].relative == found[ACCURACY, "easy"].relative > 20


def test_without_any_set_above_chance_accuracy_is_not_pooled():
    sets = {"hard": questions(500, 0.25)}
    assert [entry.task for entry in compare([sets], [sets]) if entry.measure == ACCURACY] == ["hard"]


def test_the_most_frequent_answer_is_chance_where_all_items_have_the_same_choices():
    """A model that always says yes loses all of its margin, though its accuracy falls by little."""
    dense = replace(questions(3270, 0.72), chance={"acc": 0.62})
    says_yes = np.zeros(3270, dtype=bool)
    says_yes[: round(0.62 * 3270)] = True
    found = by_place(compare([{"boolq": replace(dense, correct={"acc": says_yes})}], [{"boolq": dense}]))
    assert found[ACCURACY, "boolq"].chance == 0.62
    assert found[ACCURACY, "boolq"].kept == pytest.approx(0, abs=0.01)
    assert found[ACCURACY, "boolq"].relative < 20


def test_each_item_counts_the_same_in_the_pooled_accuracy():
    dense = {"a": questions(3000, 0.6), "b": questions(1000, 0.9, chance=0.5)}
    pruned = {task: worse(items, 0, flipped=0.1) for task, items in dense.items()}
    found = by_place(compare([pruned], [dense]))[ACCURACY, POOLED]
    right = sum(items.correct["acc"].sum() for items in pruned.values())
    assert (found.items, found.value, found.chance) == (4000, right / 4000, (3000 * 0.25 + 1000 * 0.5) / 4000)


def test_images_are_judged_by_their_accuracy_alone():
    dense = replace(questions(5000, 0.88, chance=0.1), bytes=np.zeros(5000, dtype=int))
    dense = replace(dense, correct={"top1": dense.correct["acc"]}, chance={"top1": 0.1})
    pruned = worse(dense, 5, flipped=0.01)
    found = compare([{"held_out": pruned}], [{"held_out": dense}])
    assert [(entry.task, entry.metric) for entry in found] == [("held_out", "top1"), (POOLED, None)]
    assert found[0].verdict == overall(found) == "within"
    assert found[0].relative == pytest.approx(1, abs=0.3)


def test_seeds_are_averaged_and_must_agree():
    dense = [{"a": questions(2000, 0.6, seed=seed)} for seed in (1, 2, 3)]
    good = [{"a": worse(sets["a"], 0.5)} for sets in dense]
    found = by_place(compare(good, dense))[BITS, "a"]
    assert (found.seeds, found.verdict) == (3, "within")
    assert found.lowest <= found.relative <= found.highest
    odd = [*good[:2], {"a": worse(dense[2]["a"], 4)}]
    found = by_place(compare(odd, dense))[BITS, "a"]
    assert found.high < 2.25 < found.highest
    assert found.verdict == "undecided"


def test_sets_of_other_items_are_undecided_and_say_why():
    dense = {"a": questions(500, 0.6), "b": questions(400, 0.6)}
    pruned = {"a": replace(dense["a"], digest="sha256:others"), "b": dense["b"], "c": dense["b"]}
    found = by_place(compare([pruned], [dense]))
    assert set(found) == {(BITS, "a"), (BITS, "b"), (BITS, "c"), (ACCURACY, "b"), (ACCURACY, POOLED)}
    for task in ("a", "c"):
        assert (found[BITS, task].verdict, found[BITS, task].items) == ("undecided", 0)
        assert "not scored on the same items" in found[BITS, task].reason
        assert math.isnan(found[BITS, task].relative)
    assert found[ACCURACY, POOLED].items == 400
    assert overall(list(found.values())) == "undecided"


def test_a_set_that_one_seed_lacks_is_compared_with_the_others_and_not_pooled():
    sets = {"a": questions(500, 0.6), "b": questions(400, 0.6)}
    found = by_place(compare([sets, {"a": sets["a"]}], [sets, sets]))
    assert (found[BITS, "a"].seeds, found[BITS, "b"].seeds) == (2, 1)
    assert found[ACCURACY, POOLED].items == 500


def test_the_interval_covers_the_true_loss_as_often_as_it_says():
    """Small simulation: items from one law, of which the pruned model loses 4 % on average."""
    covered, runs = 0, 60
    for run in range(runs):
        dense = {"a": questions(250, 0.6, seed=100 + run)}
        random = np.random.default_rng(run)
        factor = random.normal(1.04, 0.2, 250)
        found = compare([{"a": replace(dense["a"], nats=dense["a"].nats * factor)}], [dense])[0]
        covered += found.low <= 4.0 <= found.high
    assert covered / runs >= 0.87  # three standard errors of the count below .95


@pytest.mark.parametrize(
    ("low", "high", "seeds", "verdict"),
    [
        (-1.0, 2.2, [1.0], "within"),
        (2.3, 4.0, [3.0], "outside"),
        (1.0, 3.0, [2.0], "undecided"),
        (1.0, 2.0, [0.5, 2.5], "undecided"),
        (2.4, 4.0, [2.0, 4.0], "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_every_seed_on_one_side(low, high, seeds, verdict):
    assert judge(low, high, seeds) == verdict


def test_perplexity_rises_more_than_loss():
    assert relative_perplexity(1.0225 * 2.37, 2.37) == pytest.approx(5.48, abs=0.01)
    sets = {"text": text()}
    found = compare([{"text": replace(text(), nats=text().nats * 1.0225)}], [sets])[0]
    assert found.relative == pytest.approx(2.25)
    assert found.relative_perplexity == pytest.approx(100 * math.expm1(0.0225 * text().nats.sum() / (500 * 64)))
    no_text = {"a": questions(500, 0.5)}
    assert math.isnan(compare([no_text], [no_text])[0].relative_perplexity)
