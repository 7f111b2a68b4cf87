"""Whether an optimizer's state can be loaded: compared before, and looked at again afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from onecycle.checkpoints.opt_names import NamedOptimizer, opt_name, packed_groups
from onecycle.optim.several import each_of

#: What torch's own optimizers keep of a parameter: single numbers, what has the parameter's shape,
#: and means of its rows and columns.
_NUMBERS = ("step", "eta", "mu", "mu_product")
_ELEMENTWISE = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"),
    *("grad_avg", "acc_delta", "sum", "prev", "step_size", "ax", "variance"),
)
_OF_SIDES = ("row_var", "col_var")
_PARTS = {"class": str, "groups": list, "params": dict, "state": dict, "rest": dict, "values": dict}


def misfit_of(named: NamedOptimizer, found: Any) -> str | None:
    """Say why a state cannot be loaded; ``None`` if it can. Nothing is changed.

    Args:
        named: The optimizer.
        found: What should be what `state_of` returned.
    """
    if not _is_well_formed(found):
        return "it is none that onecycle wrote"
    inner, theirs = named.inner(), found.get("inner", {})
    if unknown := theirs.keys() - inner.keys():
        return f"it wraps optimizers that are not there: {_some(unknown)}"
    wrapped = (_misfit_of_one(inner[path], part) for path, part in theirs.items())
    return _misfit_of_one(named, found) or next(filter(None, wrapped), None)


def _misfit_of_one(named: NamedOptimizer, found: dict[str, Any]) -> str | None:
    if found["class"] != opt_name(named.opt):
        return f"it is that of {found['class']}"
    held = named.held()
    theirs = [group["names"] for group in found["groups"]]
    listed = [name for names in theirs for name in names]
    if not sorted(listed) == sorted(held) == sorted(found["params"]):
        return f"it is of other parameters: {_apart(listed, held)}"
    order = named.order(theirs)
    if order is None:
        sizes = [len(names) for names in theirs]
        own = [len(names) for names in named.group_names()]
        return f"its parameters are divided into other groups: {sizes} there, {own} here"
    if ("whole" in found) != (packed_groups(named.opt, named.opt.state_dict()) is None):
        return "it has another form"
    if "whole" in found and theirs != named.group_names():
        return "its parameters are in another order, and it can only be taken as a whole"
    if unknown := found["state"].keys() - held.keys():
        return f"it has state of parameters that are not there: {_some(unknown)}"
    if any(isinstance(key, int) and key < len(held) for key in found["rest"].get("state", {})):
        return "it has state by position"
    for name in named.beside():
        value, p = found["values"].get(name), held[name]
        if not _is_dense(value) or value.shape != p.shape or _kinds_differ(value, p):
            return f"the value of {name!r} is missing, or of another shape or kind"
    misfits = (_misfit(named.opt, found, name, p) for name, p in held.items())
    return next(filter(None, misfits), None) or _option_misfit(named.opt, found, order)


def _is_well_formed(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    if not all(isinstance(found.get(name), kind) for name, kind in _PARTS.items()):
        return False
    of_groups = all(
        isinstance(group, dict)
        and isinstance(group.get("options"), dict)
        and isinstance(group.get("names"), list)
        and all(isinstance(name, str) for name in group["names"])
        for group in found["groups"]
    )
    inner = found.get("inner", {})
    return (
        of_groups
        and all(map(_is_told, found["params"].items()))
        and isinstance(found["rest"].get("state", {}), dict)
        and isinstance(inner, dict)
        and all(map(_is_well_formed, inner.values()))
    )


def _is_told(entry: tuple[Any, Any]) -> bool:
    """Tell whether a name comes with the shape and the dtype of a parameter."""
    name, told = entry
    if not (isinstance(name, str) and isinstance(told, list) and len(told) == 2):
        return False
    shape, kind = told
    sizes = [] if shape is None else shape
    return (
        isinstance(kind, str)
        and isinstance(sizes, list)
        and all(type(size) is int for size in sizes)
    )


def _apart(theirs: Iterable[str], own: Iterable[str]) -> str:
    there, here = set(theirs) - set(own), set(own) - set(theirs)
    return f"only there {_some(there)}, only here {_some(here)}"


def _some(names: Iterable[Any]) -> str:
    return str(sorted(names, key=str)[:3])


def kind_of(p: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(p.dtype).removeprefix("torch.")


def _misfit(opt: Optimizer, found: dict[str, Any], name: str, p: Tensor) -> str | None:
    """Say what of a parameter's state does not fit the parameter."""
    shape, kind = found["params"][name]
    if not is_lazy(p) and list(p.shape) != shape:
        return f"{name!r} has shape {tuple(p.shape)}, and {tuple(shape or ())} there"
    if isinstance(getattr(torch, kind, None), torch.dtype):
        there = getattr(torch, kind)
        if (there.is_floating_point, there.is_complex) != (p.is_floating_point(), p.is_complex()):
            return f"{name!r} is of {kind_of(p)}, and of {kind} there"
    else:
        return f"{name!r} is there of something that is no dtype: {kind!r}"
    entry = found["state"].get(name, {})
    if not _is_torchs(opt):  # whose form is its own
        return None
    if not isinstance(entry, dict):
        return f"the state of {name!r} is no dict"
    return _entry_misfit(name, entry, shape or [], p)


