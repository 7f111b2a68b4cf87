"""Which peak is believed where a range test shows no valley: from its break and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Muon, Optimizer, RMSprop

from onecycle.core.callback import Callback, Stage
from onecycle.optim.wrapped import with_inner
from onecycle.range_test.knee import Reading

#: The peak that is often good for an optimizer whose update is as large for small gradients as
#: for large ones: Adam and its relatives; Muon; RMSprop, whose momentum of m makes its updates
#: 1 / (1 - m) as large. Medians of the best peaks of the benchmark's tasks, to one digit.
USUAL, USUAL_OF_MUON, USUAL_OF_RMSPROP = 0.01, 0.05, 0.02

#: How far below the breaking rate good ones lie, as far as that alone says.
BELOW = 15.0

#: The updates over which gradients are measured.
N_GRADIENTS = 10


def believed_peak(
    reading: Reading, last_lr: float, opt: Optimizer, gradient: Callable[[], float]
) -> float:
    """Return the peak that is believed before any cycle was run.

    A test that broke bounds it: a fifteenth of the breaking rate is believed of SGD, whose good
    rates differ by decades from task to task; of an optimizer that divides by the size of the
    gradient the middle, in log space, of that and the optimizer's usual peak. One that did not
    break counts as if it had at its end; but for SGD the step of Polyak says more.

    Args:
        reading: What the losses of the test say.
        last_lr: The last rate of the test.
        opt: The optimizer.
        gradient: Returns the mean square of the norm of a batch's gradient; asked for SGD alone.

    Source:
        The rate at which one step along the gradient undoes the whole loss: Polyak, "Introduction
        to Optimization", 1987, section 5.3.
    """
    usual = usual_peak(opt)
    bound = (reading.breaks or last_lr) / BELOW
    if usual is None and reading.breaks is None:
        bound = _polyak(reading.start, gradient(), _momentum(opt)) or bound
    if reading.is_clear:  # and its loss still falls at the last rate
        return max(reading.lr, bound) if usual is None else reading.lr
    return bound if usual is None else math.sqrt(usual * bound)


def usual_peak(opt: Optimizer) -> float | None:
    """Return the usual peak of an optimizer; ``None`` where it depends on the gradient's size.

    Example:
        >>> weight = [torch.zeros(1, requires_grad=True)]
        >>> usual_peak(torch.optim.AdamW(weight)), usual_peak(SGD(weight))
        (0.01, None)
    """
    steps = _kinds(opt)
    if any(isinstance(inner, SGD | ASGD) for inner in steps):
        return None
    if any(isinstance(inner, Muon) for inner in steps):
        return USUAL_OF_MUON
    if any(isinstance(inner, RMSprop) for inner in steps):
        return USUAL_OF_RMSPROP * (1 - _momentum(opt))
    return USUAL


def _kinds(opt: Optimizer) -> list[Any]:
    """Return what steps the last group: the optimizer, and what it holds."""
    last = opt.param_groups[-1]["params"][0]
    return [
        inner
        for inner in with_inner(opt)
        if any(last is own for group in inner.param_groups for own in group["params"])
    ]


def _momentum(opt: Optimizer) -> float:
    return min(float(opt.param_groups[-1].get("momentum", 0.0)), 0.99)


def _polyak(loss: float, gradient: float, momentum: float) -> float | None:
    """Return twice the step of Polyak, less what momentum makes of it; or ``None``.

    Twice: of a quadratic loss that is the largest that is stable.
    """
    found = 2 * (1 - momentum) * abs(loss) / gradient if gradient > 0 else math.nan
    return found if math.isfinite(found) and found > 0 else None


class GradientNorms(Callback):
    """Measures the mean square of the norm of the gradients."""

    stage = Stage.RECORD
    during = "train"
    runs_in = frozenset(("range_test",))

    def __init__(self) -> None:
        self._squares: list[Tensor] = []

    def before_step(self, learn: Any) -> None:
        """Take in the gradients of an update."""
        gradients: list[Tensor] = [
            parameter.grad
            for group in learn.opt.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self._squares.append(torch.stack([(g.float() ** 2).sum() for g in gradients]).sum())

    @property
    def mean_square(self) -> float:
        """The mean over the updates; NaN where there was none."""
        return float(torch.stack(self._squares).mean()) if self._squares else math.nan
