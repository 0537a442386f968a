"""The recipe: how pretrained weights are pruned, from a few numbers of the command line.

Warm-up, stable, linear decay to zero over the last quarter. The masks are fixed when the decay begins. Blocks never
grow (gradual magnitude pruning). The pruned matrices learn faster as they get sparser. The dense model is the teacher:
its logits, and its hidden states after each layer. `docs/prune.md` says what backs each choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from blast.block_sparse.blocks import BlockShape
from blast.sparsity.config import SparsifyConfig
from blast.training.distillation import Distillation
from blast.training.settings import TrainingSettings

DECAY = 0.25
# Mask updates of a run: so many that each removes few blocks.
UPDATES = 40
TEACHER = Distillation(weight=0.67, hidden_weight=1.0)
# With fewer steps the masks would change in each of them, and the decay would be two steps long.
FEWEST_STEPS = 8
CHECKPOINT_SECONDS = 60.0
# Runs of fewer tokens start from one-shot pruning: while the sparsity rises, most steps train blocks that go later.
SHORT_RUN = 2_000_000


def training_settings(
    *, steps: int, batch: int, length: int, learning_rate: float, dtype: str, on_gpu: bool
) -> TrainingSettings:
    """How the weights are trained.

    Args:
        steps: Optimization steps.
        batch: Sequences a step.
        length: Tokens a sequence.
        learning_rate: Its peak.
        dtype: `float32` or `bfloat16`, of the products.
        on_gpu: Whether steps are replayed as CUDA graphs.
    """
    return TrainingSettings(
        steps=steps,
        batch=batch,
        length=length,
        learning_rate=learning_rate,
        warmup=0.05,
        learning_rate_schedule="wsd",
        decay=DECAY,
        final_learning_rate=0.0,
        weight_decay=0.0,
        evaluate_every=steps,
        # The loss of a model that is being pruned rises by itself.
        spike=0.0,
        dtype=dtype,
        cuda_graphs=on_gpu,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )


def sparsify_config(
    *, sparsity: float, block: BlockShape, steps: int, names: Sequence[str], start: str, seed: int
) -> SparsifyConfig:
    """How the masks are found.

    Args:
        sparsity: Final share of empty blocks.
        block: Shape of a block.
        steps: Optimization steps.
        names: The matrices.
        start: `one_shot`: the model is pruned already, and its masks stay. `gradual`: the sparsity rises step by step.
        seed: Seed of random choices; the recipe makes none.
    """
    return SparsifyConfig.from_method(
        "gmp",
        schedule="constant" if start == "one_shot" else "cubic",
        sparsity=sparsity,
        block=block,
        steps=steps,
        hold=DECAY,
        update_every=max(1, steps // UPDATES),
        lr_density_power=0.25,
        targets=tuple(names),
        seed=seed,
    )
