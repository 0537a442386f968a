"""The block that the roofline figure shows for a model."""

from __future__ import annotations

import pytest
from fake_kernels import TOKENS, make_point, make_record_of

import paper_figures
from blast.experiment.records.export import export
from blast.experiment.records.table import load_table


@pytest.mark.parametrize(("sparsities", "drawn"), [((0.8, 0.95), "64"), ((0.95,), "128")])
def test_it_is_the_block_with_most_timings_else_the_largest(tmp_path, sparsities, drawn):
    points = [make_point("vit-l-16", sparsity, (64, 64)) for sparsity in sparsities]
    points.append(make_point("vit-l-16", 0.95, (128, 128)))
    export([make_record_of(point) for point in points], tmp_path)
    figure = paper_figures.load("kernel_roofline").draw(load_table(tmp_path / "none", tmp_path))
    assert f"block {drawn}" in [title.split("\n")[-1] for title in _titles(figure)]
    (panel,) = figure.axes
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    marks = [line.get_xydata()[0] for line in panel.lines if len(line.get_xdata()) == 1]
    assert len(marks) == len(sparsities if drawn == "64" else (0.95,)) * len(TOKENS)
    assert all(left < x < right and bottom < y < top for x, y in marks), "a mark lies outside the picture"


def _titles(figure):
    return [axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center")]
