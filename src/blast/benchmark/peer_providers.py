"""Peers as providers of the suite `kernels`, beside ours and dense."""

from __future__ import annotations

import torch

from blast.benchmark.graph_timing import Candidate, sampled_rows
from blast.benchmark.kernel_peers import PeerMlp, peer_of
from blast.benchmark.kernel_providers import CHECKED_TOKENS, Case, Provider, check_of, first_line
from blast.benchmark.kernel_weights import expected_output


def peer_providers(case: Case, tokens: int, names: list[str], seconds: float) -> list[Provider]:
    """The peers asked for, on uniform masks without ties; those that cannot run with the reason."""
    # What lies between their products is compiled, and the compiler gives up after eight shapes.
    torch.compiler.reset()
    x, made = case.input(tokens), []
    rows = sampled_rows(tokens, CHECKED_TOKENS, x.device)
    for name in names:
        kind = peer_of(name)
        facts = {"mask": "uniform"}
        provider = Provider(name, name, tied=False if case.size.gated else None, setting=facts, peer=True)
        cause = kind.refusal(case.size)
        if cause is not None:
            made.append(provider.without(cause))
            continue
        weights = case.sparse("uniform", False)
        try:
            peer = kind(case.size, tokens, seconds)
            mlp = PeerMlp(peer, case.size, weights, x)
        except torch.OutOfMemoryError:
            raise
        except Exception as fault:  # a peer may raise anything
            made.append(provider.without(first_line(fault), "failed"))
            continue
        if peer.tuned is not None:
            facts = facts | {"tuned": peer.tuned}
        expected = expected_output(x[rows], weights[0], case.size.activation)
        candidate = Candidate(mlp.run, len(weights))
        made.append(provider._replace(candidate=candidate, check=check_of(mlp.output, expected, rows), setting=facts))
    return made
