"""Pictures of characters, for a terminal."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from onecycle.plots.range_test import limits
from onecycle.plots.style import gaps

#: The characters left of the curve: the losses at the ends of the y axis.
_MARGIN = 10


def draw_lr_find(
    lrs: ArrayLike,
    smoothed: ArrayLike,
    suggestions: Mapping[str, float],
    *,
    turn: float | None = None,
    peaks: Sequence[float] = (),
    log: bool = True,
    width: int = 72,
    height: int = 12,
) -> str:
    """Draw the smoothed loss of a range test in characters.

    The y axis is that of `plot_lr_find`, but for the raw losses; where the curve is above it
    there is a ``^``. Under it the first letter of its name marks each suggestion, ``|`` where the
    loss turns up, and ``o`` the peaks of short cycles, as far as they are in the picture.

    Args:
        lrs: The learning rates, increasing, of shape ``(n,)``.
        smoothed: The smoothed loss at each, of shape ``(n,)``.
        suggestions: The suggested rate by rule.
        turn: The rate at which the loss turns up.
        peaks: Those of short cycles, each an ``o`` under the curve.
        log: Whether the rates grew geometrically.
        width: Of the picture, in characters, at least 40.
        height: Of the curve, in lines, at least 2.

    Returns:
        The lines, without an empty one at the end; an empty text where no loss is finite.

    Example:
        >>> print(draw_lr_find([1, 10, 100], [3, 1, 2], {"valley": 10}, width=40,
        ...                    height=3))
               3 |****
                 |    *******           ********
               1 |           ***********
                 +------------------------------
                  1             v            100
    """
    curve = gaps(smoothed)
    ends = limits(np.empty(0), curve)
    if ends is None:
        return ""
    scale = np.log if log else np.asarray
    x, (low, high), n = scale(np.asarray(lrs, np.float64)), ends, width - _MARGIN
    known = np.isfinite(curve)
    columns = np.linspace(x[0], x[-1], n)
    heights = np.interp(columns, x[known], curve[known], left=np.nan, right=np.nan)
    rows = [[" "] * n for _ in range(height)]
    for column, share in enumerate((heights - low) / ((high - low) or 1.0)):
        if np.isfinite(share):
            row = round((height - 1) * (1 - min(share, 1.0)))
            rows[row][column] = "*" if share <= 1.0 else "^"
    marks = [("o", peak) for peak in peaks]
    marks += [] if turn is None else [("|", turn)]
    marks += [(name[0], lr) for name, lr in suggestions.items()]
    first, last = (f"{float(np.asarray(lrs)[i]):.3g}" for i in (0, -1))
    under = [*first, *" " * (n - len(first) - len(last)), *last]
    for mark, lr in marks:
        if columns[0] <= scale(lr) <= columns[-1]:
            under[int(np.abs(columns - scale(lr)).argmin())] = mark
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    lines = [f"{labels.get(i, ''):>8} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    return "\n".join([*lines, " " * 9 + "+" + "-" * n, " " * _MARGIN + "".join(under)])
