"""Schedules: pure functions of the position in training, from 0 (start) to 1 (end).

A schedule knows no optimizer, no step and no epoch. Called with a position it gives the
value there; called with an array of positions it gives the array of values, bit for bit
the same. The shapes between two values and the ways to combine them:

    constant   linear   cosine   exponential   polynomial   polynomial_decay   step
    join       one after the other, in fractions of the training
    join_steps one after the other, in updates
    schedule.scaled(factor)   multiplied

Make them with these functions; the classes behind them are there to be printed, compared,
hashed, stored (`Schedule.to_dict`) and subclassed. The policies made of them are in
`onecycle.schedules.policies`, those of torch in `onecycle.schedules.torch_like`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from onecycle.arguments import (
    check_count,
    check_finite,
    check_fraction,
    check_list,
    check_positive,
    shown,
)

Array: TypeAlias = NDArray[np.float64]

_KINDS: dict[str, type["Schedule"]] = {}

#: How far fractions that are meant to add to 1 may miss it.
TOLERANCE = 1e-6


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
        self._set(value=check_finite("value", self.value))

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
        self._set(start=check_finite("start", self.start), end=check_finite("end", self.end))

    def _values(self, p: Array) -> Array:
        return self._mix(self._weights(p))

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
        self._set(start=check_positive("start", self.start), end=check_positive("end", self.end))

    def _mix(self, w: Array) -> Array:
        # The geometric mean, and not start * (end / start) ** p: no ratio can overflow.
        return np.asarray(np.power(self.start, w) * np.power(self.end, 1.0 - w))


@dataclass(frozen=True)
class Polynomial(Between, kind="polynomial"):
    """A power of the position; made by `polynomial`."""

    power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(power=check_positive("power", self.power))

    def _weights(self, p: Array) -> Array:
        return 1.0 - np.power(p, self.power)


@dataclass(frozen=True)
class PolynomialDecay(Polynomial, kind="polynomial_decay"):
    """A power of what is left of the way; made by `polynomial_decay`."""

    def _weights(self, p: Array) -> Array:
        return np.power(1.0 - p, self.power)


@dataclass(frozen=True)
class Step(Schedule, kind="step"):
    """Flat, and multiplied at each milestone; made by `step`."""

    start: float
    factor: float
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        milestones = tuple(check_fraction("a milestone", m) for m in self.milestones)
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise ValueError(f"milestones must increase; got {milestones}")
        self._set(
            start=check_finite("start", self.start), factor=check_finite("factor", self.factor)
        )
        self._set(milestones=milestones)
        try:
            self._levels()
        except OverflowError:
            raise ValueError(
                f"factor multiplies {self.start:g} beyond all numbers in {len(milestones)} "
                f"milestones; got {self.factor:g}"
            ) from None

    def _levels(self) -> list[float]:
        return [self.start * self.factor**k for k in range(len(self.milestones) + 1)]

    def _values(self, p: Array) -> Array:
        return np.array(self._levels())[np.searchsorted(self.milestones, p, side="right")]


@dataclass(frozen=True)
class Join(Schedule, kind="join"):
    """Schedules one after the other; made by `join`."""

    phases: tuple[tuple[float, Schedule], ...]

    def __post_init__(self) -> None:
        _check_phases(self.phases, "fraction")
        phases = tuple(
            (check_fraction("the length of a phase", f), part) for f, part in self.phases
        )
        total = math.fsum(fraction for fraction, _ in phases)
        if abs(total - 1.0) > TOLERANCE:
            added = " + ".join(f"{fraction:g}" for fraction, _ in phases) or "no phases"
            raise ValueError(f"the fractions of the phases must add to 1; {added} = {total:.9g}")
        self._set(phases=phases)

    def _values(self, p: Array) -> Array:
        fractions = [fraction for fraction, _ in self.phases]
        total = math.fsum(fractions)
        cuts = [math.fsum(fractions[:k]) / total for k in range(len(fractions) + 1)]
        return piecewise(p, cuts, [part for _, part in self.phases])


@dataclass(frozen=True)
class Scaled(Schedule, kind="scaled"):
    """The values of another schedule, multiplied; made by `Schedule.scaled`."""

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule; got {self.schedule!r}")
        self._set(factor=check_finite("factor", self.factor))

    def _values(self, p: Array) -> Array:
        return self.schedule._values(p) * self.factor


@dataclass(frozen=True, kw_only=True)
class Counted(Schedule):
    """Base of the schedules that count updates: step k of T is at the position ``k / (T - 1)``.

    A subclass defines ``_at``, which is given steps in [0, T - 1], whole at every update.

    Attributes:
        total_steps: The optimizer updates in all, T.
    """

    total_steps: int

    def __post_init__(self) -> None:
        self._set(total_steps=check_count("total_steps", self.total_steps))

    def _values(self, p: Array) -> Array:
        steps = p * (self.total_steps - 1)
        whole = np.round(steps)
        # k / (T - 1) * (T - 1) may miss k by a last bit, and with it a jump that is at k.
        return self._at(np.where(np.abs(steps - whole) < TOLERANCE, whole, steps))

    def _at(self, steps: Array) -> Array:
        """Give the values at steps, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} must define _at(self, steps)")


