"""Numbers that a person gives, checked: each is returned, or refused with its name."""

import inspect
import math
import operator
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import SupportsFloat

import numpy as np

#: What to say where a rate is ``None``.
NO_RATE = "a range test that found nothing gives None: see its reason"


class Default(Enum):
    """The default of an argument for which ``None`` is no value, but a mistake."""

    OWN = "the learner's own"

    def __repr__(self) -> str:
        return f"<{self.value}>"


def shown(value: object) -> str:
    """Write a value for a message: as its repr where that is one short line, else as its type."""
    try:
        text = repr(value)
    except Exception:
        text = ""
    return text if 0 < len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


def check_finite(name: str, value: float) -> float:
    """Return a finite number as a float, or refuse it."""
    if not isinstance(value, SupportsFloat) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {value}")
    return number


def check_not_negative(name: str, value: float) -> float:
    """Return a finite number of at least 0, or refuse it."""
    number = check_finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return number


def check_positive(name: str, value: float) -> float:
    """Return a finite number above 0, or refuse it."""
    number = check_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return number


def check_fraction(name: str, value: float) -> float:
    """Return a number within [0, 1], or refuse it."""
    number = check_finite(name, value)
    if not 0 <= number <= 1:
        percent = f" (did you mean {number / 100:g}?)" if 1 < number <= 100 else ""
        raise ValueError(f"{name} is a fraction between 0 and 1; got {value}{percent}")
    return number


def check_momentum(name: str, value: float) -> float:
    """Return a number within [0, 1), or refuse it: a momentum of 1 never forgets a gradient."""
    number = check_fraction(name, value)
    if number == 1:
        raise ValueError(f"{name} must be below 1; got {value}")
    return number


def check_momenta(moms: Sequence[float]) -> tuple[float, float, float]:
    """Return three momenta, each within [0, 1), or refuse them."""
    reason = ""
    if isinstance(moms, list | tuple) and len(moms) == 3:
        try:
            start, peak, end = (check_momentum("a momentum", mom) for mom in moms)
        except (TypeError, ValueError) as error:
            reason = f": {error}"
        else:
            return start, peak, end
    raise ValueError(
        "moms must be three numbers in [0, 1), at the start, the peak and the end, like "
        f"(0.95, 0.85, 0.95); got {moms!r}{reason}"
    )


def check_count(name: str, value: int, *, least: int = 1) -> int:
    """Return an integer that is not below the least, or refuse it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    return number


def check_flag(name: str, value: bool) -> bool:
    """Return True or False, or refuse what is neither: most mistakes would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path, or refuse what names no file and no folder."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, as a str or a pathlib.Path; got {shown(value)}")
    if not text.strip() or "\0" in text or any(len(part) > 255 for part in Path(text).parts):
        raise ValueError(f"{name} must be a path that a file can have; got {shown(value)}")
    return Path(text)


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of those that are known."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_takes_learn(callback: object, name: str) -> None:
    """Refuse a handler of a callback that could not be called with the learner alone."""
    handler = getattr(callback, name, None)
    if inspect.ismethod(handler) or inspect.isfunction(handler):
        try:
            inspect.signature(handler).bind(callback)
        except TypeError as error:
            raise TypeError(
                f"{type(callback).__name__}.{name} is called with the learner: add learn, as in "
                f"def {name}(self, learn) ({error})"
            ) from None


def check_budget(n_epoch: int | None, steps_per_epoch: int | None, max_updates: int | None) -> None:
    """Refuse a length of a fit that is none.

    Raises:
        TypeError: If a limit is no integer.
        ValueError: If one is below 1, or nothing would end the fit.
    """
    limits = {"n_epoch": n_epoch, "steps_per_epoch": steps_per_epoch, "max_updates": max_updates}
    for name, limit in limits.items():
        if limit is not None:
            check_count(name, limit)
    if n_epoch is None and max_updates is None:
        raise ValueError("n_epoch=None needs max_updates=: nothing else would end the fit")
