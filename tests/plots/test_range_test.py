import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import legend_of, x_of, y_of
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from onecycle.plots import draw_lr_find, plot_lr_find, plot_plateaus, plot_range_tests
from onecycle.record.smoothing import smooth


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


def test_lr_find_has_a_bar_with_ends_at_the_marker_of_each_suggestion_with_a_spread() -> None:
    lrs, losses = lr_find_data()
    suggestions = {"valley": float(lrs[60]), "steep": 1e-3}
    spreads = {"valley": (1e-3, 1e-1), "steep": None}
    ax = plot_lr_find(lrs, losses, losses, suggestions, spreads=spreads)
    bar, ends = ax.collections
    assert isinstance(bar, LineCollection)
    assert bar.get_segments()[0].tolist() == [[1e-3, losses[60]], [1e-1, losses[60]]]
    assert np.asarray(ends.get_offsets()).tolist() == [[1e-3, losses[60]], [1e-1, losses[60]]]
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
    assert "for a cycle: 3.6e-03 to 3.6e-02" in legend_of(ax)


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


def shown(ax: Any, curve: Any) -> float:
    """Return the share of a curve, up to its lowest point, that lies between the limits."""
    low, high = ax.get_ylim()
    before = np.asarray(curve)[: int(np.nanargmin(curve)) + 1]
    return float(((before >= low) & (before <= high)).mean())


@pytest.mark.parametrize("first", [1e-3, 1.0, 1e2])
def test_no_first_batch_hides_the_curve(first: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lrs, losses = lr_find_data()
        raw = losses * rng.exponential(size=100)  # as a regression has them in small batches
        raw[0] = first
        smoothed = smooth(raw)
        ax = plot_lr_find(lrs, raw, smoothed, {})
        assert shown(ax, smoothed[10:]) > 0.6
        flat = float(np.median(raw[10:40]))
        assert ax.get_ylim()[1] < 15 * flat  # the flat part and the valley can be told apart
        plt.close(ax.figure)


def test_limits_from_the_first_loss_alone_would_hide_most_of_the_curve() -> None:
    lrs, losses = lr_find_data()
    losses[0] = 0.1
    smoothed = smooth(losses)
    ax = plot_lr_find(lrs, losses, smoothed, {})
    ax.set_ylim(0, smoothed[0] + 0.5 * (smoothed[0] - losses.min()))
    assert shown(ax, smoothed[10:]) < 0.1


def test_a_curve_that_only_rises_is_shown_too() -> None:
    lrs = np.geomspace(1e-3, 1, 30)
    losses = 2 + 100 * lrs
    ax = plot_lr_find(lrs, losses, losses, {})
    low, high = ax.get_ylim()
    assert ((losses > low) & (losses < high)).mean() > 0.5


@pytest.mark.parametrize("losses", [[math.nan], [math.inf] * 5])
def test_axes_without_a_finite_loss_say_why_they_are_empty(losses: list[float]) -> None:
    lrs = np.geomspace(1e-7, 1e-6, len(losses))
    ax = plot_lr_find(lrs, losses, losses, {}, note="the loss was not finite")
    assert [text.get_text() for text in ax.texts] == ["the loss was not finite"]
    assert ax.get_legend() is None
    left, right = ax.get_xlim()
    assert left < 1e-7 <= lrs[-1] < right < 1e-5


def test_a_note_stands_above_a_curve() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {}, note="no suggestion")
    assert ax.get_title("left") == "no suggestion"
    assert len(ax.texts) == 0


def test_the_turn_has_a_line_of_its_own() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {}, (3.6e-3, 3.6e-2))
    assert x_of(ax, "the loss turns up").tolist() == [3.6e-2, 3.6e-2]
    assert "the loss turns up" in legend_of(ax)


def test_a_legend_of_many_entries_hides_no_curve_and_lies_within_the_figure() -> None:
    lrs, losses = lr_find_data()
    many = {f"weight_decay {wd:g}": (lrs, losses + wd) for wd in np.linspace(0, 1, 30)}
    rules = {f"rule {i}": 1e-3 for i in range(6)}
    for ax in (
        plot_range_tests(many),
        plot_plateaus(many, (1e-3, 1e-2), {"usual rate": 1e-3}, ylabel="accuracy"),
        plot_lr_find(lrs, losses, losses, rules, (1e-3, 1e-2)),
        plot_lr_find(lrs, losses, losses, rules, metrics={"mse": losses}),
    ):
        ax.figure.draw_without_rendering()  # type: ignore[union-attr]
        legend = ax.get_legend()
        assert legend is not None
        box = legend.get_window_extent()
        assert not box.overlaps(ax.get_window_extent())
        assert ax.figure.bbox.x0 <= box.x0
        assert box.x1 <= ax.figure.bbox.x1
        assert box.y0 >= ax.figure.bbox.y0
        assert ax.get_window_extent().height > 0.5 * ax.figure.bbox.height


