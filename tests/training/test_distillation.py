"""Learning from a teacher."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch.nn import functional as F

from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record, write_record
from blast.experiment.run.worker import run_point
from blast.training.distillation import Distillation, check_teacher, distilled_class_loss, distilled_token_loss
from blast.training.language_loss import token_loss_of


def gpt2(seed, **sizes):
    torch.manual_seed(seed)
    config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 48, "n_positions": 16} | sizes
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()


@pytest.fixture
def batch():
    tokens = torch.randint(0, 48, (3, 9), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def by_hand(model, teacher, tokens, targets, weight, temperature):
    """The same in float64, from the definition of the divergence."""
    logits, wanted = (m(tokens).logits.double() / temperature for m in (model, teacher))
    p, q = wanted.softmax(-1), logits.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean() * temperature**2
    return (1 - weight) * F.cross_entropy(logits.flatten(0, 1) * temperature, targets.flatten()) + weight * divergence


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.67, 1.0])
def test_the_loss_of_tokens_is_cross_entropy_and_divergence_from_the_teacher(batch, weight, temperature):
    model, teacher = gpt2(0), gpt2(1)
    loss = distilled_token_loss(teacher, Distillation(weight=weight, temperature=temperature), compiled=False)
    with torch.no_grad():
        expected = by_hand(model, teacher, *batch, weight, temperature).item()
        # Logarithms of probabilities near 1/48 are rounded in float32, by up to 4 * 2^-23, and multiplied by T^2.
        assert loss(model, *batch).item() == pytest.approx(expected, rel=1e-5, abs=5e-7 * temperature**2)
        if weight == 0:
            assert loss(model, *batch).item() == pytest.approx(token_loss_of(False)(model, *batch).item())


def test_a_model_that_equals_its_teacher_has_no_divergence_and_no_hidden_error(batch):
    model = gpt2(0)
    loss = distilled_token_loss(gpt2(0), Distillation(weight=1.0, hidden_weight=1.0), compiled=False)(model, *batch)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None) < 1e-5


def test_hidden_states_count_relative_to_those_of_the_teacher(batch):
    model, teacher = gpt2(0), gpt2(1)
    plain, both = (
        distilled_token_loss(teacher, Distillation(hidden_weight=share), compiled=False)(model, *batch)
        for share in (0.0, 0.5)
    )
    found, wanted = (m(batch[0], output_hidden_states=True).hidden_states[1:] for m in (model, teacher))
    errors = [((a - b).square().mean() / b.square().mean()).item() for a, b in zip(found, wanted, strict=True)]
    assert len(errors) == 2
    assert (both - plain).item() == pytest.approx(0.5 * sum(errors) / 2, rel=1e-4)


def test_the_teacher_gets_no_gradient(batch):
    teacher = gpt2(1)
    distilled_token_loss(teacher, Distillation(hidden_weight=1.0), compiled=False)(gpt2(0), *batch).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hidden_states_of_another_depth_or_width_are_refused(batch):
    loss = distilled_token_loss(gpt2(1, n_layer=3), Distillation(hidden_weight=1.0), compiled=False)
    with pytest.raises(BlastError, match="has 3 layers of width 32 and the model 2 of width 32; set 'hidden_weight'"):
        loss(gpt2(0), *batch)


def test_the_loss_of_classes_is_mixed_in_the_same_way():
    torch.manual_seed(0)
    model, teacher, x, labels = (torch.nn.Linear(8, 5), torch.nn.Linear(8, 5), torch.randn(6, 8), torch.arange(6) % 5)
    loss = distilled_class_loss(teacher, Distillation(weight=0.4), lambda module, inputs: module(inputs))
    p, q = teacher(x).double().softmax(-1), model(x).double().softmax(-1)
    expected = 0.6 * F.nll_loss(q.log(), labels) + 0.4 * (p * (p / q).log()).sum(-1).mean()
    assert loss(model, x, labels).item() == pytest.approx(expected.item())
    with pytest.raises(BlastError, match="'hidden_weight' needs a language model"):
        distilled_class_loss(teacher, Distillation(hidden_weight=1.0), lambda module, inputs: module(inputs))


def test_a_teacher_of_another_vocabulary_is_refused():
    with pytest.raises(BlastError, match="the teacher 'big' gives 49152 logits and the model 50257; take a teacher"):
        check_teacher("big", (49152, 50257))


def test_wrong_settings_are_refused():
    for wrong in ({"weight": 1.5}, {"temperature": 0}, {"weigth": 0.5}, {"hidden_weight": math.nan}):
        with pytest.raises(BlastError, match="distillation setting"):
            Distillation.from_dict(wrong)


TRAINING = {"steps": 4, "batch": 4, "learning_rate": 0.001, "evaluate_every": 4, "evaluate_limit": 16}


def plan(**block):
    block = {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5], "blocks": [8]} | block
    return expand(parse({"name": "taught", "training": {"default": TRAINING}, "grid": [block]}, "grid.yaml"))


def test_the_grid_holds_the_dense_run_its_pupils_and_a_dense_pupil():
    made = plan(methods=["dense", "blast", "small_dense"], variant="kd", distillation={"weight": 0.5})
    dense = made.points["vit-nano.digits.dense.seed0"]
    assert dense.distillation is dense.teacher is None
    pupils = [point for point in made.points.values() if point is not dense]
    assert sorted(point.method for point in pupils) == ["blast", "dense", "small_dense"]
    for point in pupils:
        assert point.id.endswith(".seed0.kd")
        assert point.teacher == point.parent == dense.id
        assert point.distillation == {"teacher": "dense", "weight": 0.5, "temperature": 1.0, "hidden_weight": 0.0}
        assert Point.from_dict(point.to_dict()) == point
    jobs = [job for job in made.jobs if dense.id not in job.ids]
    assert len(jobs) == 3
    assert all(job.after == (dense.id,) for job in jobs)


def test_points_of_before_keep_their_form():
    point = plan().points["vit-nano.digits.dense.seed0"].to_dict()
    assert not {"distillation", "teacher", "ffn"} & point.keys()


def test_a_pupil_is_trained_with_its_teacher_and_not_before_it(tmp_path):
    made, folder = plan(variant="kd", distillation={"weight": 1.0}), GridFolder(tmp_path)
    dense, pupil = made.points["vit-nano.digits.dense.seed0"], made.points["vit-nano.digits.blast.s50.b8.seed0.kd"]
    with pytest.raises(BlastError, match=r"run the point 'vit-nano\.digits\.dense\.seed0' first"):
        run_point(pupil, folder)
    write_record(folder, make_record(dense, status="ok", result=run_point(dense, folder), run={}))
    result = run_point(pupil, folder)
    # With a weight of 1 the loss is the divergence from the teacher alone, which begins far below the cross-entropy.
    losses = {name: result["curves"][name]["value"] for name in ("train_loss", "validation_loss")}
    assert losses["train_loss"][-1] < 0.5 < losses["validation_loss"][-1]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"distillation": {}}, "needs a 'variant', which names its points; add one"),
        (
            {"distillation": {}, "variant": "kd", "methods": ["one_shot"]},
            "'one_shot' trains nothing; put it in a block",
        ),
        ({"distillation": {"teacher": "gpt2-nano"}, "variant": "kd"}, "'gpt2-nano' has no published weights; write"),
        ({"distillation": {"teacher": "gtp2"}, "variant": "kd"}, "did you mean 'gpt2'"),
        ({"distillation": {"temperature": -1}, "variant": "kd"}, "temperature"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(block, sentence):
    with pytest.raises(BlastError, match=sentence):
        plan(**block)


def test_a_published_teacher_has_to_know_the_tokens_of_the_dataset():
    with pytest.raises(
        BlastError, match="has a vocabulary of 50257 tokens and 'pystdlib' one of its own; take the datas"
    ):
        plan(architectures=["gpt2-nano"], datasets=["pystdlib"], variant="kd", distillation={"teacher": "gpt2"})
    made = plan(architectures=["gpt2-nano"], datasets=["pystdlib@gpt2"], variant="kd", distillation={"teacher": "gpt2"})
    (pupil,) = [point for point in made.points.values() if point.distillation]
    assert pupil.teacher is None
    assert pupil.needs == []
