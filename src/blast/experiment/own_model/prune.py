"""`blast prune`: a pretrained model and a text in, a sparse model out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from blast.experiment.own_model.finish import finish
from blast.experiment.own_model.loop import prune_while_training
from blast.experiment.own_model.opening import find_model
from blast.experiment.own_model.options import PruneOptions
from blast.experiment.own_model.plan import Plan, make_plan
from blast.experiment.own_model.report import describe
from blast.experiment.own_model.start import start_from_one_shot
from blast.experiment.own_model.text import read_text
from blast.experiment.own_model.unfinished import Unfinished, check_place, finished_report
from blast.experiment.own_model.workplace import Workplace


def prune(options: PruneOptions, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Prunes a model while it trains on a text, and saves it with its tokenizer.

    Says first what it takes, then its progress, then what the sparse model cost and gains. A stopped run goes on from
    its last saved state.

    Args:
        options: What the user asked for.
        say: Prints a line.

    Returns:
        The report, which is also in `prune.json` of the folder.

    Raises:
        BlastError: if something does not exist or fit; the message says what to do.
    """
    began = time.monotonic()
    check_place(options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model(options.model, say)
    data = read_text(options.text, source, options.length, say)
    key = options.key(source.digest, data.digest)
    unfinished = Unfinished(options.out, key)
    if (report := finished_report(options.out, key)) is not None:
        say(f"{options.out} is done; it was pruned by the same command.")
        for line in describe(report):
            say(line)
        return report
    work = Workplace(options, source, data, device, say)
    known = unfinished.read()
    if known is None:
        plan = make_plan(work, began)
        unfinished.write(plan.to_dict())
    else:
        say("goes on with a run that was stopped")
        plan = Plan.from_dict(known)
    if plan.start == "one_shot" and not unfinished.state_file.is_file() and not work.started:
        start_from_one_shot(work, plan.dense_layers, plan.dtype)
    masks, seconds = prune_while_training(work, plan, unfinished)
    return finish(work, plan, masks, unfinished, seconds, began)
