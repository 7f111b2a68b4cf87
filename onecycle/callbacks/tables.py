"""What is written while something runs: a table of epochs, and a bar where somebody can watch."""

from __future__ import annotations

import html
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

#: Below this width a bar and its text do not fit on one line of a terminal.
MIN_COLUMNS = 70

_WIDTHS = {"epoch": 5, "time": 7}


class Table:
    """The table as plain lines, without bars."""

    has_bars = False
    bar_is_open = False

    def header(self, names: Sequence[str]) -> None:
        """Begin the table with the names of its columns."""
        self._widths = [_WIDTHS.get(name, max(11, len(name))) for name in names]
        self.row(names)

    def row(self, cells: Sequence[str]) -> None:
        """Add a line."""
        aligned = [cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True)]
        print("  ".join(aligned), flush=True)

    def end(self, note: str) -> None:
        """End the table with a note, if there is one."""
        if note:
            print(note, flush=True)

    def open_bar(self, label: str, total: int | None, running_s: float) -> None:
        """Open a bar for what has been running for some seconds."""

    def update_bar(self, done: int, comment: str) -> None:
        """Show how much is done."""

    def close_bar(self) -> None:
        """Take the bar away."""


class TerminalTable(Table):
    """The table as lines, and under it a bar for the pass that is running."""

    has_bars = True

    def open_bar(self, label: str, total: int | None, running_s: float) -> None:
        """Open a bar for what has been running for some seconds."""
        from fastprogress.fastprogress import ConsoleProgressBar

        self._bar = bar = ConsoleProgressBar(range(0), total or "noinfer", leave=False)
        bar.cols = bar.length = min(bar.cols, 100) - 1  # some terminals wrap after the last column
        bar.prefix = label
        self.bar_is_open = True
        _start(bar, running_s)

    def update_bar(self, done: int, comment: str) -> None:
        """Show how much is done."""
        bar = self._bar
        # fastprogress only ever shortens its bar. Made anew, each line has the full width, and
        # covers the one before.
        bar.length, bar.comment = bar.cols, comment
        bar.update(done)

    def close_bar(self) -> None:
        """Take the bar away."""
        if self.bar_is_open:
            self.bar_is_open = False
            self._bar.prefix = ""  # it would be left standing
            self._bar.on_iter_end()

    def end(self, note: str) -> None:
        """End the table with a note, if there is one."""
        if self.bar_is_open:
            self.bar_is_open = False
            print(flush=True)
        super().end(note)


class NotebookBar(Table):
    """A bar alone, which is gone when it is closed."""

    has_bars = True

    def open_bar(self, label: str, total: int | None, running_s: float) -> None:
        """Open a bar for what has been running for some seconds."""
        self._label = label
        self._bar = self.new_bar(total)
        self._bar.comment = label
        self.bar_is_open = True
        _start(self._bar, running_s)

    def new_bar(self, total: int | None) -> Any:
        """Make the bar of fastprogress."""
        from fastprogress.fastprogress import NBProgressBar

        return NBProgressBar(range(0), total or "noinfer", leave=False)

    def update_bar(self, done: int, comment: str) -> None:
        """Show how much is done."""
        self._bar.comment = f"{self._label} {comment}"
        self._bar.update(done)

    def close_bar(self) -> None:
        """Take the bar away."""
        if self.bar_is_open:
            self.bar_is_open = False
            self._bar.on_iter_end()


class NotebookTable(NotebookBar):
    """The table in HTML between a bar of epochs and a bar for the pass that is running."""

    def __init__(self, n_epoch: float | None) -> None:
        from fastprogress.fastprogress import NBMasterBar

        self._n_rows = 0
        self._master = NBMasterBar(range(0), "noinfer" if n_epoch is None else math.ceil(n_epoch))
        self._master.main_bar.update_every = 0
        self._master.update(0)

    def header(self, names: Sequence[str]) -> None:
        """Begin the table with the names of its columns."""
        self._master.lines[:1] = [[html.escape(name) for name in names]]

    def row(self, cells: Sequence[str]) -> None:
        """Add a line."""
        self._master.lines.append(cells)
        self._n_rows += 1

    def new_bar(self, total: int | None) -> Any:
        """Make the bar under the table."""
        from fastprogress.fastprogress import NBProgressBar

        self._lay_out()
        return NBProgressBar(range(0), total or "noinfer", parent=self._master)

    def close_bar(self) -> None:
        """Take the bar away."""
        self.bar_is_open = False

    def end(self, note: str) -> None:
        """End the table with a note, if there is one."""
        self._lay_out(note)
        if self.bar_is_open:
            self.bar_is_open = False
            self._bar.on_interrupt()
        else:
            self._master.on_iter_end()

    def _lay_out(self, note: str = "") -> None:
        """Write the table for the next refresh: not at each row, as it grows with the rows."""
        from fastprogress.core import text2html_table

        self._master.update(self._n_rows)
        self._master.text = text2html_table(self._master.lines) + html.escape(note)


def new_table(n_epoch: float | None) -> Table:
    """Return the table of a fit for where the output goes."""
    # Imported when a fit begins: in a notebook fastprogress imports matplotlib.
    from fastprogress.fastprogress import IN_NOTEBOOK

    return NotebookTable(n_epoch) if IN_NOTEBOOK else _outside_notebooks()


def new_bar() -> Table:
    """Return what shows bars alone, and nothing where nobody can watch them."""
    from fastprogress.fastprogress import IN_NOTEBOOK

    return NotebookBar() if IN_NOTEBOOK else _outside_notebooks()


def _outside_notebooks() -> Table:
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if is_terminal and shutil.get_terminal_size((100, 40)).columns >= MIN_COLUMNS:
        return TerminalTable()
    return Table()


def _start(bar: Any, running_s: float) -> None:
    """Start a bar of a pass that has been running for some seconds already."""
    bar.update_every = 0  # when to refresh is decided here, not there
    bar.update(0)
    bar.start_t -= running_s