@dataclass(frozen=True, kw_only=True)
class JoinSteps(Counted, kind="join_steps"):
    """Schedules one after the other, measured in updates; made by `join_steps`."""

    phases: tuple[tuple[int, Schedule], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_phases(self.phases, "steps")
        name = "the length of a phase"
        phases = tuple((check_count(name, n, least=0), part) for n, part in self.phases)
        if not any(n for n, _ in phases):
            raise ValueError("the phases must have at least one step together; got none")
        self._set(phases=phases)

    def _at(self, steps: Array) -> Array:
        cuts = list(accumulate((n for n, _ in self.phases), initial=0))
        return piecewise(np.minimum(steps, cuts[-1]), cuts, [part for _, part in self.phases])


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

    A power above 1 stays near the start and leaves it late, which suits a rise.

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


def polynomial_decay(start: float, end: float, power: float) -> PolynomialDecay:
    """Fall on a power of what is left of the way: ``end + (1 - p) ** power * (start - end)``.

    A power above 1 leaves the start at once and comes near the end slowly, as decays of the
    learning rate do: `polynomial` from the end to the start, read backwards.

    Args:
        start: The value at position 0.
        end: The value at position 1.
        power: The power of what is left, positive. 1 is a straight line.

    Returns:
        The schedule.

    Source:
        Chen et al., DeepLab (arXiv 1606.00915), section 4.1: the "poly" policy, power 0.9.

    Example:
        >>> polynomial_decay(8.0, 0.0, 3.0)(0.5)
        1.0
    """
    return PolynomialDecay(start, end, power)


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
    return Step(start, factor, tuple(check_list("milestones", milestones, "fractions")))


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
    return Join(tuple(check_list("phases", phases, "pairs (fraction, schedule)")))


def join_steps(total_steps: int, phases: Sequence[tuple[int, Schedule]]) -> JoinSteps:
    """Run schedules one after the other, each for a number of optimizer updates.

    A phase of n steps that begins at step k is at its own ``j / n`` at step ``k + j``: step
    ``k + n`` is the first of the next phase. What does not fit into the training is cut off;
    when all phases are over, the last value holds. Step k is at ``k / (total_steps - 1)``.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        phases: Pairs of a number of updates and a schedule.

    Returns:
        The schedule.

    Raises:
        ValueError: If a number is negative, or no phase has a length.
        TypeError: If a phase is not a pair of an integer and a `Schedule`.

    Example:
        >>> warm_up = join_steps(8, [(4, linear(0.0, 1.0)), (4, linear(1.0, 0.0))])
        >>> warm_up(np.arange(8) / 7).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    """
    pairs = check_list("phases", phases, "pairs (steps, schedule)")
    return JoinSteps(total_steps=total_steps, phases=tuple(pairs))


def _check_phases(phases: Sequence[object], length: str) -> None:
    """Refuse what is no pair of a length and a schedule."""
    for phase in phases:
        if not (isinstance(phase, list | tuple) and len(phase) == 2):
            raise TypeError(f"a phase is a pair ({length}, schedule); got {shown(phase)}")
        if not isinstance(phase[1], Schedule):
            raise TypeError(f"the second of a phase is a Schedule; got {shown(phase[1])}")


def piecewise(x: Array, cuts: Sequence[float], parts: Sequence[Schedule]) -> Array:
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
