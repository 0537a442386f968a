"""The lists of several MLPs made at once are those of each made alone."""

from __future__ import annotations

import numpy as np
from blast_kernels.mlp_training.index_lists import complete_arrays, index_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import index_of, mask_of

MEMBERS = {
    "pairs": (2, 2),
    "one and four": (1, 4),
    # Another number for each MLP.
    "by blocks": lambda front, down: ((1, 2, 4)[front % 3], (4, 1, 2)[down % 3]),
}


def host_index(rows: int, cols: int, seed: int, density: float) -> tuple[np.ndarray, np.ndarray]:
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
    for seed, front, down in draws:
        matrices = [host_index(rows, cols, seed, front)]
        if gate != "none":
            matrices.append(matrices[0] if gate == "tied" else host_index(rows, cols, seed + 1, 1 - front))
        mlps.append((matrices, host_index(outs, rows, seed + 2, down)))
    together = index_arrays(mlps, cols, gate == "tied", MEMBERS[members])
    wholes = complete_arrays(mlps, gate == "tied")
    assert len(together) == len(wholes) == len(mlps)
    for mlp, lists, whole in zip(mlps, together, wholes, strict=True):
        alone = (
            index_arrays([mlp], cols, gate == "tied", MEMBERS[members])[0],
            complete_arrays([mlp], gate == "tied")[0],
        )
        for one, other in zip((*lists, *whole), (*alone[0], *alone[1]), strict=True):
            assert one.dtype == other.dtype == np.int32
            assert np.array_equal(one, other)
        for records in (lists.front, lists.down, lists.hidden, lists.inputs, *whole):
            assert np.all(np.diff(records[:, 2]) <= 0), "the longest come first, so that none is left for the end"
        # Live hidden blocks have the lists that they have when none is left out; labels tell which they are.
        assert len(whole[0]) == len(whole[1]) == rows
        of_hidden = {record[0]: record[2] for record in whole[1]}
        assert all(of_hidden[lists.live[record[0]]] == record[2] for record in lists.hidden)
