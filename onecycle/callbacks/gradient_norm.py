"""`GradientNorm`: how large the gradients of every update are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from onecycle import plots
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage
from onecycle.optim.sharded import is_sharded, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop
    from onecycle.record.history import Series


class GradientNorm(Callback):
    """Record the 2-norm of the gradients of every update, as the series ``grad_norm``.

    Of each parameter group for itself. They are the gradients that the optimizer sees: of the
    whole update, without the scale of fp16, and clipped where `GradientClip` clips, whose ``norm``
    has what was there before. A group without a gradient, as a frozen one, has NaN. Nothing waits
    for the device.

    Example:
        >>> from onecycle import GradientNorm
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=3)
        >>> learn.fit(1, cbs=[GradientNorm()])
        >>> learn.recorder.history["grad_norm"].values.shape
        (3,)
    """

    stage = Stage.RECORD
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    def __init__(self) -> None:
        self._series: Series | None = None
        self._norms: list[float | Tensor] = []

    def before_fit(self, learn: Loop) -> None:
        """Open the series."""
        self._series = recorder_of(learn).history.series("grad_norm", width=len(learn.groups))

    def before_step(self, learn: Loop) -> None:
        """Measure what the optimizer will see."""
        groups = learn.groups
        self._norms = [
            norm_of([p.grad for p in groups.params(g) if p.grad is not None])
            for g in range(len(groups))
        ]

    def after_step(self, learn: Loop) -> None:
        """Record it, now that the update was made."""
        if self._series is not None:
            self._series.append(learn.total_updates, self._norms)

    def cleanup_fit(self, learn: Loop) -> None:
        """Keep no tensor alive."""
        self._norms = []

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the norms against the update.

        Args:
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: If there was no fit yet.
        """
        return plot_series(self._series, "norm of the gradients", ax=ax)


def norm_of(tensors: Sequence[Tensor]) -> float | Tensor:
    """Return the 2-norm of all tensors together, on their device and in float32 or better.

    Args:
        tensors: Any; of none it is NaN.

    Example:
        >>> norm_of([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
        >>> norm_of([])
        nan
    """
    parts = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    if not parts:
        return math.nan
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in parts)
    if any(map(is_sharded, parts)):  # each process has a part
        return whole_number(nn.utils.get_total_norm(parts))  # type: ignore[no-any-return]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in parts]
    norms = torch._foreach_norm(parts, 2, dtype=torch.float64 if wide else torch.float32)
    found: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return found


def plot_series(
    series: Series | None, ylabel: str, *, guide: float | None = None, ax: Axes | None
) -> Axes:
    """Plot a series of levels, one line for each group.

    Args:
        series: The series; ``None`` where there was no fit.
        ylabel: What it is.
        guide: A level to mark.
        ax: Where to draw; a new figure if ``None``.

    Raises:
        ValueError: If nothing was recorded.
    """
    if series is None or not len(series):
        raise ValueError("nothing was recorded: fit first, with this callback in cbs")
    values = series.values.reshape(-1, series.width)
    labels = [f"group {g}" for g in range(series.width)] if series.width > 1 else [series.name]
    return plots.plot_levels(
        series.updates, values, labels, ylabel=ylabel, guide=guide, log=True, ax=ax
    )
