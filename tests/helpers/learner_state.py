"""What a learner is made of, found by following references and not by the package's Snapshot."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onecycle.callbacks.throughput import NAME as THROUGHPUT

OPAQUE = (FunctionType, MethodType, BuiltinFunctionType, ModuleType, type)


class LearnerState:
    """Every object that a learner reaches, each by its path: which object it is, and its bits.

    Tensors with gradient and ``requires_grad``, dicts with the order of their keys, generators,
    and the fields of any other object; the three global generators; and whether gradients are on.
    What was seen is kept alive, so that an address stays one object.
    """

    def __init__(self, learn: Any) -> None:
        self.found: dict[str, Any] = {}
        self._paths: dict[int, str] = {}
        self._alive: list[Any] = []
        self._walk("learn", learn)
        self.found["random"] = random.getstate()
        self.found["numpy"] = pickle.dumps(np.random.get_state())
        self.found["torch"] = torch.get_rng_state().numpy().tobytes()
        self.found["gradients are on"] = torch.is_grad_enabled()

    def changes(self, later: LearnerState) -> list[str]:
        """List the paths that differ, or that only one of the two has."""
        paths = {**self.found, **later.found}
        return [
            path
            for path in paths
            # The one thing that a range test is meant to leave.
            if "lr_find_result" not in path
            and self.found.get(path, "absent") != later.found.get(path, "absent")
        ]

    def _walk(self, path: str, value: Any) -> None:
        if value is None or isinstance(value, int | float | str | bytes):
            self.found[path] = (type(value), repr(value))
            return
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            self.found[path] = len(value)
            for i, part in enumerate(value):
                self._walk(f"{path}[{i}]", part)
            return
        if id(value) in self._paths:
            self.found[path] = f"is {self._paths[id(value)]}"
            return
        self._paths[id(value)] = path
        self._alive.append(value)
        self.found[path] = (id(value), _content(value))
        for name, part in _parts(value).items():
            self._walk(f"{path}{name}", part)


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().numpy().tobytes()
        return value.dtype, value.shape, value.requires_grad, data
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    return None


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {".grad": value.grad} if value.is_leaf else {}
    if isinstance(value, Mapping):
        keys = [key if isinstance(key, str | int) else id(key) for key in value]
        return {f"[{key!r}]": part for key, part in zip(keys, value.values(), strict=True)} | {
            ".keys": repr(keys)
        }
    if isinstance(value, list):
        return {f"[{i}]": part for i, part in enumerate(value)} | {".len": len(value)}
    # A DataLoader's running iterator is a set of processes: that it is the same one must do.
    if isinstance(value, OPAQUE) or "DataLoaderIter" in type(value).__name__:
        return {}
    return {f".{name}": part for name, part in getattr(value, "__dict__", {}).items()}


def trained(learn: Any) -> dict[str, Any]:
    """Return the bits that a fit ends in: weights, buffers, optimizer, record, generators.

    Of what the clock says, how many values there are.
    """
    state = {f"model.{name}": _content(t) for name, t in learn.model.state_dict().items()}
    for i, parameter_state in learn.opt.state_dict()["state"].items():
        for name, part in parameter_state.items():
            state[f"opt.{i}.{name}"] = _content(part) if isinstance(part, Tensor) else repr(part)
    for name in learn.recorder.history:
        series = learn.recorder.history[name]
        state[name] = len(series) if name == THROUGHPUT else series.values.tobytes()
    state["torch"] = torch.get_rng_state().numpy().tobytes()
    state["numpy"] = pickle.dumps(np.random.get_state())
    state["random"] = random.getstate()
    return state
