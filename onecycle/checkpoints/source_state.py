"""What a fit draws from, and counts by, outside of model, optimizer and callbacks: kept, or named.

Generators, samplers, data sets and loaders with a ``state_dict``, and plain fields that move while
a fit runs. A pass that goes on in its middle needs all of it twice: as it was when the pass began,
since what a sampler gave is drawn again, and as it is now.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from onecycle.checkpoints.readable import readable
from onecycle.core.callback import Callback
from onecycle.data.generators import GENERATORS, put_state, state_of
from onecycle.data.held import LONGEST
from onecycle.data.passes import random_in_workers
from onecycle.data.sources import (
    changes_itself,
    data_sets,
    draws_in_turn,
    iterators,
    order_fields,
    order_parts,
    reached,
)

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: The layers that draw in training.
_DROPOUT = nn.modules.dropout._DropoutNd
_ARRAY, _SET = "array of", "set of"
_NUMBERS = (bool, int, float, str, type(None))
#: What torch or we change in a module, and load in other ways.
_NOT_OF_MODULES = frozenset(("training",))


class Sources:
    """Everything of this kind that a learner holds, and how it stood when its fit began.

    Args:
        learn: The learner, as a fit begins.
    """

    def __init__(self, learn: Loop) -> None:
        self._begun = _fields(learn)
        self._silent, self._tensors = _of_callbacks(learn), _tensors(learn)
        self._moved: set[str] = set()
        self._unreadable: set[str] = set()

    def state(self, learn: Loop) -> dict[str, Any]:
        """Return all of it as plain values and tensors."""
        fields = _fields(learn)
        self._moved |= {
            path for path, value in fields.items() if not _same(value, self._begun.get(path, _NONE))
        }
        return {
            "generators": {p: _written(g) for p, g in _generators(learn).items()},
            "states": self._states(learn),
            "fields": fields,
        }

    def _states(self, learn: Loop) -> dict[str, Any]:
        found = {}
        for path, part in _with_state(learn).items():
            try:
                found[path] = deepcopy(readable(_plain(part.state_dict()), path))
            except TypeError:
                self._unreadable.add(path)
        return found

    def for_file(self, state: dict[str, Any]) -> dict[str, Any]:
        """Leave out the fields that have not moved since the fit began: they are settings."""
        fields = {p: _plain(v) for p, v in state["fields"].items() if p in self._moved}
        return {**state, "fields": fields}

    def lost(self, learn: Loop) -> list[str]:
        """Say what of it a checkpoint cannot hold, a sentence each: a resumed fit may differ."""
        said = [each for dl in learn.dls.loaders() for each in _lost_by(dl)]
        said += _in_turn_with_dropout(learn)
        said += [
            f"the state_dict of {path} has more than plain values and tensors, and is left out"
            for path in self._unreadable
        ]
        for fields, begun, advice in (
            (_of_callbacks(learn), self._silent, "give the callback a state_dict"),
            (_tensors(learn), self._tensors, "register it as a buffer"),
        ):
            said += [
                f"{path} changes in the fit and is not in the checkpoint: if training depends on "
                f"it, {advice}"
                for path, value in fields.items()
                if not _same(value, begun.get(path, _NONE))
            ]
        return list(dict.fromkeys(said))


_NONE: Any = object()


def load_sources(learn: Loop, state: dict[str, Any], *, drawn_again: bool) -> list[str]:
    """Put back what `Sources.state` returned.

    Args:
        learn: The learner.
        state: The same.
        drawn_again: Whether the pass is yet to begin, so that what has a ``state_dict`` is told
            too; else only generators and fields are set.

    Returns:
        The paths of what is not there, or does not fit.
    """
    missing = []
    found = _generators(learn)
    for path, written in state["generators"].items():
        if path not in found or not _read_into(found[path], written):
            missing.append(path)
    missing += [path for path in found if path not in state["generators"]]
    owners = dict(_owners(learn))
    for path, value in state["fields"].items():
        owner, _, name = path.rpartition(".")
        if owner in owners:
            _set(owners[owner], name, _from_plain(value))
        else:
            missing.append(path)
    if drawn_again:
        with_state = _with_state(learn)
        for path, own in state["states"].items():
            if path in with_state:
                with_state[path].load_state_dict(_from_plain(deepcopy(own)))
            else:
                missing.append(path)
    return missing


# Where it is --------------------------------------------------------------------------------


def _roots(learn: Loop) -> dict[str, Any]:
    """Name what is looked into; of callbacks those of the user's own that tell no state."""
    roots: dict[str, Any] = _loaders(learn)
    roots |= {"model": learn.model, "loss_func": learn.loss_func}
    for callback in learn.cbs:
        if _is_silent(callback):
            name = type(callback).__name__
            roots[f"{name}{sum(each.startswith(name) for each in roots) or ''}"] = callback
    return roots


