"""Metrics of several values, taken apart into numbers that have a name each."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
from torch import Tensor


def named_parts(name: str, value: Any) -> dict[str, Any]:
    """Take apart what a metric gave: dicts and tuples, nested in any way.

    Args:
        name: The name of the metric.
        value: The parts of a dict or a named tuple go by their own names, those of another tuple
            or a list by ``name_0``, ``name_1``, ...; within another part, with its name before.
            Anything else is the one part, which has the metric's name.

    Raises:
        ValueError: If two parts come to the same name.

    Example:
        >>> named_parts("score", {"f1": 0.5, "recall": (0.1, 0.9)})
        {'f1': 0.5, 'recall_0': 0.1, 'recall_1': 0.9}
        >>> named_parts("score", 0.7)
        {'score': 0.7}
    """
    found: dict[str, Any] = {}
    for part, inner in _parts("" if _has_names(value) else name, value):
        if part in found:
            raise ValueError(f"metric {name} gives two values called {part!r}: rename one")
        found[part] = inner
    return found


def named_numbers(name: str, value: Any) -> dict[str, float]:
    """Read what a metric gave as numbers, each by its name.

    Args:
        name: The name of the metric.
        value: As for `named_parts`. A vector, such as one value for each class, gives ``name_0``,
            ``name_1``, ...

    Raises:
        TypeError: If a part is no number, nor a vector of numbers.
        ValueError: If two parts come to the same name.

    Example:
        >>> named_numbers("iou", np.array([0.25, 0.75]))
        {'iou_0': 0.25, 'iou_1': 0.75}
    """
    found: dict[str, float] = {}
    for part, inner in named_parts(name, value).items():
        many = isinstance(inner, Tensor | np.ndarray) and inner.ndim == 1 and len(inner) != 1
        each = named_parts(part, inner.tolist()) if many else {part: inner}
        for key, number in each.items():
            if key in found:
                raise ValueError(f"metric {name} gives two values called {key!r}: rename one")
            found[key] = _number(key, number)
    return found


def _has_names(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _parts(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, tuple | list):
        items = list(
            zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True)
        )
    else:
        yield prefix, value
        return
    for key, part in items:
        yield from _parts(f"{prefix}_{key}" if prefix else key, part)


def _number(name: str, value: Any) -> float:
    came = f"a {type(value).__name__}"
    if isinstance(value, Tensor | np.ndarray):
        came += f" of shape {tuple(value.shape)}"
        is_number = math.prod(value.shape) == 1
    else:
        is_number = isinstance(value, SupportsFloat)
    if not is_number:
        raise TypeError(
            f"metric {name} gave {came}; a metric is one number, a vector with one for each class, "
            "or a dict or tuple of such"
        )
    return float(value)
