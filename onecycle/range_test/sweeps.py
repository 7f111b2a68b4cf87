"""Experiments on a learner: a range test for each of several settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import plots
from onecycle.checkpoints.snapshot import preserved
from onecycle.range_test.result import LRFindResult, written
from onecycle.range_test.varied import check_settings, put_in_force

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop


class RangeTests(Mapping[float, LRFindResult]):
    """The results of a range test for each of several settings; prints as a table.

    Args:
        name: What was varied: ``"weight_decay"``, ``"momentum"`` or ``"batch_size"``.
        results: The result of each value.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> tests = learn.lr_find(1e-4, 0.1, 12, show_plot=False, wds=[0.0, 0.1])
        >>> list(tests), len(tests[0.1].losses)
        ([0.0, 0.1], 12)

    Source:
        Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820,
        which lays the range tests of a few weight decays, or momenta, over each other: the best
        value is the largest that still trains well at a high rate.
    """

    def __init__(self, name: str, results: Mapping[float, LRFindResult]) -> None:
        self.name = name
        self._results = dict(results)

    def __getitem__(self, setting: float) -> LRFindResult:
        return self._results[setting]

    def __iter__(self) -> Iterator[float]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the smoothed losses of all settings over the learning rate.

        Those of the validation batches, where they were measured, are dashed.

        Args:
            ax: Where to draw; by default a new figure.
        """
        results = {f"{self.name} {setting:g}": test for setting, test in self.items()}
        valid = {
            label: (test.lrs, test.valid_smoothed)
            for label, test in results.items()
            if test.valid_smoothed is not None
        }
        return plots.plot_range_tests(
            {label: (test.lrs, test.smoothed) for label, test in results.items()},
            valid,
            log=not any(test.linear for test in self.values()),
            ax=ax,
        )

    def __repr__(self) -> str:
        """Show a table, one line for each setting."""
        width = max(len(self.name), *(len(f"{setting:g}") for setting in self))
        lines = [
            f"{self.name:>{width}}  suggestion                spread    lr_max"
            "  lowest smoothed loss  stop"
        ]
        for setting, test in self.items():
            lines.append(
                f"{setting:>{width}g}  {written(test.suggestion):>10}  {_spread(test):>20}"
                f"  {written(test.lr_max):>8}"
                f"  {_lowest(test):>20.4g}  {test.stop_reason}"
            )
        return "\n".join(lines)


def one_varied(
    settings: Mapping[str, Sequence[Any] | None],
) -> tuple[str, Sequence[Any]] | None:
    """Return by its name what is varied, or ``None``.

    Args:
        settings: By name the values to try, or ``None``.

    Raises:
        ValueError: If values are given for more than one.

    Example:
        >>> one_varied({"momentum": [0.8, 0.9], "batch_size": None})
        ('momentum', [0.8, 0.9])
    """
    asked = [(name, values) for name, values in settings.items() if values is not None]
    if len(asked) > 1:
        raise ValueError("one thing is varied at a time: give wds, moms or batch_sizes")
    return asked[0] if asked else None


def range_tests(
    learn: Loop, name: str, settings: Sequence[float], test: Callable[[], LRFindResult]
) -> RangeTests:
    """Run one range test for each value of a hyperparameter, each from the same state.

    Args:
        learn: The learner to test.
        name: ``"batch_size"`` of the training loader, or a hyperparameter in ``learn.groups``.
        settings: Its values; a hyperparameter's are each for all parameter groups.
        test: Runs one range test of the learner.

    Returns:
        The result of each value. The learner is as it was before.

    Raises:
        ValueError: If there is no value or one comes twice, if one is not allowed, or if the
            optimizer has no such hyperparameter. Before the first test.
        TypeError: If a value is no number, or the training loader is of a kind whose batch size
            cannot be changed.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> tests = range_tests(
        ...     learn, "eps", [1e-8, 1e-2], lambda: learn.lr_find(num_it=12, show_plot=False)
        ... )
        >>> list(tests)
        [1e-08, 0.01]
    """
    check_settings(learn, name, settings)
    results = {}
    for setting in settings:
        with preserved(learn):
            put_in_force(learn, name, setting)
            results[setting] = test()
    return RangeTests(name, results)


def _spread(test: LRFindResult) -> str:
    """Return the interval of the suggestion."""
    interval = next(iter(test.spreads.values()), None)
    return "none" if interval is None else f"{interval[0]:.2e} to {interval[1]:.2e}"


def _lowest(test: LRFindResult) -> float:
    """Return the lowest smoothed loss that is finite; NaN if there is none."""
    finite = test.smoothed[np.isfinite(test.smoothed)]
    return float(finite.min()) if len(finite) else float("nan")