def _entry_misfit(
    name: str, entry: Mapping[Any, Any], shape: Sequence[int], p: Tensor
) -> str | None:
    wrong = (key for key, part in entry.items() if not _fits(key, part, shape, p))
    return next((f"{key!r} of {name!r} does not fit the parameter" for key in wrong), None)


def loaded_misfit(opts: Iterable[Optimizer]) -> str | None:
    """Say what of a state that is loaded torch's own steps could not take.

    It was loaded by optimizers that may give it a form of their own, and wrap torch's.

    Args:
        opts: The optimizers.
    """
    for opt in filter(_is_torchs, opts):
        for g, group in enumerate(opt.param_groups):
            for i, p in enumerate(group["params"]):
                entry = opt.state.get(p, {})
                if not is_lazy(p) and (wrong := _entry_misfit(f"{g}.{i}", entry, p.shape, p)):
                    return f"in {type(opt).__name__}, {wrong}"
    return None


def _is_torchs(opt: Optimizer) -> bool:
    """Tell whether torch makes the step, of which it is known what it needs."""
    modules = [getattr(type(each).step, "__module__", None) or "" for each in each_of(opt)]
    return all(module.startswith("torch.optim.") for module in modules)


def _fits(key: Any, value: Any, shape: Sequence[int], p: Tensor) -> bool:
    """Tell whether one value of torch's own state is what its step can take."""
    if key in _NUMBERS:
        if isinstance(value, Tensor) and not (
            _is_dense(value) and value.numel() == 1 and not value.is_complex()
        ):
            return False
        return isinstance(value, Tensor | int | float) and 0 <= float(value) < math.inf
    if value is None or key not in (*_ELEMENTWISE, *_OF_SIDES):
        return True
    if not _is_dense(value) or _kinds_differ(value, p):
        return False
    if key in _OF_SIDES:
        sides = zip(value.shape, shape, strict=False)
        return value.ndim == len(shape) and all(a in (1, b) for a, b in sides)
    return list(value.shape) == list(shape)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _kinds_differ(value: Tensor, p: Tensor) -> bool:
    kinds = (value.is_floating_point(), value.is_complex())
    return kinds != (p.is_floating_point(), p.is_complex())


def _option_misfit(opt: Optimizer, found: dict[str, Any], order: Sequence[int]) -> str | None:
    """Say which hyperparameter is of another kind than the optimizer's own."""
    for group, there in zip(opt.param_groups, order, strict=False):
        for key, value in found["groups"][there]["options"].items():
            if key == "params" or not _same_kind(group.get(key), value):
                return f"{key!r} of a group is {_shown(group.get(key))}, and {_shown(value)} there"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__}"


def _same_kind(own: Any, found: Any) -> bool:
    """Tell whether one value can stand for another; of numbers, finite ones for finite ones."""
    if isinstance(own, np.generic):
        own = own.item()
    if own is None or found is None:
        return True
    if isinstance(own, Tensor) or isinstance(found, Tensor):
        if isinstance(own, Tensor) and isinstance(found, Tensor):
            return _is_dense(found) and own.shape == found.shape and not _kinds_differ(found, own)
        tensor, other = (own, found) if isinstance(own, Tensor) else (found, own)
        return tensor.numel() == 1 and isinstance(other, int | float) and _is_dense(tensor)
    if isinstance(own, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(own) == len(found)
            and all(map(_same_kind, own, found))
        )
    if isinstance(own, bool) or not isinstance(own, int | float):
        return type(own) is type(found)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return is_number and (math.isfinite(found) or not math.isfinite(own))
