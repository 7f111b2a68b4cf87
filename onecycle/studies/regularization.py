"""The regularization report: which weight decay, dropout and batch size short runs prefer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onecycle.arguments import Default, check_budget
from onecycle.callbacks.batch_size_schedule import BatchSizeSchedule
from onecycle.callbacks.monitor import Mode, judged_by
from onecycle.optim.groups import GroupValues
from onecycle.range_test.varied import check_settings, put_in_force
from onecycle.schedules.shapes import Array
from onecycle.studies.trials import Init, check_init, check_seeds, last_values, run_trials

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer

#: A setting is worse than the best beyond the spread where the mean of their differences, seed by
#: seed, is over this many standard errors.
CLEARLY = 2.0


@dataclass(frozen=True, eq=False, repr=False)
class RegularizationReport:
    """What short fits with different regularization ended at; prints as a table.

    Attributes:
        results: By name (``"weight_decay"``, ``"dropout"``, ``"batch_size"``) and setting what
            each seed's fit ended at, shape ``(seeds,)``.
        metric: The name of what was measured.
        less_is_better: Whether less of it is better.

    Example:
        >>> import numpy as np
        >>> runs = {0.0: np.array([0.8, 0.82, 0.81]), 0.5: np.array([0.6, 0.7, 0.65])}
        >>> report = RegularizationReport({"dropout": runs}, "accuracy", less_is_better=False)
        >>> report.preferred("dropout")
        [0.0]
    """

    results: dict[str, dict[float, Array]]
    metric: str
    less_is_better: bool

    def preferred(self, name: str) -> list[float]:
        """Return the best setting, and those that are no worse beyond the spread, best first.

        Args:
            name: One of ``results``.

        Returns:
            The settings; all of them where there is no difference, none where no fit ended at
            a finite value.
        """
        sign = -1.0 if self.less_is_better else 1.0
        # A fit that diverged is worse than any that did not.
        ends = {
            setting: np.where(np.isfinite(values), sign * values, -np.inf)
            for setting, values in self.results[name].items()
        }
        ranked = sorted(ends, key=lambda setting: float(ends[setting].mean()), reverse=True)
        best = ends[ranked[0]]
        if not np.isfinite(best).all():
            return []
        return [setting for setting in ranked if not _is_worse(ends[setting], best)]

    def recommendation(self, name: str) -> str:
        """Return in a sentence what the fits say about one kind of regularization.

        Args:
            name: One of ``results``.
        """
        settings, found = list(self.results[name]), self.preferred(name)
        if not found:
            return f"{name}: no setting trained with every seed; lower lr_max"
        if len(found) == len(settings):
            return f"{name}: no difference beyond the spread"
        best, *others = [f"{setting:g}" for setting in found]
        as_good = f" ({', '.join(others)} no worse beyond the spread)" if others else ""
        return f"{name}: {best} is best{as_good}"

    def __repr__(self) -> str:
        """Show a line for each setting, and a sentence for each kind of regularization."""
        lines = []
        for name, runs in self.results.items():
            width = max(map(len, self.results))
            lines.append(f"{name:>{width}}  {'mean ' + self.metric:>14}  {'spread':>8}")
            for setting, values in runs.items():
                mean, spread = float(values.mean()), float(values.std(ddof=1))
                lines.append(f"{setting:>{width}g}  {mean:>14.4g}  {spread:>8.2g}")
            lines.append(self.recommendation(name))
        seeds = len(next(iter(runs.values())))
        return "\n".join([*lines, f"spread: the standard deviation over {seeds} seeds"])


def regularization_report(
    learn: Trainer,
    lr_max: GroupValues | Default,
    n_epoch: float,
    *,
    wds: Sequence[float] | None,
    dropouts: Sequence[float] | None,
    batch_sizes: Sequence[int] | None,
    seeds: Sequence[int],
    metric: str | None,
    mode: Mode,
    init: Init | None,
) -> RegularizationReport:
    """Measure which regularization short fits prefer: see `Learner.regularization_report`."""
    check_budget(n_epoch, None, None)
    rates = learn.groups.expand("lr_max", learn.lr if lr_max is Default.OWN else lr_max)
    name, better = judged_by(learn, "valid_loss" if metric is None else metric, mode)
    found = check_seeds(seeds)
    check_init(init)
    if len(found) < 2:
        raise ValueError(f"the spread needs 2 seeds or more, and 5 tell more; got {found}")
    asked = {"weight_decay": wds, "dropout": dropouts, "batch_size": batch_sizes}
    plans = {kind: values for kind, values in asked.items() if values is not None}
    if not plans:
        raise ValueError("there is nothing to vary: give wds, dropouts or batch_sizes")
    _check(learn, plans)
    results: dict[str, dict[float, Array]] = {kind: {} for kind in plans}
    done, total = 0, len(found) * sum(map(len, plans.values()))
    for kind, settings in plans.items():
        for setting in settings:
            fit, label = _fit(kind, setting, n_epoch, rates), f"{kind} {setting:g}"
            place = (done + 1, total)
            records = run_trials(learn, fit, found, init=init, label=label, place=place)
            done += len(found)
            results[kind][setting] = last_values(records.values(), name)
    return RegularizationReport(results, name, less_is_better=better == "min")


def _check(learn: Trainer, plans: dict[str, Sequence[Any]]) -> None:
    for kind, settings in plans.items():
        check_settings(learn, kind, settings, least=2)
    if "batch_size" in plans and any(isinstance(cb, BatchSizeSchedule) for cb in learn.cbs):
        raise ValueError(
            "batch_sizes of the loader cannot be compared where BatchSizeSchedule says how large "
            "batches are: with learn.removed_cbs(BatchSizeSchedule) they can"
        )


def _fit(kind: str, setting: Any, n_epoch: float, rates: list[float]) -> Callable[[Trainer], None]:
    def fit(learn: Trainer) -> None:
        put_in_force(learn, kind, setting)
        moms: Literal[False] | None = None if learn.groups.momentum_is_on() else False
        learn.fit_one_cycle(n_epoch, rates, moms=moms)

    return fit


def _is_worse(ends: Array, best: Array) -> bool:
    if not np.isfinite(ends).all():
        return True
    lead = best - ends
    return bool(lead.mean() > CLEARLY * lead.std(ddof=1) / math.sqrt(len(lead)))
