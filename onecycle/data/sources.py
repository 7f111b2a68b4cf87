"""What the order and the randomness of a loader come from, wherever it is held.

A loader, its samplers and an iterable data set decide what comes next: they are its *order*. What
they and the data set hold is followed: containers, objects, functions with their closures, and the
generators that code finds in its module.
"""

from __future__ import annotations

import dis
import inspect
from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from onecycle.data.generators import GENERATORS

_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CLOSED = (*_ATOMS, Tensor, np.ndarray, np.generic, type, ModuleType, *GENERATORS)
_CONTAINERS = (dict, list, tuple, deque)
_LONGEST = 1000  # of the containers that are looked into
_MOST = 20_000  # objects that are followed
#: Fields that are the running pass of a DataLoader, or torch's own of a module.
_PASSED_OVER = frozenset(("_iterator", *vars(nn.Module()))) - {"_modules"}
#: How fields begin in which torch keeps what its wrappers, such as ``fully_shard``, work with.
_OF_TORCH = "__composable_api_state_key"
#: What is called to draw; by these names also where a module is imported under another one.
_DRAWING = frozenset(
    (
        *("random", "rand", "randn", "randint", "randperm", "randrange", "rand_like", "randn_like"),
        *("randint_like", "bernoulli", "multinomial", "normal", "uniform", "bernoulli_"),
        *("exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"),
    )
)
#: Classes whose own code says nothing of the user's.
_BASES = (object, Dataset, IterableDataset, Sampler, nn.Module, DataLoader)


def reached(root: Any, name: str, seen: set[int] | None = None) -> list[tuple[str, Any]]:
    """List an object and what it holds, the nearest first, each object once.

    Args:
        root: Any object.
        name: What its path is called.
        seen: The ids of objects to pass over, as those of another root; it grows.

    Returns:
        Pairs of a path, the same in every process, and the object.

    Example:
        >>> class Own:
        ...     def __init__(self):
        ...         self.held = {"g": np.random.default_rng(0)}
        >>> [path for path, _ in reached(Own(), "sampler")]
        ['sampler', 'sampler.held', "sampler.held['g']"]
    """
    seen = set() if seen is None else seen
    if root is None or id(root) in seen:
        return []
    seen.add(id(root))
    found = [(name, root)]
    for path, holder in found:  # which grows meanwhile
        if len(found) > _MOST:
            break
        for step, part in _held(holder):
            if not isinstance(part, _ATOMS) and id(part) not in seen:
                seen.add(id(part))
                found.append((path + step, part))
    return found


def generators(root: Any, name: str) -> dict[str, Any]:
    """Return the random generators that an object holds, at any depth, by their paths."""
    return {path: part for path, part in reached(root, name) if isinstance(part, GENERATORS)}


def _held(holder: Any) -> list[tuple[str, Any]]:
    """List what an object holds, with the step that leads there."""
    if isinstance(holder, _CLOSED):
        return []
    if isinstance(holder, _CONTAINERS):
        if len(holder) > _LONGEST:
            return []
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        return [
            (f"[{key!r}]" if isinstance(key, str | int) else f"[{i}]", part)
            for i, (key, part) in enumerate(items)
        ]
    if isinstance(holder, partial):
        return [(".func", holder.func), (".args", holder.args), (".keywords", holder.keywords)]
    if isinstance(holder, MethodType):
        return [("", holder.__self__), ("", holder.__func__)]
    if isinstance(holder, FunctionType):
        return _of_function(holder)
    fields = [
        (f".{n}", part)
        for n, part in fields_of(holder).items()
        if n not in _PASSED_OVER and not n.startswith(_OF_TORCH)
    ]
    kind: Any = type(holder)
    return [*fields, *_global_generators(kind)]


def fields_of(holder: Any) -> dict[str, Any]:
    """Return the fields of an object, also those in slots."""
    fields = dict(getattr(holder, "__dict__", ()))
    for kind in type(holder).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if not name.startswith("__") and hasattr(holder, name):
                fields[name] = getattr(holder, name)
    return fields


def _of_function(function: FunctionType) -> list[tuple[str, Any]]:
    held: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held.append((f".{name}", cell.cell_contents))
        except ValueError:  # not yet filled
            continue
    held += [(f".{i}", part) for i, part in enumerate(function.__defaults__ or ())]
    held += [(f".{name}", part) for name, part in (function.__kwdefaults__ or {}).items()]
    return held + _globals_of(function)


def _globals_of(function: FunctionType) -> list[tuple[str, Any]]:
    """List the generators and the functions that code takes from its own module."""
    found = []
    for name in sorted({name for code in _codes(function.__code__) for name in code.co_names}):
        value = function.__globals__.get(name)
        own = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if isinstance(value, GENERATORS) or own:
            found.append((f".{name}", value))
    return found


@cache
def _global_generators(kind: Any) -> tuple[tuple[str, Any], ...]:
    """List what the methods of a class take from their module, each once."""
    found = (each for method in _methods(kind) for each in _globals_of(method))
    return tuple(dict(found).items())


def _methods(kind: type) -> list[FunctionType]:
    """List the methods of a class that may run for a batch."""
    if kind.__module__ in ("builtins", "collections", "typing"):
        return []
    classes = [base for base in kind.__mro__ if base not in _BASES]
    found = [each for base in classes for each in vars(base).values()]
    found = [getattr(each, "__func__", each) for each in found]
    return [
        each
        for each in found
        if isinstance(each, FunctionType) and each.__name__ not in ("__init__", "__repr__")
    ]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


