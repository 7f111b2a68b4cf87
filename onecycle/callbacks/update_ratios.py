"""`UpdateRatios`: how far the weights move in an update, against their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from onecycle.arguments import check_count
from onecycle.callbacks.gradient_norm import norm_of, plot_series
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop
    from onecycle.record.history import Series


class UpdateRatios(Callback):
    """Record how large an update is against the weights, as the series ``update_ratio``.

    For each parameter group the 2-norm of the change divided by the 2-norm of the weights before
    it, over the parameters that train; NaN where none does. Some 1e-3 is usual: far more, and the
    weights are thrown about; far less, and they hardly learn. Nothing waits for the device. An
    update that is measured copies the weights once, and keeps the copy until it is made.

    Args:
        every: Measure every so many updates of a fit, at least 1.

    Source:
        The rule of thumb is that of Karpathy, "CS231n: Convolutional Neural Networks for Visual
        Recognition", notes on learning, section "Ratio of weights:updates".

    Example:
        >>> from onecycle import UpdateRatios
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=6)
        >>> learn.fit(1, cbs=[UpdateRatios(every=3)])
        >>> learn.recorder.history["update_ratio"].updates.tolist()
        [3, 6]
    """

    stage = Stage.RECORD
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    def __init__(self, every: int = 10) -> None:
        self.every = check_count("every", every)
        self._series: Series | None = None
        self._before: list[list[tuple[Tensor, Tensor]]] = []  # by group: live, and as it was

    def before_fit(self, learn: Loop) -> None:
        """Open the series."""
        self._series = recorder_of(learn).history.series("update_ratio", width=len(learn.groups))
        self._before = []

    def before_step(self, learn: Loop) -> None:
        """Copy the weights, if this update is measured."""
        self._before = []
        if (learn.n_updates + 1) % self.every == 0:
            groups = learn.groups
            for g in range(len(groups)):
                live = [p.detach() for p in groups.params(g) if p.requires_grad]
                self._before.append([(each, each.clone()) for each in live])

    def after_step(self, learn: Loop) -> None:
        """Record how far they moved."""
        if self._before and self._series is not None:
            self._series.append(learn.total_updates, [_ratio(pairs) for pairs in self._before])
        self._before = []

    def after_cancel_step(self, learn: Loop) -> None:
        """Forget the weights of an update that was skipped."""
        self._before = []

    def cleanup_fit(self, learn: Loop) -> None:
        """Keep no copy."""
        self._before = []

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the ratios against the update, with a line at 1e-3.

        Args:
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: If no update was measured yet.
        """
        return plot_series(self._series, "size of update / size of weights", guide=1e-3, ax=ax)


def _ratio(pairs: list[tuple[Tensor, Tensor]]) -> float | Tensor:
    size = norm_of([old for _, old in pairs])
    with torch.no_grad():
        moved = norm_of([new - old for new, old in pairs])
    return moved / size
