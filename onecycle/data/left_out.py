"""What ``steps_per_epoch`` leaves out of every epoch is said."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from onecycle.data.loaders import TensorLoader, n_batches

log = logging.getLogger("onecycle")


def warn_of_left_out(dl: Iterable[Any], steps_per_epoch: int | None) -> None:
    """Warn where each epoch has the same first batches of a loader, and never the others.

    So it is where the order is fixed, and with a stream, which every epoch begins anew; not with
    an iterator, which goes on, nor where something hears ``set_epoch``.

    Args:
        dl: The training loader.
        steps_per_epoch: The batches of an epoch; ``None`` for all.
    """
    if steps_per_epoch is None or isinstance(dl, Iterator):
        return
    n = n_batches(dl)
    if n is not None and steps_per_epoch >= n:
        return
    if _has_fixed_order(dl):
        log.warning(
            "steps_per_epoch=%d, and the training loader has %s batches in one order: all others "
            "than the first %d are never trained on; shuffle it, or leave steps_per_epoch out",
            steps_per_epoch,
            "more" if n is None else n,
            steps_per_epoch,
        )
    elif _is_stream(dl):
        log.warning(
            "steps_per_epoch=%d, and each epoch begins the training loader anew: unless it gives "
            "other batches each time, only the first %d are trained on; pass an iterator over it, "
            "or let it shuffle by set_epoch",
            steps_per_epoch,
            steps_per_epoch,
        )


def _has_fixed_order(dl: Any) -> bool:
    if isinstance(dl, TensorLoader):
        return not dl.shuffle
    if not isinstance(dl, DataLoader) or isinstance(dl.dataset, IterableDataset):
        return isinstance(dl, list | tuple)
    is_own = type(dl.batch_sampler) is BatchSampler or dl.batch_sampler is None
    return is_own and type(dl.sampler) is SequentialSampler


def _is_stream(dl: Any) -> bool:
    if isinstance(dl, DataLoader) and not isinstance(dl.dataset, IterableDataset):
        return False
    parts = (dl, getattr(dl, "dataset", None))
    return not isinstance(dl, TensorLoader) and not any(hasattr(p, "set_epoch") for p in parts)
