"""The plots: data and an ``Axes`` in, the ``Axes`` out.

Nothing here shows or saves a figure, keeps state or changes matplotlib's settings. Colours are
those of Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
MARKERS = "osD^vPX"
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")


def plot_loss(
    train_updates: ArrayLike,
    train_values: ArrayLike,
    valid_updates: ArrayLike | None = None,
    valid_values: ArrayLike | None = None,
    *,
    train_smoothed: ArrayLike | None = None,
    skip_start: int = 0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the training loss, raw and smoothed, and the validation loss.

    If a few losses are far above the rest, as the first ones may be, the y axis ends above
    the rest, so that the rest can be read.

    Args:
        train_updates: Updates of the training loss, of shape ``(n,)``.
        train_values: The training loss, of shape ``(n,)``; what is not finite is a gap.
        valid_updates: Updates of the validation loss, of shape ``(m,)``.
        valid_values: The validation loss, of shape ``(m,)``.
        train_smoothed: The smoothed training loss, of shape ``(n,)``.
        skip_start: How many of the first training losses to leave out. The smoothed loss still
            has them in it, unless they were NaN when it was made.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_loss([1, 2, 3], [2.0, 1.5, 1.2], valid_updates=[3], valid_values=[1.4])
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('optimizer update', 'loss')
    """
    ax = _new_axes() if ax is None else ax
    updates = np.asarray(train_updates)[skip_start:]
    train = _gaps(train_values)[skip_start:]
    valid = _gaps([] if valid_values is None else valid_values)
    if train_smoothed is None:
        ax.plot(updates, train, color=BLUE, linewidth=1.2, label="training")
    else:
        smoothed = _gaps(train_smoothed)[skip_start:]
        ax.plot(updates, train, color=SKY, linewidth=0.8, alpha=0.7, label="training")
        ax.plot(updates, smoothed, color=BLUE, linewidth=2, label="training, smoothed")
    if valid_updates is not None and len(valid):
        ax.plot(
            np.asarray(valid_updates), valid, "o-", color=ORANGE, markersize=5, label="validation"
        )
    _leave_out_outliers(ax, train, valid)
    ax.set(xlabel="optimizer update", ylabel="loss")
    return _finish(ax)


