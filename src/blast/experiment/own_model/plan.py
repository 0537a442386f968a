"""The plan of a run: what is measured before the training, and decides its length."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from blast.errors import BlastError
from blast.experiment.own_model import recipe
from blast.experiment.own_model.layer_cost import Sample, layer_costs, recommended
from blast.experiment.own_model.options import AUTO
from blast.experiment.own_model.start import can_start_from_one_shot, start_from_one_shot
from blast.experiment.own_model.step_time import PROGRESS_S, REST_OF_STEP, as_time, faster_dtype, step_seconds
from blast.experiment.own_model.workplace import Workplace

# Seconds for loading and saving at the end, and for the speed of decoding.
AT_THE_END = 20.0
# Part of the time that is left to the training; the rest is in hand, because a machine can become slower.
PLANNED = 0.95
# Sequences that the cost of each layer is measured on, where the layers that stay dense are chosen.
SEQUENCES = 2
# Share of the time that measuring the layers may take, and how much more if the machine becomes slower meanwhile.
MEASURING, SLOWER = 0.2, 1.5


@dataclass(frozen=True)
class Plan:
    """What a run does; a stopped run that goes on has the same plan.

    Attributes:
        steps: Optimization steps.
        dtype: Of the products.
        step_seconds: Seconds of a step, as measured before.
        dense: Losses of the dense model on the held-out text.
        dense_layers: Layers that stay dense.
        start: `one_shot` or `gradual`.
    """

    steps: int
    dtype: str
    step_seconds: float
    dense: dict[str, Any]
    dense_layers: tuple[int, ...]
    start: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Reads the JSON form; other keys do not count."""
        known = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**known | {"dense_layers": tuple(values["dense_layers"])})


def make_plan(work: Workplace, began: float) -> Plan:
    """Measures the dense model and the time of a step, and decides what the run does. Says it.

    The model may be pruned once already after it, so that the time which that takes is known.

    Args:
        work: The model and the text.
        began: When the command began, on the monotonic clock.

    Raises:
        BlastError: if the time is too short.
    """
    options, before = work.options, time.monotonic()
    dense = work.losses(work.model)
    evaluation = time.monotonic() - before
    work.say(f"dense: {dense['bits_per_byte']:.3f} bits a byte on the held-out text")
    work.model.train()

    def loss_in(tokens: Tensor, dtype: str) -> Tensor:
        with torch.autocast(work.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return work.loss()(work.model, tokens[:, :-1], tokens[:, 1:])

    one = work.batch(0, 1)

    def small_step(dtype: str) -> None:
        loss_in(one, dtype).backward()
        work.model.zero_grad(set_to_none=True)

    dtype = faster_dtype(small_step, work.device)
    seconds = step_seconds(work.model, loss_in, work.batch(0), dtype) * REST_OF_STEP
    work.say(f"a step of {work.tokens} tokens takes {seconds:.2f} s in {dtype}")
    spare = None
    if options.steps is None:
        # Before anything else that takes minutes.
        left = _left(work, began, evaluation)
        _check_time(work, left, seconds)
        spare = min(MEASURING * 60 * options.minutes, left - recipe.FEWEST_STEPS * seconds)
    layers = _dense_layers(work, spare)
    work.model.train()
    start = _start(work, layers, options.steps or int(_left(work, began, evaluation) / seconds))
    if start == "one_shot":
        start_from_one_shot(work, layers, dtype)
    steps = options.steps or max(recipe.FEWEST_STEPS, int(_left(work, began, evaluation) / seconds))
    plan = Plan(steps, dtype, seconds, dense, layers, start)
    _say(work, plan)
    return plan


def _left(work: Workplace, began: float, evaluation: float) -> float:
    """Seconds that are left for the training; `evaluation` is how long one evaluation takes."""
    return PLANNED * (60 * work.options.minutes - (time.monotonic() - began) - 1.2 * evaluation - AT_THE_END)


def _check_time(work: Workplace, left: float, seconds: float) -> None:
    """Refuses a time in which only a few steps are possible.

    Args:
        work: The model and the text.
        left: Seconds that are left for the training.
        seconds: Seconds of a step.

    Raises:
        BlastError: if that is so; the message says how many minutes are needed.
    """
    minutes = work.options.minutes
    if left < recipe.FEWEST_STEPS * seconds:
        needed = minutes + (recipe.FEWEST_STEPS * seconds - left) / PLANNED / 60
        raise BlastError(
            f"{minutes:g} minutes are too short here, where a step of {work.tokens} tokens takes {seconds:.1f} s; "
            f"give --minutes {needed + 1:.0f} or more, or a smaller --batch or --length."
        )


def _dense_layers(work: Workplace, spare: float | None) -> tuple[int, ...]:
    """The layers that stay dense: the given ones, or those that alone cost far more than the median layer.

    Args:
        work: The model and the text.
        spare: Seconds that measuring them may take; None for any time.
    """
    options = work.options
    if options.dense_layers != AUTO:
        return tuple(options.dense_layers)
    layers = sorted({target.layer for target in work.every if target.layer is not None})
    ends = (layers[0], layers[-1]) if len(layers) > 2 else ()
    # Measured on text that is trained on: the held-out part decides nothing.
    sample = Sample.of(work.model, work.data.training_part(SEQUENCES), options.length, SEQUENCES, work.device)
    if spare is not None and len(layers) * sample.seconds > spare:
        work.say("there is no time to measure what each layer costs: the first and the last one stay dense")
        return ends
    work.say(f"measuring what each of {len(layers)} layers costs: about {as_time(len(layers) * sample.seconds)}")
    began = said = time.monotonic()
    costs = {}
    for part, rises in layer_costs(work.model, work.every, work.block, options.sparsity, sample):
        costs[part], now = rises, time.monotonic()
        if spare is not None and now - began > SLOWER * spare:
            work.say("measuring the layers takes too long: the first and the last one stay dense")
            return ends
        if now - said > PROGRESS_S:
            said, left = now, (now - began) / len(costs) * (len(layers) - len(costs))
            work.say(f"{len(costs)} of {len(layers)} layers measured, {as_time(left)} left")
    return tuple(recommended(costs))


def _start(work: Workplace, layers: tuple[int, ...], steps: int) -> str:
    """How the masks are found, see `recipe.SHORT_RUN`."""
    if work.options.start != AUTO:
        return work.options.start
    short = steps * work.tokens < recipe.SHORT_RUN
    return "one_shot" if short and can_start_from_one_shot(work, layers) else "gradual"


def _say(work: Workplace, plan: Plan) -> None:
    matrices = work.matrices_without(plan.dense_layers)
    weights = sum(target.shape[0] * target.shape[1] for target in matrices)
    dense = ", ".join(map(str, plan.dense_layers))
    work.say(
        f"{weights / 1e6:.1f} of {work.source.parameters / 1e6:.1f} million weights, in {len(matrices)} matrices, are "
        f"pruned to {100 * work.options.sparsity:g} % in blocks of {work.block}"
        f"{f'; layers {dense} stay dense' if dense else ''}"
    )
    work.say(
        f"training takes about {as_time(plan.steps * plan.step_seconds)}: {plan.steps} steps of {work.options.batch} x "
        f"{work.options.length} tokens, {plan.step_seconds:.2f} s each in {plan.dtype}, "
        f"{plan.steps * work.tokens:,} tokens in all"
    )
