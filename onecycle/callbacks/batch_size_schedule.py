"""`BatchSizeSchedule`: batches that grow during a fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count, shown
from onecycle.core.callback import Callback, Stage
from onecycle.data.loaders import with_batch_size
from onecycle.data.resized import SizesByEpoch, check_resizable
from onecycle.data.sizes import warn_of_single_sample

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class BatchSizeSchedule(Callback):
    """Let the training batches grow during a fit, where its learning rate would fall otherwise.

    From an epoch on that is named, the samples of the training loader come in batches of that
    size, each with one forward pass and one update; before the first one that is named, in the
    loader's own. Every epoch is a pass over the data in the order that it has in any fit, so that
    an epoch of larger batches has fewer updates. How many there will be is known before the first:
    schedules run over all of them, so that a cycle or a phase that is a part of the fit is that
    part of its updates, and not of its epochs. A rate that stays where it is, while batches grow by
    the factor by which it would have been divided, lets the noise of the updates fall as decay
    would.

    Validation, range tests and inference have the batches of their loaders, and the training loader
    stays as it is. Of several processes a size is that of the batch of all, of which each takes its
    part: with the same sizes any number of them gives the same answer. (The size that a loader was
    made with is that of each process.) `GradientAccumulation` makes an update of several of the
    larger batches, and ``steps_per_epoch`` is the most batches that an epoch has, of whatever size.

    Args:
        sizes: Samples of a batch, at least 1, by the epoch of the fit from which on they hold, the
            first one 0.

    Raises:
        TypeError, ValueError: For what are no sizes by epoch; before the first batch, if the
            training loader's batch size cannot be changed, as that of a list, a stream or a batch
            sampler of one's own, if an epoch would have no batch, with a second schedule of this
            kind or with ``max_time=``.

    Source:
        Smith, Kindermans, Ying & Le, "Don't Decay the Learning Rate, Increase the Batch Size",
        arXiv:1711.00489.

    Example:
        >>> from onecycle import BatchSizeSchedule
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=8, batch_size=8)  # 64 samples
        >>> learn.fit_one_cycle(5, 0.1, cbs=[BatchSizeSchedule({2: 16, 4: 32})])
        >>> learn.n_updates
        26
    """

    stage = Stage.PREPARE
    runs_in = frozenset(("fit",))

    def __init__(self, sizes: Mapping[int, int]) -> None:
        if not isinstance(sizes, Mapping) or not sizes:
            raise TypeError(
                "sizes must be a dict from epochs to samples of a batch, such as {0: 64, 5: 128}; "
                f"got {shown(sizes)}"
            )
        self.sizes = {
            check_count("an epoch in sizes", epoch, least=0): check_count("a size in sizes", size)
            for epoch, size in sizes.items()
        }

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the sizes."""
        return {"sizes": {str(epoch): size for epoch, size in sorted(self.sizes.items())}}

    def before_fit(self, learn: Loop) -> None:
        """Plan the updates of the fit, after checking that each epoch has some."""
        if sum(isinstance(callback, BatchSizeSchedule) for callback in learn.cbs) > 1:
            raise ValueError("two BatchSizeSchedule would each say how large batches are: keep one")
        try:
            check_resizable(learn.dls.train)
        except TypeError as error:
            error.add_note("onecycle: make such a loader, or leave BatchSizeSchedule out")
            raise
        for epoch, size in sorted(self.sizes.items()):
            if learn.n_epoch is not None and epoch >= learn.n_epoch:
                log.warning(
                    "BatchSizeSchedule: batches of %d begin with epoch %d, and this fit has %g",
                    size,
                    epoch,
                    learn.n_epoch,
                )
            else:
                self._check(learn, size)
        learn.batch_sizes = SizesByEpoch(self.sizes)
        learn.plan_updates()

    def _check(self, learn: Loop, size: int) -> None:
        batches = learn.count_batches(learn.dls.train, size)
        if batches is None:
            raise ValueError(
                "BatchSizeSchedule must know how many updates a fit has, and the sampler of the "
                "training loader has no length: give it __len__"
            )
        if not batches:
            raise ValueError(
                f"sizes: batches of {size} samples need as many, and with drop_last=True the "
                "training loader would give none: let them be smaller"
            )
        warn_of_single_sample(learn.model, with_batch_size(learn.dls.train, size))

    def cleanup_fit(self, learn: Loop) -> None:
        """Let go of worker processes."""
        learn.batch_sizes.let_go()
