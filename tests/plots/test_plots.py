import math
import subprocess
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from onecycle.plots import plot_loss, plot_lr_find, plot_metrics, plot_range_tests, plot_sched

UPDATES = np.arange(1, 201)
LOSSES = 2 * np.exp(-UPDATES / 50) + 0.3


def line(ax: Axes, label: str) -> Line2D:
    return next(line for line in ax.lines if line.get_label() == label)


def y_of(ax: Axes, label: str) -> Any:
    return np.asarray(line(ax, label).get_ydata())


def x_of(ax: Axes, label: str) -> Any:
    return np.asarray(line(ax, label).get_xdata())


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_every_plot_draws_on_the_axes_it_is_given_and_returns_them() -> None:
    pairs = ([1, 2], [1.0, 0.5])
    for draw in (
        lambda ax: plot_loss(*pairs, ax=ax),
        lambda ax: plot_sched(*pairs, ax=ax),
        lambda ax: plot_metrics({"accuracy": pairs}, ax=ax),
        lambda ax: plot_lr_find([0.1, 1.0], [1.0, 0.5], [1.0, 0.8], {}, ax=ax),
        lambda ax: plot_range_tests({"wd 0": ([0.1, 1.0], [1.0, 0.5])}, ax=ax),
    ):
        _, given = plt.subplots()
        before = plt.get_fignums()
        assert draw(given) is given
        assert given.lines
        assert plt.get_fignums() == before
        assert draw(None) is not given
        assert len(plt.get_fignums()) == len(before) + 1


def test_no_plot_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("show() was called"))
    plot_loss([1], [1.0])
    plot_sched([1], [1.0])
    plot_metrics({"accuracy": ([1], [1.0])})
    plot_lr_find([1.0], [1.0], [1.0], {})


def test_matplotlib_is_loaded_by_the_first_plot_only() -> None:
    code = "import sys, onecycle.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loss_shows_raw_smoothed_and_validation_values() -> None:
    ax = plot_loss(UPDATES, LOSSES, [100, 200], [0.9, 0.6], train_smoothed=LOSSES + 0.1)
    np.testing.assert_array_equal(x_of(ax, "training"), UPDATES)
    np.testing.assert_array_equal(y_of(ax, "training"), LOSSES)
    np.testing.assert_array_equal(y_of(ax, "training, smoothed"), LOSSES + 0.1)
    assert x_of(ax, "validation").tolist() == [100, 200]
    assert y_of(ax, "validation").tolist() == [0.9, 0.6]
    assert line(ax, "validation").get_marker() == "o"
    assert legend_of(ax) == ["training", "training, smoothed", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer update", "loss")
    assert ax.get_yscale() == "linear"


def test_smoothed_loss_is_stronger_than_the_raw_one() -> None:
    ax = plot_loss(UPDATES, LOSSES, train_smoothed=LOSSES)
    raw, smoothed = line(ax, "training"), line(ax, "training, smoothed")
    assert raw.get_linewidth() < smoothed.get_linewidth()
    assert (raw.get_alpha() or 1) < (smoothed.get_alpha() or 1)


def test_loss_without_validation_has_no_entry_for_it() -> None:
    assert legend_of(plot_loss(UPDATES, LOSSES)) == ["training"]
    assert legend_of(plot_loss(UPDATES, LOSSES, [], [])) == ["training"]


def test_skip_start_leaves_out_training_losses_only() -> None:
    ax = plot_loss(UPDATES, LOSSES, [5], [1.0], train_smoothed=LOSSES, skip_start=10)
    assert x_of(ax, "training")[0] == 11
    assert x_of(ax, "training, smoothed")[0] == 11
    assert x_of(ax, "validation").tolist() == [5]


def test_huge_first_losses_do_not_flatten_the_rest() -> None:
    losses = LOSSES.copy()
    losses[:5] = [9000, 3000, 900, 300, 100]
    low, high = plot_loss(UPDATES, losses).get_ylim()
    assert low < losses.min()
    assert losses[5:].max() < high < 2 * losses[5:].max()


def test_ordinary_losses_are_all_in_sight() -> None:
    low, high = plot_loss(UPDATES, LOSSES, [200], [3.5]).get_ylim()
    assert low < LOSSES.min()
    assert high > 3.5


def test_losses_that_are_not_finite_are_gaps() -> None:
    losses = LOSSES.copy()
    losses[[3, 50]] = math.nan, math.inf
    ax = plot_loss(UPDATES, losses, [100, 200], [math.nan, 0.6], train_smoothed=losses)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert np.flatnonzero(np.isnan(y_of(ax, "training"))).tolist() == [3, 50]
    assert np.isfinite(ax.get_ylim()).all()
    assert ax.get_ylim()[1] < 3


@pytest.mark.parametrize("losses", [[], [math.nan, math.nan], [1.0], [1.0, 1.0]])
def test_loss_of_few_or_no_points_can_be_drawn(losses: list[float]) -> None:
    ax = plot_loss(range(1, len(losses) + 1), losses, train_smoothed=losses)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    np.testing.assert_array_equal(y_of(ax, "training"), losses)


def test_schedule_has_momentum_on_a_second_axis_in_the_colour_of_its_label() -> None:
    lrs, moms = np.linspace(0, 1, 200), np.linspace(0.95, 0.85, 200)
    ax = plot_sched(UPDATES, lrs, UPDATES, moms)
    first, twin = ax.figure.axes
    assert first is ax
    assert ax.get_shared_x_axes().joined(ax, twin)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), lrs)
    np.testing.assert_array_equal(twin.lines[0].get_ydata(), moms)
    for axes, label in ((ax, "learning rate"), (twin, "momentum")):
        assert axes.get_ylabel() == label
        assert axes.yaxis.label.get_color() == axes.lines[0].get_color()
    assert ax.lines[0].get_color() != twin.lines[0].get_color()
    assert ax.get_xlabel() == "optimizer update"
    assert ax.get_legend() is None


def test_schedule_without_momentum_has_one_axis() -> None:
    assert len(plot_sched([1, 2], [0.1, 0.2]).figure.axes) == 1


def test_each_group_is_a_line_of_its_own_style() -> None:
    lrs = np.array([[0.1, 0.3], [0.2, 0.6], [0.1, 0.3]])
    ax = plot_sched([1, 2, 3], lrs, [1, 2, 3], np.full((3, 2), 0.9))
    assert legend_of(ax) == ["group 0", "group 1"]
    for group in range(2):
        np.testing.assert_array_equal(y_of(ax, f"group {group}"), lrs[:, group])
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert len(ax.figure.axes[1].lines) == 2


def test_metrics_are_lines_with_markers_that_differ() -> None:
    series = {"accuracy": ([10, 20], [0.5, 0.75]), "mae": ([10, 20], [3.0, math.inf])}
    ax = plot_metrics(series)
    assert x_of(ax, "accuracy").tolist() == [10, 20]
    assert y_of(ax, "accuracy").tolist() == [0.5, 0.75]
    np.testing.assert_array_equal(y_of(ax, "mae"), [3.0, math.nan])
    assert legend_of(ax) == ["accuracy", "mae"]
    assert len({(line.get_marker(), line.get_color()) for line in ax.lines}) == 2
    assert ax.get_xlabel() == "optimizer update"


def test_no_metrics_are_an_empty_plot_without_a_legend() -> None:
    ax = plot_metrics({})
    assert not ax.lines
    assert ax.get_legend() is None


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
