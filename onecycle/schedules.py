"""Schedules: pure functions of the position in training, from 0 (start) to 1 (end).

A schedule knows no optimizer, no step and no epoch. Called with a position it gives the
value there; called with an array of positions it gives the array of values, bit for bit
the same. The shapes between two values and the ways to combine them:

    constant   linear   cosine   exponential   polynomial   step
    join       one after the other          schedule.scaled(factor)   multiplied

and the policies made of them: `one_cycle`, `momentum_cycle`, `three_phase`,
`torch_one_cycle`. Make them with these functions; the classes behind them are there to
be printed, compared, hashed, stored (`Schedule.to_dict`) and subclassed.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, SupportsFloat, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Anneal: TypeAlias = Literal["cosine", "linear"]
TorchAnneal: TypeAlias = Literal["cos", "linear"]

_KINDS: dict[str, type["Schedule"]] = {}

#: How far fractions that are meant to add to 1 may miss it.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Schedule:
    """Base of all schedules: a value for every position in training.

    A schedule of your own is a frozen dataclass with a ``kind``, the name under which it
    is stored, and one method ``_values``, which is given a one-dimensional contiguous
    array of positions in [0, 1].

    Example:
        >>> @dataclass(frozen=True)
        ... class Triangle(Schedule, kind="triangle"):
        ...     peak: float
        ...
        ...     def _values(self, p):
        ...         return self.peak * (1 - abs(2 * p - 1))
        >>> Triangle(peak=2.0)(0.25)
        1.0
    """

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, kind: str = "") -> None:
        super().__init_subclass__()
        cls.kind = kind
        if not kind:
            return
        known = _KINDS.setdefault(kind, cls)
        # Running a notebook cell again makes the same class anew: that one may replace the old.
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the kind {kind!r} is taken by {known.__qualname__}; choose another")
        _KINDS[kind] = cls

    @overload
    def __call__(self, pos: float) -> float: ...
    @overload
    def __call__(self, pos: NDArray[Any] | Sequence[float]) -> Array: ...
    def __call__(self, pos: float | NDArray[Any] | Sequence[float]) -> float | Array:
        """Give the value at a position, or the values at many.

        Args:
            pos: Position in training, 0 at the first update and 1 at the last. Before 0
                the first value holds, after 1 the last. A number or an array of any shape.

        Returns:
            A ``float`` for a number; a ``float64`` array of the same shape for an array.

        Raises:
            ValueError: If a position is NaN.

        Example:
            >>> linear(0.0, 2.0)(0.25)
            0.5
            >>> linear(0.0, 2.0)(np.array([0.25, 0.5, 7.0]))
            array([0.5, 1. , 2. ])
        """
        p = np.asarray(pos, dtype=np.float64)
        if np.isnan(p).any():
            raise ValueError(f"a position is a number from 0 to 1; got {pos!r}")
        # NumPy rounds some functions differently for strided arrays and for its own scalars:
        # always a flat contiguous array, so that one position and a block agree to the bit.
        values = self._values(np.clip(p, 0.0, 1.0).ravel())
        return values.reshape(p.shape) if p.ndim else float(values[0])

    def _values(self, p: Array) -> Array:
        """Give the values at flat positions that are all within [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define _values(self, p)")

    def scaled(self, factor: float) -> "Schedule":
        """Make the schedule whose values are these, multiplied by a factor.

        Args:
            factor: The factor, finite. 1.0 keeps every bit.

        Returns:
            The multiplied schedule.

        Example:
            >>> linear(0.0, 1.0).scaled(0.1)(1.0)
            0.1
        """
        return Scaled(self, factor)

    def to_dict(self) -> dict[str, Any]:
        """Describe the schedule as a dict of JSON values; `from_dict` is the inverse.

        Returns:
            The fields by name, and ``"kind"``.

        Raises:
            TypeError: If the class was declared without a ``kind``.

        Example:
            >>> cosine(1.0, 0.0).to_dict()
            {'kind': 'cosine', 'start': 1.0, 'end': 0.0}
        """
        if not self.kind:
            name = type(self).__name__
            raise TypeError(
                f"{name} cannot be stored without a kind; declare it as "
                f'`class {name}(Schedule, kind="{name.lower()}")`'
            )
        values = {field.name: _encode(getattr(self, field.name)) for field in fields(self)}
        return {"kind": self.kind, **values}

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> "Schedule":
        """Make the schedule that `to_dict` described.

        Args:
            description: A ``"kind"`` and the fields of that kind.

        Returns:
            The schedule, equal to the one that was described.

        Raises:
            ValueError: If the kind is unknown or the fields are not those of the kind.

        Example:
            >>> Schedule.from_dict({"kind": "cosine", "start": 1.0, "end": 0.0})
            Cosine(start=1.0, end=0.0)
        """
        values = {name: _decode(value) for name, value in description.items()}
        kind = values.pop("kind", None)
        if kind not in _KINDS:
            raise ValueError(f"unknown kind of schedule {kind!r}; the kinds: {sorted(_KINDS)}")
        names = {field.name for field in fields(_KINDS[kind])}
        if values.keys() != names:
            raise ValueError(f"{kind!r} has the fields {sorted(names)}; got {sorted(values)}")
        return _KINDS[kind](**values)

    def _set(self, **values: Any) -> None:
        """Store checked fields, which a frozen dataclass otherwise refuses."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Constant(Schedule, kind="constant"):
    """One value everywhere; made by `constant`."""

    value: float

    def __post_init__(self) -> None:
        self._set(value=_finite("value", self.value))

    def _values(self, p: Array) -> Array:
        return np.full_like(p, self.value)


@dataclass(frozen=True)
class Between(Schedule):
    """Base of the schedules that go from one value to another.

    Attributes:
        start: The value at 0, to the last bit.
        end: The value at 1, to the last bit.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        self._set(start=_finite("start", self.start), end=_finite("end", self.end))

    def _values(self, p: Array) -> Array:
        # Fixed at the ends, where a cosine or a power may be off by a last bit.
        w = np.where(p == 0.0, 1.0, np.where(p == 1.0, 0.0, self._weights(p)))
        return self._mix(w)

    def _weights(self, p: Array) -> Array:
        """Give the weight of ``start``, which falls from 1 to 0."""
        return 1.0 - p

    def _mix(self, w: Array) -> Array:
        """Give the mean of ``start`` and ``end`` with the weights w and 1 - w."""
        return self.start * w + self.end * (1.0 - w)


@dataclass(frozen=True)
class Linear(Between, kind="linear"):
    """A straight line; made by `linear`."""


@dataclass(frozen=True)
class Cosine(Between, kind="cosine"):
    """Half a cosine wave; made by `cosine`."""

    def _weights(self, p: Array) -> Array:
        return (1.0 + np.cos(np.pi * p)) / 2.0


@dataclass(frozen=True)
class Exponential(Between, kind="exponential"):
    """Equal ratios over equal distances; made by `exponential`."""

    def __post_init__(self) -> None:
        self._set(start=_positive("start", self.start), end=_positive("end", self.end))

    def _mix(self, w: Array) -> Array:
        # The geometric mean, and not start * (end / start) ** p: no ratio can overflow.
        mean = np.power(self.start, w) * np.power(self.end, 1.0 - w)
        return np.where(w == 1.0, self.start, np.where(w == 0.0, self.end, mean))


@dataclass(frozen=True)
class Polynomial(Between, kind="polynomial"):
    """A power of the position; made by `polynomial`."""

    power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(power=_positive("power", self.power))

    def _weights(self, p: Array) -> Array:
        return 1.0 - np.power(p, self.power)


@dataclass(frozen=True)
class Step(Schedule, kind="step"):
    """Flat, and multiplied at each milestone; made by `step`."""

    start: float
    factor: float
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        milestones = tuple(_fraction("a milestone", m) for m in self.milestones)
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise ValueError(f"milestones must increase; got {milestones}")
        self._set(start=_finite("start", self.start), factor=_finite("factor", self.factor))
        self._set(milestones=milestones)

    def _values(self, p: Array) -> Array:
        levels = [self.start * self.factor**k for k in range(len(self.milestones) + 1)]
        return np.array(levels)[np.searchsorted(self.milestones, p, side="right")]


@dataclass(frozen=True)
class Join(Schedule, kind="join"):
    """Schedules one after the other; made by `join`."""

    phases: tuple[tuple[float, Schedule], ...]

    def __post_init__(self) -> None:
        for phase in self.phases:
            if not (isinstance(phase, Sequence) and len(phase) == 2):
                raise TypeError(f"a phase is a pair (fraction, schedule); got {phase!r}")
            if not isinstance(phase[1], Schedule):
                raise TypeError(f"the second of a phase is a Schedule; got {phase[1]!r}")
        phases = tuple((_fraction("the length of a phase", f), part) for f, part in self.phases)
        total = math.fsum(fraction for fraction, _ in phases)
        if abs(total - 1.0) > _TOLERANCE:
            shown = " + ".join(f"{fraction:g}" for fraction, _ in phases) or "no phases"
            raise ValueError(f"the fractions of the phases must add to 1; {shown} = {total:.9g}")
        self._set(phases=phases)

    def _values(self, p: Array) -> Array:
        fractions = [fraction for fraction, _ in self.phases]
        total = math.fsum(fractions)
        cuts = [math.fsum(fractions[:k]) / total for k in range(len(fractions) + 1)]
        return _piecewise(p, cuts, [part for _, part in self.phases])


@dataclass(frozen=True)
class Scaled(Schedule, kind="scaled"):
    """The values of another schedule, multiplied; made by `Schedule.scaled`."""

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule; got {self.schedule!r}")
        self._set(factor=_finite("factor", self.factor))

    def _values(self, p: Array) -> Array:
        return self.schedule._values(p) * self.factor


@dataclass(frozen=True, kw_only=True)
class TorchPhases(Schedule):
    """Base of the two curves of ``torch.optim.lr_scheduler.OneCycleLR``.

    Torch counts its phases in steps and ends them a step early, at ``pct_start *
    total_steps - 1``: where a step of a position is, decides the curve.
    """

    total_steps: int
    pct_start: float
    anneal_strategy: TorchAnneal
    three_phase: bool

    def __post_init__(self) -> None:
        total_steps = operator.index(self.total_steps)
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1; got {total_steps}")
        _one_of("anneal_strategy", self.anneal_strategy, ("cos", "linear"))
        self._set(total_steps=total_steps, three_phase=bool(self.three_phase))
        self._set(pct_start=_fraction("pct_start", self.pct_start))

    def _levels(self) -> tuple[float, ...]:
        """Give the values at the ends of the phases."""
        raise NotImplementedError

    def _values(self, p: Array) -> Array:
        last = self.total_steps - 1
        peak = self.pct_start * self.total_steps - 1
        cuts = [0.0, peak, 2 * self.pct_start * self.total_steps - 2, last]
        if not self.three_phase:
            del cuts[2]
        shape = Cosine if self.anneal_strategy == "cos" else Linear
        levels = self._levels()
        return _piecewise(p * last, cuts, [shape(a, b) for a, b in pairwise(levels)])


@dataclass(frozen=True, kw_only=True)
class TorchOneCycle(TorchPhases, kind="torch_one_cycle"):
    """The rate of ``OneCycleLR``; made by `torch_one_cycle`."""

    max_lr: float
    div_factor: float
    final_div_factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            max_lr=_not_negative("max_lr", self.max_lr),
            div_factor=_positive("div_factor", self.div_factor),
            final_div_factor=_positive("final_div_factor", self.final_div_factor),
        )

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
        self._set(base=_momentum("base", self.base), max=_momentum("max", self.max))

    def _levels(self) -> tuple[float, ...]:
        if self.three_phase:
            return self.max, self.base, self.max, self.max
        return self.max, self.base, self.max


