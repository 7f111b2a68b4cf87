"""What a person gives, checked: it is returned, or refused with its name, before anything runs."""

import inspect
import math
import operator
import os
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

_CADENCE = re.compile(r"(\d+(?:\.\d+)?) (update|epoch|minute)s?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*((s|m|h|d)(?:ec|econd|in|inute|r|our|ay)?s?)(?![a-z])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: No run counts further: a number above it is a mistake, and would never end.
_LARGEST = 2**63 - 1

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


def class_hint(value: object) -> str:
    """Say what to do with a class that was given in place of an object."""
    return " (write it with parentheses)" if isinstance(value, type) else ""


def check_finite(name: str, value: float) -> float:
    """Return a finite number as a float, or refuse it."""
    try:
        is_one = isinstance(value, SupportsFloat) and np.ndim(value) == 0
        is_number = is_one and not isinstance(value, bool | np.bool_)
        number = float(value) if is_number else None
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):  # of torch: a tensor without a value
        number = None
    if number is None:
        raise TypeError(f"{name} must be a number; got {shown(value)}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {shown(value)}")
    return number


def check_not_negative(name: str, value: float) -> float:
    """Return a finite number of at least 0, or refuse it."""
    number = check_finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {shown(value)}")
    return number


def check_positive(name: str, value: float) -> float:
    """Return a finite number above 0, or refuse it."""
    number = check_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {shown(value)}")
    return number


def check_divided(rate: float, name: str, divisor: float) -> float:
    """Return a rate divided by a number above 0, or refuse one by which it is no number."""
    part = rate / check_positive(name, divisor)
    if not math.isfinite(part):
        raise ValueError(f"{name} must not be so small: {rate:g} is divided by it; got {divisor}")
    return part


def check_fraction(name: str, value: float) -> float:
    """Return a number within [0, 1], or refuse it."""
    number = check_finite(name, value)
    if not 0 <= number <= 1:
        percent = f" (did you mean {number / 100:g}?)" if 1 < number <= 100 else ""
        raise ValueError(f"{name} is a fraction between 0 and 1; got {shown(value)}{percent}")
    return number


def check_momentum(name: str, value: float) -> float:
    """Return a number within [0, 1), or refuse it: a momentum of 1 never forgets a gradient."""
    number = check_fraction(name, value)
    if number == 1:
        raise ValueError(f"{name} must be below 1; got {shown(value)}")
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
        f"(0.95, 0.85, 0.95); got {shown(moms)}{reason}"
    )


