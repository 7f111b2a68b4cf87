"""How far the suggestions of a range test spread, and what its rules say together.

The losses of a range test come from one draw of batches; another draw gives other suggestions.
How other, a bootstrap tells without another test: the noise of the losses is taken out of them,
put back with random signs, and each rule is asked again, a few hundred times. What other initial
weights would change, no curve tells; it is added as it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onecycle.range_test.knee import knee, read
from onecycle.range_test.noise import residuals
from onecycle.range_test.rules import Rule, select_points, turning_point
from onecycle.record.smoothing import smooth
from onecycle.schedules.shapes import Array

#: How many curves are resampled.
N_RESAMPLES = 200

#: The share of them that lies below an interval, and above it.
TAIL = 0.1

#: What other initial weights add to each side of an interval, as an independent error does: so much
#: of the natural logarithm of the rate, a fifth up or down. Chosen so that the intervals hold as
#: often as they promise over tests of one task with other seeds.
WEIGHTS = 0.2


@dataclass(frozen=True)
class Vote:
    """What all rules of a range test say together.

    Attributes:
        lr: The learning rate: on each resampled curve the median of the rules' rates is taken in
            log space, and of those the median. Of two rules the median is the geometric mean.
        low, high: The interval in which it lies on 80 % of the resampled curves, widened.
    """

    lr: float
    low: float
    high: float


@dataclass(frozen=True)
class Spreads:
    """How far the suggestions of a range test spread.

    Attributes:
        rules: By name of the rule the ``(low, high)`` learning rates between which it lies on
            80 % of the resampled curves: the quantiles of 10 and 90 %, widened by `WEIGHTS`.
        vote: What all rules say together; ``None`` where there is none.
    """

    rules: dict[str, tuple[float, float]]
    vote: Vote | None

    def around(self, said: Mapping[str, float]) -> Spreads:
        """Hold what the rules say of the test itself: each in its interval, the vote in between.

        Args:
            said: By name of the rule its rate, of all rules here.

        Example:
            >>> Spreads({"valley": (0.1, 0.2)}, Vote(0.3, 0.1, 0.4)).around({"valley": 0.25})
            Spreads(rules={'valley': (0.1, 0.25)}, vote=Vote(lr=0.25, low=0.1, high=0.4))
        """
        rules = {
            rule: (min(low, said[rule]), max(high, said[rule]))
            for rule, (low, high) in self.rules.items()
        }
        if self.vote is None:
            return Spreads(rules, None)
        rates = [said[rule] for rule in rules]
        lr = min(max(self.vote.lr, min(rates)), max(rates))
        return Spreads(rules, Vote(lr, min(self.vote.low, lr), max(self.vote.high, lr)))


def spread(
    lrs: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    smoothed: npt.ArrayLike,
    num_it: int,
    rules: Sequence[Rule],
    stopped: bool = False,
) -> Spreads:
    """Resample a range test that has a valley, and ask the rules again; always with one outcome.

    The noise of a loss is what sets it apart from the mean of itself and its two neighbours, so
    that a trend is hardly taken for noise. It stays at its place, as losses are noisier where they
    are high. Each batch is a fresh draw, so each sign is one too. What the noise did to the weights
    is not resampled: for that, and for other initial weights, each side is widened (`WEIGHTS`).

    Args:
        lrs: As in `onecycle.range_test.rules.suggest`, and so are the others.
        losses: Raw loss of each batch, shape ``(batches,)``.
        smoothed: They, smoothed by `onecycle.record.smoothing.smooth`.
        num_it: Batches planned.
        rules: Functions ``(lrs, smoothed losses) -> float``, named by their ``__name__``.
        stopped: Whether the test ended because the loss diverged.

    Returns:
        An interval for each rule, and the vote; none reaches beyond the rate at which the loss
        turns up, but for a rule that says a higher one itself.

    Source:
        The wild bootstrap of Wu, "Jackknife, bootstrap and other resampling methods in regression
        analysis", Annals of Statistics 14 (1986), with signs as in Liu, "Bootstrap procedures
        under some non-i.i.d. models", Annals of Statistics 16 (1988); residuals of neighbours as
        in Gasser, Sroka and Jennen-Steinmetz, "Residual variance and residual pattern in
        nonlinear regression", Biometrika 73 (1986).

    Example:
        >>> from onecycle.range_test.rules import minimum
        >>> lrs = np.geomspace(1e-5, 10, 100)
        >>> losses = 2 - np.tanh(2 * np.log10(lrs) + 4) + lrs**2
        >>> noisy = losses + 0.2 * np.random.default_rng(0).normal(size=100)
        >>> found = spread(lrs, noisy, smoothed=smooth(noisy), num_it=100, rules=[minimum])
        >>> low, high = found.rules["minimum"]
        >>> low <= minimum(lrs, smooth(losses)) <= high
        True
    """
    if not rules:
        return Spreads({}, None)
    rates, seen, _ = select_points(lrs, losses, smoothed, num_it)
    first = num_it // 10
    whole, raw = np.asarray(lrs, np.float64), np.asarray(losses, np.float64)
    raw = raw if np.isfinite(raw).all() else raw[: int(np.isfinite(raw).argmin())]
    reading = read(lrs, losses, stopped=stopped)
    noise = residuals(raw)
    if reading.breaks is not None:
        noise[whole[: len(raw)] >= reading.breaks] = 0.0  # divergence is no noise
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(N_RESAMPLES, len(raw)))
    # A mean of three keeps a third of the noise's variance: what was taken out had two thirds.
    curves = raw - noise + math.sqrt(1.5) * noise * signs
    rest = np.asarray(losses, np.float64)[len(raw) :]
    ends = slice(first, first + len(rates))
    columns = {
        rule.__name__: [
            read(whole, np.append(curve, rest), stopped=stopped).lr
            if rule is knee
            else rule(rates, smooth(curve)[ends])
            for curve in curves
        ]
        for rule in rules
    }
    votes = np.exp(np.median(np.log(list(columns.values())), axis=0))
    turn, no_valley = turning_point(seen)
    highest = float(rates[turn]) if no_valley is None else reading.turns or math.inf
    return Spreads(
        {name: _interval(np.array(column), highest) for name, column in columns.items()},
        Vote(float(np.median(votes)), *_interval(votes, highest)),
    )


def _interval(rates: Array, highest: float) -> tuple[float, float]:
    """Return the middle 80 % of resampled rates, widened by `WEIGHTS`.

    Its upper half ends at the highest rate, if that is above the middle one.
    """
    ends = np.quantile(rates, (TAIL, 0.5, 1 - TAIL), method="inverted_cdf")
    low, middle, high = np.log(ends)
    below, above = math.hypot(middle - low, WEIGHTS), math.hypot(high - middle, WEIGHTS)
    top = max(min(math.exp(middle + above), highest), float(ends[1]))
    return math.exp(middle - below), top
