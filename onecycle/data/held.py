"""Hold loaders where they are while something else draws from them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from onecycle.data.generators import put_state, state_of
from onecycle.data.loaders import TensorLoader
from onecycle.data.sources import (
    data_sets,
    fields_of,
    generators,
    iterators,
    order_fields,
    order_parts,
)

log = logging.getLogger("onecycle")

#: Longer fields of a loader are data, not its order.
LONGEST = 4_000_000

_Restore = Callable[[], object]


def hold_loaders(*loaders: Any) -> _Restore:
    """Remember the order of loaders, and all generators that they hold, without copying any data.

    A DataLoader with persistent workers is given new ones meanwhile: the old ones are in the
    middle of a pass, or hold random states that must not move. Of a data set, the numbers among
    its fields are remembered: it may count its passes. An iterator among the fields of a loader
    cannot be put back, and is named in the log.

    Args:
        *loaders: Any loaders; ``None`` and lists of batches are passed over.

    Returns:
        What puts them back.

    Example:
        >>> from onecycle import TensorLoader
        >>> loader = TensorLoader(Tensor([1, 2, 3, 4]), batch_size=2)
        >>> put_back = hold_loaders(loader)
        >>> loader.batch_size = 4
        >>> put_back()
        >>> loader.batch_size
        2
    """
    restores: list[_Restore] = []
    seen: set[int] = set()  # a loader that both trains and validates is held once
    for loader in loaders:
        if isinstance(loader, list | tuple) or loader is None or id(loader) in seen:
            continue  # of batches as they are nothing changes, and there may be many
        if lost := iterators(loader):
            log.warning(
                "%s is an iterator: what is drawn from it now does not come again, and the next "
                "pass goes on behind it",
                ", ".join(lost),
            )
        for part in order_parts(loader).values():
            if id(part) not in seen:
                seen.add(id(part))
                restores += _held_part(loader, part)
        for part in data_sets(loader).values():
            numbers = {n: v for n, v in fields_of(part).items() if type(v) in (int, float)}
            restores.append(partial(_set_fields, part, numbers))
        for generator in generators(loader, "").values():
            restores.append(partial(put_state, generator, state_of(generator)))

    def put_back() -> None:
        for restore in restores:
            restore()

    return put_back


def _held_part(loader: Any, part: Any) -> list[_Restore]:
    own = {} if isinstance(part, TensorLoader) else order_fields(loader, part)  # it holds data
    restores = [each for value in own.values() for each in held_content(value)]
    if hasattr(part, "__dict__"):
        restores.append(partial(refill, vars(part), dict(vars(part))))
    if isinstance(part, DataLoader):
        part._iterator = None
    return restores


def _set_fields(owner: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(owner, name, value)


def held_content(value: Any) -> list[_Restore]:
    """Return what puts the content of a container back in place, and of those within it.

    Args:
        value: Anything; what is no container, or too long for one that is an order, has none.
    """
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", None)
    is_python = isinstance(value, list | dict | set | deque)
    size = len(value) if is_python or isinstance(value, tuple) else size
    if not isinstance(size, int) or size > LONGEST:
        return []
    if isinstance(value, Tensor):
        # One that an operation computed with gradients is no order.
        return [] if value.requires_grad else [partial(value.copy_, value.clone())]
    if isinstance(value, np.ndarray):
        return [partial(np.copyto, value, value.copy())] if value.flags.writeable else []
    if not is_python and not isinstance(value, tuple):
        return []
    restores: list[_Restore] = [partial(refill, value, copy(value))] if is_python else []
    parts = value.values() if isinstance(value, dict) else value
    if not set(map(type, parts)).issubset((int, float, str, bool)):
        restores += [each for part in parts for each in held_content(part)]
    return restores


def refill(container: Any, content: Any) -> None:
    """Give a list, deque, dict or set other content, in place."""
    if isinstance(container, dict | set):
        container.clear()
        container.update(content)
    else:
        container.clear()
        container.extend(content)
