"""The operators of the fast kernels: whole MLPs, hidden blocks that cost nothing, graphs, messages."""

from __future__ import annotations

import blast_kernels.register  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from blast_kernels.mlp_inference import ops
from blast_kernels.mlp_inference.row_lists import drop_columns, live_hidden_rows, plain_row_list
from inference_cases import dense_gate_up, gate_up_of, index_of, mask_of, matrix_of, relative_error

mlp = torch.ops.blast.block_sparse_mlp
product = torch.ops.blast.block_sparse_product


def mlp_case(gate: str, device: str, dtype=torch.float32, prune: bool = False):
    """GateUp 96 → 128, down 128 → 64, blocks of 16: operands by position and by name, and the dense matrices."""
    masks = [mask_of("uniform", 8, 6, seed, 0.2) for seed in (0, 1)]
    down_mask = mask_of("uniform", 4, 8, 2, 0.3)
    if gate != "untied":
        masks[1] = masks[0]
    down = matrix_of(down_mask, 16, 16, dtype, device, seed=3)
    offsets, indices, places, live = *down.index, None, None
    if prune:
        live = live_hidden_rows(index_of(masks[0])[0], index_of(masks[1])[0], index_of(down_mask)[1])
        assert not live.all(), "the case is meant to have dead hidden blocks"
        offsets, indices, places = drop_columns(offsets, indices, live.to(device))
    gate_up = gate_up_of(gate, masks, 16, 16, dtype, device, live)
    down_row_list = plain_row_list(offsets, indices, places=places)
    operands = (gate_up.values, gate_up.up, gate_up.row_list, None, down.values, down_row_list, None, 128, 64)
    more = {"down_blocks": None if places is None else places.numel()}
    return operands, more, gate_up.dense if gate != "none" else gate_up.dense[:1], down.dense


@pytest.mark.parametrize("gate", ["none", "untied", "tied"])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("tokens", [2, 70, 150])
def test_mlp_equals_the_dense_mlp(gate, prune, tokens, device):
    operands, more, gate_up, down = mlp_case(gate, device, torch.float32, prune and gate != "none")
    x = torch.randn(2, tokens, 96, device=device)
    out = mlp(x, *operands, "silu", gate, **more)
    expected = F.linear(dense_gate_up(x, gate_up, None, "silu"), down.double())
    assert out.shape == (2, tokens, 64)
    assert relative_error(out, expected) < 1e-6


def test_biases_and_gelu_of_a_plain_mlp(device):
    operands, _, gate_up, down = mlp_case("none", device)
    b1, b2 = torch.randn(128, device=device), torch.randn(64, device=device)
    operands = (*operands[:3], b1, *operands[4:6], b2, *operands[7:])
    x = torch.randn(9, 96, device=device)
    expected = F.linear(dense_gate_up(x, gate_up, b1, "gelu_tanh"), down.double(), b2.double())
    assert relative_error(mlp(x, *operands, "gelu_tanh", "none"), expected) < 1e-6


def test_a_product_is_zero_where_no_record_is(device):
    live = torch.tensor([True, False, True])
    gate_up = gate_up_of("none", [mask_of("full", 3, 2)], 16, 16, torch.float32, device, live)
    out = product(torch.randn(5, 32, device=device), gate_up.values, gate_up.row_list, None, 48, "none", "none")
    assert (out[:, 16:32] == 0).all()
    assert (out[:, :16] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_triton_the_operators_run_on_a_cpu(dtype, monkeypatch):
    monkeypatch.setattr(ops, "triton_product", None)
    operands, _, gate_up, down = mlp_case("untied", "cpu", dtype)
    x = torch.randn(3, 96, dtype=dtype)
    hidden = product(x, *operands[:1], operands[2], None, 128, "silu", "untied", None, operands[1])
    expected = dense_gate_up(x, gate_up, None, "silu")
    assert relative_error(hidden, expected) < 1e-6
    assert relative_error(mlp(x, *operands, "silu", "untied"), F.linear(expected, down.double())) < 1e-6


def test_operators_pass_torchs_own_check(device):
    operands, *_ = mlp_case("untied", device)
    x = torch.randn(3, 96, device=device)
    torch.library.opcheck(mlp, (x, *operands, "silu", "untied"))
    gate_up, up, row_list = operands[:3]
    torch.library.opcheck(product, (x, gate_up, row_list, None, 128, "silu", "untied", None, up))


def test_mlp_compiles_as_one_graph(device):
    operands, *_ = mlp_case("tied", device)
    function = lambda x: mlp(x * 2, *operands, "silu", "tied") + 1  # noqa: E731
    x = torch.randn(5, 96, device=device)
    out = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    assert relative_error(out, function(x)) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "linked"}, "gate 'linked' is unknown; use one of none, untied, tied"),
        ({"activation": "relu"}, "activation 'relu' is unknown"),
        ({"bias": torch.zeros(48), "gate": "tied"}, "takes no bias"),
        ({"gate": "tied"}, "gate 'tied' goes with `up`"),
        ({"up": torch.zeros(6, 16, 16)}, "gate 'none' goes without `up`"),
        ({"gate": "tied", "up": torch.zeros(5, 16, 16)}, "where they share a mask their number"),
        ({"gate": "untied", "up": torch.zeros(6, 16, 32)}, "their dtype and sides must agree"),
        ({"row_list": torch.zeros(3, 32)}, "row_list must be a contiguous int32 matrix"),
        ({"out_features": 40}, "3 entries of 16 rows do not fit 40"),
        ({"x": torch.randn(5, 33)}, "must be a multiple of 16"),
        ({"x": torch.randn(5, 32).half()}, "x is torch.float16"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(changes, message):
    gate_up = gate_up_of("none", [mask_of("full", 3, 2)], 16, 16)
    arguments = {
        "x": torch.randn(5, 32),
        "values": gate_up.values,
        "row_list": gate_up.row_list,
        "bias": None,
        "out_features": 48,
        "activation": "silu",
        "gate": "none",
    }
    with pytest.raises(ValueError, match=message) as caught:
        product(**{**arguments, **changes})
    assert "\n" not in str(caught.value)


def test_a_down_projection_with_rows_missing_is_refused():
    operands, *_ = mlp_case("tied", "cpu")
    short = (*operands[:5], operands[5][1:].contiguous(), *operands[6:])
    with pytest.raises(ValueError, match="down_row_list holds 3 of 4 block rows"):
        mlp(torch.randn(2, 96), *short, "silu", "tied")


@pytest.mark.gpu
@pytest.mark.parametrize("gate", ["none", "untied", "tied"])
@pytest.mark.parametrize("tokens", [1, 16, 128, 300])
def test_mlp_replays_in_a_cuda_graph(gate, tokens, device):
    operands, _, gate_up, down = mlp_case(gate, device, torch.bfloat16)
    x = torch.randn(tokens, 96, device=device, dtype=torch.bfloat16)
    mlp(x, *operands, "silu", gate)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mlp(x, *operands, "silu", gate)
    for _ in range(20):
        x.normal_()
        out.fill_(float("nan"))
        graph.replay()
        expected = F.linear(dense_gate_up(x, gate_up, None, "silu"), down.double())
        assert relative_error(out, expected) < 1.5e-2
