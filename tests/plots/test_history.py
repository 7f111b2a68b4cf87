import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import legend_of, line, x_of, y_of

from onecycle.plots import plot_loss, plot_lr_find, plot_metrics, plot_range_tests, plot_sched

UPDATES = np.arange(1, 201)
LOSSES = 2 * np.exp(-UPDATES / 50) + 0.3


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


@pytest.mark.slow
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


def test_of_many_groups_the_ends_are_named_and_the_others_told_apart_by_their_shade() -> None:
    rates = np.outer([0.1, 0.3, 0.1], np.linspace(0.1, 1, 26))
    ax = plot_sched([1, 2, 3], rates, [1, 2, 3], np.full((3, 26), 0.9))
    assert legend_of(ax) == ["group 0", "group 25"]
    assert len(ax.lines) == 26
    shades = [line.get_alpha() for line in ax.lines]
    assert shades == sorted(set(shades))
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().width < ax.figure.bbox.width


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
