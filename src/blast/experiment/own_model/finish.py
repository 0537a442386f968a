"""Saves the sparse model, measures it beside the dense one, and says what it cost and gains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blast.checkpoint.checkpoint import load, save
from blast.errors import BlastError
from blast.evaluation.wrecked import unigram_loss
from blast.experiment.own_model.decoding import decode_rates
from blast.experiment.own_model.opening import load_tokenizer
from blast.experiment.own_model.report import describe, sparsity_facts, verdict
from blast.experiment.own_model.unfinished import REPORT, Unfinished
from blast.experiment.records import provenance
from blast.files import write_json
from blast.model.convert import to_dense, to_sparse
from blast.model.fuse import fuse
from blast.model.memory import model_bytes

if TYPE_CHECKING:
    from blast.experiment.own_model.plan import Plan
    from blast.experiment.own_model.workplace import Workplace

# Training tokens that the unigram is counted on.
COUNTED = 5_000_000
PROMPT = 64


def finish(
    work: Workplace, plan: Plan, masks: dict[str, Tensor], unfinished: Unfinished, training: float, began: float
) -> dict[str, Any]:
    """Saves the sparse model, loads it again, measures it beside the dense one, and says what it cost and gains.

    Args:
        work: The trained model and the text.
        plan: What was done.
        masks: By matrix.
        unfinished: Deleted at the end.
        training: Seconds of all steps.
        began: When the command began, on the monotonic clock.

    Returns:
        The report, which is also written into the folder.
    """
    options, data = work.options, work.data
    model = to_dense(work.model).eval()
    after = work.losses(model)
    sparsity = sparsity_facts(model, work.every, masks)
    save(to_sparse(model, masks), options.out, processing_class=load_tokenizer(work.source))
    sparse, dense = fuse_if_possible(load(options.out).to(work.device)), work.teacher
    if dense is None:
        dense = to_dense(work.source.load()).to(work.device)
    prompt = torch.from_numpy(data.validation[:PROMPT].astype("int64"))[None]
    rates = decode_rates({"dense": dense, "sparse": sparse}, prompt)
    sizes = model_bytes(sparse)
    unigram = unigram_loss(data.train[:COUNTED], data.validation[:COUNTED], data.vocab_size)
    report = {
        "key": unfinished.key,
        "model": work.source.name,
        "text": list(options.text),
        "options": options.plain(),
        "plan": plan.to_dict(),
        "block": list(work.block),
        "tokens_a_step": work.tokens,
        "dense": plan.dense
        | {
            "tokens_per_second": rates["dense"], "bytes": work.dense_bytes.weights, "mlp_bytes": work.dense_bytes.mlp,
        },
        "sparse": after | {"tokens_per_second": rates["sparse"], "bytes": sizes.weights, "mlp_bytes": sizes.mlp},
        "sparsity": sparsity,
        "verdict": verdict(after, plan.dense, unigram, data.vocab_size),
        "seconds": {"all": time.monotonic() - began, "training": training},
        "run": _made_with(),
    }  # fmt: skip
    write_json(options.out / REPORT, report)
    unfinished.remove()
    for line in describe(report):
        work.say(line)
    work.say(f'saved in {options.out}; try it: blast generate {options.out} "…"')
    return report


def _made_with() -> dict[str, Any]:
    """What the numbers depend on besides the options: the machine, the code and the packages."""
    commit, dirty = provenance.commit()
    return {
        "finished": provenance.now(),
        "commit": commit,
        "dirty": dirty,
        "versions": provenance.versions(),
        "threads": torch.get_num_threads(),
        **provenance.hardware(),
    }


def fuse_if_possible(model: nn.Module) -> nn.Module:
    """The model with its sparse MLPs fused where they can be; others run layer by layer."""
    try:
        return fuse(model)
    except BlastError:
        return model
