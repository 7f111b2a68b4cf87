import math
from typing import Any

import numpy as np
import pytest
from drawn import legend_of, x_of, y_of
from matplotlib.colors import to_hex

from onecycle.plots import plot_lr_find, plot_range_tests


def lr_find_data() -> tuple[Any, Any]:
    lrs = np.geomspace(1e-7, 10, 100)
    return lrs, 2.3 - 1.4 / (1 + 1e-3 / lrs) + (lrs / 0.3) ** 3


def test_lr_find_marks_each_suggestion_on_the_smoothed_curve() -> None:
    lrs, losses = lr_find_data()
    smoothed = losses + 0.05
    suggestions = {"valley": float(lrs[60]), "steep": 1e-3, "minimum/10": None}
    ax = plot_lr_find(lrs, losses, smoothed, suggestions)
    valley = f"valley: {lrs[60]:.1e}"
    assert legend_of(ax) == ["loss", "loss, smoothed", valley, "steep: 1.0e-03"]
    assert x_of(ax, valley).tolist() == [lrs[60]]
    assert y_of(ax, valley).tolist() == [smoothed[60]]
    right = int(np.searchsorted(lrs, 1e-3))
    assert smoothed[right] < y_of(ax, "steep: 1.0e-03")[0] < smoothed[right - 1]
    np.testing.assert_array_equal(y_of(ax, "loss"), losses)
    np.testing.assert_array_equal(y_of(ax, "loss, smoothed"), smoothed)


def test_lr_find_has_a_band_at_the_marker_of_each_suggestion_with_a_spread() -> None:
    lrs, losses = lr_find_data()
    suggestions = {"valley": float(lrs[60]), "steep": 1e-3}
    spreads = {"valley": (1e-3, 1e-1), "steep": None}
    ax = plot_lr_find(lrs, losses, losses, suggestions, spreads=spreads)
    (band,) = ax.collections
    assert band.get_segments()[0].tolist() == [[1e-3, losses[60]], [1e-1, losses[60]]]
    assert legend_of(ax)[2:] == [f"valley: {lrs[60]:.1e}", "steep: 1.0e-03"]


def test_lr_find_has_a_logarithmic_axis_only_where_the_rates_grew_geometrically() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {})
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "learning rate (log scale)")
    ax = plot_lr_find([0.0, 0.5, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], {"v": 0.25}, log=False)
    assert (ax.get_xscale(), ax.get_xlabel()) == ("linear", "learning rate")
    assert y_of(ax, "v: 2.5e-01").tolist() == [2.5]


def test_lr_find_shades_the_range() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {}, (3.6e-3, 3.6e-2))
    (span,) = ax.patches
    box = span.get_extents().transformed(ax.transData.inverted())
    assert (box.x0, box.x1) == (pytest.approx(3.6e-3), pytest.approx(3.6e-2))
    assert "3.6e-03 to 3.6e-02" in legend_of(ax)


def test_blow_up_at_the_end_does_not_flatten_the_valley() -> None:
    lrs, losses = lr_find_data()
    assert losses.max() > 1000
    low, high = plot_lr_find(lrs, losses, losses, {}).get_ylim()
    start, bottom = losses[0], losses.min()
    assert low < bottom
    assert start < high
    assert (start - bottom) / (high - low) > 0.5


def test_lr_find_survives_losses_that_are_not_finite_or_never_fall() -> None:
    lrs = np.geomspace(1e-3, 1, 4)
    for losses in ([1.0, 2.0, math.inf, math.nan], [math.nan] * 4, [1.0] * 4):
        ax = plot_lr_find(lrs, losses, losses, {})
        ax.figure.draw_without_rendering()  # type: ignore[union-attr]
        assert np.isfinite(ax.get_ylim()).all()
    ax = plot_lr_find(lrs, [1.0, math.nan, 3.0, 4.0], [1.0, math.nan, 3.0, 4.0], {"v": lrs[2]})
    assert y_of(ax, "v: 1.0e-01").tolist() == [3.0]


def test_colours_of_suggestions_differ_from_the_curve() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {"valley": 1e-3, "steep": 1e-4, "slide": 1e-2})
    colours = [to_hex(line.get_color()) for line in ax.lines[1:]]
    assert len(set(colours)) == 4


def test_range_tests_end_the_y_axis_above_the_highest_start_and_not_at_the_blow_up() -> None:
    lrs = [1e-3, 1e-2, 1e-1, 1.0]
    ax = plot_range_tests({"a": (lrs, [2.0, 1.0, 5.0, 90.0]), "b": (lrs, [2.0, 1.6, 1.2, 90.0])})
    low, high = ax.get_ylim()
    assert 0.9 < low < 1.0
    assert 2.5 < high < 2.6  # 2 and half of the fall by 1, and a margin


def test_lr_find_reads_the_metrics_on_an_axis_that_leaves_out_the_blow_up() -> None:
    lrs, losses = [1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.0, 1.5, 90.0]
    ax = plot_lr_find(lrs, losses, losses, {}, metrics={"mse": [3.0, 1.0, 2.0, 900.0]})
    twin = next(axes for axes in ax.figure.axes if axes is not ax)
    assert np.asarray(twin.lines[0].get_ydata()).tolist() == [3.0, 1.0, 2.0, 900.0]
    assert twin.get_ylim() == pytest.approx((0.9, 3.1))
