"""The lists of several MLPs built at once equal the lists of each MLP built alone."""

from __future__ import annotations

import numpy as np
from blast_kernels.mlp_training.index_lists import complete_arrays, index_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import index_of, mask_of

MEMBERS = {
    "pairs": (2, 2),
    "one and four": (1, 4),
    # A different number for each MLP.
    "by blocks": lambda gate_up, down: ((1, 2, 4)[gate_up % 3], (4, 1, 2)[down % 3]),
}


def cpu_index(rows: int, cols: int, seed: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    return tuple(tensor.numpy() for tensor in index_of(mask_of("uniform", rows, cols, seed, density)))


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.lists(st.tuples(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    st.sampled_from(["none", "tied", "untied"]),
    st.sampled_from(sorted(MEMBERS)),
)
def test_several_mlps_at_once_have_the_lists_of_each_alone(grid, draws, gate, members):
    rows, cols, outs = grid
    mlps = []
    for seed, gate_up, down in draws:
        matrices = [cpu_index(rows, cols, seed, gate_up)]
        if gate != "none":
            matrices.append(matrices[0] if gate == "tied" else cpu_index(rows, cols, seed + 1, 1 - gate_up))
        mlps.append((matrices, cpu_index(outs, rows, seed + 2, down)))
    together = index_arrays(mlps, cols, gate == "tied", MEMBERS[members])
    completes = complete_arrays(mlps, gate == "tied")
    assert len(together) == len(completes) == len(mlps)
    for mlp, lists, complete in zip(mlps, together, completes, strict=True):
        alone = (
            index_arrays([mlp], cols, gate == "tied", MEMBERS[members])[0],
            complete_arrays([mlp], gate == "tied")[0],
        )
        for one, other in zip((*lists, *complete), (*alone[0], *alone[1]), strict=True):
            assert one.dtype == other.dtype == np.int32
            assert np.array_equal(one, other)
        for row_lists in (lists.gate_up, lists.down, lists.hidden_grad, lists.input_grad, *complete):
            assert np.all(np.diff(row_lists[:, 2]) <= 0), "the longest lists must come first"
        # A live hidden block has the same list length as in the complete lists; `live` gives its old number.
        assert len(complete[0]) == len(complete[1]) == rows
        lengths = {row_list[0]: row_list[2] for row_list in complete[1]}
        assert all(lengths[lists.live[row_list[0]]] == row_list[2] for row_list in lists.hidden_grad)