def plot_sched(
    lr_updates: ArrayLike,
    lr_values: ArrayLike,
    mom_updates: ArrayLike | None = None,
    mom_values: ArrayLike | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the learning rate, and the momentum on a second y axis.

    Args:
        lr_updates: Updates of the learning rate, of shape ``(n,)``.
        lr_values: The learning rate, of shape ``(n,)`` or ``(n, groups)``.
        mom_updates: Updates of the momentum, of shape ``(m,)``.
        mom_values: The momentum, of shape ``(m,)`` or ``(m, groups)``.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes of the learning rate; those of the momentum share its x axis.

    Example:
        >>> ax = plot_sched([1, 2, 3], [0.1, 1.0, 0.1], [1, 2, 3], [0.95, 0.85, 0.95])
        >>> [axes.get_ylabel() for axes in ax.figure.axes]
        ['learning rate', 'momentum']
    """
    ax = _new_axes() if ax is None else ax
    groups = _plot_groups(ax, lr_updates, lr_values, BLUE)
    ax.set_xlabel("optimizer update")
    ax.set_ylabel("learning rate", color=BLUE)
    ax.tick_params(axis="y", labelcolor=BLUE)
    if mom_updates is not None and mom_values is not None:
        twin = ax.twinx()
        _plot_groups(twin, mom_updates, mom_values, ORANGE)
        twin.set_ylabel("momentum", color=ORANGE)
        twin.tick_params(axis="y", labelcolor=ORANGE)
        _style(twin, grid=False)
        twin.spines["right"].set_visible(True)
    _finish(ax, legend=False)
    if groups > 1:
        # Above the axes: inside, it would lie on one of the curves.
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=groups)
    return ax


def plot_metrics(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: "Axes | None" = None
) -> "Axes":
    """Plot validation metrics, one line each.

    Args:
        series: For each name the updates and the values, both of shape ``(n,)``.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_metrics({"accuracy": ([10, 20], [0.5, 0.8])})
        >>> ax.lines[0].get_label()
        'accuracy'
    """
    ax = _new_axes() if ax is None else ax
    for index, (name, (updates, values)) in enumerate(series.items()):
        ax.plot(
            np.asarray(updates),
            _gaps(values),
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            label=name,
        )
    ax.set(xlabel="optimizer update", ylabel="metric")
    return _finish(ax, legend=bool(series))


def plot_bands(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    *,
    ylabel: str,
    target: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the mean of several runs of each kind, and a band from the lowest to the highest.

    The y axis is that of the last three quarters: where runs begin dwarfs how they end.

    Args:
        curves: By label the runs: updates and values, both of shape ``(n,)``. At an update at
            which one of the runs is not finite there is a gap.
        ylabel: What the values are.
        target: A value to mark by a line.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_bands({"cosine": [([1, 2], [0.5, 0.7]), ([1, 2], [0.7, 0.9])]}, ylabel="a")
        >>> ax.lines[0].get_ydata()
        array([0.6, 0.8])
    """
    ax = _new_axes() if ax is None else ax
    late = [target] if target is not None else []
    every = [np.asarray(updates) for runs in curves.values() for updates, _ in runs]
    last = max((int(updates[-1]) for updates in every if len(updates)), default=0)
    for index, (label, runs) in enumerate(curves.items()):
        at: dict[int, list[float]] = {}
        for updates, values in runs:
            for update, value in zip(np.asarray(updates), _gaps(values), strict=True):
                at.setdefault(int(update), []).append(float(value))
        x = sorted(at)
        late += [value for u in x if 4 * u > last for value in at[u] if np.isfinite(value)]
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        mean, low, high = (_gaps([f(at[u]) for u in x]) for f in (np.mean, np.min, np.max))
        ax.plot(x, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=label)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    if target is not None:
        ax.axhline(
            target, color=BLACK, linewidth=0.9, linestyle="dotted", label=f"target {target:g}"
        )
    if late and max(late) > min(late):
        ax.set_ylim(*_with_margin(min(late), max(late)))
    ax.set(xlabel="optimizer update", ylabel=ylabel)
    return _finish(ax, legend=bool(curves))


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
    ax = _new_axes() if ax is None else ax
    rates, raw, curve = np.asarray(lrs, dtype=np.float64), _gaps(losses), _gaps(smoothed)
    valid = _gaps([] if valid_smoothed is None else valid_smoothed)
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
    return _finish(ax)


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
    ax = _new_axes() if ax is None else ax
    valid_curves = valid_curves or {}
    ends = []
    for index, (label, (lrs, losses)) in enumerate(curves.items()):
        color, curve = PALETTE[index % len(PALETTE)], _gaps(losses)
        ax.plot(np.asarray(lrs), curve, color=color, linewidth=1.8, label=label)
        valid = np.empty(0)
        if label in valid_curves:
            valid_lrs, valid = np.asarray(valid_curves[label][0]), _gaps(valid_curves[label][1])
            ax.plot(valid_lrs, valid, color=color, linewidth=1.2, linestyle="dashed")
        ends.append(_before_blow_up(valid, curve))
    found = [pair for pair in ends if pair is not None]
    low, high = (min(x for x, _ in found), max(x for _, x in found)) if found else (0.0, 0.0)
    if high > low:
        ax.set_ylim(*_with_margin(low, high))
    _set_rate_axis(ax, log=log)
    ax.set_ylabel("loss, smoothed" + (" (validation: dashed)" if valid_curves else ""))
    return _finish(ax, legend=bool(curves))


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
    ax = _new_axes() if ax is None else ax
    if plateau is not None:
        low, high = plateau
        label = f"{low:.2g} to {high:.2g}"
        ax.axvspan(low, high, color=GREEN, alpha=0.12, linewidth=0, label=label)
    for index, (label, (lrs, values)) in enumerate(curves.items()):
        color = PALETTE[index % len(PALETTE)]
        ax.plot(np.asarray(lrs), _gaps(values), color=color, linewidth=1.8, label=label)
    marked = [(label, rate) for label, rate in rates.items() if rate is not None]
    for index, (label, rate) in enumerate(marked):
        style = LINE_STYLES[(1 + index) % len(LINE_STYLES)]
        ax.axvline(rate, color=BLACK, linewidth=1.2, linestyle=style, label=f"{label}: {rate:.2g}")
    _set_rate_axis(ax, log=False)
    ax.set_ylabel(ylabel)
    return _finish(ax, legend=bool(curves))


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
        values = _gaps(given)
        style = LINE_STYLES[(1 + index) % len(LINE_STYLES)]
        twin.plot(rates, values, color=BLACK, linewidth=1.4, linestyle=style, label=name)
        seen.append(values[shown & np.isfinite(values)])
    every = np.concatenate(seen)
    if len(every) and every.max() > every.min():
        twin.set_ylim(*_with_margin(float(every.min()), float(every.max())))
    twin.set_ylabel("validation metric, smoothed")
    _finish(ax, legend=False)
    _style(twin, grid=False)
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


def _new_axes() -> "Axes":
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.2), layout="constrained")[1]


def _gaps(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values with NaN, which matplotlib draws as a gap, for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _plot_groups(ax: "Axes", updates: ArrayLike, values: ArrayLike, color: str) -> int:
    array = _gaps(values)
    columns = array.reshape(len(array), -1)
    groups = columns.shape[1]
    for group in range(groups):
        ax.plot(
            np.asarray(updates),
            columns[:, group],
            color=color,
            linewidth=1.8,
            linestyle=LINE_STYLES[group % len(LINE_STYLES)],
            label=f"group {group}",
        )
    return groups


def _height_at(lr: float, rates: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """Return the curve at a rate, on the straight line between its neighbours."""
    finite = np.isfinite(curve)
    return float(np.interp(lr, rates[finite], curve[finite]))


def _leave_out_outliers(ax: "Axes", train: NDArray[np.float64], valid: NDArray[np.float64]) -> None:
    """End the y axis above most losses if some training losses are far above the others."""
    losses = train[np.isfinite(train)]
    if not len(losses):
        return
    every = np.concatenate([losses, valid[np.isfinite(valid)]])
    low = float(every.min())
    far = low + 3 * (float(np.percentile(losses, 95)) - low)
    if losses.max() > far > low:
        ax.set_ylim(*_with_margin(low, float(every[every <= far].max())))


def _leave_out_blow_up(ax: "Axes", raw: NDArray[np.float64], curve: NDArray[np.float64]) -> None:
    """End the y axis above the start of the curve by half of what the curve fell."""
    ends = _before_blow_up(raw, curve)
    if ends is not None and ends[1] > ends[0]:
        ax.set_ylim(*_with_margin(*ends))


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


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _style(ax: "Axes", *, grid: bool = True) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for spine in ax.spines.values():
        spine.set_linewidth(0.6)
    ax.tick_params(width=0.6)
    if grid:
        ax.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)


def _finish(ax: "Axes", *, legend: bool = True) -> "Axes":
    _style(ax)
    if legend:
        ax.legend(framealpha=0.85, edgecolor="none")  # readable where it lies over a curve
    return ax
