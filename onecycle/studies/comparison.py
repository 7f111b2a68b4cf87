"""`compare`: policies against each other, at equal budget and under the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onecycle import plots
from onecycle.arguments import Default, check_epochs, check_finite, check_one_of, shown
from onecycle.callbacks.monitor import Mode, judged_by
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.core.callback import Callback
from onecycle.data.lengths import updates_in
from onecycle.optim.groups import GroupValues
from onecycle.record.history import History
from onecycle.schedules.policies import flat_cos
from onecycle.schedules.shapes import Schedule, step
from onecycle.studies.trials import Init, check_init, check_seeds, run_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.training.trainer import Trainer

#: A policy by name, a schedule of the rate, or what trains a learner for a number of epochs.
Compared = str | Schedule | Callable[[Any, Any], Any]
_Fit = Callable[["Trainer"], Any]

#: What each name does with the highest rates of the groups.
_BY_NAME: dict[str, Callable[[list[float], Trainer, float], None]] = {
    "constant": lambda rates, learn, n_epoch: learn.fit(n_epoch, rates),
    "step": lambda rates, learn, n_epoch: learn.fit_one_cycle(
        n_epoch, rates, policy=step(rates[-1], 0.1)
    ),
    "flat_cos": lambda rates, learn, n_epoch: learn.fit(
        n_epoch, cbs=[ParamScheduler({"lr": [flat_cos(rate) for rate in rates]})]
    ),
    "one_cycle": lambda rates, learn, n_epoch: learn.fit_one_cycle(
        n_epoch, rates, moms=None if learn.groups.momentum_is_on() else False
    ),
}
NAMES = tuple(_BY_NAME)
_EXPECTED = (
    f"policies must be a list of names among {NAMES}, or a dict from labels to names, schedules "
    "or functions (learn, n_epoch)"
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `Learner.compare` found; prints as a table.

    Attributes:
        runs: By policy and seed the record of the run: `History`, with updates from 1.
        metric: The name of the series that the policies are judged by.
        less_is_better: Whether less of it is better.
        target: The value of it whose time is told, or ``None``.
        epoch_ends: By policy and seed the updates at the end of each epoch.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> result = learn.compare(3, 0.05, ["constant", "one_cycle"], seeds=[0, 1], target=0.5)
        >>> result.final("one_cycle", "train_loss").shape
        (2,)
    """

    runs: Mapping[str, Mapping[int, History]]
    metric: str
    less_is_better: bool
    target: float | None = None
    epoch_ends: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)

    def final(self, policy: str, name: str | None = None) -> NDArray[np.float64]:
        """Return the last value that each run of a policy recorded.

        Args:
            policy: One of ``runs``.
            name: A series of the record; by default the metric.

        Returns:
            One value for each seed, shape ``(seeds,)``; NaN where the run recorded none.
        """
        found = [record.get(name or self.metric) for record in self.runs[policy].values()]
        return np.array([series.values[-1] if series else np.nan for series in found])

    def updates_to_target(self, policy: str) -> dict[int, int | None]:
        """Return by seed the update after which validation first reached the target.

        Returns:
            Updates from the start of the run, ``None`` where it never did; all of them ``None``
            without a target.
        """
        found = self._first_reached(policy)
        return {seed: None if hit is None else hit[0] for seed, hit in found.items()}

    def epochs_to_target(self, policy: str) -> dict[int, int | None]:
        """Return by seed the epochs until validation first reached the target, or ``None``."""
        found = self._first_reached(policy)
        return {seed: None if hit is None else hit[1] for seed, hit in found.items()}

    def _first_reached(self, policy: str) -> dict[int, tuple[int, int] | None]:
        """Return by seed the updates and the epochs until the target was reached."""
        target = np.nan if self.target is None else self.target  # nothing reaches NaN
        first: dict[int, tuple[int, int] | None] = {}
        for seed, (updates, values) in self._curves(policy).items():
            hits = np.flatnonzero(values <= target if self.less_is_better else values >= target)
            first[seed] = None
            if len(hits):
                update = int(updates[hits[0]])
                ends = self.epoch_ends.get(policy, {}).get(seed, updates)
                first[seed] = update, int(np.searchsorted(ends, update)) + 1
        return first

    def _curves(self, policy: str) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return by seed updates and values of the metric, empty where none was recorded."""
        found = {seed: record.get(self.metric) for seed, record in self.runs[policy].items()}
        empty = np.empty(0, np.int64), np.empty(0)
        return {seed: (s.updates, s.values) if s else empty for seed, s in found.items()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the metric over the updates: the mean of each policy, and a band over its seeds.

        The band reaches from the lowest to the highest seed.

        Args:
            ax: Where to draw; by default a new figure.
        """
        curves = {policy: list(self._curves(policy).values()) for policy in self.runs}
        return plots.plot_bands(curves, ylabel=self.metric, target=self.target, ax=ax)

    def __repr__(self) -> str:
        """Show a table, one line for each policy: mean and standard deviation over the seeds."""
        names = list(dict.fromkeys([self.metric, "valid_loss"]))
        head = ["policy", *names]
        if self.target is not None:
            sign = "<=" if self.less_is_better else ">="
            head.append(f"updates (epochs) to {self.metric} {sign} {self.target:g}")
        rows = [head]
        for policy in self.runs:
            cells = [_mean_and_spread(self.final(policy, name)) for name in names]
            time = [] if self.target is None else [_time(self._first_reached(policy))]
            rows.append([policy, *cells, *time])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        seeds = len(next(iter(self.runs.values())))
        return "\n".join([*lines, f"mean +- standard deviation over {seeds} seed(s)"])


