"""Which configurations are recipes, and what is known of each."""

from __future__ import annotations

import fake_study as fake
import pytest

from blast import architectures
from blast.experiment.analysis.recipe import main_scores, recipe_points, variant_of
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table

DENSE_TOTAL = 124_000_000


@pytest.fixture(scope="module")
def table():
    records = [fake.make_record_of(point) for point in fake.points().values()]
    return as_table([row for record in records for row in record_rows(record)])


@pytest.fixture(scope="module")
def scores(table):
    return main_scores(table)


@pytest.mark.parametrize(
    ("suffix", "variant"),
    [
        ("", ""), (".lr9e-4", ""), (".lr1.2e-3", ""), (".pretrained", ""), (".pretrained.lr6e-5", ""),
        (".taught", "taught"), (".taught.lr1.2e-3", "taught"), (".taught-lr9e-4", "taught"),
        (".pretrained.steps400", "steps400"), (".lrdecay", "lrdecay"), (".live-width", "live-width"),
    ],
)  # fmt: skip
def test_a_variant_is_named_without_its_learning_rate(suffix, variant):
    assert variant_of(f"gpt2.technical_text.blast.s95.b64.seed0{suffix}") == variant


def test_levers_are_no_recipes_and_a_teacher_makes_another_one(scores):
    blast = scores[(scores["model"] == "gpt2") & (scores["method"] == "blast") & (scores["sparsity"] == 0.95)]
    found = {row.variant: (row.recipe, row.usual) for row in blast.itertuples()}
    assert found == {
        "": (True, True), "taught": (True, True), "steps1200": (True, False), "cosine": (False, True),
        "constant-growth": (False, True), "dense-start": (False, True),
    }  # fmt: skip


def test_what_is_gone_is_a_share_of_the_mlp_weights_and_of_all_weights(scores):
    mlp = architectures.get("gpt2").shape.mlp_weights
    for method, variant in (("blast", ""), ("small_dense", ""), ("small_dense", "live-width")):
        chosen = (scores["method"] == method) & (scores["sparsity"] == 0.95) & (scores["variant"] == variant)
        (row,) = scores[chosen & (scores["model"] == "gpt2")].itertuples()
        assert row.model_share == pytest.approx(row.achieved_sparsity * mlp / DENSE_TOTAL)
    assert row.achieved_sparsity == pytest.approx(1 - 448 / 3072)


def test_perplexity_stands_beside_the_loss_of_text_and_not_of_images(scores):
    """2.25 % of 2.27 nats is 5.2 % perplexity."""
    (row,) = scores[scores["config"] == "gpt2.technical_text.blast.s95.b64"].itertuples()
    nats = row.dense * fake.BITS_TO_NATS * row.relative / 100
    assert row.relative_perplexity == pytest.approx(100 * nats, rel=0.05)
    assert scores.loc[scores["model"] == "vit-s-4", "relative_perplexity"].isna().all()


def test_curves_are_those_of_recipes_of_each_length_without_a_teacher(table):
    found = {point: start for (_, _, point), start in recipe_points(chosen_trials(table)).items()}
    blast = "gpt2.technical_text.blast.s95.b64.seed0"
    of_blast = {point for point in found if point.startswith(blast)}
    assert of_blast == {blast, f"{blast}.steps1200"}
    assert found[blast] == "scratch"
    tuned = {point: start for point, start in found.items() if point.startswith("smollm2") and ".blast.s50." in point}
    assert len(tuned) == 3
    assert set(tuned.values()) == {"pretrained"}
