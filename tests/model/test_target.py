"""The layer of a matrix, read from its name."""

from __future__ import annotations

import pytest

from blast.model.target import layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj", ("model.layers.3", 3)),
        ("layers.3.blocks.5.fc1", ("layers.3", 3)),
        ("encoder.encoder_layer_12.mlp.0", ("encoder.encoder_layer_12", 12)),
        # The number of a matrix is that of a layer only if it is its place in a Sequential.
        ("net.2", ("net.2", 2)),
        ("mlp.linear_1", (None, None)),
        ("linear_1", (None, None)),
        ("layer4.fc", (None, None)),
    ],
)
def test_the_layer_is_the_first_number_that_is_not_the_matrix_itself(name, layer):
    assert layer_of(name) == layer
