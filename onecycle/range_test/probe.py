"""`ValidProbe`: one validation batch at a time, between two updates of a range test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from onecycle.core.restore import preserved_rng
from onecycle.data.passes import start_pass
from onecycle.record.metrics import MetricSet, value_owners

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class ValidProbe:
    """Measures the loss and the metrics on the next validation batch, each time it is asked.

    The loader starts again when it is used up. The model is in evaluation mode for the batch and
    without gradients; its flags, the learner's fields and every random number generator are put
    back afterwards. No event of a fit fires.

    Args:
        learn: The learner whose validation loader and metrics are used.

    Raises:
        ValueError: If the learner has no validation loader.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> probe = ValidProbe(learn)
        >>> probe.measure(learn), probe.measure(learn)
        (None, None)
        >>> probe.losses.shape, list(probe.metrics)
        ((2,), ['mse'])
    """

    def __init__(self, learn: Loop) -> None:
        loader = learn.dls.valid
        if loader is None:
            raise ValueError(
                "valid=True measures on validation batches, and this learner has no validation "
                "loader: give it DataLoaders(train, valid), or leave valid=False"
            )
        self._means = MetricSet(deepcopy(learn.metrics))  # theirs belong to the fit
        self._batches = _endless(loader, learn.seed, learn.total_epochs)
        self._measured: list[dict[str, float]] = []

    def measure(self, learn: Loop) -> None:
        """Take in the next batch."""
        self._means.reset()
        with preserved_rng():
            batch = next(self._batches)
        learn.infer([batch], self._collect)
        self._measured.append(self._means.compute())

    def _collect(self, learn: Loop) -> None:
        learn.measure_batch(self._means)

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """The loss of each batch, shape ``(batches,)``; NaN for a batch that was cancelled."""
        return self._series("valid_loss")

    @property
    def metrics(self) -> dict[str, npt.NDArray[np.float64]]:
        """By name the metric of each batch, shape ``(batches,)``; one of several by each value."""
        return {name: self._series(name) for name in value_owners(self._means.metrics, self.parts)}

    @property
    def parts(self) -> dict[str, list[str]]:
        """By metric the names of the values that it gave: see `MetricSet`."""
        return self._means.parts

    def _series(self, name: str) -> npt.NDArray[np.float64]:
        return np.array([found.get(name, math.nan) for found in self._measured])

    def close(self) -> None:
        """Let go of the loader, and of its worker processes."""
        self._batches = iter(())


def apart(loader: Any) -> Any:
    """Return a loader over which a pass can run beside one that is running already."""
    if isinstance(loader, DataLoader):
        # Of persistent workers there is one pass at a time, which may be the training loader's.
        loader = copy(loader)
        loader._iterator = None
    return loader


def _endless(loader: Any, seed: int, epoch: int) -> Iterator[Any]:
    """Draw batches without end, pass after pass."""
    loader = apart(loader)
    while True:
        empty = True
        for batch in start_pass(loader, seed=seed, epoch=epoch):
            yield batch
            empty = False
        if empty:
            raise ValueError("the validation loader gave no batch: it is empty")
        epoch += 1
