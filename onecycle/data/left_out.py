"""What ``steps_per_epoch`` leaves out of every epoch is said."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from onecycle.data.loaders import TensorLoader, n_batches

log = logging.getLogger("onecycle")


def warn_of_left_out(dl: Iterable[Any], steps_per_epoch: int | None) -> None:
    """Warn where each epoch has the same first batches of a loader, and never the others.

    So it is where the order is fixed; a stream goes on from epoch to epoch.

    Args:
        dl: The training loader.
        steps_per_epoch: The batches of an epoch; ``None`` for all.
    """
    n = n_batches(dl)
    if steps_per_epoch is None or n is None or steps_per_epoch >= n or not _has_fixed_order(dl):
        return
    log.warning(
        "steps_per_epoch=%d, and the training loader has %d batches in one order: all others "
        "than the first %d are never trained on; shuffle it, or leave steps_per_epoch out",
        steps_per_epoch,
        n,
        steps_per_epoch,
    )


def _has_fixed_order(dl: Any) -> bool:
    if isinstance(dl, TensorLoader):
        return not dl.shuffle
    if not isinstance(dl, DataLoader) or isinstance(dl.dataset, IterableDataset):
        return isinstance(dl, list | tuple)
    is_own = type(dl.batch_sampler) is BatchSampler or dl.batch_sampler is None
    return is_own and type(dl.sampler) is SequentialSampler
