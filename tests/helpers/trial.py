"""A stand-in for a trial of Optuna: it notes what it is told, and gives up after some epochs."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace


class Direction(Enum):
    """Which way the study looks, by Optuna's names."""

    MINIMIZE = 1
    MAXIMIZE = 2


class Trial:
    """A trial.

    Args:
        lasts: After how many reports it is given up; by default never.
        directions: Of its study.
    """

    def __init__(self, lasts: int | None = None, *directions: str) -> None:
        self.lasts, self.told = lasts, list[tuple[float, int]]()
        found = [Direction[name] for name in directions or ("MINIMIZE",)]
        self.study = SimpleNamespace(directions=found)

    def report(self, value: float, step: int) -> None:
        """Note a value."""
        self.told.append((value, step))

    def should_prune(self) -> bool:
        """Tell whether it is given up."""
        return len(self.told) == self.lasts
