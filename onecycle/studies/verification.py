"""Short fits at equal budget, which say whether one cycle to a large peak wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from onecycle.callbacks.run_bar import is_watched
from onecycle.data.loaders import n_batches
from onecycle.range_test.varied import put_in_force
from onecycle.schedules.shapes import Array
from onecycle.studies.trials import Init, last_values, run_trials

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer

Answer = Literal["yes", "no", "unsure"]

#: The peak wins where its mean lead, seed by seed, is over this many standard deviations of the
#: lead: at 1 a lead of one sample in three seeds was a "yes" that lost.
CLEAR_LEAD = 1.5


@dataclass(frozen=True)
class ShortFit:
    """One of the fits that are compared.

    Attributes:
        name: What it is called.
        lr: Its constant rate, or the peak of its cycle.
        is_cycle: Whether it is one cycle.
        weight_decay: The weight decay that it trains with; ``None`` for the learner's own.
    """

    name: str
    lr: float
    is_cycle: bool = True
    weight_decay: float | None = None

    def run(self, learn: Trainer, n_epoch: float) -> None:
        """Train a learner by it."""
        if self.weight_decay is not None:
            put_in_force(learn, "weight_decay", self.weight_decay)
        own = learn.groups.get("lr")
        rates = [self.lr * (rate / own[-1] if own[-1] else 1.0) for rate in own]
        if self.is_cycle:
            learn.fit_one_cycle(
                n_epoch, rates, moms=None if learn.groups.momentum_is_on() else False
            )
        else:
            learn.fit(n_epoch, rates)


def verify(
    learn: Trainer,
    fits: Sequence[ShortFit],
    n_epoch: float,
    seeds: Sequence[int],
    *,
    init: Init | None,
    metric: str,
) -> dict[str, Array]:
    """Run each fit under each seed, and return by name what validation ended at."""
    n, total = len(seeds), len(seeds) * len(fits)
    if is_watched(learn):
        print(
            f"{total} fits of {n_epoch} epoch(s): {len(fits)} kinds, {n} seeds",
            flush=True,
        )
    found = {}
    for i, fit in enumerate(fits):
        train = partial(fit.run, n_epoch=n_epoch)
        place = (1 + n * i, total)
        records = run_trials(learn, train, seeds, init=init, label=fit.name, place=place)
        found[fit.name] = last_values(records.values(), metric)
    return found


def epochs_of(learn: Trainer, updates: int) -> int:
    """Return in how many epochs so many updates are made, or more."""
    batches = n_batches(learn.dls.train)
    if not batches:
        raise ValueError(
            "the training loader does not know its length: say by n_epoch= how long the fits are"
        )
    return math.ceil(updates / batches)


def verdict(
    ends: Mapping[str, Array], peak: str, *, less_is_better: bool, metric: str
) -> tuple[Answer, str]:
    """Say whether one fit wins by more than the spread, and by how much.

    Args:
        ends: By name of the fit what each seed ended at, the same seeds in the same order.
        peak: The one to judge.
        less_is_better: Whether less of it is better.
        metric: What it is.

    Returns:
        ``"yes"`` if its mean lead over the best of the others is more than `CLEAR_LEAD` standard
        deviations of that lead over the seeds; ``"no"`` if it does not lead, or diverged; else
        ``"unsure"``. And a sentence.

    Example:
        >>> ends = {"constant": np.array([0.5, 0.6]), "large": np.array([0.8, 0.85])}
        >>> verdict(ends, "large", less_is_better=False, metric="accuracy")[0]
        'yes'
    """
    sign = -1.0 if less_is_better else 1.0
    # A fit that diverged with one seed is worse than any that did not.
    means = {
        name: sign * float(values.mean()) if np.isfinite(values).all() else -math.inf
        for name, values in ends.items()
    }
    best = max((name for name in ends if name != peak), key=means.__getitem__)
    sizes = f"{peak} ends at {metric} {_shown(ends[peak])}, {best} at {_shown(ends[best])}"
    if not math.isfinite(means[peak]):
        return "no", f"{peak} diverges"
    if not math.isfinite(means[best]):
        return "yes", f"{sizes}: every other fit diverges"
    leads = sign * (ends[peak] - ends[best])
    lead, spread = float(leads.mean()), float(leads.std(ddof=1)) if len(leads) > 1 else math.inf
    sizes = f"{sizes}: a lead of {lead:.2g} +- {spread:.2g}"
    if lead > CLEAR_LEAD * spread and lead > 0:
        return "yes", sizes
    return ("no", sizes) if lead <= 0 else ("unsure", f"{sizes}, which more seeds may decide")


def _shown(values: Array) -> str:
    if not np.isfinite(values).all():
        return "nothing finite"
    return f"{values.mean():.4g}"
