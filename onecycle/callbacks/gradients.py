"""What happens to gradients before an update: `GradientAccumulation` and `GradientClip`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.arguments import check_count, check_positive
from onecycle.core.callback import Callback, Stage
from onecycle.elsewhere import says_our_keywords
from onecycle.errors import CancelStep
from onecycle.optim.sharded import whole_number
from onecycle.record.weights import Weight, weight_beside

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class GradientAccumulation(Callback):
    """Make one update of several batches, as if they were one large batch.

    Every sample has the same weight in an update, also where batches differ in size and where an
    epoch ends before the last update has all its batches: that update is made of those there are.
    Schedules, ``n_updates_planned`` and the record count updates, and the recorded training loss
    is the mean over all samples of an update.

    For a loss that is a mean over something else, such as valid tokens, `Learner.loss_weight` says
    how much each batch counts. One that counts nothing adds nothing, also where its loss is NaN,
    the mean of nothing, as long as its gradients are not. Layers that look at a whole batch, like
    batch norm, see the small batches.

    Args:
        n_batches: How many batches make one update, at least 1.

    Raises:
        TypeError, ValueError: For what is no number of batches.

    Example:
        >>> from onecycle import GradientAccumulation
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=10)
        >>> learn.fit(2, cbs=[GradientAccumulation(4)])
        >>> learn.n_updates
        6
    """

    stage = Stage.PREPARE

    @says_our_keywords
    def __init__(self, n_batches: int) -> None:
        self.n_batches = check_count("n_batches", n_batches)
        self._weight: Weight = 0
        self._full: Weight = 0
        self._total: Weight = 0
        self._loss: Any = 0.0

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the batches of an update, as the fit itself does."""
        return {"fit.batches_per_update": self.n_batches}

    def before_fit(self, learn: Loop) -> None:
        """Plan the updates of the fit."""
        learn.batches_per_update = self.n_batches
        learn.plan_updates()

    def before_backward(self, learn: Loop) -> None:
        """Weight the batch as one of a window whose batches all count as its first."""
        whole = learn.whole_weight  # of several processes the same in each
        asked = learn.loss_weight(learn.pred, learn.batch) if whole is None else whole
        weight = self._weight = weight_beside(learn.loss, asked)
        if learn.batches_in_window == 0:
            first = weight
            if isinstance(weight, Tensor):  # which may be 0
                size = learn.batch_size(learn.batch) if whole is None else 1
                first = weight.where(weight > 0, size)
            self._full, self._total, self._loss = self.n_batches * first, 0, 0.0
        learn.loss_grad = learn.loss_grad * (weight / self._full)

    def after_backward(self, learn: Loop) -> None:
        """Postpone the update until there are enough batches."""
        weight = self._weight
        self._total = self._total + weight
        part, factor = learn.loss * (weight / self._full), self._full / self._total
        if isinstance(weight, Tensor):
            part = part.where(weight > 0, 0)
        if isinstance(factor, Tensor):
            factor = factor.where(torch.as_tensor(self._total > 0), 0)
        self._loss = self._loss + part
        # 1 for a window as expected; only the loop knows which batch will turn out the last.
        learn.stepper.grad_factor = factor
        if learn.batches_in_window < self.n_batches:
            raise CancelStep

    def before_step(self, learn: Loop) -> None:
        """Report the mean loss of all that counts in the update; NaN where nothing does."""
        learn.update_loss = self._loss * (self._full / self._total)


class GradientClip(Callback):
    """Clip the gradients of every update, by their norm or each value for itself.

    It sees the gradients of the whole update: after accumulation, and without the scale of fp16.

    Args:
        max_norm: If the 2-norm of all gradients together is larger, they are scaled down to it.
            The default, 1, unless ``max_value`` is given.
        max_value: Every value is cut off to ``[-max_value, max_value]`` instead.

    Attributes:
        norm: The norm before clipping, of the last update that was clipped by norm: a tensor on
            the device, which is not read; ``None`` before.

    Raises:
        ValueError: If both are given, or a limit is not above 0.

    Source:
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
        arXiv:1211.5063.

    Example:
        >>> from onecycle import GradientClip
        >>> from onecycle.testing import toy_learner
        >>> clip = GradientClip(0.5)
        >>> toy_learner().fit(1, cbs=[clip])
        >>> clip.norm.shape
        torch.Size([])
    """

    stage = Stage.PREPARE

    @says_our_keywords
    def __init__(self, max_norm: float | None = None, *, max_value: float | None = None) -> None:
        if max_norm is not None and max_value is not None:
            raise ValueError(
                f"give max_norm or max_value, not both; got {max_norm} and {max_value}"
            )
        if max_norm is None and max_value is None:
            max_norm = 1.0
        for name, limit in (("max_norm", max_norm), ("max_value", max_value)):
            if limit is not None:
                check_positive(name, limit)
        if max_value is not None and max_value > (most := torch.finfo(torch.float32).max):
            raise ValueError(
                f"max_value must be a number of float32, at most {most:g}; got {max_value}"
            )
        self.max_norm, self.max_value = max_norm, max_value
        self.norm: Tensor | None = None

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the limits."""
        return {"max_norm": self.max_norm, "max_value": self.max_value}

    def before_step(self, learn: Loop) -> None:
        """Clip what the optimizer will see."""
        if self.max_norm is not None:
            norm = nn.utils.clip_grad_norm_(learn.stepper.params, self.max_norm)
            self.norm = norm if learn.sharded is None else whole_number(norm)
        elif self.max_value is not None:
            nn.utils.clip_grad_value_(learn.stepper.params, self.max_value)
