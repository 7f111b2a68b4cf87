"""Pictures of range tests: the curve with its suggestions, several curves, plateaus."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onecycle.plots.style import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    LINE_STYLES,
    MARKERS,
    PALETTE,
    SKY,
    finish,
    gaps,
    new_axes,
    tidy,
    with_margin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_lr_find(
    lrs: ArrayLike,
    losses: ArrayLike,
    smoothed: ArrayLike,
    suggestions: Mapping[str, float | None],
    lr_range: tuple[float, float] | None = None,
    *,
    spreads: Mapping[str, tuple[float, float] | None] | None = None,
    valid_smoothed: ArrayLike | None = None,
    metrics: Mapping[str, ArrayLike] | None = None,
    log: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot a learning-rate range test with its suggestions.

    The y axis ends a little above the loss of the start, so that the blow-up at the end does
    not flatten the valley.

    Args:
        lrs: The learning rates, increasing, of shape ``(n,)``.
        losses: The loss at each, of shape ``(n,)``; what is not finite is a gap.
        smoothed: The smoothed loss, of shape ``(n,)``.
        suggestions: The suggested rate by rule; a rule that found none is left out.
        lr_range: The range ``(lr_min, lr_max)`` to shade.
        spreads: By rule the interval of its rate, a faint band at its marker; or ``None``.
        valid_smoothed: The smoothed validation loss, of shape ``(n,)``.
        metrics: By name a metric at each rate, of shape ``(n,)``; on a second y axis.
        log: Whether the rates grew geometrically, so that the x axis is logarithmic.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> lrs, losses = [1e-3, 1e-2, 1e-1], [2.0, 1.0, 9.0]
        >>> ax = plot_lr_find(lrs, losses, losses, {"minimum/10": 1e-3})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['loss', 'loss, smoothed', 'minimum/10: 1.0e-03']
    """
    ax = new_axes() if ax is None else ax
    rates, raw, curve = np.asarray(lrs, dtype=np.float64), gaps(losses), gaps(smoothed)
    valid = gaps([] if valid_smoothed is None else valid_smoothed)
    if lr_range is not None:
        low, high = lr_range
        ax.axvspan(
            low, high, color=GREEN, alpha=0.12, linewidth=0, label=f"{low:.1e} to {high:.1e}"
        )
    ax.plot(rates, raw, color=SKY, linewidth=0.8, alpha=0.7, label="loss")
    ax.plot(rates, curve, color=BLUE, linewidth=2, label="loss, smoothed")
    if len(valid):
        ax.plot(rates, valid, color=AMBER, linewidth=2, label="validation loss, smoothed")
    _mark_suggestions(ax, suggestions, spreads or {}, rates, curve)
    _set_rate_axis(ax, log=log)
    ax.set_ylabel("loss")
    _leave_out_blow_up(ax, np.concatenate([raw, valid]), curve)
    if metrics:
        return _add_metrics(ax, rates, curve, metrics)
    return finish(ax)