def _loaders(learn: Loop) -> dict[str, Any]:
    sets = learn.dls.valid_sets().items()
    return {"train": learn.dls.train} | {f"valid {name}".strip(): dl for name, dl in sets}


def _is_silent(callback: Callback) -> bool:
    kind = type(callback)
    is_ours = kind.__module__.partition(".")[0] == "onecycle"
    return not is_ours and kind.state_dict is Callback.state_dict and callback.takes_part_in("fit")


def _all(learn: Loop) -> Iterator[tuple[str, Any]]:
    seen = {id(learn), id(learn.opt), id(learn.dls)}
    for name, root in _roots(learn).items():
        yield from reached(root, name, seen)


def _generators(learn: Loop) -> dict[str, Any]:
    return {
        path: part
        for path, part in _all(learn)
        if isinstance(part, GENERATORS) and not isinstance(part, random.SystemRandom)
    }


def _with_state(learn: Loop) -> dict[str, Any]:
    """Return loaders, samplers and data sets that tell their state, each once.

    A DataLoader begins each pass anew, so what it draws from is asked, and not itself: torchdata's
    would begin a pass to answer, and the fit would draw other random numbers than without.
    """
    found: dict[int, tuple[str, Any]] = {}
    for name, loader in _loaders(learn).items():
        for path, part in {**order_parts(loader), **data_sets(loader)}.items():
            tells = all(callable(getattr(part, n, None)) for n in ("state_dict", "load_state_dict"))
            if tells and not isinstance(part, nn.Module | DataLoader):
                found.setdefault(id(part), (name + path, part))
    return dict(found.values())


def _owners(learn: Loop) -> Iterator[tuple[str, Any]]:
    """Give every object whose plain fields are kept: those that tell a state do that alone."""
    telling = {id(part) for part in _with_state(learn).values()}
    callbacks = {id(callback) for callback in learn.cbs}
    for path, part in _all(learn):
        if id(part) not in telling | callbacks and hasattr(part, "__dict__"):
            yield path, part


def _fields(learn: Loop) -> dict[str, Any]:
    """Copy the plain fields of all that is reached, and the containers that are an order."""
    orders: dict[int, Any] = {}
    for loader in learn.dls.loaders():
        orders |= {id(part): loader for part in order_parts(loader).values()}
    found: dict[str, Any] = {}
    for path, owner in _owners(learn):
        if isinstance(owner, type) or callable(getattr(owner, "__code__", None)):
            continue
        fields = vars(owner)
        if id(owner) in orders:
            own = order_fields(orders[id(owner)], owner)
            copies = {
                n: _copied(value) for n, value in own.items() if not isinstance(value, nn.Module)
            }
            found |= {f"{path}.{n}": each for n, each in copies.items() if each is not _NONE}
        for name, value in fields.items():
            if type(value) in _NUMBERS and name not in _NOT_OF_MODULES:
                found[f"{path}.{name}"] = value
    return found


def _of_callbacks(learn: Loop) -> dict[str, Any]:
    """Return the plain fields of callbacks that tell no state: a clock, or what steers the fit."""
    return {
        f"{type(callback).__name__}.{name}": value
        for callback in learn.cbs
        if _is_silent(callback)
        for name, value in vars(callback).items()
        if type(value) in (bool, int, float)
    }


def _tensors(learn: Loop) -> dict[str, Any]:
    """Return which tensors are plain fields of modules, and how often each was written."""
    modules = [m for m in (learn.model, learn.loss_module) if m is not None]
    return {
        f"{type(part).__name__}.{name}": (id(value), value._version)
        for module in modules
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and value.grad_fn is None and not value.is_inference()
    }


