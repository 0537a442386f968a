"""The work of each of two processes in the tests of the training loop."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from distributed_cases import RANKS
from switch_cases import OPTIMIZERS, SETTINGS, STEPS, VOCABULARY, nano

from blast.model.module_replacement import unwrapped
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier
from blast.training.launch import local_batch
from blast.training.loop import train
from blast.training.parallel import full_model_state, is_fully_sharded, parallelize
from blast.training.settings import PARALLEL, TrainingSettings

CUT = 7


class KilledError(Exception):
    """Ends a run between two steps."""


def work(rank: int, folder: str) -> None:
    """Trains in every way, whole and killed and resumed, in one of two processes, and saves the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    out = {}
    for way in PARALLEL:
        whole = trained(way, Path(folder) / f"{way} whole.pt")
        with suppress(KilledError):
            trained(way, Path(folder) / f"{way}.pt", stop_at=CUT)
        out[way] = {"whole": whole, "resumed": trained(way, Path(folder) / f"{way}.pt")}
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def trained(way: str, state_file: Path | None = None, stop_at: int | None = None) -> dict:
    """A run of the loop, on the part of each batch that belongs to this process."""

    def batch_at(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == stop_at:
            raise KilledError
        tokens = torch.randint(VOCABULARY // 8, (4, 24), generator=torch.Generator().manual_seed(step))
        return local_batch(tokens), local_batch(tokens)

    model = parallelize(nano("gpt2-nano"), way)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier = Sparsifier(model, optimizer, SparsifyConfig(**{**SETTINGS, "execution": "masked"}))
    history = train(
        model,
        TrainingSettings(steps=STEPS, batch=4, learning_rate=2e-3, checkpoint_seconds=0, evaluate_every=4),
        batch_at=batch_at,
        loss_of=lambda model, batch: model(input_ids=batch[0], labels=batch[1], use_cache=False).loss,
        # All processes evaluate a fully sharded model.
        evaluate=lambda model: unwrapped(model)(input_ids=torch.arange(24)[None]).logits.square().mean().item(),
        optimizer=optimizer,
        sparsifier=sparsifier,
        state_file=state_file,
        say=lambda line: None,
    )
    whole = full_model_state(model) if is_fully_sharded(model) else unwrapped(model).state_dict()
    return {
        "curves": history.curves,
        "weights": {name: value.clone() for name, value in whole.items()},
        "masks": {name: mask.clone() for name, mask in sparsifier.masks.items()},
    }