def constant(value: float) -> Constant:
    """Hold one value.

    Args:
        value: The value, finite.

    Returns:
        The schedule.

    Example:
        >>> constant(0.1)(0.7)
        0.1
    """
    return Constant(value)


def linear(start: float, end: float) -> Linear:
    """Go from one value to another in a straight line: ``start + p * (end - start)``.

    Args:
        start: The value at position 0.
        end: The value at position 1.

    Returns:
        The schedule.

    Example:
        >>> linear(1.0, 3.0)(0.5)
        2.0
    """
    return Linear(start, end)


def cosine(start: float, end: float) -> Cosine:
    """Go from one value to another on half a cosine, flat at both ends.

    The value at p is ``end + (start - end) * (1 + cos(pi * p)) / 2``.

    Args:
        start: The value at position 0.
        end: The value at position 1.

    Returns:
        The schedule.

    Source:
        Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5.

    Example:
        >>> round(cosine(1.0, 0.0)(1 / 3), 6)
        0.75
    """
    return Cosine(start, end)


def exponential(start: float, end: float) -> Exponential:
    """Go from one value to another in equal ratios: ``start * (end / start) ** p``.

    Args:
        start: The value at position 0, positive.
        end: The value at position 1, positive.

    Returns:
        The schedule.

    Example:
        >>> round(exponential(1e-7, 10.0)(0.5), 9)
        0.001
    """
    return Exponential(start, end)


