"""What a file can hold and be read again without running code, shown before it is written."""

from __future__ import annotations

import io
from collections import OrderedDict
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle.checkpoints.archives import is_expanded, read_archive

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_TENSORS = (Tensor, nn.Parameter)


def readable(value: Any, where: str) -> Any:
    """Return a value as a file can hold it; NumPy's numbers become Python's.

    Args:
        value: Anything. It stays as it is: what must change is changed in copies.
        where: What it is, for the message.

    Raises:
        TypeError: Naming what could not be read again, and where it stands.

    Example:
        >>> readable({"best": np.float64(0.5), "shape": (1, 2)}, "the state")
        {'best': 0.5, 'shape': (1, 2)}
    """
    if type(value) in _PLAIN:
        return value
    if type(value) in _TENSORS and value.layout == torch.strided and not value.is_meta:
        return value.contiguous() if is_expanded(value) else value
    if isinstance(value, np.generic):
        return readable(value.item(), where)
    if type(value) in (dict, OrderedDict) and all(type(key) in _PLAIN for key in value):
        parts = {k: readable(v, f"{where}, at {k!r}") for k, v in value.items()}
        if all(parts[key] is part for key, part in value.items()):
            return value
        made = copy(value)  # with the versions of its modules, in a state of torch
        made.update(parts)
        return made
    if type(value) in (list, tuple):
        each = [readable(part, f"{where}, at {i}") for i, part in enumerate(value)]
        same = all(new is old for new, old in zip(each, value, strict=True))
        return value if same else type(value)(each)
    if not _comes_back(value):
        raise TypeError(
            f"{where}, is a {type(value).__name__}, which could not be read again: a file holds "
            "tensors, and plain values such as numbers, text, lists and dicts"
        )
    return value


def _comes_back(value: Any) -> bool:
    """Try what is not known: sparse tensors, sets, and types that the user has declared safe."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        read_archive(buffer.getvalue())
    except Exception:
        return False
    return True
