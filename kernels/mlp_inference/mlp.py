"""A whole MLP on a GPU: its two launches, tied together, and a replay of them for the next call of the same shape."""

from __future__ import annotations

import torch
from blast_kernels.mlp_inference.launch import Chain, choose, counters_needed, product
from blast_kernels.mlp_inference.replay import Buffer, Replay
from torch import Tensor

# Up to here both kernels of an MLP are launched to overlap the end of the one before: 0.4-1.1 µs gained of 8-70;
# above, its waiting programs take room from the first kernel's.
OVERLAP_TOKENS = 64


def launch_mlp(
    x: Tensor,
    gate_up: Tensor,
    up: Tensor | None,
    gate_up_row_list: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_row_list: Tensor,
    down_bias: Tensor | None,
    hidden_features: int,
    out_features: int,
    activation: str,
    gate: str,
    gate_up_scales: Tensor | None = None,
    up_scales: Tensor | None = None,
    down_scales: Tensor | None = None,
    down_blocks: int | None = None,
    *,
    record: bool = False,
) -> tuple[Tensor, Replay | None]:
    """Runs an MLP; arguments as `ops.run_mlp`, checked, with `x [..., in]` contiguous.

    Returns:
        `[..., out_features]`, and a replay of the launches; None if none is wanted, or they cannot be repeated.
    """
    flat = x.view(-1, x.shape[-1])
    tokens = flat.shape[0]
    hidden = torch.empty(tokens, hidden_features, dtype=x.dtype, device=x.device)
    out = torch.empty(tokens, out_features, dtype=x.dtype, device=x.device)
    hopper = torch.cuda.get_device_capability(x.device)[0] >= 9
    # Float8 with two masks took twice as long when its second kernel was launched early (1B: 20.1 µs, not 9.5).
    one_by_one = gate_up_scales is not None and gate == "untied"
    overlap = hopper and not one_by_one and 0 < tokens <= OVERLAP_TOKENS and gate_up_row_list.shape[0] > 0
    config = choose(hidden, down, down_row_list, "none", blocks=down_blocks)
    needed = counters_needed(config, tokens, down_row_list.shape[0], down.shape[1])
    if gate_up_row_list.shape[0] == 0 or not needed:
        counters = None
    else:
        # The gate-up kernel clears them: no launch of their own.
        counters = torch.empty(needed, dtype=torch.int32, device=x.device)
    # The gate-up kernel is launched ahead too. The kernel before it may have written the weights: it waits for that,
    # and lets the second kernel start only then, so that this one finds them written.
    leads = Chain(leads=overlap, waits="first" if overlap else "never", clears=counters)
    first = product(
        flat, gate_up, gate_up_row_list, gate_up_bias, hidden, activation, gate,
        scales=gate_up_scales, chain=leads, up=up, up_scales=up_scales,
    )  # fmt: skip
    follows = Chain(waits="late" if overlap else "never", counters=counters)
    second = product(
        hidden, down, down_row_list, down_bias, out, "none", "none", config,
        scales=down_scales, chain=follows, blocks=down_blocks,
    )  # fmt: skip
    out = out.view(*x.shape[:-1], out_features)
    if not record or first is None or second is None:
        return out, None
    made = [Buffer(hidden)] + ([] if counters is None else [Buffer(counters)])
    made += [buffer for each in (*first, *second) for buffer in each.buffers]
    fixed = (gate_up, up, gate_up_row_list, gate_up_bias, down, down_row_list, down_bias, gate_up_scales, up_scales,
             down_scales)  # fmt: skip
    return out, Replay.of(x, out, made, fixed, [each.launch for each in (*first, *second)])