def _mean_and_spread(values: NDArray[np.float64]) -> str:
    mean = f"{values.mean():.4g}"
    return f"{mean} +- {values.std(ddof=1):.2g}" if len(values) > 1 else mean


def _time(first: Mapping[int, tuple[int, int] | None]) -> str:
    hits = [hit for hit in first.values() if hit is not None]
    if not hits:
        return "never"
    updates, epochs = np.mean(hits, axis=0)
    some = f" in {len(hits)} of {len(first)}" if len(hits) < len(first) else ""
    return f"{updates:.0f} ({epochs:.1f}){some}"


def compare(
    learn: Trainer,
    n_epoch: float,
    lr: GroupValues | Default,
    policies: Sequence[str] | Mapping[str, Compared],
    seeds: Sequence[int],
    *,
    metric: str | None,
    target: float | None,
    mode: Mode,
    init: Init | None,
) -> Comparison:
    """Train by each policy under each seed, from one state: see `Learner.compare`."""
    check_epochs("n_epoch", n_epoch)
    rates = learn.groups.expand("lr", learn.lr if lr is Default.OWN else lr)
    ends: dict[str, list[list[int]]] = {}
    fits = _fits(policies, n_epoch, rates, ends)
    found = check_seeds(seeds)
    check_init(init)
    name, better = judged_by(learn, metric, mode)
    if target is not None:
        check_finite("target", target)
    n, total = len(found), len(found) * len(fits)
    runs = {
        policy: run_trials(learn, fit, found, init=init, label=policy, place=(1 + n * i, total))
        for i, (policy, fit) in enumerate(fits.items())
    }
    epoch_ends = {policy: dict(zip(found, each, strict=True)) for policy, each in ends.items()}
    return Comparison(runs, name, better == "min", target, epoch_ends)


def _fits(
    policies: Sequence[str] | Mapping[str, Compared],
    n_epoch: float,
    rates: list[float],
    ends: dict[str, list[list[int]]],
) -> dict[str, _Fit]:
    """Return by label what trains a learner."""
    is_known = isinstance(policies, Mapping | Sequence) and not isinstance(policies, str)
    if not is_known or not policies:
        raise TypeError(f"{_EXPECTED}; got {shown(policies)}")
    if not isinstance(policies, Mapping):
        if not all(isinstance(name, str) for name in policies):
            raise TypeError(f"{_EXPECTED}; got {shown(policies)}")
        if len(set(policies)) < len(policies):
            raise ValueError(f"a policy comes twice, and would be one: {list(policies)}")
        policies = {name: name for name in policies}
    return {
        label: _fit(label, policies[label], n_epoch, rates, ends.setdefault(label, []))
        for label in policies
    }


def _fit(
    label: str, policy: Compared, n_epoch: float, rates: list[float], ends: list[list[int]]
) -> _Fit:
    train: Callable[[Trainer, float], Any]
    if isinstance(policy, Schedule):
        train = partial(_by_schedule, policy, rates)
    elif isinstance(policy, str):
        check_one_of("a policy", policy, NAMES)
        train = partial(_BY_NAME[policy], rates)
    elif callable(policy):
        train = policy
    else:
        raise TypeError(
            f"the policy {label!r} must be one of {NAMES}, a Schedule, or a function "
            f"(learn, n_epoch); got {policy!r}"
        )
    return partial(_within_budget, label, train, n_epoch, ends)


def _by_schedule(schedule: Schedule, rates: list[float], learn: Trainer, n_epoch: float) -> None:
    learn.fit_one_cycle(n_epoch, rates, policy=schedule)


def _within_budget(
    label: str,
    train: Callable[[Trainer, float], Any],
    n_epoch: float,
    ends: list[list[int]],
    learn: Trainer,
) -> None:
    """Train, and refuse a policy that took more or less than its budget."""
    ends.append(updates := [])
    watch = Callback(after_epoch=lambda learn: updates.append(learn.total_updates))
    with learn.added_cbs([watch]):
        train(learn, n_epoch)
    trained: float = learn.total_epochs
    whole = math.ceil(n_epoch)
    # A part of an epoch is one that has begun: how much of it was trained tell the updates.
    lengths, per_update = learn.epoch_lengths(), learn.batches_per_update
    most = updates_in(lengths, n_epoch, per_update) if n_epoch < whole else None
    if most is not None and learn.total_updates > most:
        trained = math.inf
    if trained > whole or (trained < whole and learn.stop_reason is None):
        said = f"{trained} epoch(s)" if trained < math.inf else f"{learn.total_updates} updates"
        raise ValueError(
            f"the policy {label!r} trained for {said}, and a comparison is at equal "
            f"budget: {n_epoch}"
        )
