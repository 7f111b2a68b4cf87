"""Pictures of what goes on inside: levels of groups and layers, histograms, times."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from onecycle.plots.style import (
    BLACK,
    PALETTE,
    colors_of,
    finish,
    gaps,
    names_shown,
    new_axes,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_levels(
    updates: ArrayLike,
    values: ArrayLike,
    labels: Sequence[str],
    *,
    ylabel: str,
    guide: float | None = None,
    log: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot several levels against the update, one colour each.

    Args:
        updates: Of shape ``(n,)``.
        values: Of shape ``(n, lines)``; what is not finite is a gap.
        labels: What each line is; of many lines some are named.
        ylabel: What the values are.
        guide: A level to mark by a dotted line.
        log: Whether the y axis is logarithmic, where there is a value above 0.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_levels([1, 2], [[1, 2], [3, 4]], ["first", "second"], ylabel="norm")
        >>> [line.get_label() for line in ax.lines]
        ['first', 'second']
    """
    ax = new_axes() if ax is None else ax
    columns = gaps(values)
    x = np.asarray(updates)
    colors, names = colors_of(len(labels)), names_shown(labels)
    marker = "o" if len(x) == 1 else None
    for color, name, column in zip(colors, names, columns.T, strict=True):
        ax.plot(x, column, color=color, linewidth=1.3, marker=marker, label=name)
    if guide is not None:
        ax.axhline(guide, color=BLACK, linewidth=0.9, linestyle="dotted", label=f"{guide:g}")
    if log and (columns > 0).any():
        ax.set_yscale("log")
    ax.set(xlabel="optimizer update", ylabel=ylabel)
    return finish(ax, legend=len(labels) > 1 or guide is not None)


def plot_color_histogram(
    updates: ArrayLike,
    shares: ArrayLike,
    farthest: float,
    *,
    ylabel: str,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw histograms side by side: a column for each update, and the share of a bin as colour.

    Args:
        updates: Of shape ``(n,)``.
        shares: Of shape ``(n, bins)``, bins equal in ``sign(x) log(1 + |x|)``, the lowest first.
        farthest: The magnitude at which they end.
        ylabel: What the values are.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_color_histogram([1, 2], [[0.0, 1.0], [0.5, 0.5]], 10.0, ylabel="x")
        >>> len(ax.collections), ax.get_ylabel()
        (1, 'x')
    """
    from matplotlib.colors import PowerNorm

    ax = new_axes() if ax is None else ax
    array, x = np.asarray(shares, dtype=np.float64), np.asarray(updates, dtype=np.float64)
    limit = float(np.log1p(farthest))
    step = (x[-1] - x[0]) / (len(x) - 1) if len(x) > 1 else 1.0
    edges = np.append(x - step / 2, x[-1] + step / 2)
    bins = np.linspace(-limit, limit, array.shape[1] + 1)
    # The root lets the few values far from 0 be seen, which are those that tell.
    scale = PowerNorm(0.4, vmin=0, vmax=float(np.nanmax(array, initial=1e-9)))
    mesh = ax.pcolormesh(edges, bins, array.T, cmap="cividis", norm=scale)
    filled = np.flatnonzero((array > 0).any(axis=0))
    if len(filled):
        ax.set_ylim(bins[filled[0]], bins[filled[-1] + 1])
    sizes = [size * 10.0**k for k in range(4) for size in (1, 3)]
    levels = [sign * size for size in sizes for sign in (-1, 1) if size <= farthest]
    low, high = ax.get_ylim()
    ticks = sorted([0.0, *levels])
    places = [float(np.sign(v) * np.log1p(abs(v))) for v in ticks]
    seen = [(p, v) for p, v in zip(places, ticks, strict=True) if low <= p <= high]
    ax.set_yticks([place for place, _ in seen], [f"{v:g}" for _, v in seen])
    ax.set(xlabel="optimizer update", ylabel=ylabel)
    tidy(ax, grid=False)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label("share of values")
    bar.outline.set_visible(False)
    return ax


def plot_bars(
    bars: Mapping[str, Mapping[str, float]], *, xlabel: str, ax: "Axes | None" = None
) -> "Axes":
    """Draw horizontal bars, one below the other in their order.

    Args:
        bars: By kind the length of each bar by its name; the first kind has all names.
        xlabel: What the lengths are.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_bars({"host": {"forward": 2.0, "backward": 4.0}}, xlabel="ms")
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['forward', 'backward']
    """
    names = list(next(iter(bars.values())))
    ax = new_axes(7, max(2.0, 0.9 + 0.28 * len(names))) if ax is None else ax
    height = 0.8 / len(bars)
    for k, (kind, lengths) in enumerate(bars.items()):
        places = np.arange(len(names)) + (k - (len(bars) - 1) / 2) * height
        widths = [lengths.get(name, 0.0) for name in names]
        ax.barh(places, widths, height, color=PALETTE[k % len(PALETTE)], label=kind)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    return finish(ax, legend=len(bars) > 1)
