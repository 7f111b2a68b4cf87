"""How every picture looks: colours, grid, legend, limits.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
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


#: A legend with more entries than this lies below the axes, where it hides no curve.
FITS_INSIDE = 4

#: Of more curves than this, which a scale of colours tells apart, a few have a name.
NAMED = 8


def colors_of(n: int) -> list[str]:
    """Return so many colours: those of the palette, or where it is too small a scale of shades.

    Example:
        >>> colors_of(2) == [BLUE, ORANGE], len({*colors_of(30)})
        (True, 30)
    """
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # Not to its end: the lightest yellow is hard to see on white.
    return [to_hex(colormaps["viridis"](0.92 * i / (n - 1))) for i in range(n)]


def names_shown(labels: Sequence[str]) -> list[str]:
    """Return the labels, of many only some with the first and the last; "_" hides the others.

    Example:
        >>> names_shown([str(i) for i in range(22)]).count("_")
        14
    """
    if len(labels) <= NAMED:
        return list(labels)
    shown = {round(i * (len(labels) - 1) / (NAMED - 1)) for i in range(NAMED)}
    return [label if i in shown else "_" for i, label in enumerate(labels)]


def new_axes(
    width: float = 7,
    height: float = 4.2,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> "Axes":
    """Make a figure with axes: of the size that all curves have, or another, in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout=layout)[1]


def to_pixels(plot: Callable[..., object]) -> NDArray[np.uint8]:
    """Draw a picture that nobody is shown, and return its pixels.

    Args:
        plot: Called with ``ax=``.

    Returns:
        uint8 of shape ``(height, width, 3)``.

    Example:
        >>> to_pixels(lambda ax: ax.plot([1, 2])).shape
        (420, 700, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    plot(ax=figure.subplots())
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def with_margin(low: float, high: float) -> tuple[float, float]:
    """Widen limits, so that a curve does not touch the frame."""
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def tidy(ax: "Axes", *, grid: bool = True) -> None:
    """Leave of the frame what helps to read values."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for spine in ax.spines.values():
        spine.set_linewidth(0.6)
    ax.tick_params(width=0.6)
    if grid:
        ax.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)


def finish(ax: "Axes", *, legend: bool = True) -> "Axes":
    """Tidy up axes on which all is drawn, and return them."""
    tidy(ax)
    handles, labels = ax.get_legend_handles_labels()
    if legend and len(labels) <= FITS_INSIDE:
        ax.legend(framealpha=0.85, edgecolor="none")  # readable where it lies over a curve
    elif legend:
        legend_below(ax, handles, labels)
    return ax


def legend_below(ax: "Axes", handles: Sequence["Artist"], labels: Sequence[str]) -> None:
    """Put a legend of many entries below the axes."""
    longest = max(map(len, labels))
    ax.legend(
        handles,
        labels,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2 if longest > 28 else 3 if longest > 14 else 4,
    )


def gaps(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values with NaN, which matplotlib draws as a gap, for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)