def _in_turn_with_dropout(learn: Loop) -> list[str]:
    """Say where a loader and the model draw from one generator in turn.

    What was drawn before is drawn again by the loader alone when a fit is resumed.
    """
    parts, modules = order_parts(learn.dls.train).values(), learn.model.modules()
    has_workers = any(isinstance(part, DataLoader) and part.num_workers for part in parts)
    kinds: list[Any] = [type(part) for part in parts]
    drawing = next((kind for kind in kinds if draws_in_turn(kind)), None)
    if has_workers or drawing is None or not any(isinstance(m, _DROPOUT) and m.p for m in modules):
        return []
    return [
        f"{drawing.__name__} draws from torch's generator while it gives batches, in turn with the "
        "dropout of the model: if what comes later depends on it, as in a buffer that is shuffled, "
        "let it draw from a generator of its own"
    ]


def _lost_by(loader: Any) -> list[str]:
    """Say what of a loader no checkpoint can hold."""
    if loader is None:
        return []
    told = id(loader) if hasattr(loader, "state_dict") else None
    lost = [] if told else iterators(loader)
    said = [f"{name} is an iterator, whose position no checkpoint can hold" for name in lost]
    for dl in (part for part in order_parts(loader).values() if isinstance(part, DataLoader)):
        if not dl.num_workers or not dl.persistent_workers:
            continue
        kind: Any = type(dl.dataset)
        if drawing := random_in_workers(dl):
            said.append(
                f"{drawing} draws random numbers or counts in worker processes that live on "
                "between epochs (persistent_workers of the DataLoader), whose states no checkpoint "
                "can hold: wrap a random data set in SeededDataset, or leave persistent_workers out"
            )
        elif isinstance(dl.dataset, IterableDataset) and changes_itself(kind):
            said.append(
                f"{kind.__name__} changes in worker processes that live on between epochs "
                "(persistent_workers of the DataLoader), where no checkpoint sees it: leave "
                "persistent_workers out"
            )
    return said


# Plain values -------------------------------------------------------------------------------


def _copied(value: Any) -> Any:
    """Copy a container of plain values that is no longer than an order is; else `_NONE`."""
    if isinstance(value, Tensor):
        small = value.numel() <= LONGEST and not value.requires_grad
        return value.detach().clone() if small else _NONE
    if isinstance(value, np.ndarray):
        return value.copy() if value.size <= LONGEST and not value.dtype.hasobject else _NONE
    if type(value) in (list, tuple, dict, set, deque) and len(value) <= LONGEST:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if set(map(type, parts)).issubset(_NUMBERS):
            return value.copy() if not isinstance(value, tuple) else value
        if isinstance(value, list):
            each = [_copied(part) for part in value]
            return each if all(part is not _NONE for part in each) else _NONE
    return _NONE


def _same(value: Any, other: Any) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return value.shape == other.shape and torch.equal(value, other)
    if isinstance(value, np.ndarray):
        return np.array_equal(value, other)
    if isinstance(value, list) and any(isinstance(part, Tensor | np.ndarray) for part in value):
        return len(value) == len(other) and all(map(_same, value, other))
    return bool(value == other) or value is other


def _set(owner: Any, name: str, value: Any) -> None:
    """Set a field; a container that is there is filled anew, since others may hold it."""
    there: Any = getattr(owner, name, None)
    if isinstance(there, list | deque) and isinstance(value, list):
        there.clear()
        there.extend(value)
    elif isinstance(there, dict | set) and isinstance(value, dict | set):
        there.clear()
        there.update(value)
    elif isinstance(there, np.ndarray | Tensor) and there.shape == getattr(value, "shape", None):
        there[...] = value
    else:
        setattr(owner, name, value)


def _written(generator: Any) -> list[Any]:
    """Return the kind of a generator and its state, as a file holds them."""
    kind = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return [type(kind).__name__, _plain(state_of(generator))]


def _plain(value: Any) -> Any:
    """Write arrays, sets and deques as what a file can hold."""
    if isinstance(value, np.ndarray):
        return {_ARRAY: str(value.dtype), "values": value.tolist()}
    if isinstance(value, set):
        return {_SET: list(value)}
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, deque) or type(value) is list:
        return list(map(_plain, value))
    return tuple(map(_plain, value)) if type(value) is tuple else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return np.array(value["values"], dtype=value[_ARRAY])
        if _SET in value:
            return set(value[_SET])
        return {key: _from_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_from_plain, value))
    return value


def _read_into(generator: Any, written: list[Any]) -> bool:
    """Put a generator where another of its kind was; tell whether that is possible."""
    kind, state = written
    if _written(generator)[0] != kind:
        return False
    try:
        put_state(generator, _from_plain(state))
    except (RuntimeError, ValueError, TypeError):  # of another device, or another version
        return False
    return True
