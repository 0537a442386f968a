"""The dtype of a training on this machine is chosen by time, and a busy moment does not change the choice."""

from __future__ import annotations

import pytest
import torch

from blast.experiment.own_model import step_time

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bfloat16", "float32", "chosen"),
    [
        ([9, 1, 1, 1], [9, 2, 2, 2], "bfloat16"),
        ([9, 2, 2, 2], [9, 1, 1, 1], "float32"),
        ([9, 1, 1, 1], [9, 1.1, 1.1, 1.1], "float32"),
        ([9, 2, 2, 2], [9, 1, 30, 1], "float32"),  # one round of float32 was disturbed
        ([30, 1, 1, 1], [2, 2, 2, 2], "bfloat16"),  # the first round is slower
    ],
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster_in_each_round_but_the_first(
    monkeypatch, bfloat16, float32, chosen
):
    monkeypatch.setattr(step_time, "_product", lambda dtype: now.append(now.pop() + (dtype == "float32")))
    now, left = [0.0], {"bfloat16": iter(bfloat16), "float32": iter(float32)}
    monkeypatch.setattr(step_time.time, "process_time", lambda: now[0])
    ran = []

    def run(dtype: str) -> None:
        ran.append(dtype)
        now[0] += next(left[dtype])

    assert step_time.faster_dtype(run, CPU) == chosen
    assert ran == ["bfloat16", "float32"] * (4 if chosen == "bfloat16" else 2)


def test_other_programs_do_not_count_on_a_cpu(monkeypatch):
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: pytest.fail("the time on the wall counts"))
    assert step_time.faster_dtype(lambda _: None, CPU) == "float32"


def test_where_a_product_is_no_faster_in_bfloat16_no_step_is_tried(monkeypatch):
    """Half of the time of `blast prune` went into steps in bfloat16, each of a minute."""
    now = [0.0]
    monkeypatch.setattr(step_time.time, "process_time", lambda: now[0])
    monkeypatch.setattr(
        step_time, "_product", lambda dtype: now.append(now.pop() + {"bfloat16": 5, "float32": 1}[dtype])
    )
    assert step_time.faster_dtype(lambda dtype: pytest.fail(f"a step in {dtype}"), CPU) == "float32"


def test_the_product_is_a_real_one():
    for dtype in ("bfloat16", "float32"):
        grad = step_time._product(dtype)
        assert grad.dtype == getattr(torch, dtype)
        # Each row of ones is multiplied by all rows, from both sides.
        assert torch.equal(grad, torch.full_like(grad, 2 * step_time.PRODUCT[0]))