def test_of_many_range_tests_each_has_its_colour_and_the_ends_have_names() -> None:
    lrs, losses = lr_find_data()
    ax = plot_range_tests({f"wd {i}": (lrs, losses) for i in range(30)})
    assert len({to_hex(line.get_color()) for line in ax.lines}) == 30
    names = legend_of(ax)
    assert len(names) == 8
    assert (names[0], names[-1]) == ("wd 0", "wd 29")


class TestInCharacters:
    def test_a_character_stands_where_the_curve_is(self) -> None:
        lrs, curve = np.linspace(1, 2, 62), np.linspace(0, 1, 62)[::-1]
        drawn = draw_lr_find(lrs, curve, {"steep": lrs[30]}, log=False, turn=lrs[40], height=62)
        lines = drawn.splitlines()
        assert len(lines) == 64
        high, low = (float(lines[row].split()[0]) for row in (0, 61))
        for row, line in enumerate(lines[:62]):
            for column in (i for i, char in enumerate(line[10:]) if char == "*"):
                loss = high - row / 61 * (high - low)
                assert loss == pytest.approx(curve[column], abs=1.5 * (high - low) / 61)
        assert sum("*" in line for line in lines[:62]) > 40
        assert (lines[63].index("s"), lines[63].index("|")) == (10 + 30, 10 + 40)
        assert lines[63].split()[0] == "1"
        assert lines[63].endswith("2")

    def test_what_is_above_the_picture_is_marked_and_what_is_not_finite_left_out(self) -> None:
        curve = [2.0] * 20 + [1.0] * 20 + [1e6] * 10 + [math.nan] * 12
        drawn = draw_lr_find(np.geomspace(1e-3, 1, 62), curve, {})
        columns = np.array([list(line[10:].ljust(62)) for line in drawn.splitlines()[:12]]).T
        seen = "".join("".join(column).strip() or " " for column in columns)
        assert (seen[:39], seen[41:49], seen[50:]) == ("*" * 39, "^" * 8, " " * 12)

    def test_without_a_finite_loss_there_is_nothing(self) -> None:
        assert draw_lr_find([1e-3], [math.nan], {}) == ""


class TestCycles:
    def test_each_is_a_ring_at_its_peak_and_what_is_above_the_picture_an_arrow(self) -> None:
        lrs, losses = lr_find_data()
        peaks, after = [1e-3, 1e-2, 30.0, 90.0], [1.5, 0.2, 500.0, math.inf]
        ax = plot_lr_find(lrs, losses, losses, {}, cycles=(peaks, after, "after 50"))
        assert legend_of(ax)[-1] == "after 50"
        assert x_of(ax, "after 50").tolist() == peaks[:2]
        assert y_of(ax, "after 50").tolist() == after[:2]
        arrows = next(line for line in ax.lines if line.get_marker() == "^")
        assert np.asarray(arrows.get_xdata()).tolist() == peaks[2:]
        assert np.asarray(arrows.get_ydata()).tolist() == [ax.get_ylim()[1]] * 2
        assert ax.get_ylim()[0] < 0.2
        assert ax.get_xlim()[1] > 90

    def test_the_y_axis_is_that_of_the_curve_where_it_shows_them(self) -> None:
        lrs, losses = lr_find_data()
        without = plot_lr_find(lrs, losses, losses, {})
        ax = plot_lr_find(lrs, losses, losses, {}, cycles=([1e-3], [1.5], "after 50"))
        assert ax.get_ylim() == without.get_ylim()

    def test_in_characters_an_o_stands_under_each_peak_within(self) -> None:
        drawn = draw_lr_find(
            np.geomspace(1e-3, 1, 62), np.linspace(2, 1, 62), {}, peaks=[1e-2, 1e-1, 5.0]
        )
        under = drawn.splitlines()[-1][10:]
        assert [i for i, mark in enumerate(under) if mark == "o"] == [20, 41]


def test_no_line_marks_a_turn_where_there_is_none() -> None:
    lrs, losses = lr_find_data()
    ax = plot_lr_find(lrs, losses, losses, {}, (0.01, 0.1), turns=False)
    assert legend_of(ax) == ["for a cycle: 1.0e-02 to 1.0e-01", "loss", "loss, smoothed"]
