"""A model in training as the suite `training_step` times it: fresh weights, bf16 autocast, fused AdamW, one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

import blast
from blast import architectures
from blast.benchmark.inputs.batches import PIXELS, WORDS, image_batch, token_batch
from blast.benchmark.inputs.masks import training_masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.csr import BlockCSR
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.model.discovery import find_mlps
from blast.model.fuse import fuse_for_training
from blast.training.compilation import compile_blocks, cross_entropy_of
from blast.training.language_loss import token_loss_of
from blast.training.loop import make_optimizer
from blast.training.settings import TrainingSettings

CLIP = 1.0
# Standard deviation of weights that an architecture leaves at zero; GPT-2's for all of its own.
FIRST_SPREAD = 0.02


class Workload(NamedTuple):
    """What a step is of.

    Attributes:
        architecture: Whose model.
        batch: Sequences or images.
        length: Tokens a sequence; patches and the class token of an image.
        dtype: Of autocast; master weights, gradients and moments are float32.
        device: Where.
        compiled: Whether blocks and loss are compiled.
    """

    architecture: str
    batch: int
    length: int
    dtype: torch.dtype
    device: torch.device
    compiled: bool

    @property
    def vision(self) -> bool:
        """Whether it is of images."""
        return architectures.get(self.architecture).modality == "vision"

    @property
    def data(self) -> str:
        """What the batch is made of."""
        return PIXELS if self.vision else WORDS

    def inputs(self) -> tuple[Tensor, Tensor]:
        """A batch and its targets."""
        shape = architectures.get(self.architecture).shape
        if self.vision:
            return image_batch(self.batch, shape.image, shape.classes, self.device)
        return token_batch(self.batch, self.length, shape.vocab, self.device)


def workload_of(
    architecture: str, tokens: int, length: int, dtype: str, device: torch.device, compiled: bool
) -> Workload:
    """As many sequences or images as `tokens` carry.

    Args:
        architecture: Whose model.
        tokens: About how many tokens a step takes; an image is its patches and one more.
        length: Tokens a sequence, at most the model's context; images have their own.
        dtype: Of autocast.
        device: Where.
        compiled: Whether blocks and loss are compiled.

    Raises:
        BlastError: if the tokens are fewer than one sequence.
    """
    shape = architectures.get(architecture).shape
    if architectures.get(architecture).modality == "vision":
        length = (shape.image // shape.patch) ** 2 + 1
    length = min(length, shape.context or length)
    if tokens < length:
        raise BlastError(f"{tokens} tokens are less than one sequence of {length} of '{architecture}'; give more.")
    return Workload(architecture, tokens // length, length, getattr(torch, dtype), device, compiled)


class TrainingSetup:
    """A model with its optimizer and a batch.

    Args:
        workload: What a step is of.
        model: In training mode, on its device.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self.workload, self.model = workload, model
        # As the training loop makes it; rate and steps do not matter for what is measured.
        settings = TrainingSettings(steps=1, batch=1, learning_rate=1e-5, clip=CLIP, cuda_graphs=True)
        self.optimizer = make_optimizer(model, settings)
        self.between: Callable[[], None] | None = None
        self.replay: Callable[[], None] | None = None
        self.inputs, self.targets = workload.inputs()
        self._cross_entropy = cross_entropy_of(workload.compiled)
        self._token_loss = token_loss_of(workload.compiled)
        if workload.compiled:
            compile_blocks(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained; taken anew each time, as a mask update in the sparse state replaces parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def forward(self) -> Tensor:
        """The loss, under autocast."""
        return self.loss_of(self.model, (self.inputs, self.targets))

    def loss_of(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of the model for inputs and targets, under autocast."""
        kind, dtype = self.workload.device.type, self.workload.dtype
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            if self.workload.vision:
                return self._cross_entropy(model(batch[0]), batch[1])
            return self._token_loss(model, *batch)

    def step(self) -> Tensor:
        """A whole optimisation step, `between` (if any) before clipping; gives the loss."""
        self.clear()
        loss = self.forward()
        loss.backward()
        if self.between is not None:
            self.between()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """Clips the gradients and steps the optimizer."""
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()

    def clear(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def take(self, batch: int) -> None:
        """Goes on with a batch of another size."""
        self.inputs, self.targets = self.workload._replace(batch=batch).inputs()


def fresh_model(workload: Workload, seed: int) -> nn.Module:
    """The architecture with random weights in float32, made on its device.

    No linear layer is all zero, as torchvision's head of a ViT is at first: it would let no gradient through, and all
    that is compared or timed in the backward pass would be zeros.
    """
    torch.manual_seed(seed)
    with torch.device(workload.device):
        model = architectures.build(workload.architecture)
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=FIRST_SPREAD)
    return model.to(workload.device).train()


def random_model_masks(
    model: nn.Module, sparsity: float, block: tuple[int, int], seed: int, kind: str
) -> dict[str, Tensor]:
    """Masks of all MLPs by module name; of one kind of `training_masks`.

    Raises:
        BlastError: if masks of that kind do not exist at this sparsity.
    """
    masks: dict[str, Tensor] = {}
    for mlp in find_mlps(model):
        ffn, hidden = mlp.up.shape
        size = MlpSize(hidden, ffn, mlp.gate is not None, "none", False, block, torch.float32)
        generator = torch.Generator(mlp.up.weight.device).manual_seed(1000 * seed + len(masks))
        made = training_masks(kind, size, False, sparsity, generator)
        if made is None:
            raise BlastError(
                f"at sparsity {sparsity:g} some hidden blocks of '{mlp.name}' must be dead; take 'uniform'."
            )
        parts: Mapping = {mlp.up.name: made.up, mlp.down.name: made.down}
        masks |= parts if mlp.gate is None else {mlp.gate.name: made.gate, **parts}
    return masks


def sparse_state(model: nn.Module, masks: Mapping[str, Tensor], fused: bool) -> nn.Module:
    """The model as it is trained sparse: values of live blocks alone; whole MLPs in one operator if `fused`."""
    blast.to_sparse(model, masks, drop=True)
    return fuse_for_training(model) if fused else model


def live_gradients(setup: TrainingSetup, masks: Mapping[str, Tensor]) -> list[Tensor]:
    """The gradients of the live blocks of each matrix `[nnz, b_out, b_in]`, of a model in its dense or sparse state."""
    setup.clear()
    setup.forward().backward()
    found = []
    for name, mask in masks.items():
        module = setup.model.get_submodule(name)
        if isinstance(module, BlockLinear):
            found.append(module.values.grad)
        else:
            grad = module.weight.grad.t() if is_conv1d(module) else module.weight.grad
            found.append(BlockCSR.from_dense(grad, mask).values)
    setup.clear()
    return found