def polynomial(start: float, end: float, power: float) -> Polynomial:
    """Go from one value to another on a power: ``start + p ** power * (end - start)``.

    Args:
        start: The value at position 0.
        end: The value at position 1.
        power: The power of the position, positive. 1 is a straight line.

    Returns:
        The schedule.

    Example:
        >>> polynomial(0.0, 8.0, 3.0)(0.5)
        1.0
    """
    return Polynomial(start, end, power)


def step(start: float, factor: float, *, milestones: Sequence[float] = (0.5, 0.75)) -> Step:
    """Hold a value and multiply it at each milestone.

    Args:
        start: The value before the first milestone.
        factor: What the value is multiplied by at each milestone.
        milestones: Increasing positions in [0, 1]. At a milestone the new value holds.

    Returns:
        The schedule.

    Example:
        >>> step(8.0, 0.5, milestones=(0.5, 0.75))(np.array([0.0, 0.49, 0.5, 0.75, 1.0]))
        array([8., 8., 4., 2., 2.])
    """
    return Step(start, factor, tuple(milestones))


def join(phases: Sequence[tuple[float, Schedule]]) -> Join:
    """Run schedules one after the other, each from its own 0 to its own 1.

    At a cut the later phase holds. A phase of length zero is skipped.

    Args:
        phases: Pairs of a fraction of the whole and a schedule. The fractions add to 1.

    Returns:
        The schedule.

    Raises:
        ValueError: If the fractions are not within [0, 1] or do not add to 1.
        TypeError: If a phase is not a pair of a fraction and a `Schedule`.

    Example:
        >>> flat_cos = join([(0.75, constant(1.0)), (0.25, cosine(1.0, 0.0))])
        >>> flat_cos(np.array([0.0, 0.75, 0.875, 1.0]))
        array([1. , 1. , 0.5, 0. ])
    """
    return Join(tuple(phases))


