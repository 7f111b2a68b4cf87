"""How every picture looks: colours, grid, legend, limits.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

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


def new_axes() -> "Axes":
    """Make a figure with axes of the size that all pictures have."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.2), layout="constrained")[1]


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
    if legend:
        ax.legend(framealpha=0.85, edgecolor="none")  # readable where it lies over a curve
    return ax


def gaps(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values with NaN, which matplotlib draws as a gap, for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)
