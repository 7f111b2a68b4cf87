"""What samples, classes and targets are called in pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onecycle.explanations import describe

#: Of more classes than this in one target the most likely are named.
_NAMED = 3


def class_names(dls: Any, dl: Any = None) -> list[str] | None:
    """Return what the classes are called: as the loaders say, or a data set.

    Args:
        dls: The learner's `DataLoaders`.
        dl: The loader in use, whose data set may have ``classes``, as those of torchvision do.

    Example:
        >>> from onecycle.vision import digits
        >>> class_names(digits())[:3]
        ['0', '1', '2']
    """
    if dls.classes is not None:
        return list(dls.classes)
    for loader in (dl, dls.train, dls.valid):
        data = getattr(loader, "dataset", None)
        while data is not None:
            classes = getattr(data, "classes", None)
            if isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes):
                return list(classes)
            data = getattr(data, "dataset", None)  # of a Subset
    return None


def class_name(index: int, classes: Sequence[str] | None) -> str:
    """Return the name of a class, or its index.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(1, None), class_name(2, ["cat", "dog"])
        ('dog', '1', '2')
    """
    return classes[index] if classes is not None and 0 <= index < len(classes) else str(index)


def written(value: Any, classes: Sequence[str] | None = None) -> str:
    """Write a target or a value in a few words.

    Args:
        value: A class index, a number, a text; a vector with a number for each class; anything.
        classes: What the classes are called.

    Example:
        >>> written(torch.tensor(1), ["cat", "dog"]), written(torch.tensor(0.25)), written("a b")
        ('dog', '0.25', 'a b')
        >>> written(torch.tensor([0.0, 0.7, 0.3]), ["cat", "dog", "cow"])
        'dog 0.7, cow 0.3'
    """
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return _of_tensor(value, classes)
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return class_name(value, classes)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {written(part, classes)}" for key, part in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(written(part, classes) for part in value)
    return "" if value is None else describe(value)


def _of_tensor(value: Tensor, classes: Sequence[str] | None) -> str:
    if value.numel() == 1:
        number = value.item()
        return class_name(number, classes) if isinstance(number, int) else f"{number:.4g}"
    if value.ndim == 1 and classes is not None and len(value) == len(classes):
        numbers = value.float()
        order = numbers.argsort(descending=True, stable=True)[:_NAMED].tolist()
        named = [f"{classes[i]} {float(numbers[i]):.2g}" for i in order if numbers[i] > 0]
        return ", ".join(named) or "none"
    if value.ndim == 1 and len(value) <= 2 * _NAMED:
        return ", ".join(f"{number:.4g}" for number in value.tolist())
    return describe(value)
