"""Pictures of what was recorded: losses, schedules, metrics, bands over seeds."""

from collections.abc import Mapping, Sequence
from itertools import cycle
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
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    finish,
    gaps,
    new_axes,
    tidy,
    with_margin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The colours of further validation sets.
_FURTHER = (GREEN, PURPLE, AMBER, BLACK)
#: So many values of a metric are marked, each.
_MARKED = 60


def plot_loss(
    train_updates: ArrayLike,
    train_values: ArrayLike,
    valid_updates: ArrayLike | None = None,
    valid_values: ArrayLike | None = None,
    *,
    more_valid: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
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
        more_valid: By the name of a further validation set the updates and the values of its
            loss, both of shape ``(m,)``.
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
    ax = new_axes() if ax is None else ax
    updates = np.asarray(train_updates)[skip_start:]
    train = gaps(train_values)[skip_start:]
    valid = gaps([] if valid_values is None else valid_values)
    if train_smoothed is None:
        ax.plot(updates, train, color=BLUE, linewidth=1.2, label="training")
    else:
        smoothed = gaps(train_smoothed)[skip_start:]
        ax.plot(updates, train, color=SKY, linewidth=0.8, alpha=0.7, label="training")
        ax.plot(updates, smoothed, color=BLUE, linewidth=2, label="training, smoothed")
    if valid_updates is not None and len(valid):
        ax.plot(
            np.asarray(valid_updates), valid, "o-", color=ORANGE, markersize=5, label="validation"
        )
    for (name, each), color in zip((more_valid or {}).items(), cycle(_FURTHER)):
        values = gaps(each[1])
        ax.plot(
            np.asarray(each[0]),
            values,
            "s--",
            color=color,
            markersize=4,
            label=f"validation {name}",
        )
        valid = np.concatenate([valid, values])
    _leave_out_outliers(ax, train, valid)
    ax.set(xlabel="optimizer update", ylabel="loss")
    return finish(ax)


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
    ax = new_axes() if ax is None else ax
    groups = _plot_groups(ax, lr_updates, lr_values, BLUE)
    ax.set_xlabel("optimizer update")
    ax.set_ylabel("learning rate", color=BLUE)
    ax.tick_params(axis="y", labelcolor=BLUE)
    if mom_updates is not None and mom_values is not None:
        twin = ax.twinx()
        _plot_groups(twin, mom_updates, mom_values, ORANGE)
        twin.set_ylabel("momentum", color=ORANGE)
        twin.tick_params(axis="y", labelcolor=ORANGE)
        tidy(twin, grid=False)
        twin.spines["right"].set_visible(True)
    finish(ax, legend=False)
    if groups > 1:
        # Above the axes: inside, it would lie on one of the curves.
        ncols = len(ax.get_legend_handles_labels()[1])
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=ncols)
    return ax


def plot_metrics(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: "Axes | None" = None
) -> "Axes":
    """Plot metrics, one line each; values that are few are marked.

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
    ax = new_axes() if ax is None else ax
    for index, (name, (updates, values)) in enumerate(series.items()):
        ax.plot(
            np.asarray(updates),
            gaps(values),
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)] if len(np.asarray(updates)) <= _MARKED else None,
            markersize=5,
            label=name,
        )
    ax.set(xlabel="optimizer update", ylabel="metric")
    return finish(ax, legend=bool(series))


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
    ax = new_axes() if ax is None else ax
    late = [target] if target is not None else []
    every = [np.asarray(updates) for runs in curves.values() for updates, _ in runs]
    last = max((int(updates[-1]) for updates in every if len(updates)), default=0)
    for index, (label, runs) in enumerate(curves.items()):
        at: dict[int, list[float]] = {}
        for updates, values in runs:
            for update, value in zip(np.asarray(updates), gaps(values), strict=True):
                at.setdefault(int(update), []).append(float(value))
        x = sorted(at)
        late += [value for u in x if 4 * u > last for value in at[u] if np.isfinite(value)]
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        mean, low, high = (gaps([f(at[u]) for u in x]) for f in (np.mean, np.min, np.max))
        ax.plot(x, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=label)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    if target is not None:
        ax.axhline(
            target, color=BLACK, linewidth=0.9, linestyle="dotted", label=f"target {target:g}"
        )
    if late and max(late) > min(late):
        ax.set_ylim(*with_margin(min(late), max(late)))
    ax.set(xlabel="optimizer update", ylabel=ylabel)
    return finish(ax, legend=bool(curves))


def _plot_groups(ax: "Axes", updates: ArrayLike, values: ArrayLike, color: str) -> int:
    array = gaps(values)
    columns = array.reshape(len(array), -1)
    groups = columns.shape[1]
    few = groups <= len(LINE_STYLES)
    for group in range(groups):
        # Many groups are told apart by their order: from faint to full, with the ends named.
        named = few or group in (0, groups - 1)
        ax.plot(
            np.asarray(updates),
            columns[:, group],
            color=color,
            linewidth=1.8,
            linestyle=LINE_STYLES[group] if few else "solid",
            alpha=1.0 if few else 0.25 + 0.75 * group / (groups - 1),
            label=f"group {group}" if named else "_",
        )
    return groups


def _leave_out_outliers(ax: "Axes", train: NDArray[np.float64], valid: NDArray[np.float64]) -> None:
    """End the y axis above most losses if some training losses are far above the others."""
    losses = train[np.isfinite(train)]
    if not len(losses):
        return
    every = np.concatenate([losses, valid[np.isfinite(valid)]])
    low = float(every.min())
    far = low + 3 * (float(np.percentile(losses, 95)) - low)
    if losses.max() > far > low:
        ax.set_ylim(*with_margin(low, float(every[every <= far].max())))
