"""Capture everything that training changes, and put it back in place, bit for bit."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.data.generators import GENERATORS, put_state, state_of
from onecycle.optim.modes import has_modes

_Restore = Callable[[], object]
_PLAIN = (int, float, str, bytes, bool, type(None))


class Capture:
    """Remembers values so that they can be put back *in place*.

    Containers, tensors and generators stay the same objects and get their old content back, so
    that whoever else holds them (an optimizer, a callback, the program) sees it too. Dicts,
    lists, sets, deques, tensors, NumPy arrays and random generators are followed; other objects
    where they have a ``state_dict``, as optimizers and gradient scalers do; any other object, and
    a module, is kept by reference. So is a tensor that an operation computed: nothing changes it
    in place, and its graph would notice if we did.

    Args:
        ignored: Objects that are kept by reference although they could be followed.

    Example:
        >>> state = {"weights": torch.ones(2), "steps": [1, 2]}
        >>> weights, capture = state["weights"], Capture()
        >>> capture.add(state)
        >>> _ = weights.zero_(), state["steps"].append(3), state.pop("weights")
        >>> capture.restore()
        >>> state, state["weights"] is weights
        ({'weights': tensor([1., 1.]), 'steps': [1, 2]}, True)
    """

    def __init__(self, ignored: Iterable[Any] = ()) -> None:
        self._restores: list[_Restore] = []
        # Keeps what it names alive, so that ids stay unique.
        self._seen: dict[int, Any] = {id(value): value for value in ignored}

    def add(self, value: Any) -> None:
        """Remember a value and all that it holds."""
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        restore = _restorer(value)
        if restore is not None:
            self._restores.append(restore)
        for part in _parts(value):
            self.add(part)

    def restore(self) -> None:
        """Put every value back as it was when it was added."""
        with torch.no_grad():
            for restore in self._restores:
                restore()


def _parts(value: Any) -> list[Any]:
    """List what a value holds and must be remembered with it."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | deque):
        return [] if set(map(type, value)).issubset(_PLAIN) else list(value)
    # Whatever gives its state away is state: optimizers, gradient scalers, monitors, averages.
    if hasattr(value, "state_dict") and hasattr(value, "__dict__"):
        return [] if isinstance(value, nn.Module | type) else [vars(value)]
    return []


def _restorer(value: Any) -> _Restore | None:
    """Return what puts a value's own content back, or ``None`` for what has none."""
    if isinstance(value, Tensor):
        return _tensor_restorer(value) if value.grad_fn is None else None
    if isinstance(value, np.ndarray) and value.flags.writeable:
        return partial(np.copyto, value, value.copy())
    if isinstance(value, GENERATORS):
        return partial(put_state, value, state_of(value))
    if isinstance(value, dict | set):
        return partial(_refill, value, value.update, value.copy())
    if isinstance(value, list | deque):
        return partial(_refill, value, value.extend, list(value))
    return None


def _tensor_restorer(tensor: Tensor) -> _Restore:
    for dim, stride in enumerate(tensor.stride() if tensor.layout == torch.strided else ()):
        if stride == 0:  # expanded: every place along it is the same memory
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    content = tensor.detach().clone()
    if not tensor.is_inference():
        return partial(tensor.copy_, content)

    def put_back() -> None:
        with torch.inference_mode():
            tensor.copy_(content)

    return put_back


def _refill(container: Any, fill: Callable[[Any], None], content: Any) -> None:
    container.clear()
    fill(content)


class RngState:
    """The state of every random number generator: Python's, NumPy's, torch's, each device's."""

    def __init__(self) -> None:
        self.python = random.getstate()
        self.numpy: Any = np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self.mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def state_dict(self) -> dict[str, Any]:
        """Return the states as plain values and tensors."""
        kind, keys, *rest = self.numpy
        return {**vars(self), "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Return the states that `state_dict` gave; what this machine lacks stays as it is."""
        kind, keys, *rest = state["numpy"]
        states = cls()
        states.python, states.torch = state["python"], state["torch"]
        states.numpy = (kind, keys.numpy().astype(np.uint32), *rest)
        if len(state["cuda"]) == len(states.cuda):
            states.cuda = state["cuda"]
        if state["mps"] is not None and states.mps is not None:
            states.mps = state["mps"]
        return states

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class preserved_rng:  # noqa: N801 - used as the function beside it
    """Run a block that leaves every random number generator as it was.

    No generator function: one that Ctrl-C keeps from its end is finalized later, when whatever is
    around it has put the random states back already, and would set them once more.
    """

    def __enter__(self) -> None:
        """Keep the states."""
        self._state = RngState()

    def __exit__(self, *error: object) -> None:
        """Put them back."""
        surely(self._state.restore)


@contextmanager
def kept_grad_mode() -> Iterator[None]:
    """Run a block that leaves gradients switched on or off, as they were.

    ``torch.no_grad`` alone leaves them off where Ctrl-C comes while it is entered or left.
    """
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)


def surely(put_back: Callable[[], object]) -> None:
    """Put something back, and if Ctrl-C comes meanwhile, do it again before that goes on.

    Args:
        put_back: May be called twice.
    """
    try:
        put_back()
    except KeyboardInterrupt:
        put_back()
        raise


def hold_modes(opt: Optimizer, *roots: nn.Module | None) -> _Restore:
    """Remember the mode of every module; and of an optimizer that has modes, all of it.

    Its weights are others in evaluation mode, and the way back is exact only up to rounding.

    Returns:
        What puts them back.
    """
    flags = [(part, part.training) for root in roots if root is not None for part in root.modules()]
    held = Capture()
    if has_modes(opt):
        held.add([vars(opt), [group["params"] for group in opt.param_groups]])

    def put_back() -> None:
        held.restore()
        for part, flag in flags:
            part.training = flag

    return put_back
