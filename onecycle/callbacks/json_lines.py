"""`JSONLines`: the record of a fit as a file of lines, each a JSON object."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecycle.arguments import check_path
from onecycle.callbacks.trackers import Draw, Setting, Tracker


class JSONLines(Tracker):
    """Write a fit to a file of JSON lines, of which any program can read each.

    The first line is ``{"run": name, "settings": {...}}``. Then there is one for each update,
    ``{"update": 1, "train_loss": ..., "lr": ..., ...}``, with what was recorded at it; the last
    update of an epoch also has ``"epoch"`` and what validation gave. At the end comes
    ``{"files": {...}}``, where files were written. A range test before the fit is a line
    ``{"range_test": {rule: rate}}``. Numbers read back to the same bits; NaN and infinities, which
    JSON does not have, are the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which Python's
    ``float`` takes.

    When it is written, and how a resumed fit goes on, is described at `Tracker`. The file of a
    resumed fit is that of one which was never interrupted, but for the names of runs.

    Args:
        path: The file; its folder is made where it is missing. A file that is there is replaced.
        name: What the run is called.

    Raises:
        ValueError: If ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> from onecycle import JSONLines
        >>> from onecycle.testing import toy_learner
        >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> learn = toy_learner(n_batches=3)
        >>> learn.fit(1, cbs=[JSONLines(path)])
        >>> settings, *rows = map(json.loads, path.read_text().splitlines())
        >>> [row["update"] for row in rows], list(rows[-1])
        ([1, 2, 3], ['update', 'train_loss', 'lr', 'momentum', 'valid_loss', 'mse', 'epoch'])
        >>> rows[0]["train_loss"] == float(learn.recorder.history["train_loss"].values[0])
        True
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        super().__init__(name)
        self.path = check_path("path", path)
        if self.path.is_dir():
            raise ValueError(f"expected the path of a file; {str(path)!r} is a folder")
        self._size = 0  # of what is whole in the file
        self._lines: list[str] = []

    def open_run(self, name: str) -> int:
        """Begin the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._size, self._run_name = 0, name
        return 0

    def reopen_run(self, key: int, last: int) -> bool:
        """Go on behind what the file held then."""
        self._size = key
        if not self.path.is_file() or self.path.stat().st_size < key:
            return False
        os.truncate(self.path, key)
        return True

    def write_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write the first line."""
        self._add({"run": self._run_name, "settings": dict(settings)})

    def write_values(self, update: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        self._add({"update": update, **values})

    def write_range_test(self, draw: Draw, suggestions: Mapping[str, float]) -> None:
        """Write the rates."""
        self._add({"range_test": dict(suggestions)})

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write where the files are."""
        self._add({"files": dict(files)})

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(_strict(line), ensure_ascii=False, allow_nan=False))

    def flush_run(self) -> int:
        """Put the lines into the file; half a block that a failed write left is overwritten."""
        lines, self._lines = self._lines, []
        data = "".join(f"{line}\n" for line in lines).encode()
        with self.path.open("r+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(data)
        self._size += len(data)
        return self._size

    def close_run(self, has_ended: bool) -> None:
        """Write what is left."""
        self._key = self.flush_run()


def _strict(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
