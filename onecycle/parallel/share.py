"""`split_for_rank`: an iterable data set that need not draw what is not this process's.

Of an iterable data set every process draws all, and takes its items by position. Where drawing is
dear, a data set may have a method ``split_for_rank(rank, world)``, which is called at the
beginning of each pass, after ``set_epoch``:

- It returns an ``IterableDataset`` of the samples at the positions ``rank``, ``rank + world``,
  ``rank + 2 * world``, ... of all, in their order. So the t-th batches of all processes are
  together the t-th batch of one process with a batch ``world`` times as large: losses, updates and
  the record agree to rounding.
- What it draws at random from the generators of Python, NumPy and torch is the same in every
  process. Worker processes share its samples among themselves, as those of any such data set.
- Where one process comes to its end before the others, it stands in with a sample that counts
  nothing, until all are done: so shares of other lengths leave no sample out, but have other
  batches than one process. That is asked before each batch, by one number on the CPU.
- A resumed fit draws and drops the batches of its share that were trained on. With another number
  of processes, and with ``drop_last``, all is drawn by all, as without the method.

What cannot be seen is not checked: that no sample is in two shares. Where both have a length, that
of the share is.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from onecycle.arguments import shown
from onecycle.data.loaders import loader_of
from onecycle.data.parts import Part

_NAME = "split_for_rank"


def can_split(dl: Any) -> bool:
    """Tell whether a loader's data set gives each process its share.

    Args:
        dl: Any loader.
    """
    if type(dl) is not DataLoader or not isinstance(dl.dataset, IterableDataset):
        return False
    return not dl.drop_last and callable(getattr(dl.dataset, _NAME, None))


def loader_of_share(dl: DataLoader[Any], part: Part) -> DataLoader[Any]:
    """Return a loader of what the data set gives one process.

    Args:
        dl: The loader of all, which is unchanged.
        part: The process.

    Raises:
        TypeError: If the share is no ``IterableDataset``.
        ValueError: If it has another length than the samples at its positions.
    """
    data: Any = dl.dataset
    share = data.split_for_rank(part.rank, part.world)
    name = f"{type(data).__name__}.{_NAME}"
    if not isinstance(share, IterableDataset):
        raise TypeError(
            f"{name}({part.rank}, {part.world}) must return an IterableDataset; got {shown(share)}"
        )
    if hasattr(data, "__len__") and hasattr(share, "__len__"):
        right = -(-(len(data) - part.rank) // part.world)
        if len(share) != right:
            raise ValueError(
                f"{name}({part.rank}, {part.world}) has {len(share)} samples; of {len(data)} every "
                f"{part.world}th one, from position {part.rank} on, makes {right}"
            )
    return loader_of(dl, share)
