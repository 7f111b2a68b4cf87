"""`OneCycleSchedule` and `MomentumCycler`: the 1cycle policy, of the rate and of momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from onecycle.arguments import check_fraction, check_momenta, shown
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.optim.groups import GroupValues
from onecycle.schedules.policies import (
    SHORTEST_LINE,
    momentum_cycle,
    one_cycle,
    smith_momentum,
    smith_one_cycle,
    three_phase,
    three_phase_momentum,
)
from onecycle.schedules.shapes import Schedule
from onecycle.schedules.torch_like import torch_one_cycle

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: A policy of `OneCycleSchedule` and `MomentumCycler` by name.
Policy = Literal["cosine", "linear", "three_phase", "smith", "torch"]


#: What each policy does unless told otherwise: div, div_final (``None``: 1000 * div), pct_start.
_DEFAULTS: dict[str, tuple[float, float | None, float]] = {
    "cosine": (25.0, 1e5, 0.25),
    "linear": (25.0, 1e5, 0.25),
    "three_phase": (10.0, 1000.0, 0.45),
    "smith": (10.0, None, 0.45),
    "torch": (25.0, 1e4, 0.3),
}


class OneCycleSchedule(ParamScheduler):
    """Drive the learning rate by the 1cycle policy.

    Args:
        lr_max: The peak: one number, one for each parameter group, or a slice.
        div: The cycle begins at ``lr_max / div``; by default 25, or 10 for ``"three_phase"`` and
            ``"smith"``.
        div_final: It ends at ``lr_max / div_final`` (``"torch"``: ``lr_max / div / div_final``);
            by default 1e5, or 1000 for ``"three_phase"``, 1000 * div for ``"smith"``, and 1e4 for
            ``"torch"``.
        pct_start: The fraction of the updates in which the rate rises, in [0, 1]; by default
            0.25, or 0.3 for ``"torch"``. For ``"three_phase"`` and ``"smith"`` it falls in as many
            again: at most 0.5, by default 0.45.
        policy: ``"cosine"`` (fastai 2), ``"linear"`` (the same ends, straight),
            ``"three_phase"`` (`three_phase`), ``"smith"`` (`smith_one_cycle`), ``"torch"``
            (``OneCycleLR``), or a `Schedule`, whose values are the rate of the last group; the
            other groups keep ``lr_max``'s ratios to it.

    Source:
        Smith & Topin, "Super-Convergence", arXiv:1708.07120; the cosine form is fastai's.

    Example:
        >>> from onecycle import OneCycleSchedule
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=10)
        >>> learn.fit(1, cbs=[OneCycleSchedule(0.1)])
        >>> learn.groups.get("lr") == [0.1 / 1e5]
        True
    """

    def __init__(
        self,
        lr_max: GroupValues,
        div: float | None = None,
        div_final: float | None = None,
        pct_start: float | None = None,
        *,
        policy: Policy | Schedule = "cosine",
    ) -> None:
        super().__init__({})
        self.lr_max, self.policy = lr_max, policy
        if not isinstance(policy, Schedule):
            defaults = _DEFAULTS[check_policy(policy)]
            self._div = defaults[0] if div is None else div
            self._div_final = defaults[1] if div_final is None else div_final
            self._pct_start = _rise(policy, pct_start)
        self._rate(1.0, 2)  # refuses bad arguments here, where the person wrote them

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return the learning rate's schedule for each parameter group."""
        peaks = learn.groups.expand("lr_max", self.lr_max)
        if isinstance(self.policy, Schedule):
            if peaks[-1] == 0:
                raise ValueError(
                    "lr_max of the last group must be above 0: the other groups' rates are the "
                    f"schedule's times their lr_max over its; got {peaks}"
                )
            return {"lr": [self.policy.scaled(peak / peaks[-1]) for peak in peaks]}
        return {"lr": [self._rate(peak, learn.n_updates_planned or 1) for peak in peaks]}

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the schedules, and what they are made of."""
        peaks = learn.groups.expand("lr_max", self.lr_max)
        policy = self.policy if isinstance(self.policy, str) else "a Schedule"
        return {**super().plan(learn), "cycle.lr_max": peaks, "cycle.policy": policy}

    def _rate(self, peak: float, n_updates: int) -> Schedule:
        if isinstance(self.policy, Schedule):
            return self.policy
        div, div_final, rise = self._div, self._div_final, self._pct_start
        if self.policy == "smith":
            return smith_one_cycle(peak, div=div, div_final=div_final, half_cycle=rise)
        final = 1000.0 * div if div_final is None else div_final
        if self.policy == "three_phase":
            return three_phase(peak, div=div, div_final=final, fraction_up=rise, fraction_down=rise)
        if self.policy == "torch":
            return torch_one_cycle(
                n_updates, max_lr=peak, pct_start=rise, div_factor=div, final_div_factor=final
            )
        return one_cycle(peak, div=div, div_final=final, pct_start=rise, anneal=self.policy)


class MomentumCycler(ParamScheduler):
    """Cycle momentum, or Adam's beta1, against the learning rate.

    Args:
        moms: Momentum at the start, at the peak of the rate, and at the end; each in [0, 1).
        pct_start: The fraction of the updates in which momentum falls: that of the rate's rise.
        policy: As in `OneCycleSchedule`: ``"cosine"``, ``"linear"``, ``"three_phase"`` (down, up,
            and held), ``"smith"`` (a triangle that goes on, half as deep) or ``"torch"``.

    Raises:
        ValueError: Before the first batch, if the optimizer has no momentum.

    Source:
        Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820.

    Example:
        >>> from onecycle import MomentumCycler
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=9)
        >>> learn.fit(1, cbs=[MomentumCycler((0.95, 0.85, 0.9))])
        >>> learn.groups.get("momentum")
        [0.9]
    """

    def __init__(
        self,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        pct_start: float | None = None,
        *,
        policy: Policy = "cosine",
    ) -> None:
        super().__init__({})
        self.moms, self.policy = check_momenta(moms), check_policy(policy)
        self._pct_start = _rise(policy, pct_start)
        if policy in ("smith", "torch") and moms[0] != moms[2]:
            raise ValueError(
                f"the {policy} policy goes back to the momentum it began with; got {moms}"
            )
        self._momentum(2)

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return the momentum's schedule, the same for every parameter group."""
        return {"momentum": [self._momentum(learn.n_updates_planned or 1)] * len(learn.groups)}

    def _momentum(self, n_updates: int) -> Schedule:
        high, low, _ = self.moms
        rise = self._pct_start
        if self.policy == "smith":
            return smith_momentum(high, low, half_cycle=rise)
        if self.policy == "three_phase":
            return three_phase_momentum(self.moms, fraction_up=rise, fraction_down=rise)
        if self.policy == "torch":
            rate = torch_one_cycle(n_updates, max_lr=1.0, pct_start=rise)
            return rate.momentum(base=low, max=high)
        return momentum_cycle(self.moms, pct_start=rise, anneal=self.policy)


def check_policy(policy: Policy) -> Policy:
    """Return the name of a policy, or refuse what is none."""
    if isinstance(policy, str) and policy in _DEFAULTS:
        return policy
    names = ", ".join(map(repr, _DEFAULTS))
    raise ValueError(f"policy must be {names} or a Schedule; got {shown(policy)}")


def _rise(policy: Policy, pct_start: float | None) -> float:
    """Return the fraction in which the rate rises."""
    if pct_start is None:
        return _DEFAULTS[policy][2]
    if policy in ("three_phase", "smith") and check_fraction("pct_start", pct_start) > 0.5:
        raise ValueError(
            f"pct_start is at most 0.5 for the policy {policy!r}, which falls in as many updates "
            f"as it rises; got {pct_start} (join makes a schedule of any phases)"
        )
    if policy == "smith" and pct_start < SHORTEST_LINE:
        raise ValueError(
            f"pct_start is at least {SHORTEST_LINE} for the policy 'smith', whose lines are that "
            f"long; got {pct_start}"
        )
    return pct_start
