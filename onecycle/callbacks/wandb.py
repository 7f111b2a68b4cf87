"""`WandB`: the record of a fit as a run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from onecycle.arguments import check_one_of, check_path, check_text
from onecycle.callbacks.trackers import Draw, Setting, Tracker, package


class WandB(Tracker):
    """Write a fit into a run of Weights & Biases.

    Each series of the record is a chart of its name, whose step is the update over the learner's
    life. The settings are the run's config, the picture of a range test stands among its media,
    and where the files are in its summary. What is written, when, and how a resumed fit goes on,
    is described at `Tracker`. A resumed fit repeats the updates since its last checkpoint; the
    server keeps the first value of each step, which is the same. Without a connection
    (``mode="offline"``) each fit leaves a folder, which ``wandb sync`` sends later; those of a
    resumed fit have the run's id in common.

    Args:
        project: The project of the run.
        name: What the run is called.
        mode: ``"online"`` or ``"offline"``.
        folder: Where W&B keeps its files; by default where it does by itself.

    Raises:
        ImportError: If wandb is missing: ``pip install 'onecycle[trackers]'``.

    Example:
        >>> learn.fit_one_cycle(5, cbs=[WandB("digits")])  # doctest: +SKIP
    """

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        mode: Literal["online", "offline"] = "online",
        folder: str | Path | None = None,
    ) -> None:
        wandb = package("wandb", "WandB")
        super().__init__(name)
        self.project = check_text("project", project)
        check_one_of("mode", mode, ("online", "offline"))
        self.mode: Literal["online", "offline"] = mode
        self.folder = None if folder is None else check_path("folder", folder)
        self.failures = (OSError, wandb.Error)
        self._open_one: Any = None

    def open_run(self, name: str) -> str:
        """Begin a run."""
        self._init(name=name)
        return str(self._open_one.id)

    def reopen_run(self, key: str, last: int) -> bool:
        """Go on in the run of this id; whether there is one, the server knows."""
        self._init(id=key, resume="allow")
        return True

    def _init(self, **options: Any) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._open_one = package("wandb", "WandB").init(
            project=self.project,
            mode=self.mode,
            dir=None if self.folder is None else str(self.folder),
            reinit="create_new",
            **options,
        )

    def write_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write the settings as the run's config."""
        self._open_one.config.update(dict(settings))

    def write_values(self, update: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        self._open_one.log(dict(values), step=update)

    def write_range_test(self, draw: Draw, suggestions: Mapping[str, float]) -> None:
        """Write the picture, and the rates into the summary."""
        image = package("wandb", "WandB").Image(draw())
        self._open_one.log({"range test": image}, step=self._last)
        self._open_one.summary.update(
            {f"range test.{rule}": lr for rule, lr in suggestions.items()}
        )

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write where the files are into the summary."""
        self._open_one.summary.update({f"files.{name}": path for name, path in files.items()})

    def close_run(self, has_ended: bool) -> None:
        """Finish the run."""
        self._open_one.finish(exit_code=0 if has_ended else 1)
        self._open_one = None
