"""The record of a training: named series of (update, value).

Appending is all that happens in the training loop. It stores the value as it came, a device
tensor unread, so it costs a tenth of a microsecond and never waits for the device. Values are
read in blocks: one copy from the device for every `BLOCK` of them, or when somebody looks.
"""

import csv
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onecycle.files import atomic_write

if TYPE_CHECKING:
    from pandas import DataFrame

#: How many values wait unread. An unread loss tensor costs about 540 bytes, a read one 16.
BLOCK = 256

Scalar = float | Tensor


class Series:
    """One recorded quantity over the updates of a learner's life.

    Made by `History.series`. Costs 16 bytes for each update and 8 for each further group.

    Args:
        name: The name it goes by, such as ``"train_loss"``.
        width: How many numbers an entry has: 1, or the number of parameter groups.

    Example:
        >>> series = Series("train_loss")
        >>> series.append(1, torch.tensor(0.5))
        >>> series.append(2, 0.25)
        >>> series.updates, series.values
        (array([1, 2]), array([0.5 , 0.25]))
    """

    def __init__(self, name: str, width: int = 1) -> None:
        self.name = name
        self.width = width
        self._updates = array("q")
        self._values = array("d")
        self._pending: list[tuple[int, Scalar | Sequence[Scalar]]] = []
        self._n_read = 0  # entries that are in both arrays

    def append(self, update: int, value: Scalar | Sequence[Scalar]) -> None:
        """Record a value, without reading it.

        Args:
            update: Optimizer updates done over the learner's life; the first is 1.
            value: A number, or a list or tuple of ``width`` numbers. A number is a float or a
                tensor of one element, detached, that nobody writes to afterwards.
        """
        self._pending.append((update, value))
        if len(self._pending) >= BLOCK:
            self._drain()

    @property
    def updates(self) -> NDArray[np.int64]:
        """The updates at which values were recorded: int64 of shape ``(n,)``, a copy."""
        self._drain()
        return np.array(self._updates, dtype=np.int64)

    @property
    def values(self) -> NDArray[np.float64]:
        """The values: float64 of shape ``(n,)``, or ``(n, width)`` if that is above 1, a copy."""
        self._drain()
        values = np.array(self._values, dtype=np.float64)
        return values if self.width == 1 else values.reshape(-1, self.width)

    def __len__(self) -> int:
        return self._n_read + len(self._pending)

    def __repr__(self) -> str:
        return f"Series({self.name!r}, width={self.width}, {len(self)} entries)"

    def _drain(self) -> None:
        if not self._pending:
            return
        numbers: list[Scalar] = []
        for update, value in self._pending:
            row = value if isinstance(value, (list, tuple)) else (value,)
            if len(row) != self.width:
                raise ValueError(
                    f"an entry of {self.name!r} has {self.width} number(s), got {len(row)} at "
                    f"update {update}: append a number, or a list of one for each group"
                )
            numbers += row
        read = array("d", _read(numbers, self.name))
        updates = array("q", [update for update, _ in self._pending])
        # Ctrl-C may come between any two calls. What a drain that it cut short has added goes;
        # the entries wait until the last line, which has no call in it.
        n = self._n_read
        del self._values[n * self.width :], self._updates[n:]
        self._values.extend(read)
        self._updates.extend(updates)
        self._n_read, self._pending = n + len(updates), []

    def _replace(self, updates: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        self._updates = array("q", updates.tobytes())
        self._values = array("d", values.tobytes())
        self._n_read, self._pending = len(self._updates), []


def _read(numbers: list[Scalar], name: str) -> list[float]:
    """Return the numbers as floats: one copy for each device and dtype among the tensors."""
    floats: list[Any] = list(numbers)
    places: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for place, number in enumerate(numbers):
        # The first test is for speed: isinstance(..., Tensor) runs Python code.
        if type(number) is not float and isinstance(number, Tensor):
            places[number.device, number.dtype].append(place)
    for group in places.values():
        # One dtype at a time: stacked with float32, a large integer would be rounded.
        stacked = torch.stack([floats[place] for place in group])
        if stacked.numel() != len(group):
            raise ValueError(
                f"an entry of {name!r} is a tensor of shape {tuple(stacked.shape[1:])}: "
                "append tensors of one element, or a list of one for each group"
            )
        for place, number in zip(group, stacked.flatten().tolist(), strict=True):
            floats[place] = number
    return floats


class History(Mapping[str, Series]):
    """Everything that was recorded, by name.

    Example:
        >>> history = History()
        >>> record_lr = history.series("lr").append
        >>> record_lr(1, 0.1)
        >>> record_lr(2, 0.2)
        >>> history["lr"].values
        array([0.1, 0.2])
        >>> list(history)
        ['lr']
    """

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def series(self, name: str, width: int = 1) -> Series:
        """Return the series of this name, made if it is new.

        A recorder calls this once and keeps the ``append`` of the series.

        Args:
            name: The name of the series.
            width: How many numbers an entry has: 1, or the number of parameter groups.

        Returns:
            The series; the same object each time.

        Raises:
            ValueError: The series exists with another width.

        Example:
            >>> History().series("lr", width=2)
            Series('lr', width=2, 0 entries)
        """
        series = self._series.setdefault(name, Series(name, width))
        if series.width != width:
            raise ValueError(
                f"{name!r} is recorded with {series.width} number(s) an entry, got {width}: "
                "the number of parameter groups cannot change within one record"
            )
        return series

    def __getitem__(self, name: str) -> Series:
        try:
            return self._series[name]
        except KeyError:
            names = ", ".join(self._series) or "nothing yet"
            raise KeyError(f"nothing is recorded as {name!r}; recorded: {names}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)

    def __len__(self) -> int:
        return len(self._series)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(series)}" for name, series in self.items())
        return f"History({sizes})"

    def to_columns(self) -> dict[str, list[Any]]:
        """Return all series as columns of one length, one row for each update in any of them.

        Returns:
            ``"update"`` first, then a column for each series, or ``lr_0``, ``lr_1``, ... for
            a series of several groups. Where a series has no value the column has ``None``;
            where it has several for one update, the last.

        Example:
            >>> history = History()
            >>> history.series("lr", width=2).append(1, [0.1, 0.2])
            >>> history.series("valid_loss").append(2, 0.5)
            >>> for name, column in history.to_columns().items():
            ...     print(name, column)
            update [1, 2]
            lr_0 [0.1, None]
            lr_1 [0.2, None]
            valid_loss [None, 0.5]
        """
        updates = {name: series.updates for name, series in self.items()}
        every = np.unique(np.concatenate([np.empty(0, np.int64), *updates.values()]))
        columns: dict[str, list[Any]] = {"update": every.tolist()}
        for name, series in self.items():
            rows = np.searchsorted(every, updates[name]).tolist()
            values = series.values.reshape(-1, series.width)
            for group in range(series.width):
                column: list[float | None] = [None] * len(every)
                for row, value in zip(rows, values[:, group].tolist(), strict=True):
                    column[row] = value
                columns[name if series.width == 1 else f"{name}_{group}"] = column
        return columns

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `to_columns` to a CSV file, with an empty cell where there is no value.

        The file is complete or not there: it is written beside its place and then renamed.
        Floats are written so that reading them gives the same bits.

        Args:
            path: Where to write; a file that is there is replaced.
        """
        columns = self.to_columns()
        with (
            atomic_write(Path(path)) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def to_frame(self) -> "DataFrame":
        """Return `to_columns` as a pandas ``DataFrame`` whose index is the update.

        Returns:
            A frame of float64, NaN where a series has no value.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas, which is not installed: pip install 'onecycle[pandas]'"
            ) from error
        columns = self.to_columns()
        index = pd.Index(columns.pop("update"), dtype="int64", name="update")
        return pd.DataFrame(columns, index=index, dtype="float64")

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the whole record as tensors, by name, to be saved with ``torch.save``.

        Returns:
            For each series ``"updates"`` (int64) and ``"values"`` (float64), as copies.
        """
        return {
            name: {
                "updates": torch.from_numpy(series.updates),
                "values": torch.from_numpy(series.values),
            }
            for name, series in self.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace the whole record by that of a `state_dict`.

        Series stay the same objects, so an ``append`` that was kept goes on recording; one
        that the state does not know becomes empty.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: A series exists with another number of groups; nothing is changed.
        """
        arrays = {name: (entry["updates"], entry["values"]) for name, entry in state.items()}
        widths = {
            name: values.shape[1] if values.ndim == 2 else 1 for name, (_, values) in arrays.items()
        }
        for name in widths.keys() & self._series.keys():
            self.series(name, widths[name])  # refuses another width before anything changes
        for name, width in widths.items():
            self.series(name, width)
        empty = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        for name, series in self.items():
            updates, values = arrays.get(name, empty)
            series._replace(updates.cpu().numpy(), values.cpu().numpy())
