"""What is drawn on axes, read back."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D


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
