"""Draw schedules before any training: ours, those of torch, and several side by side.

Matplotlib is imported when a plot is drawn, and nothing here shows a figure: that is up to
the caller.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onecycle.arguments import check_callable, check_count, check_is, shown
from onecycle.plots.style import colors_of
from onecycle.schedules.of_torch import (
    follows_a_metric,
    is_torch_scheduler,
    position,
    values_left,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.optim.lr_scheduler import LRScheduler

Positions: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = "Callable[[Positions], Any] | LRScheduler"
Curves: TypeAlias = "Curve | Mapping[str, Curve] | Sequence[Curve]"


def plot_schedule(
    schedule_or_torch_scheduler: Curves,
    *,
    steps: int = 100,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw one schedule, or several in one plot with a legend.

    A schedule is drawn over the fraction of the training. A scheduler of torch is drawn
    over its steps, and simulated on a copy: it and its optimizer stay as they are.

    Args:
        schedule_or_torch_scheduler: What takes an array of positions in [0, 1], or a
            ``torch.optim.lr_scheduler.LRScheduler``; or several of one sort, as a mapping
            from names or as a sequence.
        steps: The points of a schedule, or the steps of a scheduler, from where it stands
            (one that knows its ``total_steps``, or holds such a one, is not taken beyond them).
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If ``steps`` is below 2 or there is nothing to draw.
        TypeError: If schedules and schedulers of torch are mixed, something is neither, or
            a scheduler follows a metric, which cannot be known beforehand.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> ax = plot_schedule({"up": lambda pos: pos, "down": lambda pos: 1 - pos})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['up', 'down']
    """
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    check_count("steps", steps, least=2)
    if ax is not None:
        check_is("ax", ax, Axes, "plt.gca()")
    curves = _named_curves(schedule_or_torch_scheduler)
    of_torch = {is_torch_scheduler(curve) for curve in curves.values()}
    if len(of_torch) != 1:
        came = shown(schedule_or_torch_scheduler)
        wrong = "schedules and torch schedulers together" if of_torch else "nothing to draw"
        raise (TypeError if of_torch else ValueError)(
            "schedule_or_torch_scheduler must be schedules of position, or schedulers of torch; "
            f"got {wrong}: {came}"
        )
    lines = [line for name, curve in curves.items() for line in _lines(name, curve, steps)]
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    for (label, x, y), color in zip(lines, colors_of(len(lines)), strict=True):
        ax.plot(x, y, label=label, color=color)
    ax.set_xlabel("step" if True in of_torch else "fraction of training")
    ax.set_ylabel("learning rate" if True in of_torch else "value")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def _named_curves(given: Curves) -> dict[str, Curve]:
    """Give every curve a name; the only one needs none."""
    if isinstance(given, Mapping):
        return {str(name): curve for name, curve in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return {f"{k}: {_short_name(curve)}": curve for k, curve in enumerate(given)}
    return {"": given}


def _short_name(curve: Curve) -> str:
    """Give the name of a function, or of the class of an object."""
    return getattr(curve, "__name__", type(curve).__name__)


def _lines(name: str, curve: Any, steps: int) -> list[tuple[str, Positions, Positions]]:
    """Give label, x and y of every line that a curve needs."""
    if not is_torch_scheduler(curve):
        check_callable("schedule_or_torch_scheduler", curve, "positions")
        x = np.linspace(0.0, 1.0, steps)
        y = np.asarray(curve(x), dtype=np.float64)
        if y.shape != x.shape:
            raise ValueError(
                f"schedule_or_torch_scheduler {shown(curve)} must give a value for each position, "
                f"shape {x.shape}; got shape {y.shape}"
            )
        return [(name, x, y)]
    x, rates = _simulate(curve, steps)
    if rates.shape[1] == 1 or (rates == rates[:, :1]).all():
        return [(name, x, rates[:, 0])]
    labels = [f"{name} group {g}".strip() for g in range(rates.shape[1])]
    return [(label, x, rates[:, g]) for g, label in enumerate(labels)]


def _simulate(scheduler: Any, steps: int) -> tuple[Positions, Positions]:
    """Step a copy of a torch scheduler; give its steps and rates (steps, groups)."""
    if follows_a_metric(scheduler):
        raise TypeError(
            f"{type(scheduler).__name__} follows a metric, which is not known before the "
            "training; plot the recorded learning rate after it"
        )
    stand_in = _copy_without_tensors(scheduler)
    first = position(scheduler)
    count = int(min(steps, values_left(scheduler)))
    rates = []
    for k in range(count):
        if k > 0:
            with warnings.catch_warnings():
                # It warns that no optimizer step came first; here is nothing to optimize.
                warnings.simplefilter("ignore")
                stand_in.step()
        rates.append([float(group["lr"]) for group in stand_in.optimizer.param_groups])
    return np.arange(first, first + count, dtype=np.float64), np.array(rates)


def _copy_without_tensors(scheduler: Any) -> Any:
    """Copy a scheduler and its optimizer deeply, but for the parameters and their state.

    Those may fill a device, and a scheduler reads only the numbers of the groups.
    """
    optimizer = scheduler.optimizer
    stand_ins: dict[int, Any] = {id(optimizer.state): {}}
    for group in optimizer.param_groups:
        stand_ins[id(group["params"])] = ["no parameters"]
    return copy.deepcopy(scheduler, stand_ins)
