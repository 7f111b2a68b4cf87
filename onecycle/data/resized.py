"""`SizesByEpoch`: the training data of a fit in batches of another size, from some epochs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onecycle.data.loaders import TensorLoader, with_batch_size


class SizesByEpoch:
    """Tells how many samples a training batch has in an epoch of a fit, and gives the loader of it.

    Args:
        sizes: Samples of a batch by the epoch from which on they hold, the first one 0. Before
            the first that is named, batches are the loader's own.

    Example:
        >>> sizes = SizesByEpoch({2: 32})
        >>> [sizes.of(epoch) for epoch in range(4)], sizes.changes
        ([None, None, 32, 32], [0, 2])
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self._sizes = dict(sorted(sizes.items()))
        self._made: tuple[Any, int | None, Any] = (None, None, None)

    @property
    def changes(self) -> list[int]:
        """The epochs from which on a size holds, the first one included."""
        return sorted({0, *self._sizes})

    def of(self, epoch: int) -> int | None:
        """Return the samples of a batch in an epoch; ``None`` where they are the loader's own."""
        begun = [first for first in self._sizes if first <= epoch]
        return self._sizes[begun[-1]] if begun else None

    def loader(self, dl: Any, epoch: int) -> Any:
        """Return what gives the batches of an epoch, of the same data in the same order.

        Epochs of one size have one loader, whose worker processes may stay; those of the size
        before end with it.

        Args:
            dl: The training loader, which is unchanged.
            epoch: The epoch of the fit.
        """
        size = self.of(epoch)
        if size is None:
            return dl
        known, its_size, _ = self._made
        if known is not dl or its_size != size:
            self._made = dl, size, with_batch_size(dl, size)
        return self._made[2]

    def let_go(self) -> None:
        """End the worker processes of the loader that was made last."""
        self._made = None, None, None


def check_resizable(dl: Any) -> None:
    """Refuse a loader whose rows cannot be taken in batches of another size.

    Raises:
        TypeError: Saying for which loaders it is known how.

    Example:
        >>> import torch
        >>> check_resizable(TensorLoader(torch.zeros(4)))  # refuses nothing
    """
    with_batch_size(dl, 1)
    if isinstance(dl, TensorLoader) and type(dl).batches is not TensorLoader.batches:
        raise TypeError(
            f"cannot change the batch size of a {type(dl).__name__}, which has batches() of its "
            "own: it is known how for a TensorLoader itself; transform= may change its batches"
        )
