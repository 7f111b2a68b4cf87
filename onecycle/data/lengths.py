"""How long a fit is: the batches of each epoch, and the updates of all of them."""

from __future__ import annotations

import math


def least(*limits: int | None) -> int | None:
    """Return the smallest of some limits; ``None`` where there is none.

    Example:
        >>> least(None, 3, 2), least(None)
        (2, None)
    """
    return min((limit for limit in limits if limit is not None), default=None)


def batches_in(epoch: int, n_batches: int | None, n_epoch: float | None) -> int | None:
    """Return how many batches an epoch of a fit has: the last one may be a part of an epoch.

    Args:
        epoch: The epoch, from 0.
        n_batches: The batches of a whole epoch; ``None`` if that is unknown.
        n_epoch: The epochs of the fit, perhaps with a fraction; ``None`` without a limit.

    Returns:
        The batches, of a fraction rounded up; ``None`` if that is unknown.

    Raises:
        ValueError: If the last epoch is a part of one of unknown length.

    Example:
        >>> [batches_in(epoch, 10, 1.25) for epoch in (0, 1)]
        [10, 3]
    """
    part = 1.0 if n_epoch is None else n_epoch - epoch
    if part >= 1:
        return n_batches
    if n_batches is None:
        raise ValueError(
            f"n_epoch={n_epoch} ends within an epoch, and the training loader has no length: give "
            "steps_per_epoch= too"
        )
    return max(1, math.ceil(round(part * n_batches, 6)))  # 0.1 * 30 is a little above 3


def updates_in(n_batches: int | None, n_epoch: float | None, batches_per_update: int) -> int | None:
    """Return how many updates a fit of so many epochs has; ``None`` if that is unknown.

    Args:
        n_batches: The batches of a whole epoch; ``None`` if that is unknown.
        n_epoch: The epochs of the fit, perhaps with a fraction; ``None`` without a limit.
        batches_per_update: The batches of an update; the last one of an epoch may have fewer.

    Example:
        >>> updates_in(10, 1.25, 4)
        4
    """
    if n_epoch is None:
        return None
    last = math.ceil(n_epoch) - 1
    rest = batches_in(last, n_batches, n_epoch)
    if n_batches is None or rest is None:
        return None
    return last * math.ceil(n_batches / batches_per_update) + math.ceil(rest / batches_per_update)
