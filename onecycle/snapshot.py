"""Capture everything that training changes, and put it back in place, bit for bit."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from onecycle.loop import Loop

_Restore = Callable[[], object]
_PLAIN = (int, float, str, bytes, bool, type(None))


class Capture:
    """Remembers values so that they can be put back *in place*.

    Containers, tensors and generators stay the same objects and get their old content back, so
    that whoever else holds them (an optimizer, a captured graph, a callback) sees it too. Dicts,
    lists, sets, deques, tensors, NumPy arrays and random generators are followed; gradient
    scalers too; any other object is kept by reference.

    Example:
        >>> state = {"weights": torch.ones(2), "steps": [1, 2]}
        >>> weights, capture = state["weights"], Capture()
        >>> capture.add(state)
        >>> _ = weights.zero_(), state["steps"].append(3), state.pop("weights")
        >>> capture.restore()
        >>> state, state["weights"] is weights
        ({'weights': tensor([1., 1.]), 'steps': [1, 2]}, True)
    """

    def __init__(self) -> None:
        self._restores: list[_Restore] = []
        self._seen: dict[int, Any] = {}  # keeps what it names alive, so that ids stay unique

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
        return list(value)
    if isinstance(value, torch.amp.GradScaler):
        return [vars(value)]
    return []


def _restorer(value: Any) -> _Restore | None:
    """Return what puts a value's own content back, or ``None`` for what has none."""
    if isinstance(value, Tensor):
        return partial(value.copy_, value.detach().clone())
    if isinstance(value, np.ndarray):
        return partial(np.copyto, value, value.copy())
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, dict | set):
        return partial(_refill, value, value.update, value.copy())
    if isinstance(value, list | deque):
        return partial(_refill, value, value.extend, list(value))
    return None


def _refill(container: Any, fill: Callable[[Any], None], content: Any) -> None:
    container.clear()
    fill(content)


class RngState:
    """The state of every random number generator: Python's, NumPy's, torch's, each device's."""

    def __init__(self) -> None:
        self.python = random.getstate()
        self.numpy = np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self.mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

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


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Run a block that leaves every random number generator as it was."""
    state = RngState()
    try:
        yield
    finally:
        state.restore()


class Snapshot:
    """Everything of a learner that training changes, in memory.

    That is: parameters, buffers, gradients, ``requires_grad`` and the train/eval flag of every
    module; the optimizer's state and ``param_groups``; the callbacks' own fields, gradient
    scalers included; every random number generator, those of the loaders too; the learner's
    fields. Not restored is what lives outside: files, and the state of data sets.

    Args:
        learn: The learner to remember.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> snapshot = Snapshot(learn)
        >>> learn.fit(1)
        >>> snapshot.restore()
        >>> learn.total_updates
        0
    """

    def __init__(self, learn: Loop) -> None:
        capture = Capture()
        modules = [m for m in (learn.model, learn.loss_func) if isinstance(m, nn.Module)]
        for module in (sub for root in modules for sub in root.modules()):
            capture.add(module._parameters)
            capture.add(module._buffers)
        capture.add(learn.opt.state)
        capture.add(learn.opt.param_groups)
        capture.add(vars(learn))
        for metric_or_callback in (*learn.cbs, *learn.metrics):
            if hasattr(metric_or_callback, "__dict__"):
                capture.add(vars(metric_or_callback))
        self._capture = capture
        self._flags = [_flags(module) for module in modules]
        self._gradients = [(p, p.grad) for p in learn.stepper.params]
        self._loaders = [hold_loader(dl) for dl in (learn.dls.train, learn.dls.valid)]
        self._rng = RngState()

    def restore(self) -> None:
        """Put everything back, in place: the same tensors, dicts and lists as before."""
        self._capture.restore()
        for put_back in (*self._flags, *self._loaders):
            put_back()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._rng.restore()


def _flags(root: nn.Module) -> _Restore:
    """Remember the train/eval flag of each module, and which parameters take gradients."""
    training = [(module, module.training) for module in root.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in root.parameters()]

    def put_back() -> None:
        for module, flag in training:
            module.training = flag
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)

    return put_back


def hold_loader(loader: Any) -> _Restore:
    """Remember a loader's fields and its generators, without copying any data.

    A DataLoader with persistent workers is given new ones meanwhile: the old ones are in the
    middle of a pass, or hold random states that must not move.
    """
    parts: Sequence[Any] = [loader]
    if isinstance(loader, DataLoader):
        inner = getattr(loader.batch_sampler, "sampler", None)
        parts = [loader, loader.sampler, loader.batch_sampler, inner]
    held = [(part, dict(vars(part))) for part in parts if hasattr(part, "__dict__")]
    generators = Capture()
    for _, fields in held:
        for value in fields.values():
            if isinstance(value, torch.Generator | np.random.Generator | random.Random):
                generators.add(value)
    if isinstance(loader, DataLoader):
        loader._iterator = None

    def put_back() -> None:
        for part, fields in held:
            vars(part).clear()
            vars(part).update(fields)
        generators.restore()

    return put_back


@contextmanager
def preserved(learn: Loop) -> Iterator[None]:
    """Run a block that leaves nothing behind in a learner, whatever happens in it."""
    snapshot = Snapshot(learn)
    try:
        yield
    finally:
        snapshot.restore()
