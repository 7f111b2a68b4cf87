"""Pictures of range tests: the curve with its suggestions, several curves, plateaus."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
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
    colors_of,
    finish,
    gaps,
    legend_below,
    names_shown,
    new_axes,
    tidy,
    with_margin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The rules whose colours and markers are the same in every picture.
_RULES = ("knee", "valley", "slide", "minimum", "steep", "vote")


def plot_lr_find(
    lrs: ArrayLike,
    losses: ArrayLike,
    smoothed: ArrayLike,
    suggestions: Mapping[str, float | None],
    lr_range: tuple[float, float] | None = None,
    *,
    turns: bool = True,
    spreads: Mapping[str, tuple[float, float] | None] | None = None,
    valid_smoothed: ArrayLike | None = None,
    metrics: Mapping[str, ArrayLike] | None = None,
    cycles: tuple[Sequence[float], Sequence[float], str] | None = None,
    note: str | None = None,
    log: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot a learning-rate range test with its suggestions.

    The y axis shows the curve up to its lowest point, whatever the first batch was, and ends a
    little above it, so that the blow-up at the end does not flatten the valley.

    Args:
        lrs: The learning rates, increasing, of shape ``(n,)``.
        losses: The loss at each, of shape ``(n,)``; what is not finite is a gap.
        smoothed: The smoothed loss, of shape ``(n,)``.
        suggestions: The suggested rate by rule; a rule that found none is left out.
        lr_range: The range ``(lr_min, lr_max)`` to shade.
        turns: Whether the loss turns up at its end, which a line then marks.
        spreads: By rule the interval of its rate, a bar at its marker; or ``None``.
        valid_smoothed: The smoothed validation loss, of shape ``(n,)``.
        metrics: By name a metric at each rate, of shape ``(n,)``; on a second y axis.
        cycles: Of short cycles the peaks, the loss after each, and what to call them; a loss
            above the picture is an arrow at its upper end.
        note: What to say above the curve, such as why nothing is suggested.
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
        _mark_range(ax, *lr_range, turns=turns)
    ax.plot(rates, raw, color=SKY, linewidth=0.8, alpha=0.7, label="loss")
    ax.plot(rates, curve, color=BLUE, linewidth=2, label="loss, smoothed")
    if len(valid):
        ax.plot(rates, valid, color=AMBER, linewidth=2, label="validation loss, smoothed")
    _mark_suggestions(ax, suggestions, spreads or {}, rates, curve)
    peaks = np.asarray([] if cycles is None else cycles[0], dtype=np.float64)
    _set_rate_axis(ax, rates, peaks, log=log)
    ax.set_ylabel("loss")
    ends = [limits(raw, curve), limits(np.empty(0), valid)]
    _show_between(ax, [*ends, _lowest(ends, cycles)])
    if cycles is not None:
        _draw_cycles(ax, peaks, gaps(cycles[1]), cycles[2])
    is_empty = not np.isfinite(raw).any()
    if note is not None and is_empty:
        ax.set_yticks([])
        _write(ax, textwrap.fill(note, 56))
    elif note is not None:
        ax.set_title(textwrap.fill(note, 96), fontsize="small", loc="left")
    return _add_metrics(ax, rates, curve, metrics) if metrics else finish(ax, legend=not is_empty)


def plot_range_tests(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    valid_curves: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    log: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the smoothed losses of several range tests, one colour each.

    The y axis ends a little above the highest curve before its lowest point, as in
    `plot_lr_find`.

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
    colors, names = colors_of(len(curves)), names_shown(list(curves))
    for color, name, (label, (lrs, losses)) in zip(colors, names, curves.items(), strict=True):
        curve = gaps(losses)
        ax.plot(np.asarray(lrs), curve, color=color, linewidth=1.8, label=name)
        ends.append(limits(np.empty(0), curve))
        if label in valid_curves:
            valid_lrs, valid = np.asarray(valid_curves[label][0]), gaps(valid_curves[label][1])
            ax.plot(valid_lrs, valid, color=color, linewidth=1.2, linestyle="dashed")
            ends.append(limits(np.empty(0), valid))
    _show_between(ax, ends)
    _set_rate_axis(ax, *(np.asarray(lrs) for lrs, _ in curves.values()), log=log)
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
    colors, names = colors_of(len(curves)), names_shown(list(curves))
    for color, name, (lrs, values) in zip(colors, names, curves.values(), strict=True):
        ax.plot(np.asarray(lrs), gaps(values), color=color, linewidth=1.8, label=name)
    marked = [(label, rate) for label, rate in rates.items() if rate is not None]
    for index, (label, rate) in enumerate(marked):
        style = LINE_STYLES[(1 + index) % len(LINE_STYLES)]
        ax.axvline(rate, color=BLACK, linewidth=1.2, linestyle=style, label=f"{label}: {rate:.2g}")
    _set_rate_axis(ax, *(np.asarray(lrs) for lrs, _ in curves.values()), log=False)
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
    others = [rule for rule, _ in found if rule not in _RULES]
    for index, (rule, lr) in enumerate(found):
        place = [*_RULES, *others].index(rule)
        color = PALETTE[1 + place % (len(PALETTE) - 1)]
        height, interval = _height_at(lr, rates, curve), spreads.get(rule)
        if interval is not None:
            # At the height of its marker: bands of full height would lie over each other. With
            # ends, as a narrow one would be hidden by the marker.
            ax.hlines(height, *interval, color=color, linewidth=2, zorder=3)
            ax.scatter(interval, [height] * 2, marker="|", s=200, color=color, zorder=3)
        ax.plot(
            [lr],
            [height],
            color=color,
            marker=MARKERS[place % len(MARKERS)],
            markersize=8 if index else 10,
            markeredgecolor="white",
            linestyle="none",
            label=f"{rule}: {lr:.1e}",
            zorder=4 if index else 4.5,  # the first one is what a cycle takes: over the others
        )


def _lowest(
    ends: Sequence[tuple[float, float] | None],
    cycles: tuple[Sequence[float], Sequence[float], str] | None,
) -> tuple[float, float] | None:
    """Return limits that reach down to the lowest loss after a cycle, or ``None``."""
    losses = gaps([] if cycles is None else cycles[1])
    tops = [pair[1] for pair in ends if pair is not None]
    low = float(np.nanmin(losses)) if np.isfinite(losses).any() else np.inf
    return (low, max(tops)) if tops and low < max(tops) else None


def _draw_cycles(
    ax: "Axes", peaks: NDArray[np.float64], losses: NDArray[np.float64], label: str
) -> None:
    """Draw the loss after each cycle over its peak; what is above the picture is an arrow."""
    top = ax.get_ylim()[1]
    inside = np.isfinite(losses) & (losses <= top)
    draw = partial(ax.plot, color=BLACK, markersize=7, linewidth=1.2, zorder=5, clip_on=False)
    draw(peaks[inside], losses[inside], marker="o", markerfacecolor="white", label=label)
    draw(peaks[~inside], np.full((~inside).sum(), top), marker="^", linestyle="none")


def _write(ax: "Axes", note: str) -> None:
    """Say in the middle of axes why nothing is drawn."""
    ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", va="center")


def _mark_range(ax: "Axes", low: float, high: float, *, turns: bool) -> None:
    label = f"for a cycle: {low:.1e} to {high:.1e}"
    ax.axvspan(low, high, color=GREEN, alpha=0.12, linewidth=0, label=label)
    if turns:
        label = "the loss turns up"
        ax.axvline(high, color=GREEN, linewidth=1.2, linestyle="dashed", label=label)


def _set_rate_axis(ax: "Axes", *rates: NDArray[np.float64], log: bool) -> None:
    if log:
        ax.set_xscale("log")
    every = np.concatenate([*rates, np.empty(0)])
    if len(every):  # the whole test, also where its losses are gaps
        low, high = float(every.min()), float(every.max())
        if low == high:
            low, high = low / 2, high * 2
        ends = np.array(with_margin(*np.log((low, high)))) if log else with_margin(low, high)
        ax.set_xlim(*(np.exp(ends) if log else ends))
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
    # The curves of two y axes leave no corner free.
    legend_below(ax, lines + more_lines, labels + more_labels)
    return ax


def _height_at(lr: float, rates: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """Return the curve at a rate, on the straight line between its neighbours."""
    finite = np.isfinite(curve)
    return float(np.interp(lr, rates[finite], curve[finite]))


def _show_between(ax: "Axes", limits: Sequence[tuple[float, float] | None]) -> None:
    """End the y axis at the widest of some limits."""
    found = [pair for pair in limits if pair is not None]
    if found and (high := max(high for _, high in found)) > (low := min(low for low, _ in found)):
        ax.set_ylim(*with_margin(low, high))


def limits(raw: NDArray[np.float64], curve: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return between which losses a curve lies up to its lowest point, and half as much above.

    No single batch can move them: the first tenth of the curve, which a hard or an easy first
    batch makes too high or too low, counts by the median of its raw losses.

    Args:
        raw: The losses, of shape ``(n,)``, or none; NaN where they are not finite.
        curve: They, smoothed.

    Returns:
        The limits of a y axis; ``None`` where the curve has no finite point.

    Example:
        >>> limits(np.empty(0), np.array([3.0, 2.0, 1.0, 50.0]))
        (1.0, 4.0)
    """
    finite = np.isfinite(curve)
    if not finite.any():
        return None
    first = len(curve) // 10
    if not finite[first:].any():
        first = 0
    lowest = first + int(np.nanargmin(curve[first:]))
    low = float(np.nanmin(curve))
    if lowest == first:  # it only rises
        top = float(np.nanmedian(curve))
    else:
        seen = curve[first : lowest + 1]
        most = float(np.nanquantile(seen, 0.75))  # after a hard first batch all below is flat
        top = min(float(np.nanmax(seen)), 2 * most - low)
    before = raw[: lowest + 1]
    before = before[np.isfinite(before)]
    if len(before):
        low = min(low, float(np.quantile(before, 0.05)))
        top = max(top, float(np.quantile(before, 0.9)), float(np.median(before[: max(5, first)])))
    highest = max(float(np.nanmax(curve)), float(np.nanmax(raw, initial=low)))
    return low, min(highest, top + 0.5 * max(top - low, 0.1 * abs(top)))