def one_cycle(
    lr_max: float,
    *,
    div: float = 25.0,
    div_final: float = 1e5,
    pct_start: float = 0.25,
    anneal: Anneal = "cosine",
) -> Join:
    """Raise the learning rate to its maximum, then lower it far below its start.

    Args:
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``.
        div_final: The rate ends at ``lr_max / div_final``.
        pct_start: Where the maximum is, as a fraction of the training.
        anneal: The form of both phases, ``"cosine"`` or ``"linear"``.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith and Topin, Super-Convergence (arXiv 1708.07120), in the two-phase form with
        cosines of fastai 2.

    Example:
        >>> one_cycle(1.0)(np.array([0.0, 0.125, 0.25, 1.0]))
        array([4.0e-02, 5.2e-01, 1.0e+00, 1.0e-05])
    """
    peak = _not_negative("lr_max", lr_max)
    start, end = peak / _positive("div", div), peak / _positive("div_final", div_final)
    return _up_and_down((start, peak, end), pct_start, anneal)


def momentum_cycle(
    moms: Sequence[float] = (0.95, 0.85, 0.95),
    *,
    pct_start: float = 0.25,
    anneal: Anneal = "cosine",
) -> Join:
    """Lower the momentum while the rate of `one_cycle` rises, and raise it again.

    Args:
        moms: The momentum at the start, at the maximum of the rate, and at the end, each
            in [0, 1).
        pct_start: Where the maximum of the rate is, as a fraction of the training.
        anneal: The form of both phases, ``"cosine"`` or ``"linear"``.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), section 4.3.

    Example:
        >>> momentum_cycle()(np.array([0.0, 0.25, 1.0]))
        array([0.95, 0.85, 0.95])
    """
    if len(moms) != 3:
        raise ValueError(f"moms has three values (start, at the maximum rate, end); got {moms!r}")
    return _up_and_down([_momentum("a momentum", m) for m in moms], pct_start, anneal)


