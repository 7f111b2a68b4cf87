"""How noisy a curve is: two estimates, for what rises and falls, and for what is resampled."""

import math

import numpy as np
from numpy.typing import ArrayLike

from onecycle.arguments import shown
from onecycle.schedules.shapes import Array


def deviation(values: Array) -> float:
    """Estimate the standard deviation of the noise from the steps between neighbours.

    They see the noise and hardly the trend.

    Args:
        values: Of shape ``(points,)``, finite.

    Returns:
        The deviation; infinite for fewer than two points.

    Example:
        >>> deviation(np.array([1.0, 3.0, 1.0, 3.0]))
        1.4142135623730951
    """
    steps = np.diff(values)
    return math.sqrt(np.mean(steps**2) / 2) if len(steps) else math.inf


def residuals(values: Array) -> Array:
    """Return what sets each value apart from the mean of itself and its neighbours; 0 at an end.

    Example:
        >>> residuals(np.array([0.0, 3.0, 0.0, 0.0])).tolist()
        [0.0, 2.0, -1.0, 0.0]
    """
    found = np.zeros_like(values)
    found[1:-1] = values[1:-1] - (values[:-2] + values[1:-1] + values[2:]) / 3
    return found


def as_numbers(name: str, values: ArrayLike) -> Array:
    """Return what a person gives as one side of a curve, or refuse what is no numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be numbers of shape (points,); got {shown(values)}") from None
