"""How a batch reaches the model: as arguments, as keywords or whole; and what in it is a target."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

log = logging.getLogger("onecycle")

#: What targets are called in an object.
_TARGETS = ("labels", "label", "targets", "target", "y")


@dataclass
class _Asked:
    """What was asked of a model's signature once, since asking takes longer than a forward pass."""

    not_taken: dict[Hashable, frozenset[Any]] = field(default_factory=dict)
    told: set[Hashable] = field(default_factory=set)


_asked: WeakKeyDictionary[nn.Module, _Asked] = WeakKeyDictionary()


def call_model(model: nn.Module, xb: Any) -> Any:
    """Call a model with the input of a batch.

    Args:
        model: The model.
        xb: What is exactly a tuple or list is several arguments. A dict, or what behaves as one, is
            keywords; a key that the model's ``forward`` does not take is left out, unless that has
            ``**kwargs``, and logged once for each kind of dict. All else is one argument, whole.

    Example:
        >>> import torch
        >>> call_model(nn.Bilinear(2, 2, 1), (torch.zeros(4, 2), torch.zeros(4, 2))).shape
        torch.Size([4, 1])
        >>> call_model(nn.Flatten(), {"input": torch.zeros(4, 2, 3), "id": 7}).shape
        torch.Size([4, 6])
    """
    if type(xb) is tuple or type(xb) is list:
        return model(*xb)
    if not isinstance(xb, Mapping):
        return model(xb)
    left = _not_taken(model, xb)
    if left and left not in _asked[model].told:
        _asked[model].told.add(left)
        log.warning(
            "forward of %s takes no %s: left out of its call (loss function and metrics get it)",
            type(_innermost(model)).__name__,
            " and no ".join(sorted(map(repr, left))),
        )
    return model(**{key: value for key, value in xb.items() if key not in left})


def target_of(model: nn.Module, batch: Any, yb: Any) -> Any:
    """Return what of a batch are its targets, to keep them without all its inputs.

    Args:
        model: The model.
        batch: The batch.
        yb: What the loss function gets. Unless it is the whole batch, it is what is returned.

    Returns:
        Of a dict a dict of the keys that the model's ``forward`` does not take and of those that
        are called ``y``, or have "label" or "target" in their name; the whole dict where there
        are none of these. Of an object its ``labels``, ``targets`` or ``y``, else None.

    Example:
        >>> import torch
        >>> batch = {"input": torch.zeros(4, 2), "labels": torch.ones(4), "id": list("abcd")}
        >>> target_of(nn.Flatten(), batch, batch)
        {'labels': tensor([1., 1., 1., 1.]), 'id': ['a', 'b', 'c', 'd']}
    """
    if yb is not batch or yb is None:
        return yb
    if not isinstance(batch, Mapping):
        return next((getattr(batch, n) for n in _TARGETS if hasattr(batch, n)), None)
    left = _not_taken(model, batch)
    return {k: v for k, v in batch.items() if k in left or _is_named_target(k)} or batch


def input_of(model: nn.Module, xb: Any) -> Any:
    """Return what of a batch are its inputs: of a dict, all that are no targets.

    Args:
        model: The model.
        xb: What the model gets; unless it is a dict, it is what is returned.

    Example:
        >>> import torch
        >>> input_of(nn.Flatten(), {"input": torch.zeros(2), "labels": torch.ones(2)})
        {'input': tensor([0., 0.])}
    """
    if not isinstance(xb, Mapping):
        return xb
    targets = target_of(model, xb, xb)
    return xb if targets is xb else {k: v for k, v in xb.items() if k not in targets}


def _is_named_target(key: Any) -> bool:
    name = str(key).lower()
    return name in _TARGETS or "label" in name or "target" in name


def _not_taken(model: nn.Module, batch: Mapping[Any, Any]) -> frozenset[Any]:
    """Return the keys of a dict that a model's forward does not take."""
    if model not in _asked:
        _asked[model] = _Asked()
    known, forward = _asked[model].not_taken, _innermost(model).forward
    kind = getattr(forward, "__func__", forward), frozenset(batch)
    if kind not in known:
        names = _names(forward)
        known[kind] = frozenset() if names is None else frozenset(batch) - names
    return known[kind]


def _innermost(model: nn.Module) -> nn.Module:
    """Return the model within torch's own wrappers, which pass on whatever they are given."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = inner
        else:
            return model


def _names(forward: Any) -> frozenset[str] | None:
    """Return the names of the parameters of a function; ``None`` if it takes any keyword."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # as of a scripted model
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(
        p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)
    )
