"""Smoothing: of a whole series, for plots, and of losses as they come, for the range test."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def smooth(values: ArrayLike, beta: float = 0.98) -> NDArray[np.float64]:
    """Smooth a series by an exponential moving average without the bias of its start.

    A value that is NaN or infinite gives NaN at its own place and takes no part in the
    average, so that one bad batch is a gap in the curve and not the end of it.

    Args:
        values: The series, oldest first, of shape ``(n,)``.
        beta: The weight of the past, in [0, 1). At 0 the series comes back as it is; at 0.98
            a value counts for about fifty steps.

    Returns:
        The smoothed series as float64, of shape ``(n,)``.

    Raises:
        ValueError: ``beta`` is outside [0, 1), or ``values`` has more than one dimension.

    Example:
        >>> smooth([1.0, 1.0, 4.0], beta=0.5).round(3).tolist()
        [1.0, 1.0, 2.714]

    Source:
        The bias correction of Kingma and Ba, "Adam", 2015, section 3; the default of 0.98 is
        that of fastai's learning-rate finder.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}: 0.98 is usual, 0 does not smooth")
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"smooth one series at a time: values has shape {series.shape}")
    smoothed = np.full(len(series), np.nan)
    average, count = 0.0, 0
    for index, value in enumerate(series.tolist()):
        if math.isfinite(value):
            average = beta * average + (1 - beta) * value
            count += 1
            smoothed[index] = average / (1 - beta**count)
    return smoothed


class Smoother:
    """Average losses exponentially, corrected for the start at zero.

    With ``a_0 = 0`` and ``a_t = beta * a_(t-1) + (1 - beta) * loss_t`` the smoothed loss is
    ``a_t / (1 - beta**t)``: a weighted mean of the losses so far, whose first value is the
    first loss itself.

    Args:
        beta: Weight of the past, in [0, 1). 0.98 remembers about 50 losses.

    Raises:
        ValueError: If ``beta`` is outside [0, 1).

    Example:
        >>> smoother = Smoother(beta=0.5)
        >>> [round(smoother.update(loss), 3) for loss in (4.0, 1.0, 1.0)]
        [4.0, 2.0, 1.429]

    Source:
        The bias correction is that of Kingma and Ba, "Adam", 2015, section 3
        (arXiv:1412.6980).
    """

    def __init__(self, beta: float = 0.98) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is expected in [0, 1), got {beta}; 0 does not smooth at all")
        self.beta = beta
        self._mean = 0.0
        self._count = 0

    def update(self, value: float) -> float:
        """Take in one loss and return the smoothed loss. After a NaN it stays NaN."""
        self._count += 1
        self._mean = self.beta * self._mean + (1 - self.beta) * value
        return float(self._mean / (1 - self.beta**self._count))
