"""The settings of each benchmark suite, with their defaults.

They are apart from the suites, since a grid is planned without torch. A point holds the settings as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from blast.errors import unknown_name
from blast.settings import Bounds, Count, Name, NotEmpty, Place, plain, updated

Seconds = Annotated[float, Bounds(gt=0)]
DownBlock = Literal["same", "transposed"]
Tied = Annotated[tuple[bool, ...], NotEmpty()]


@dataclass(frozen=True)
class NoSettings:
    """For a suite without settings of its own."""


@dataclass(frozen=True)
class MlpSettings:
    """Settings of the suite `mlp`.

    Attributes:
        fused: Whether ours is the MLP after `blast.fuse`, dead hidden blocks computed too; else it runs layer by layer.
        matrix: Whether the up projection is timed on its own too (metric `matrix_latency`).
        rotate_mb: Equal models take turns until their weights take so many megabytes together, dense and ours each, so
            that a cache of a third of that holds none of them. 0 times one model.
        clock: `wall`, or `processor`: the time of the processor that the calling thread took, for one thread on a
            machine that others use too.
    """

    fused: bool = False
    matrix: bool = False
    rotate_mb: Annotated[float, Bounds(ge=0)] = 0.0
    clock: Literal["wall", "processor"] = "wall"


@dataclass(frozen=True)
class KernelsSettings:
    """Settings of the suite `kernels`.

    Attributes:
        masks: `uniform`, `skewed` (rows of very different lengths) or `trained` (from `masks_folder`).
        tied: Whether gate and up share a mask; `[false, true]` times both. It has no effect without a gate.
        peers: Other implementations to time. A peer that is not installed, or refuses the block, has a row that says
            so.
        fp8: Whether our kernel is timed with fp8 weights too.
        fp8_tokens: Most tokens at which fp8 weights are timed.
        single_launch: Whether the MLP in one launch is timed too, up to 16 tokens. It is a trial; nothing else runs it.
        compiled: Whether dense is timed under `torch.compile` too.
        seconds: Longest time of a point, compilation included. The next run measures what is left.
        tuning_seconds: Longest tuning of a peer for one number of tokens.
        masks_folder: Folder with the masks of trained models, at any depth. It is relative to the current folder, else
            to the checkout.
        down_block: `transposed`: blocks of the down projection are `[in, out]`.
    """

    masks: Annotated[tuple[Literal["uniform", "skewed", "trained"], ...], NotEmpty()] = ("uniform",)
    tied: Tied = (False,)
    peers: tuple[Literal["torch_bsr", "stk", "blksprs"], ...] = ()
    fp8: bool = False
    fp8_tokens: Count = 64
    single_launch: bool = False
    compiled: bool = True
    seconds: Seconds = 180.0
    tuning_seconds: Seconds = 60.0
    masks_folder: Name = "results/recorded"
    down_block: DownBlock = "same"


@dataclass(frozen=True)
class KernelPlansSettings:
    """Settings of the suite `kernel_plans`.

    Attributes:
        tied: Whether gate and up share a mask; `[false, true]` times both. It has no effect without a gate.
        seconds: Longest timing of a point; its kernels are compiled before.
        down_block: `transposed`: blocks of the down projection are `[in, out]`.
    """

    tied: Tied = (False,)
    seconds: Seconds = 60.0
    down_block: DownBlock = "same"


@dataclass(frozen=True)
class TrainingMlpSettings:
    """Settings of the suite `training_mlp`.

    Attributes:
        masks: `uniform`, or `every_hidden_live`: no hidden block is dead, so that nothing can be skipped.
        tied: Whether gate and up share a mask; `[false, true]` times both. It has no effect without a gate.
        peers: Other implementations to time.
        compiled: Whether dense is timed under `torch.compile` too.
        seconds: Longest time of a point.
    """

    masks: Annotated[tuple[Literal["uniform", "every_hidden_live"], ...], NotEmpty()] = ("uniform",)
    tied: Tied = (False,)
    peers: tuple[Literal["stk"], ...] = ()
    compiled: bool = True
    seconds: Seconds = 120.0


@dataclass(frozen=True)
class TrainingStepSettings:
    """Settings of the suite `training_step`.

    Attributes:
        length: Tokens a sequence; images have their own length.
        mask: `uniform`, or `every_hidden_live`: no hidden block is dead, so that nothing can be skipped.
        fused: Whether a whole MLP is one operator; else each matrix is a layer.
        compiled: Whether model and loss are compiled, dense and ours alike.
        masked: Whether the masked-dense step is timed too.
        updates: Whether mask updates are timed, in the masked and in the sparse state.
        parts: Whether attention, MLP and optimizer are timed on their own.
        largest_batch: Whether only the largest batch that fits is measured, dense and ours.
        seconds: Longest time of a point, about. The next run measures what is left.
    """

    length: Count = 1024
    mask: Literal["uniform", "every_hidden_live"] = "uniform"
    fused: bool = True
    compiled: bool = True
    masked: bool = True
    updates: bool = True
    parts: bool = True
    largest_batch: bool = False
    seconds: Seconds = 400.0


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of the suite `inference`.

    Attributes:
        prompts: Lengths of the prompts, in tokens.
        steps: How many tokens are decoded after a prompt, and timed.
        new_tokens: How many tokens each timed call of `generate` makes.
        mask: `uniform`; `every_hidden_live`: no hidden block is dead, so that nothing can be skipped; `trained`: from
            `masks_folder`.
        masks_folder: Folder with the masks of trained models, at any depth. It is relative to the current folder, else
            to the checkout.
        compiled: What of a step is compiled, dense and ours alike: each layer, or the whole pass.
        autotune: Whether Inductor times several kernels for each matrix product of a step, dense and ours alike, which
            makes compiling longer.
        attention: What steps attend with: FlexAttention, which skips unused cache, or `sdpa` with a mask.
        eager: Whether dense is timed without compiling and graphs too.
        generate: Whether whole calls of `generate` are timed, by default and with `blast.fast_decode`.
        parts: Whether MLPs and head are timed on their own.
        energy: Whether the energy of a token is measured.
        seconds: Longest time of a point, about. The next run measures what is left.
    """

    prompts: Annotated[tuple[Count, ...], NotEmpty()] = (128, 2048)
    steps: Count = 64
    new_tokens: Count = 128
    mask: Literal["uniform", "every_hidden_live", "trained"] = "uniform"
    masks_folder: Name = "results/recorded"
    compiled: Literal["layers", "whole"] = "layers"
    autotune: bool = True
    attention: Literal["flex", "sdpa"] = "flex"
    eager: bool = True
    generate: bool = True
    parts: bool = True
    energy: bool = True
    seconds: Seconds = 400.0