def three_phase(
    lr_max: float,
    *,
    div: float = 10.0,
    div_final: float = 1000.0,
    fraction_up: float = 0.45,
    fraction_down: float = 0.45,
) -> Join:
    """Raise the rate in a line, lower it in a line, then let it fall far below its start.

    The defaults are those of fastai 0.7's ``use_clr_beta=(10, 10)``: a tenth of the
    training is left for the fall from ``lr_max / 10`` to ``lr_max / 1000``.

    Args:
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``, and is back there after two phases.
        div_final: The rate ends at ``lr_max / div_final``.
        fraction_up: The length of the first phase, as a fraction of the training.
        fraction_down: The length of the second. The third has the rest.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range, or the two phases are together
            longer than the training.

    Source:
        Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), section 4.2.

    Example:
        >>> three_phase(1.0)(np.array([0.0, 0.45, 0.9, 1.0]))
        array([0.1  , 1.   , 0.1  , 0.001])
    """
    peak = _not_negative("lr_max", lr_max)
    base, end = peak / _positive("div", div), peak / _positive("div_final", div_final)
    up, down = _fraction("fraction_up", fraction_up), _fraction("fraction_down", fraction_down)
    rest = 1.0 - up - down
    if rest < -_TOLERANCE:
        raise ValueError(
            f"fraction_up + fraction_down is at most 1; {up:g} + {down:g} = {up + down:.9g}"
        )
    # What rounding leaves of 1 is no third phase.
    tail = rest if rest > _TOLERANCE else 0.0
    return join([(up, linear(base, peak)), (down, linear(peak, base)), (tail, linear(base, end))])


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


def _up_and_down(levels: Sequence[float], pct_start: float, anneal: Anneal) -> Join:
    """Go through three levels, the second of them at pct_start."""
    first = _fraction("pct_start", pct_start)
    _one_of("anneal", anneal, ("cosine", "linear"))
    shape = Cosine if anneal == "cosine" else Linear
    start, peak, end = levels
    return join([(first, shape(start, peak)), (1.0 - first, shape(peak, end))])


def _piecewise(x: Array, cuts: Sequence[float], parts: Sequence[Schedule]) -> Array:
    """Evaluate ``parts[i]`` between ``cuts[i]`` and ``cuts[i + 1]``, the later at a cut.

    Parts without length are skipped; if all are, the end of the last one holds.
    """
    spans = [
        (start, stop, part)
        for (start, stop), part in zip(pairwise(cuts), parts, strict=True)
        if stop > start
    ]
    if not spans:
        return parts[-1]._values(np.ones_like(x))
    index = np.searchsorted([start for start, _, _ in spans], x, side="right") - 1
    values = np.empty_like(x)
    for i, (start, stop, part) in enumerate(spans):
        here = index == i
        values[here] = part._values((x[here] - start) / (stop - start))
    return values


def _encode(value: Any) -> Any:
    """Turn a field into JSON values."""
    if isinstance(value, Schedule):
        return value.to_dict()
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    """Turn JSON values into a field."""
    if isinstance(value, Mapping):
        return Schedule.from_dict(value)
    return tuple(_decode(item) for item in value) if isinstance(value, list | tuple) else value


def _finite(name: str, value: float) -> float:
    """Check that a value is a finite number."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number; got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {value}")
    return number


def _not_negative(name: str, value: float) -> float:
    """Check that a value is finite and at least 0."""
    number = _finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return number


def _positive(name: str, value: float) -> float:
    """Check that a value is finite and above 0."""
    number = _finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return number


def _fraction(name: str, value: float) -> float:
    """Check that a value is within [0, 1]."""
    number = _finite(name, value)
    if not 0 <= number <= 1:
        percent = f" (did you mean {number / 100:g}?)" if 1 < number <= 100 else ""
        raise ValueError(f"{name} is a fraction between 0 and 1; got {value}{percent}")
    return number


def _momentum(name: str, value: float) -> float:
    """Check that a value is within [0, 1): a momentum of 1 never forgets a gradient."""
    number = _fraction(name, value)
    if number == 1:
        raise ValueError(f"{name} must be below 1; got {value}")
    return number


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a word is one of those that are known."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
