"""Distillation: a model learns from the outputs of a trained one, its teacher (arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from blast.errors import BlastError
from blast.settings import Bounds, Name, Place, Share, check_fields, read

if TYPE_CHECKING:
    from torch import Tensor, nn

    from blast.training.language_loss import Loss

DENSE = "dense"
PLACE = Place("distillation setting")


@dataclass(frozen=True)
class Distillation:
    """How a model learns from a teacher.

    Attributes:
        teacher: `dense`: the dense run that the point is compared with. Or an architecture: its published weights.
        weight: Share of the teacher in the loss; the rest is the cross-entropy with the data.
        temperature: Divides the logits of both before the softmax.
        hidden_weight: Weight of the squared error between the hidden states of both, relative to the teacher's mean
            square, added to the loss. It needs a language model of the same width and depth.

    Raises:
        BlastError: if a value has the wrong type or is out of its range.
    """

    teacher: Name = DENSE
    weight: Share = 0.67
    temperature: Annotated[float, Bounds(gt=0)] = 1.0
    hidden_weight: Annotated[float, Bounds(ge=0)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, PLACE.kind)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Distillation:
        """Reads a mapping.

        Raises:
            BlastError: on an unknown key, or a wrong value.
        """
        return read(cls, values, PLACE)


def distilled_token_loss(teacher: nn.Module, settings: Distillation, compiled: bool) -> Loss:
    """The loss of a language model with a teacher, nats: a function of model, tokens and targets `[batch, length]`.

    Args:
        teacher: A causal language model with the same vocabulary, in eval mode; it gets no gradient.
        settings: The weights.
        compiled: Whether the two heads and the loss are compiled together; the logits are then never stored in float32.
    """
    import torch

    from blast.training.language_loss import head_of, hidden_states

    loss_of_hidden = torch.compile(_loss_of_hidden) if compiled else _loss_of_hidden

    def token_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = hidden_states(teacher, tokens, every=settings.hidden_weight > 0)
        found = hidden_states(model, tokens, every=settings.hidden_weight > 0)
        heads = (*head_of(model), *head_of(teacher))
        loss = loss_of_hidden(found[-1], wanted[-1], *heads, targets, settings.weight, settings.temperature)
        if settings.hidden_weight:
            loss = loss + settings.hidden_weight * _hidden_error(found, wanted)
        return loss

    return token_loss


def distilled_class_loss(
    teacher: nn.Module, settings: Distillation, logits_of: Callable[[nn.Module, Tensor], Tensor]
) -> Loss:
    """The loss of a classifier with a teacher, nats: a function of model, inputs and labels `[batch]`.

    Args:
        teacher: A classifier of the same classes, in eval mode; it gets no gradient.
        settings: The weights; `hidden_weight` has to be 0.
        logits_of: Logits `[batch, classes]` of a model.

    Raises:
        BlastError: if `hidden_weight` is not 0.
    """
    import torch

    if settings.hidden_weight:
        raise BlastError("the distillation setting 'hidden_weight' needs a language model; set it to 0 for images.")

    def class_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = logits_of(teacher, inputs)
        return _mixed(logits_of(model, inputs), wanted, labels, settings.weight, settings.temperature)

    return class_loss


def check_teacher(name: str, outputs: tuple[int, int]) -> None:
    """Refuses a teacher that has another vocabulary or other classes than the model.

    Args:
        name: Name of the teacher, for the error.
        outputs: Sizes of the output of teacher and model.
    """
    theirs, ours = outputs
    if theirs != ours:
        raise BlastError(
            f"the teacher '{name}' gives {theirs} logits and the model {ours}; "
            "take a teacher with the same tokenizer or classes."
        )


def _loss_of_hidden(
    hidden: Tensor,
    wanted: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    targets: Tensor,
    share: float,
    temperature: float,
) -> Tensor:
    """The loss from the inputs of both heads `[batch, length, width]` and their weights `[vocabulary, width]`."""
    from torch.nn import functional as F

    logits, target_logits = F.linear(hidden, weight, bias), F.linear(wanted, teacher_weight, teacher_bias)
    return _mixed(logits, target_logits.detach(), targets, share, temperature)


def _mixed(logits: Tensor, wanted: Tensor, targets: Tensor, share: float, temperature: float) -> Tensor:
    """`(1 - share) * CE + share * T^2 * KL(teacher || model)`, mean over tokens or images."""
    from torch.nn import functional as F

    flat, flat_wanted = logits.flatten(0, -2).float(), wanted.flatten(0, -2).float()
    model, teacher = F.log_softmax(flat / temperature, -1), F.log_softmax(flat_wanted / temperature, -1)
    divergence = F.kl_div(model, teacher, reduction="batchmean", log_target=True) * temperature**2
    return (1 - share) * F.cross_entropy(flat, targets.flatten()) + share * divergence


def _hidden_error(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """Mean over the layers of the squared error, each relative to the mean square of the teacher's hidden state."""
    import torch

    if len(found) != len(wanted) or found[-1].shape != wanted[-1].shape:
        raise BlastError(
            f"the teacher has {len(wanted)} layers of width {wanted[-1].shape[-1]} and the model {len(found)} of "
            f"width {found[-1].shape[-1]}; set 'hidden_weight' to 0, or take a teacher of the same width and depth."
        )
    errors = [
        (mine.float() - theirs.float()).square().mean() / theirs.float().square().mean()
        for mine, theirs in zip(found, wanted, strict=True)
    ]
    return torch.stack(errors).mean()
