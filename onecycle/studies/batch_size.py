"""`find_batch_size`: the largest batch whose updates the memory can hold."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from onecycle.arguments import check_count, shown
from onecycle.callbacks.micro_batches import MicroBatches, free_memory
from onecycle.checkpoints.snapshot import preserved
from onecycle.data.loaders import TensorLoader, with_batch_size
from onecycle.explanations import is_out_of_memory
from onecycle.parallel.together import failing_together
from onecycle.range_test.varied import put_in_force

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer

log = logging.getLogger("onecycle")

#: The first update makes the optimizer's state, and the second runs beside it.
_UPDATES = 2


def find_batch_size(learn: Trainer, most: int | None = None) -> int:
    """Find the largest batch size that fits: see `Learner.find_batch_size`."""
    if learn.running is not None:
        raise RuntimeError(f"a {learn.running} is running: look for a batch size before the fit")
    size, limit = _own_size(learn), _samples(learn)
    if most is not None:
        limit = min(limit, check_count("most", most))
    size = min(size, limit)
    error = _try(learn, size)
    while error is not None:
        if size == 1:
            error.add_note("onecycle: not even a batch of one sample fits")
            raise error
        size //= 2
        error = _try(learn, size)
    # What was halved has shown already that twice as much does not fit.
    has_shown = size < min(_own_size(learn), limit)
    while not has_shown and size < limit and _try(learn, min(2 * size, limit)) is None:
        size = min(2 * size, limit)
    return size


def _own_size(learn: Trainer) -> int:
    loader = learn.dls.train
    size = getattr(loader, "batch_size", None)
    with_batch_size(loader, 1)  # refuses what is no loader of samples
    if not isinstance(size, int):
        raise TypeError(f"the training loader has no batch_size; got {shown(loader)}")
    return size


def _samples(learn: Trainer) -> int:
    """Return how many samples a pass over the training data has, for each process."""
    loader, n = learn.dls.train, 1
    if isinstance(loader, TensorLoader):
        n = len(loader.tensors[0])
    elif isinstance(loader, DataLoader):
        n = len(loader.sampler)  # type: ignore[arg-type]
    return n if learn.processes is None else -(-n // learn.processes.world)


def _try(learn: Trainer, size: int) -> Exception | None:
    """Make updates of this batch size; return the error where they do not fit in every process."""
    free_memory(learn.device)
    found: Exception | None = None
    try:
        # One in which not even the copy fits tells the others, who wait for it in the first update.
        together = failing_together(learn.processes)
        with together, preserved(learn), learn.removed_cbs(MicroBatches):
            put_in_force(learn, "batch_size", size)
            learn.run_fit(None, run="range_test", max_updates=_UPDATES)
    except Exception as error:
        found = error
    is_full = found is not None and is_out_of_memory(found)
    if learn.processes is not None:
        is_full = learn.processes.any(is_full)
    if found is not None and not is_full:
        raise found
    log.info("find_batch_size: %d samples %s", size, "do not fit" if is_full else "fit")
    return found
