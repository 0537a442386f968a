"""A model in training for the suite `training_step`: random weights, autocast, fused AdamW, one batch."""

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
# Standard deviation for weights that an architecture initialises to zero; GPT-2 uses it for all of its weights.
FIRST_SPREAD = 0.02


class Workload(NamedTuple):
    """Model, batch and dtype of a step.

    Attributes:
        architecture: Name of the architecture.
        batch: Number of sequences or images.
        length: Tokens a sequence; for an image its patches and the class token.
        dtype: Dtype of autocast; master weights, gradients and moments are float32.
        device: Device of model and batch.
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
        """Whether the inputs are images."""
        return architectures.get(self.architecture).modality == "vision"

    @property
    def data(self) -> str:
        """A description of the data in the batch."""
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
    """The workload with as many sequences or images as fit into `tokens`.

    Args:
        architecture: Name of the architecture.
        tokens: Most tokens of a step; an image has one token more than patches.
        length: Tokens a sequence, cut to the model's context; ignored for images.
        dtype: Dtype of autocast.
        device: Device of model and batch.
        compiled: Whether blocks and loss are compiled.

    Raises:
        BlastError: if `tokens` is less than one sequence.
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
        workload: Model, batch and dtype of a step.
        model: In training mode, on its device.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self.workload, self.model = workload, model
        # The same optimizer as in the training loop; learning rate and steps do not affect the time.
        settings = TrainingSettings(steps=1, batch=1, learning_rate=1e-5, clip=CLIP, cuda_graphs=True)
        self.optimizer = make_optimizer(model, settings)
        self.before_clipping: Callable[[], None] | None = None
        self.replay: Callable[[], None] | None = None
        self.inputs, self.targets = workload.inputs()
        self._cross_entropy = cross_entropy_of(workload.compiled)
        self._token_loss = token_loss_of(workload.compiled)
        if workload.compiled:
            compile_blocks(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, read anew each time: a mask update in the sparse state replaces them."""
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
        """Runs a whole optimisation step, with `before_clipping` if set; gives the loss."""
        self.clear()
        loss = self.forward()
        loss.backward()
        if self.before_clipping is not None:
            self.before_clipping()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """Clips the gradients and steps the optimizer."""
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()

    def clear(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def set_batch(self, batch: int) -> None:
        """Changes the batch size."""
        self.inputs, self.targets = self.workload._replace(batch=batch).inputs()


def fresh_model(workload: Workload, seed: int) -> nn.Module:
    """The architecture with random float32 weights on the device of the workload.

    A linear layer that is all zero gets random weights. torchvision's ViT head starts at zero; then all gradients
    before it would be zero, and the comparison of gradients would mean nothing.
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
    """Random masks of all MLPs, by module name. `kind` is a kind of `training_masks`.

    Raises:
        BlastError: if no masks of that kind exist at this sparsity.
    """
    masks: dict[str, Tensor] = {}
    for mlp in find_mlps(model):
        ffn, hidden = mlp.up.shape
        size = MlpSize(hidden, ffn, mlp.gate is not None, "none", False, block, torch.float32)
        generator = torch.Generator(mlp.up.weight.device).manual_seed(1000 * seed + len(masks))
        drawn = training_masks(kind, size, False, sparsity, generator)
        if drawn is None:
            raise BlastError(
                f"at sparsity {sparsity:g} some hidden blocks of '{mlp.name}' must be dead; set 'mask' to 'uniform'."
            )
        parts: Mapping = {mlp.up.name: drawn.up, mlp.down.name: drawn.down}
        masks |= parts if mlp.gate is None else {mlp.gate.name: drawn.gate, **parts}
    return masks


def sparse_state(model: nn.Module, masks: Mapping[str, Tensor], fused: bool) -> nn.Module:
    """The model in its sparse state with values of live blocks only. If `fused`, a whole MLP is one operator."""
    blast.to_sparse(model, masks, drop=True)
    return fuse_for_training(model) if fused else model


def live_gradients(setup: TrainingSetup, masks: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of the live blocks of each matrix, `[nnz, b_out, b_in]`; the model may be dense or sparse."""
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
