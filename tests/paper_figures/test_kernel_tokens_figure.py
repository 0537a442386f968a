"""The figure of times by token count: which points are curves, and which counts are marked as too slow."""

from __future__ import annotations

import fake_kernels
import matplotlib as mpl
import pytest
from matplotlib.text import Text

import paper_figures
from blast.experiment.records.export import export
from blast.experiment.records.table import load_table

mpl.use("Agg")


def table_of(folder, *records):
    export(list(records), folder)
    return load_table(folder / "none", folder)


def text_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def test_a_count_that_is_slower_than_the_next_larger_one_is_marked_and_named(tmp_path):
    module = paper_figures.load("kernel_tokens")
    table = table_of(tmp_path, fake_kernels.make_curve(slow={333: 1.5, 17: 1.25}))
    ours = module.curves(table).query("provider == 'ours'")
    slow = module.slow_counts(ours)
    assert [(one.tokens, one.larger) for one in slow] == [(17, 33), (333, 512)]
    assert slow[1].ratio == pytest.approx(1.5 * (0.01 + 0.0333) / (0.01 + 0.0512))
    drawn = module.draw(table)
    rings = [line for axes in drawn.axes for line in axes.lines if line.get_markersize() == 6]
    assert sorted(int(line.get_xdata()[0]) for line in rings) == [17, 333]
    assert "333 takes 1.06 times as long as 512" in text_of(drawn)
    shared = {bool(tied) for tied in ours["tied"]}
    assert (", shared: " in text_of(drawn)) == (True in shared)


def test_a_difference_within_the_noise_is_not_marked(tmp_path):
    module = paper_figures.load("kernel_tokens")
    # 1 token takes 10.1 µs and 2 take 10.2: at 1.02 times that, the difference is within 2 %.
    table = table_of(tmp_path, fake_kernels.make_curve(slow={1: 1.02}))
    assert module.slow_counts(module.curves(table).query("provider == 'ours'")) == []
    assert "No count is slower than the next larger one" in text_of(module.draw(table))


def test_shared_and_separate_masks_are_lines_of_their_own(tmp_path):
    module = paper_figures.load("kernel_tokens")
    drawn = module.draw(table_of(tmp_path, fake_kernels.make_curve(ties=(False, True))))
    assert len(drawn.axes[0].lines) == 3
    assert "gate and up share a mask" in text_of(drawn)


def test_only_points_of_many_counts_are_curves_and_other_figures_leave_those_out(tmp_path):
    module = paper_figures.load("kernel_tokens")
    few = fake_kernels.make_record_of(fake_kernels.make_point("llama-3.1-8b", 0.95, (128, 128)))
    assert "not run" in text_of(module.draw(table_of(tmp_path / "few", few)))
    table = table_of(tmp_path / "both", few, fake_kernels.make_curve("llama-3.2-1b"))
    assert set(module.curves(table)["model"]) == {"llama-3.2-1b"}
    for name in ("kernel_speedup", "kernel_roofline"):
        text = text_of(paper_figures.load(name).draw(table))
        assert "8B" in text
        assert "1B" not in text
    shown = paper_figures.load("kernel_table").rows(table)
    assert {"llama-3.2-1b", "llama-3.1-8b"} == set(shown["model"])


def test_timings_of_a_cpu_are_no_curve(tmp_path):
    record = fake_kernels.make_curve()
    record["run"] |= {"hardware": "cpu-imaginary-processor", "gpu": None}
    assert "not run" in text_of(paper_figures.load("kernel_tokens").draw(table_of(tmp_path, record)))
