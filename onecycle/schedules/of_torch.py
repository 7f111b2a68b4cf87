"""A scheduler of torch taken apart: what it is made of, where it stands, how far it goes.

``SequentialLR`` and ``ChainedScheduler`` hold others, and each of those may again. Torch itself is
not imported: a scheduler is known by what it has.
"""

import inspect
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from typing import Any


def is_torch_scheduler(thing: object) -> bool:
    """Tell a scheduler of torch from a schedule."""
    return hasattr(thing, "optimizer") and hasattr(thing, "get_last_lr")


def follows_a_metric(scheduler: Any) -> bool:
    """Tell whether its step is given a metric, as that of torch's ``ReduceLROnPlateau`` is."""
    return "metrics" in inspect.signature(scheduler.step).parameters


def parts(scheduler: Any, steps: float) -> list[tuple[Any, float]]:
    """List the schedulers that set rates, each with how many of the first steps are its own.

    Args:
        scheduler: Any scheduler of torch; one that holds no others is its only part.
        steps: The steps that are looked at, from its first value on.

    Returns:
        Pairs of a scheduler and a number of steps, which is 0 for one that is not reached.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import ConstantLR, SequentialLR, StepLR
        >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> both = SequentialLR(opt, [ConstantLR(opt), StepLR(opt, 2)], milestones=[3])
        >>> [(type(part).__name__, steps) for part, steps in parts(both, 10)]
        [('ConstantLR', 3), ('StepLR', 7)]
    """
    found = []
    for inner, start, stop in _held(scheduler):
        found += parts(inner, max(0, min(stop, steps) - start))
    return found or [(scheduler, steps)]


def cycles_momentum(scheduler: Any) -> bool:
    """Tell whether any part of it drives the momentum too."""
    return any(getattr(part, "cycle_momentum", False) for part, _ in parts(scheduler, 0))


def position(scheduler: Any) -> int:
    """Return the steps that it has made; ``ChainedScheduler`` counts none, its parts do."""
    if hasattr(scheduler, "last_epoch"):
        return max(0, int(scheduler.last_epoch))  # -1 where its turn has not come
    return max((position(inner) for inner, _, _ in _held(scheduler)), default=0)


def values_left(scheduler: Any) -> float:
    """Return how many values it has, the present one included, before it jumps or fails.

    ``OneCycleLR`` has ``total_steps`` of them; others have no end.
    """
    here, total = position(scheduler), getattr(scheduler, "total_steps", None)
    limits = [max(1, total - here) if isinstance(total, int) else inf]
    for inner, start, stop in _held(scheduler):
        end = max(start, here) + values_left(inner)
        if here < stop and end < stop:
            limits.append(end - here)
    return min(limits)


def _held(scheduler: Any) -> Iterator[tuple[Any, float, float]]:
    """Give the schedulers that it holds, each with its first step and the first after its last."""
    inner = getattr(scheduler, "_schedulers", ())
    milestones = getattr(scheduler, "_milestones", None)
    if milestones is None:  # all at once
        yield from ((each, 0, inf) for each in inner)
    else:
        for each, (start, stop) in zip(inner, pairwise([0, *milestones, inf]), strict=True):
            yield each, start, stop