def plot_range_tests(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    valid_curves: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    log: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the smoothed losses of several range tests, one colour each.

    The y axis ends a little above the losses of the start, as in `plot_lr_find`.

    Args:
        curves: By label the learning rates and the smoothed loss, both of shape ``(n,)``.
        valid_curves: Likewise the smoothed validation loss; dashed, in the colour of its label.
        log: Whether the rates grew geometrically, so that the x axis is logarithmic.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> lrs = [1e-3, 1e-2, 1e-1]
        >>> ax = plot_range_tests({"wd 0": (lrs, [2, 1, 9]), "wd 0.1": (lrs, [2, 1.5, 9])})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['wd 0', 'wd 0.1']
    """
    ax = new_axes() if ax is None else ax
    valid_curves = valid_curves or {}
    ends = []
    for index, (label, (lrs, losses)) in enumerate(curves.items()):
        color, curve = PALETTE[index % len(PALETTE)], gaps(losses)
        ax.plot(np.asarray(lrs), curve, color=color, linewidth=1.8, label=label)
        valid = np.empty(0)
        if label in valid_curves:
            valid_lrs, valid = np.asarray(valid_curves[label][0]), gaps(valid_curves[label][1])
            ax.plot(valid_lrs, valid, color=color, linewidth=1.2, linestyle="dashed")
        ends.append(_before_blow_up(valid, curve))
    found = [pair for pair in ends if pair is not None]
    low, high = (min(x for x, _ in found), max(x for _, x in found)) if found else (0.0, 0.0)
    if high > low:
        ax.set_ylim(*with_margin(low, high))
    _set_rate_axis(ax, log=log)
    ax.set_ylabel("loss, smoothed" + (" (validation: dashed)" if valid_curves else ""))
    return finish(ax, legend=bool(curves))


def plot_plateaus(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    plateau: tuple[float, float] | None,
    rates: Mapping[str, float | None],
    *,
    ylabel: str,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot a metric over linearly rising learning rates, one colour for each curve.

    Args:
        curves: By label the learning rates and the smoothed metric, both of shape ``(n,)``.
        plateau: The rates between which to shade, or ``None``.
        rates: By label a rate to mark by a vertical line; ``None`` is left out.
        ylabel: What the metric is.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> curves = {"wd 0": ([0.1, 0.2, 0.3], [0.1, 0.8, 0.9])}
        >>> ax = plot_plateaus(curves, (0.2, 0.3), {"usual rate": 0.1}, ylabel="accuracy")
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0.2 to 0.3', 'wd 0', 'usual rate: 0.1']
    """
    ax = new_axes() if ax is None else ax
    if plateau is not None:
        low, high = plateau
        label = f"{low:.2g} to {high:.2g}"
        ax.axvspan(low, high, color=GREEN, alpha=0.12, linewidth=0, label=label)
    for index, (label, (lrs, values)) in enumerate(curves.items()):
        color = PALETTE[index % len(PALETTE)]
        ax.plot(np.asarray(lrs), gaps(values), color=color, linewidth=1.8, label=label)
    marked = [(label, rate) for label, rate in rates.items() if rate is not None]
    for index, (label, rate) in enumerate(marked):
        style = LINE_STYLES[(1 + index) % len(LINE_STYLES)]
        ax.axvline(rate, color=BLACK, linewidth=1.2, linestyle=style, label=f"{label}: {rate:.2g}")
    _set_rate_axis(ax, log=False)
    ax.set_ylabel(ylabel)
    return finish(ax, legend=bool(curves))


def _mark_suggestions(
    ax: "Axes",
    suggestions: Mapping[str, float | None],
    spreads: Mapping[str, tuple[float, float] | None],
    rates: NDArray[np.float64],
    curve: NDArray[np.float64],
) -> None:
    found = [(rule, lr) for rule, lr in suggestions.items() if lr is not None]
    for index, (rule, lr) in enumerate(found):
        color = PALETTE[1 + index % (len(PALETTE) - 1)]
        height, interval = _height_at(lr, rates, curve), spreads.get(rule)
        if interval is not None:
            # At the height of its marker: bands of full height would lie over each other.
            ax.hlines(height, *interval, color=color, alpha=0.3, linewidth=9)
        ax.plot(
            [lr],
            [height],
            color=color,
            marker=MARKERS[index % len(MARKERS)],
            markersize=8,
            markeredgecolor="white",
            linestyle="none",
            label=f"{rule}: {lr:.1e}",
            zorder=3,
        )


def _set_rate_axis(ax: "Axes", *, log: bool) -> None:
    if log:
        ax.set_xscale("log")
    ax.set_xlabel("learning rate (log scale)" if log else "learning rate")


def _add_metrics(
    ax: "Axes",
    rates: NDArray[np.float64],
    curve: NDArray[np.float64],
    metrics: Mapping[str, ArrayLike],
) -> "Axes":
    """Add metrics on a second y axis, which ends where they go when the loss blows up."""
    twin = ax.twinx()
    shown = ~(curve > ax.get_ylim()[1])
    seen = []
    for index, (name, given) in enumerate(metrics.items()):
        values = gaps(given)
        style = LINE_STYLES[(1 + index) % len(LINE_STYLES)]
        twin.plot(rates, values, color=BLACK, linewidth=1.4, linestyle=style, label=name)
        seen.append(values[shown & np.isfinite(values)])
    every = np.concatenate(seen)
    if len(every) and every.max() > every.min():
        twin.set_ylim(*with_margin(float(every.min()), float(every.max())))
    twin.set_ylabel("validation metric, smoothed")
    finish(ax, legend=False)
    tidy(twin, grid=False)
    twin.spines["right"].set_visible(True)
    lines, labels = ax.get_legend_handles_labels()
    more_lines, more_labels = twin.get_legend_handles_labels()
    # Above the axes: the curves of two y axes leave no corner free.
    ax.legend(
        lines + more_lines,
        labels + more_labels,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=3,
    )
    return ax


def _height_at(lr: float, rates: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """Return the curve at a rate, on the straight line between its neighbours."""
    finite = np.isfinite(curve)
    return float(np.interp(lr, rates[finite], curve[finite]))


def _leave_out_blow_up(ax: "Axes", raw: NDArray[np.float64], curve: NDArray[np.float64]) -> None:
    """End the y axis above the start of the curve by half of what the curve fell."""
    ends = _before_blow_up(raw, curve)
    if ends is not None and ends[1] > ends[0]:
        ax.set_ylim(*with_margin(*ends))


def _before_blow_up(
    raw: NDArray[np.float64], curve: NDArray[np.float64]
) -> tuple[float, float] | None:
    """Return the lowest value, and the one above the curve's start by half of what it fell."""
    values = np.concatenate([raw, curve])
    values, curve = values[np.isfinite(values)], curve[np.isfinite(curve)]
    if not len(curve):
        return None
    start = float(curve[0])
    fell = max(start - float(curve.min()), 0.1 * abs(start))
    return float(values.min()), min(float(values.max()), start + 0.5 * fell)