@dataclass(frozen=True)
class MemorySettings:
    """Settings of the suite `memory`; its `tokens` are those of a sequence, prompt and decoded ones together.

    Attributes:
        batches: Sequences at one time.
        tokens_at_once: Tokens of a forward pass over all sequences; longer prompts run in pieces.
        decode_steps: Tokens of a sequence that are decoded one by one.
        tied: Whether gate and up share a mask. It has no effect without a gate.
        checkpoint: Whether the model is saved and loaded again, so that loading is measured as users load. Else it is
            made where it runs, which needs no disk.
    """

    batches: Annotated[tuple[Count, ...], NotEmpty()] = (1,)
    tokens_at_once: Count = 2048
    decode_steps: Count = 8
    tied: bool = False
    checkpoint: bool = False


@dataclass(frozen=True)
class TensorParallelSettings:
    """Settings of the suite `tensor_parallel`; its `tokens` are sequences that are decoded together.

    Attributes:
        degrees: Numbers of GPUs that the layer is split over. More than this machine has are not run. Without GPUs as
            many processes share the CPU.
        projected: Numbers of GPUs to project to, from the part of one of them and a model of the all-reduce.
        context: Cached tokens of each sequence.
        tied: Whether gate and up share a mask. It has no effect without a gate.
        energy: Whether the energy of a token is measured.
        seconds: Longest time of the point, about; the degrees share it.
    """

    degrees: Annotated[tuple[Count, ...], NotEmpty()] = (1, 2, 4)
    projected: tuple[Count, ...] = (16,)
    context: Count = 2048
    tied: bool = False
    energy: bool = True
    seconds: Seconds = 300.0


# By suite, which is the name of a file of this folder with a function `measure`.
SUITES: dict[str, type] = {
    "mlp": MlpSettings,
    "kernels": KernelsSettings,
    "kernel_plans": KernelPlansSettings,
    "training_mlp": TrainingMlpSettings,
    "training_step": TrainingStepSettings,
    "inference": InferenceSettings,
    "memory": MemorySettings,
    "tensor_parallel": TensorParallelSettings,
}


def settings_of(suite: str, given: Mapping[str, Any] | None = None, place: Place | None = None) -> dict[str, Any]:
    """All settings of a suite as plain values: its defaults, and over them what is given.

    Args:
        suite: Name of the suite.
        given: Some of its settings.
        place: Where they stand, for errors.

    Raises:
        BlastError: for an unknown suite, an unknown setting, or a wrong value.
    """
    if suite not in SUITES:
        raise unknown_name("benchmark suite", suite, SUITES)
    return plain(updated(SUITES[suite](), given or {}, place or Place(f"{suite} setting")))
