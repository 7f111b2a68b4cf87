"""`CSVLogger`: a table of the epochs in a file, whole after each of them."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_flag, check_path
from onecycle.callbacks.monitor import EpochValue, recorded_names, shown_names
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage
from onecycle.elsewhere import says_our_keywords
from onecycle.files import atomic_write

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class CSVLogger(Callback):
    """Write a row for each epoch to a CSV file, which is whole after each of them.

    The columns are ``epoch`` (of the learner's life, the first is 1), ``train_loss`` (the mean
    over the epoch's updates), ``valid_loss`` and the metrics where there is validation,
    ``seconds``, and ``lr`` at the end of the epoch (``lr_0``, ``lr_1``, ... for several parameter
    groups). A cell is empty where an epoch recorded nothing. The columns of a metric with several
    values are there from the first validation on. Numbers are written so that reading
    them gives the same bits. ``learn.recorder.to_csv`` writes every update instead.

    The file is written anew after each epoch, so that a crash at any moment leaves the rows of all
    finished epochs. If that fails (a full disk, a folder that may only be read), the fit goes on, a
    warning says so, and the next epoch writes the missing rows too. Later fits with the same logger
    add to its rows.

    Args:
        path: The file; its folder is made where it is missing. By default ``history.csv``, in the
            folder where Python runs.
        append: Keep the rows of a file that is there, and add to them, instead of replacing it.

    Raises:
        ValueError: If ``path`` is a folder; before the first batch, if the rows that are there
            have other columns.

    Example:
        >>> import tempfile
        >>> from onecycle import CSVLogger
        >>> from onecycle.testing import toy_learner
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> learn = toy_learner()
        >>> learn.fit(2, cbs=[CSVLogger(path)])
        >>> header, first, second = path.read_text().splitlines()
        >>> header
        'epoch,train_loss,valid_loss,mse,seconds,lr'
        >>> float(second.split(",")[2]) == learn.validate()["valid_loss"]
        True
    """

    stage = Stage.RECORD
    requires = (Recorder,)

    @says_our_keywords
    def __init__(self, path: str | Path = "history.csv", *, append: bool = False) -> None:
        self.path, self.append = check_path("path", path), check_flag("append", append)
        if self.path.is_dir():
            raise ValueError(f"expected the path of a file; {str(path)!r} is a folder")
        self._header: list[str] | None = None
        self._rows: list[list[Any]] = []
        self._values: list[EpochValue] = []
        self._lengths: dict[str, int] = {}  # of the record, as the fit began
        self._began = 0.0
        self._is_behind = False  # rows are not in the file

    def before_fit(self, learn: Loop) -> None:
        """Write the header, or check the one that is there."""
        self._values = []
        self._lengths = {name: len(each) for name, each in recorder_of(learn).history.items()}
        if self._header is None and self.append:
            self._read()
        header = self._begin(learn, recorded_names(learn))
        if self._header not in (None, header):
            header = self._begin(learn, shown_names(learn))
        if self._header not in (None, header):
            raise ValueError(
                f"the rows of {self.path} have the columns {', '.join(self._header or ())}; this "
                f"fit has {', '.join(header)}: give it a CSVLogger with another path"
            )
        self._header = header
        self._try_to_write()

    def _begin(self, learn: Loop, names: list[str]) -> list[str]:
        """Read these values from here on, and return the columns."""
        known = {value.name: value for value in self._values}
        self._values = [known.get(name, EpochValue(name)) for name in names]
        for value in self._values:
            if value.name not in known:
                value.load_state_dict({"seen": self._lengths.get(value.name, 0)})
        n = len(learn.groups)
        rates = ["lr"] if n == 1 else [f"lr_{g}" for g in range(n)]
        return ["epoch", *names, "seconds", *rates]

    def before_epoch(self, learn: Loop) -> None:
        """Look at the clock."""
        self._began = time.perf_counter()

    def after_epoch(self, learn: Loop) -> None:
        """Write the row of this epoch."""
        seconds = time.perf_counter() - self._began
        self._take_names(recorded_names(learn), learn)
        values = [value.read(learn) for value in self._values]
        rates = learn.groups.in_force("lr")
        self._rows.append([learn.total_epochs + 1, *values, seconds, *rates])
        self._try_to_write()

    def after_fit(self, learn: Loop) -> None:
        """Say again what is not in the file."""
        if self._is_behind:
            log.warning("CSVLogger: the last rows could not be written to %s", self.path)

    def _take_names(self, names: list[str], learn: Loop) -> None:
        """Give the values that a pass has shown a column each, in place of their metric's own."""
        if names == [value.name for value in self._values]:
            return
        before, self._header = self._header or [], self._begin(learn, names)
        rows = [dict(zip(before, row, strict=True)) for row in self._rows]
        self._rows = [[row.get(name, "") for name in self._header] for row in rows]

    def _read(self) -> None:
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self._header, *self._rows = [*csv.reader(file)] or [None]

    def _try_to_write(self) -> None:
        """Write all rows; what cannot be written is said once, and tried again with the next."""
        try:
            with (
                atomic_write(self.path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                csv.writer(file).writerows([self._header or [], *self._rows])
        except OSError as error:
            if not self._is_behind:
                log.warning("CSVLogger: could not write %s, the fit goes on: %s", self.path, error)
            self._is_behind = True
        else:
            self._is_behind = False

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and how much of the record is in them."""
        return {
            "header": self._header,
            "rows": [list(row) for row in self._rows],
            "values": {value.name: value.state_dict() for value in self._values},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, and the file with it."""
        self._header = state["header"]
        self._rows = [list(row) for row in state["rows"]]
        self._values = [EpochValue(name) for name in state["values"]]
        for value in self._values:
            value.load_state_dict(state["values"][value.name])
        if self._header is not None:
            self._try_to_write()