def check_count(name: str, value: int, *, least: int = 1) -> int:
    """Return an integer that is not below the least, or refuse it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two of tensors
        raise TypeError(f"{name} must be an integer; got {shown(value)}") from None
    if not least <= number <= _LARGEST:
        bound = f"at least {least}" if number < least else "a count that ends, below 2**63"
        raise ValueError(f"{name} must be {bound}; got {shown(value)}")
    return number


def check_cadence(name: str, value: str, *, parts_of_epochs: bool = False) -> tuple[float, str]:
    """Return how often something is done, as a number and ``"update"``, ``"epoch"``, ``"minute"``.

    Args:
        name: What it is called.
        value: Such as ``"50 updates"``, ``"1 epoch"`` or ``"10 minutes"``.
        parts_of_epochs: Whether it may be ``"0.25 epochs"`` too.
    """
    match = _CADENCE.fullmatch(value) if isinstance(value, str) else None
    number = float(match[1]) if match else 0.0
    unit = match[2] if match else ""
    may_be_part = unit == "minute" or (parts_of_epochs and unit == "epoch")
    if not number or (number != int(number) and not may_be_part):
        epochs = "'0.25 epochs', '1 epoch'" if parts_of_epochs else "'1 epoch'"
        raise ValueError(
            f"{name} must be like '50 updates', {epochs} or '10 minutes'; got {shown(value)}"
        )
    return number, unit


def check_cadences(name: str, value: str | Sequence[str]) -> list[tuple[float, str]]:
    """Return how often something is done, by one rule or by several.

    Args:
        name: What it is called.
        value: As `check_cadence` takes it, or a list or tuple of such, no two by the same unit.
    """
    several: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    found = [check_cadence(name, each) for each in several]
    if not found or len({unit for _, unit in found}) < len(found):
        raise ValueError(
            f"{name} must have one rule for each unit, as ('1 epoch', '10 minutes'); "
            f"got {shown(value)}"
        )
    return found


def check_duration(name: str, value: str) -> float:
    """Return a duration such as ``"3h"``, ``"90 minutes"`` or ``"1h30m"`` in seconds.

    Args:
        name: What it is called.
        value: Numbers with units: seconds, minutes, hours and days, as words or ``s, m, h, d``.
    """
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    text = "".join(value.split()) if isinstance(value, str) else ""
    is_whole = text == "".join(number + word for number, word, _ in parts)
    seconds = sum(float(number) * _SECONDS[unit] for number, _, unit in parts)
    if not is_whole or seconds <= 0:
        raise ValueError(
            f"{name} must be a duration like '3h', '90 minutes' or '1h30m'; got {shown(value)}"
        )
    return seconds


def check_flag(name: str, value: bool) -> bool:
    """Return True or False, or refuse what is neither: most mistakes would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def check_flags(**values: bool) -> None:
    """Refuse what is neither True nor False, by name."""
    for name, value in values.items():
        check_flag(name, value)


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path, or refuse what names no file and no folder."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, as a str or a pathlib.Path; got {shown(value)}")
    if not text.strip() or "\0" in text or any(len(part) > 255 for part in Path(text).parts):
        raise ValueError(f"{name} must be a path that a file can have; got {shown(value)}")
    return Path(text)


def check_text(name: str, value: str) -> str:
    """Return a text, or refuse what is none."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be a text that is not empty; got {shown(value)}")
    return value


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of those that are known."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {shown(value)}")


def check_is(name: str, value: object, kind: type, like: str = "") -> None:
    """Refuse what is not of a kind; a class is a mistake of its own."""
    if not isinstance(value, kind):
        expected = f"{name} must be a {kind.__name__}{like and f', such as {like}'}"
        raise TypeError(f"{expected}; got {shown(value)}{class_hint(value)}")


def check_list(name: str, values: Sequence[Any], of: str) -> list[Any]:
    """Return what is in a list, a tuple, a range or an array of one dimension, or refuse it."""
    is_list = isinstance(values, list | tuple | range) or getattr(values, "ndim", 0) == 1
    if not is_list:
        raise TypeError(f"{name} must be a list of {of}; got {shown(values)}")
    return list(values)


def check_callable(name: str, value: object, *arguments: str) -> None:
    """Refuse what could not be called with such arguments, as far as it tells what it takes."""
    expected = f"a function of ({', '.join(arguments)})"
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name} must be {expected}; got {shown(value)}{class_hint(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name} must be {expected}; got {shown(value)} ({error})") from None


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


def check_epochs(name: str, value: float, *, least: int = 1) -> float:
    """Return a number of epochs above 0, perhaps with a fraction, or refuse it."""
    if not isinstance(value, float):
        return check_count(name, value, least=least)
    number = check_positive(name, value)
    if number > _LARGEST:
        raise ValueError(f"{name} must be a count that ends, below 2**63; got {shown(value)}")
    return int(number) if number == int(number) else number


def check_budget(
    n_epoch: float | None, steps_per_epoch: int | None, max_updates: int | None
) -> float | None:
    """Return the epochs of a fit, or refuse a length that is none.

    Raises:
        TypeError: If a limit is no number, or one that counts no integer.
        ValueError: If one is below 1, or not above 0; if nothing would end the fit.
    """
    n_epoch = None if n_epoch is None else check_epochs("n_epoch", n_epoch)
    limits = {"steps_per_epoch": steps_per_epoch, "max_updates": max_updates}
    for name, limit in limits.items():
        if limit is not None:
            check_count(name, limit)
    if n_epoch is None and max_updates is None:
        raise ValueError(
            "n_epoch=None needs max_updates= or max_time=: nothing else would end the fit"
        )
    return n_epoch
