"""How long a fit is: the batches of each epoch, and the updates of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping


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


#: The batches of a whole epoch by the epoch from which on they hold, the first one 0, in order;
#: ``None`` where they are not known.
Lengths = Mapping[int, int | None]


def updates_in(lengths: Lengths, n_epoch: float | None, batches_per_update: int) -> int | None:
    """Return how many updates a fit of so many epochs has; ``None`` if that is unknown.

    Args:
        lengths: The batches of whole epochs.
        n_epoch: The epochs of the fit, perhaps with a fraction; ``None`` without a limit.
        batches_per_update: The batches of an update; the last one of an epoch may have fewer.

    Example:
        >>> updates_in({0: 10}, 1.25, 4), updates_in({0: 10, 3: 5}, 4.5, 1)
        (4, 38)
    """
    if n_epoch is None:
        return None
    last, updates = math.ceil(n_epoch) - 1, 0
    n_of_last: int | None = None
    for (first, n), end in zip(lengths.items(), [*list(lengths)[1:], math.inf], strict=True):
        if first <= last:
            n_of_last = n
            updates += int(min(end, last) - first) * math.ceil((n or 0) / batches_per_update)
    rest = batches_in(last, n_of_last, n_epoch)
    return None if rest is None else updates + math.ceil(rest / batches_per_update)


def epochs_in(lengths: Lengths, n_updates: int, batches_per_update: int) -> int | None:
    """Return in how many epochs so many updates are made; ``None`` if that is unknown.

    Args:
        lengths: The batches of whole epochs.
        n_updates: The updates, at least 1.
        batches_per_update: As for `updates_in`.

    Example:
        >>> epochs_in({0: 10, 3: 5}, 30, 1), epochs_in({0: 10, 3: 5}, 36, 1)
        (3, 5)
    """
    left = n_updates
    for (first, n), end in zip(lengths.items(), [*list(lengths)[1:], math.inf], strict=True):
        if not n:
            return None
        each = math.ceil(n / batches_per_update)
        if left <= (end - first) * each:
            return first + math.ceil(left / each)
        left -= int(end - first) * each
    return None
