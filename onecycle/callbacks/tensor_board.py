"""`TensorBoard`: the record of a fit as the event files that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecycle.arguments import check_path
from onecycle.callbacks.trackers import Draw, Setting, Tracker, package


class TensorBoard(Tracker):
    """Write a fit for TensorBoard: ``tensorboard --logdir FOLDER``.

    Each series of the record is a scalar of its name, whose step is the update over the learner's
    life. The settings and where the files are stand under "Text", the picture of a range test
    under "Images". What is written, when, and how a resumed fit goes on, is described at
    `Tracker`: values that the interrupted fit wrote after its last checkpoint are taken back.

    Args:
        folder: Where the runs are, each in a folder of its name.
        name: What the run is called.

    Raises:
        ImportError: If tensorboard is missing: ``pip install 'onecycle[trackers]'``.

    Example:
        >>> learn.fit_one_cycle(5, cbs=[TensorBoard("runs")])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, *, name: str | None = None) -> None:
        package("tensorboard", "TensorBoard")
        super().__init__(name)
        self.folder = check_path("folder", folder)
        if self.folder.is_file():
            raise ValueError(f"expected the path of a folder; {str(folder)!r} is a file")
        self._writer: Any = None

    def open_run(self, name: str) -> str:
        """Make the folder of the run."""
        numbered = (name if n == 1 else f"{name}-{n}" for n in range(1, 10**6))
        found = next(each for each in numbered if not (self.folder / each).exists())
        self._begin(found)
        return found

    def reopen_run(self, key: str, last: int) -> bool:
        """Write another file of events into the folder, before which the later ones are void."""
        if not (self.folder / key).is_dir():
            return False
        self._begin(key, purge_step=last + 1)
        return True

    def _begin(self, name: str, **options: Any) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / name), **options)

    def write_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write the settings as a table."""
        self._writer.add_text("settings", _table(settings), 0)

    def write_values(self, update: int, values: Mapping[str, float]) -> None:
        """Write the scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)

    def write_range_test(self, draw: Draw, suggestions: Mapping[str, float]) -> None:
        """Write the picture."""
        self._writer.add_image("range test", draw(), 0, dataformats="HWC")

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write where the files are, as a table."""
        self._writer.add_text("files", _table(files), 0)

    def flush_run(self) -> str:
        """Flush the file."""
        self._writer.flush()
        return str(self._key)

    def close_run(self, has_ended: bool) -> None:
        """Close the file."""
        self._writer.close()
        self._writer = None


def _table(values: Mapping[str, Any]) -> str:
    """Write a table in Markdown."""
    cells = (f"| {name} | {str(value).replace('|', '/')} |" for name, value in values.items())
    return "\n".join(["| name | value |", "|---|---|", *cells])
