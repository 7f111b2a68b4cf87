"""What calls of a function may change: its closure, its globals, the object that it belongs to."""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable
from copy import copy
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle.data.generators import GENERATORS, put_state, state_of
from onecycle.data.held import LONGEST, refill

_Restore = Callable[[], object]
_PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple)
_CONTAINERS = (list, dict, set, deque)
_MOST = 2000  # things that are followed; more is data


def hold_calls(*functions: Any) -> _Restore:
    """Remember what functions keep from call to call, so that they can be called aside.

    That is what their closures and defaults hold, the globals that they assign or fill, the fields
    of objects whose class is in the function's module, buffers and generators. Objects of other
    libraries are left alone. An iterator cannot be put back, and goes on.

    Args:
        *functions: Functions, methods, partials, or objects that are called.

    Returns:
        What puts it all back.

    Example:
        >>> calls = [0]
        >>> def loss(pred, calls=calls):
        ...     calls[0] += 1
        >>> put_back = hold_calls(loss)
        >>> loss(1)
        >>> put_back()
        >>> calls
        [0]
    """
    held = _Held()
    for function in functions:
        owner = function.func if isinstance(function, partial) else function
        held.module = getattr(owner, "__module__", None)
        held.hold(function)
    return held.put_back


class _Held:
    def __init__(self) -> None:
        self.module: str | None = None
        self._restores: list[_Restore] = []
        self._seen: dict[int, Any] = {}

    def put_back(self) -> None:
        for restore in self._restores:
            restore()

    def hold(self, part: Any) -> None:
        if isinstance(part, (*_PLAIN[:-1], type)) or id(part) in self._seen:
            return
        if len(self._seen) == _MOST:
            return
        self._seen[id(part)] = part  # alive, so that its id stays its own
        inner, restores = self._look_at(part)
        self._restores += restores
        for each in inner:
            self.hold(each)

    def _look_at(self, part: Any) -> tuple[list[Any], list[_Restore]]:
        """Return what to follow from here, and what puts the thing itself back."""
        if isinstance(part, FunctionType):
            return _of_function(part)
        if isinstance(part, MethodType):
            return [part.__func__, part.__self__], []
        if isinstance(part, partial):
            return [part.func, *part.args, *part.keywords.values()], []
        if isinstance(part, GENERATORS):
            return [], [partial(put_state, part, state_of(part))]
        if isinstance(part, Tensor | np.ndarray):
            return [], _of_array(part)
        if isinstance(part, _CONTAINERS):
            content = part.values() if isinstance(part, dict) else part
            return list(content) if len(part) <= _MOST else [], [partial(refill, part, copy(part))]
        if isinstance(part, tuple):
            return list(part), []
        fields = vars(part) if hasattr(part, "__dict__") else {}
        if isinstance(part, nn.Module):
            return [*part.children(), *part.buffers(recurse=False)], _plain(fields)
        is_own = type(part).__module__ == self.module
        return (list(fields.values()), _plain(fields)) if is_own else ([], [])


def _of_function(function: FunctionType) -> tuple[list[Any], list[_Restore]]:
    """Follow closure, defaults and globals; remember the cells, and the globals it assigns."""
    inner = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    restores: list[_Restore] = []
    for cell in function.__closure__ or ():
        try:
            inner.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
        restores.append(partial(setattr, cell, "cell_contents", cell.cell_contents))
    there = function.__globals__
    for step in dis.get_instructions(function.__code__):
        if step.opname not in ("LOAD_GLOBAL", "STORE_GLOBAL") or step.argval not in there:
            continue
        value = there[step.argval]
        if step.opname == "STORE_GLOBAL":
            restores.append(partial(there.__setitem__, step.argval, value))
        if getattr(value, "__module__", function.__module__) == function.__module__:
            inner.append(value)
    return inner, restores


def _of_array(array: Any) -> list[_Restore]:
    if isinstance(array, np.ndarray):
        is_small = array.flags.writeable and array.size <= LONGEST
        return [partial(np.copyto, array, array.copy())] if is_small else []
    fixed = array.requires_grad or array.is_inference() or array.layout is not torch.strided
    if fixed or array.is_nested or array.numel() > LONGEST or 0 in array.stride():
        return []
    return [partial(_write_back, array, array.clone())]


def _write_back(tensor: Tensor, content: Tensor) -> None:
    # Only what is another: writing counts as a change. Batch norm's writing does not count.
    if not torch.equal(tensor, content):
        with torch.no_grad():
            tensor.copy_(content)


def _plain(fields: dict[str, Any]) -> list[_Restore]:
    plain = {name: value for name, value in fields.items() if isinstance(value, _PLAIN)}
    plain.pop("training", None)  # of a module: modes are held elsewhere
    return [partial(fields.update, plain)] if plain else []
