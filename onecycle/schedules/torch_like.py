"""The schedulers of torch as schedules: the same value at every step, to rounding.

Step k of ``total_steps`` is at the position ``k / (total_steps - 1)``. Unlike torch's own, these
know nothing of an optimizer, jump nowhere beyond their end, and are called with any position.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from onecycle.arguments import (
    check_count,
    check_divided,
    check_flag,
    check_fraction,
    check_momentum,
    check_not_negative,
    check_one_of,
    check_positive,
)
from onecycle.schedules.shapes import (
    Array,
    Cosine,
    Counted,
    JoinSteps,
    Linear,
    Step,
    constant,
    cosine,
    join_steps,
    linear,
    piecewise,
    polynomial_decay,
    step,
)

TorchAnneal: TypeAlias = Literal["cos", "linear"]
CyclicMode: TypeAlias = Literal["triangular", "triangular2", "exp_range"]


@dataclass(frozen=True, kw_only=True)
class TorchPhases(Counted):
    """Base of the two curves of ``torch.optim.lr_scheduler.OneCycleLR``.

    Torch counts its phases in steps and ends them a step early, at ``pct_start *
    total_steps - 1``: where a step of a position is, decides the curve.
    """

    pct_start: float
    anneal_strategy: TorchAnneal
    three_phase: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("anneal_strategy", self.anneal_strategy, ("cos", "linear"))
        check_flag("three_phase", self.three_phase)
        pct_start = check_fraction("pct_start", self.pct_start)
        self._set(pct_start=pct_start, three_phase=bool(self.three_phase))

    def _levels(self) -> tuple[float, ...]:
        """Give the values at the ends of the phases."""
        raise NotImplementedError

    def _at(self, steps: Array) -> Array:
        last = self.total_steps - 1
        peak = self.pct_start * self.total_steps - 1
        cuts = [0.0, peak, 2 * self.pct_start * self.total_steps - 2, last]
        if not self.three_phase:
            del cuts[2]
        shape = Cosine if self.anneal_strategy == "cos" else Linear
        levels = self._levels()
        return piecewise(steps, cuts, [shape(a, b) for a, b in pairwise(levels)])


@dataclass(frozen=True, kw_only=True)
class TorchOneCycle(TorchPhases, kind="torch_one_cycle"):
    """The rate of ``OneCycleLR``; made by `torch_one_cycle`."""

    max_lr: float
    div_factor: float
    final_div_factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            max_lr=check_not_negative("max_lr", self.max_lr),
            div_factor=check_positive("div_factor", self.div_factor),
            final_div_factor=check_positive("final_div_factor", self.final_div_factor),
        )
        initial = check_divided(self.max_lr, "div_factor", self.div_factor)
        check_divided(initial, "final_div_factor", self.final_div_factor)

    def _levels(self) -> tuple[float, ...]:
        initial = self.max_lr / self.div_factor
        final = initial / self.final_div_factor
        if self.three_phase:
            return initial, self.max_lr, initial, final
        return initial, self.max_lr, final

    def momentum(self, base: float = 0.85, max: float = 0.95) -> "TorchMomentum":
        """Make the schedule of the momentum that goes with this rate.

        Args:
            base: The momentum while the rate is highest.
            max: The momentum at the start and at the end.

        Returns:
            The momentum of ``OneCycleLR`` at every step.

        Example:
            >>> torch_one_cycle(10, max_lr=1.0).momentum()(2 / 9)
            0.85
        """
        return TorchMomentum(
            total_steps=self.total_steps,
            pct_start=self.pct_start,
            anneal_strategy=self.anneal_strategy,
            three_phase=self.three_phase,
            base=base,
            max=max,
        )


@dataclass(frozen=True, kw_only=True)
class TorchMomentum(TorchPhases, kind="torch_momentum"):
    """The momentum of ``OneCycleLR``; made by `TorchOneCycle.momentum`."""

    base: float
    max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(base=check_momentum("base", self.base), max=check_momentum("max", self.max))

    def _levels(self) -> tuple[float, ...]:
        if self.three_phase:
            return self.max, self.base, self.max, self.max
        return self.max, self.base, self.max


@dataclass(frozen=True, kw_only=True)
class TorchCyclic(Counted, kind="torch_cyclic"):
    """The rate, or the momentum, of ``CyclicLR``; made by `torch_cyclic`."""

    start: float
    peak: float
    step_size_up: int
    step_size_down: int
    mode: CyclicMode
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("mode", self.mode, ("triangular", "triangular2", "exp_range"))
        self._set(
            start=check_not_negative("base_lr", self.start),
            peak=check_not_negative("max_lr", self.peak),
            step_size_up=check_count("step_size_up", self.step_size_up),
            step_size_down=check_count("step_size_down", self.step_size_down),
            gamma=check_positive("gamma", self.gamma),
        )

    def _at(self, steps: Array) -> Array:
        up, period = self.step_size_up, self.step_size_up + self.step_size_down
        height = np.interp(steps % period, [0, up, period], [0.0, 1.0, 0.0])
        if self.mode == "triangular2":
            height = height * 0.5 ** (steps // period)
        elif self.mode == "exp_range":
            height = height * self.gamma**steps
        return self.start * (1.0 - height) + self.peak * height

    def momentum(self, base: float = 0.8, max: float = 0.9) -> "TorchCyclic":
        """Make the schedule of the momentum that goes with this rate, the other way.

        Args:
            base: The momentum where the rate is highest.
            max: The momentum where the rate is lowest.

        Returns:
            The schedule.

        Example:
            >>> rate = torch_cyclic(9, base_lr=0.1, max_lr=1.0, step_size_up=4)
            >>> rate.momentum()(np.array([0.0, 0.5, 1.0]))
            array([0.9, 0.8, 0.9])
        """
        return replace(self, start=check_momentum("max", max), peak=check_momentum("base", base))


def torch_one_cycle(
    total_steps: int,
    *,
    max_lr: float,
    pct_start: float = 0.3,
    anneal_strategy: TorchAnneal = "cos",
    three_phase: bool = False,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> TorchOneCycle:
    """Follow ``torch.optim.lr_scheduler.OneCycleLR``, whose step k is ``k / (total_steps - 1)``.

    The arguments are torch's; so are the phases, which end a step early, and which under
    ``three_phase`` with a ``pct_start`` above 0.5 do not all fit. Where torch divides by
    zero, because a phase has no length, that phase is skipped.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        max_lr: The highest learning rate.
        pct_start: The fraction of the steps in which the rate rises.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        three_phase: Whether the rate comes back to its start before it falls below it.
        div_factor: The rate starts at ``max_lr / div_factor``.
        final_div_factor: The rate ends at its start divided by this.

    Returns:
        The schedule; its ``momentum()`` is the momentum beside it.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> schedule = torch_one_cycle(10, max_lr=1.0)
        >>> schedule(np.array([0, 1, 2, 9]) / 9)
        array([4.0e-02, 5.2e-01, 1.0e+00, 4.0e-06])
    """
    return TorchOneCycle(
        total_steps=total_steps,
        max_lr=max_lr,
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        three_phase=three_phase,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


def torch_step(total_steps: int, *, lr: float, step_size: int, gamma: float = 0.1) -> Step:
    """Follow ``StepLR``: multiply the rate after every ``step_size`` steps.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr: The rate at the start.
        step_size: The steps between two changes.
        gamma: What the rate is multiplied by.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> torch_step(5, lr=8.0, step_size=2, gamma=0.5)(np.arange(5) / 4)
        array([8., 8., 4., 4., 2.])
    """
    last = check_count("total_steps", total_steps) - 1
    jumps = range(check_count("step_size", step_size), last + 1, step_size)
    rate = check_not_negative("lr", lr)
    # The very division that gives the position of a step, so that the jump is at that step.
    return step(rate, check_not_negative("gamma", gamma), milestones=[k / last for k in jumps])


def torch_linear(
    total_steps: int,
    *,
    lr: float,
    start_factor: float = 1 / 3,
    end_factor: float = 1.0,
    total_iters: int = 5,
) -> JoinSteps:
    """Follow ``LinearLR``: a straight line for some steps, then its end.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr: The rate that both factors multiply.
        start_factor: The first rate, as a multiple of ``lr``.
        end_factor: The last rate, as a multiple of ``lr``.
        total_iters: The steps that the line takes.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> torch_linear(6, lr=1.0, start_factor=0.5, total_iters=4)(np.arange(6) / 5)
        array([0.5  , 0.625, 0.75 , 0.875, 1.   , 1.   ])
    """
    rate = check_not_negative("lr", lr)
    start = rate * check_not_negative("start_factor", start_factor)
    end = rate * check_not_negative("end_factor", end_factor)
    line = (check_count("total_iters", total_iters, least=0), linear(start, end))
    return join_steps(total_steps, [line, (1, constant(end))])


def torch_cosine(total_steps: int, *, lr: float, t_max: int, eta_min: float = 0.0) -> JoinSteps:
    """Follow ``CosineAnnealingLR``: half a cosine down in ``t_max`` steps, then up in as many.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr: The rate at the start.
        t_max: The steps of half a wave; torch's ``T_max``.
        eta_min: The lowest rate.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> torch_cosine(5, lr=1.0, t_max=2)(np.arange(5) / 4)
        array([1. , 0.5, 0. , 0.5, 1. ])
    """
    top, low = check_not_negative("lr", lr), check_not_negative("eta_min", eta_min)
    halves = -(-check_count("total_steps", total_steps) // check_count("t_max", t_max))
    waves = (cosine(top, low), cosine(low, top))
    return join_steps(total_steps, [(t_max, waves[k % 2]) for k in range(halves)])


def torch_polynomial(
    total_steps: int, *, lr: float, total_iters: int = 5, power: float = 1.0
) -> JoinSteps:
    """Follow ``PolynomialLR``: fall to 0 on a power of what is left, and stay there.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr: The rate at the start.
        total_iters: The steps after which the rate is 0.
        power: The power of the part of the steps that is left, positive.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> torch_polynomial(6, lr=1.0, total_iters=4, power=2.0)(np.arange(6) / 5)
        array([1.    , 0.5625, 0.25  , 0.0625, 0.    , 0.    ])
    """
    fall = polynomial_decay(check_not_negative("lr", lr), 0.0, power)
    return join_steps(
        total_steps, [(check_count("total_iters", total_iters), fall), (1, constant(0.0))]
    )


def torch_warm_restarts(
    total_steps: int, *, lr: float, t_0: int, t_mult: int = 1, eta_min: float = 0.0
) -> JoinSteps:
    """Follow ``CosineAnnealingWarmRestarts``: half a cosine down, again and again.

    The rate jumps back to ``lr`` at the step at which ``eta_min`` would be reached.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr: The rate at every restart.
        t_0: The steps of the first cycle; torch's ``T_0``.
        t_mult: How many times longer each cycle is than the one before; torch's ``T_mult``.
        eta_min: The rate towards which each cycle falls.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Loshchilov and Hutter, SGDR (arXiv 1608.03983).

    Example:
        >>> torch_warm_restarts(6, lr=1.0, t_0=2, t_mult=2)(np.arange(6) / 5).round(3)
        array([1.   , 0.5  , 1.   , 0.854, 0.5  , 0.146])
    """
    total = check_count("total_steps", total_steps)
    fall = cosine(check_not_negative("lr", lr), check_not_negative("eta_min", eta_min))
    length, factor = check_count("t_0", t_0), check_count("t_mult", t_mult)
    phases, covered = [], 0
    while covered < total:
        phases.append((length, fall))
        covered += length
        length *= factor
    return join_steps(total, phases)


def torch_cyclic(
    total_steps: int,
    *,
    base_lr: float,
    max_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: CyclicMode = "triangular",
    gamma: float = 1.0,
) -> TorchCyclic:
    """Follow ``CyclicLR``: straight lines up and down, again and again.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        base_lr: The rate between two cycles.
        max_lr: The highest rate of the first cycle.
        step_size_up: The steps from ``base_lr`` to ``max_lr``.
        step_size_down: The steps back; by default as many.
        mode: ``"triangular"``; ``"triangular2"``, with half the height in each next cycle; or
            ``"exp_range"``, with a height that shrinks at every step.
        gamma: What the height is multiplied by at every step of ``"exp_range"``.

    Returns:
        The schedule; its ``momentum()`` is the momentum beside it.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith, Cyclical Learning Rates (arXiv 1506.01186).

    Example:
        >>> rate = torch_cyclic(7, base_lr=1.0, max_lr=3.0, step_size_up=2, mode="triangular2")
        >>> rate(np.arange(7) / 6)
        array([1. , 2. , 3. , 2. , 1. , 1.5, 2. ])
    """
    return TorchCyclic(
        total_steps=total_steps,
        start=base_lr,
        peak=max_lr,
        step_size_up=step_size_up,
        step_size_down=step_size_up if step_size_down is None else step_size_down,
        mode=mode,
        gamma=gamma,
    )