# What code does ----------------------------------------------------------------------------


def draws(root: Any) -> str | None:
    """Name the first class or function that an object holds, or is, whose samples are random.

    Its code is read, not run: what draws in a library's compiled code is not seen.

    Args:
        root: A data set, or a function.

    Example:
        >>> class Noisy(Dataset):
        ...     def __getitem__(self, i):
        ...         return i + torch.randn(())
        >>> draws(Noisy()), draws([1, 2])
        ('Noisy', None)
    """
    for _, part in reached(root, ""):
        kind: Any = type(part)
        if isinstance(part, GENERATORS):
            return str(kind.__name__)
        if isinstance(part, FunctionType):
            if _is_drawing(part):
                return part.__name__
        elif not isinstance(part, (*_CLOSED, *_CONTAINERS)) and _has_drawing(kind):
            return str(kind.__name__)
    return None


@cache
def _has_drawing(kind: Any) -> bool:
    return any(map(_is_drawing, _methods(kind)))


def _is_drawing(function: FunctionType) -> bool:
    return any(not _DRAWING.isdisjoint(code.co_names) for code in _codes(function.__code__))


@cache
def draws_in_turn(kind: Any) -> bool:
    """Tell whether code of a class draws from torch's global generator between two of its items.

    torch's own samplers draw when a pass begins, or from the generator that has their order.
    """
    return not kind.__module__.startswith("torch.utils.data.") and any(
        (code.co_flags & inspect.CO_GENERATOR or method.__name__ == "__next__")
        and "torch" in code.co_names
        and not (_DRAWING - {"randperm"}).isdisjoint(code.co_names)
        for method in _methods(kind)
        for code in _codes(method.__code__)
    )


@cache
def changes_itself(kind: Any) -> bool:
    """Tell whether the methods of a class, but for its constructor, write a field of an object."""
    return any(
        step.opname == "STORE_ATTR"
        for method in _methods(kind)
        for code in _codes(method.__code__)
        for step in dis.get_instructions(code)
    )


@cache
def counts(kind: Any) -> bool:
    """Tell whether the methods of a class, but for its constructor, add to a field of an object."""
    for method in _methods(kind):
        for code in _codes(method.__code__):
            steps = list(dis.get_instructions(code))
            for i, step in enumerate(steps):
                adds = step.opname == "BINARY_OP" and step.argrepr.endswith("=")
                if adds and any(each.opname == "STORE_ATTR" for each in steps[i + 1 : i + 3]):
                    return True
    return False


# The parts of a loader ----------------------------------------------------------------------


def order_parts(loader: Any) -> dict[str, Any]:
    """Return what decides which batch comes next, by path: loader, samplers, an iterable data set.

    Args:
        loader: Any loader; a DataLoader that it wraps is one of its parts.

    Example:
        >>> list(order_parts(DataLoader([1, 2], shuffle=True)))
        ['', '.sampler', '.batch_sampler']
    """
    parts: dict[str, Any] = {"": loader}
    if isinstance(loader, DataLoader):
        inner = getattr(loader.batch_sampler, "sampler", None)
        parts |= {".sampler": loader.sampler, ".batch_sampler": loader.batch_sampler}
        parts[".batch_sampler.sampler"] = inner
        if isinstance(loader.dataset, IterableDataset):
            parts[".dataset"] = loader.dataset
    else:
        for name, value in fields_of(loader).items():
            if isinstance(value, DataLoader):
                wrapped = order_parts(value)
                parts |= {f".{name}{path}": part for path, part in wrapped.items()}
    seen: dict[int, str] = {}
    for path, part in parts.items():
        seen.setdefault(id(part), path)
    return {path: parts[path] for path in seen.values() if parts[path] is not None}


def data_sets(loader: Any) -> dict[str, Any]:
    """Return the data set of a loader and those within it, by path."""
    waiting = [
        (f"{path}.dataset", getattr(part, "dataset", None))
        for path, part in order_parts(loader).items()
        if path == "" or isinstance(part, DataLoader)
    ]
    found: dict[str, Any] = {}
    for path, data in waiting:  # which grows meanwhile
        if data is not None and len(found) < _LONGEST:
            found[path] = data
            waiting.append((f"{path}.dataset", getattr(data, "dataset", None)))
            within = getattr(data, "datasets", None)
            for i, each in enumerate(within if isinstance(within, list | tuple) else ()):
                waiting.append((f"{path}.datasets[{i}]", each))
    return found


def order_fields(loader: Any, part: Any) -> dict[str, Any]:
    """Return the fields of a part of the order that are its own: not the data, nor other parts."""
    others = {id(each) for each in order_parts(loader).values()} | {
        id(each) for each in data_sets(loader).values()
    }
    own = {n: v for n, v in fields_of(part).items() if n not in _PASSED_OVER}
    return {name: value for name, value in own.items() if id(value) not in others}


def iterators(loader: Any) -> list[str]:
    """Name the fields of a loader's order that are iterators, whose position nobody can put back.

    Example:
        >>> class Own:
        ...     def __init__(self):
        ...         self.stream = iter(range(9))
        ...     def __iter__(self):
        ...         return self.stream
        >>> iterators(Own())
        ['Own.stream']
    """
    return [
        f"{type(part).__name__}.{name}"
        for part in order_parts(loader).values()
        for name, value in order_fields(loader, part).items()
        if isinstance(value, Iterator)
    ]
