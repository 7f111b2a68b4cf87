"""An optimizer's state by the names of its parameters: taken, and loaded as a whole or not at all.

By position, as ``opt.state_dict()`` has it, each layer would go on with the momentum of another
one where layers or groups are listed in another order; and the fused kernels write beyond the end
of a momentum that is too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from onecycle.checkpoints.module_state import own_names, renamed
from onecycle.checkpoints.opt_misfit import kind_of, loaded_misfit, misfit_of
from onecycle.checkpoints.opt_names import (
    NamedOptimizer,
    named_optimizer,
    opt_name,
    packed_groups,
    parameter_names,
)
from onecycle.core.restore import Capture
from onecycle.data.nested import map_tensors
from onecycle.optim.sharded import is_sharded, part_of
from onecycle.optim.wrapped import same_groups

if TYPE_CHECKING:
    from onecycle.core.state import LoopState


def opt_state(learn: LoopState) -> dict[str, Any]:
    """Return the state of a learner's optimizer, by name: see `state_of`."""
    return state_of(named_optimizer(learn))


def opt_misfit(learn: LoopState, found: Any) -> str | None:
    """Say why a state cannot be loaded; ``None`` if it can. Nothing is changed.

    Args:
        learn: The learner.
        found: What should be what `opt_state` returned.
    """
    return misfit_of(named_optimizer(learn), found)


def load_opt_state(learn: LoopState, found: dict[str, Any]) -> None:
    """Load what `opt_state` returned, of which `opt_misfit` has nothing to say.

    Args:
        learn: The learner.
        found: The state.

    Raises:
        ValueError: If it does not fit after all; the optimizer is as before then.
    """
    load_state(named_optimizer(learn), found)


def by_own_names(learn: LoopState, found: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the names of the learner, where only wrappers make a difference.

    Args:
        learn: The learner.
        found: What should be what `opt_state` returned.
    """
    params = found.get("params")
    theirs = [name for name in params if isinstance(name, str)] if isinstance(params, dict) else []
    changed: dict[str, Any] = renamed(found, own_names(theirs, parameter_names(learn).values()))
    return changed


# Taking -------------------------------------------------------------------------------------


def state_of(named: NamedOptimizer) -> dict[str, Any]:
    """Return the state of an optimizer, by name.

    Tensors are those of the optimizer, not copies.

    Args:
        named: The optimizer.

    Returns:
        ``class``; ``groups``: the names of the parameters of each, and its ``options``;
        ``params``: the shape and dtype of each parameter; ``state``: what the optimizer keeps of
        each; ``rest``: all else that its ``state_dict`` has; ``values``: the parameters that are
        saved with no module. Where the ``state_dict`` has a form of its own: ``whole``, not its
        parts. ``inner``, where it wraps optimizers of which its ``state_dict`` has nothing: theirs.
    """
    found = _own_state(named)
    inner = named.inner()
    if inner:
        held = set(_tensor_ids(named.opt.state_dict()))
        lost = {path: each for path, each in inner.items() if _is_lost(named.opt, each.opt, held)}
        if lost:
            found["inner"] = {path: _own_state(each) for path, each in lost.items()}
    return found


def _own_state(named: NamedOptimizer) -> dict[str, Any]:
    opt, whole, held = named.opt, named.opt.state_dict(), named.held()
    found: dict[str, Any] = {
        "class": opt_name(opt),
        "groups": [{"names": names, "options": {}} for names in named.group_names()],
        "params": {name: [_shape(p), kind_of(p)] for name, p in held.items()},
        "state": {},
        "rest": {},
        "values": {name: held[name].detach() for name in named.beside()},
    }
    packed = packed_groups(opt, whole)
    if packed is None:  # an optimizer with a form of its own
        return found | {"whole": whole}
    by_index: dict[int, str] = {}
    for own, group in zip(found["groups"], packed, strict=True):
        by_index.update(zip(group["params"], own["names"], strict=True))
        own["options"] = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    state = whole["state"]
    found["state"] = {by_index[i]: value for i, value in state.items() if i in by_index}
    found["rest"] = {k: v for k, v in whole.items() if k not in ("state", "param_groups")}
    found["rest"]["state"] = {k: v for k, v in state.items() if k not in by_index}
    return found


def _is_lost(outer: Optimizer, inner: Optimizer, held: set[int]) -> bool:
    """Tell whether the state of a wrapped optimizer is in the ``state_dict`` of none around it."""
    if inner.state is outer.state or held.intersection(_tensor_ids([*inner.state.values()])):
        return False
    known = {id(group) for group in outer.param_groups}
    return bool(inner.state) or any(id(group) not in known for group in inner.param_groups)


def _tensor_ids(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor):
        yield id(value)
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensor_ids(part)


def _shape(p: Tensor) -> list[int] | None:
    return None if is_lazy(p) else list(p.shape)


# Loading ------------------------------------------------------------------------------------


def load_state(named: NamedOptimizer, found: dict[str, Any]) -> None:
    """Load what `state_of` returned, of which `misfit_of` has nothing to say.

    The dicts of the optimizer's groups stay the same objects: schedules and the recorder hold them.

    Args:
        named: The optimizer.
        found: The state.

    Raises:
        ValueError: If it does not fit after all; the optimizer is as before then.
    """
    inner = named.inner()
    held = Capture(ignored=[p for each in (named, *inner.values()) for p in each.held().values()])
    held.add([vars(each.opt) for each in (named, *inner.values())])
    if named.groups is not None:
        held.add(vars(named.groups))
    try:
        if named.groups is not None and len(found["groups"]) > len(named.opt.param_groups):
            named.groups.separate_decay(everywhere=True)  # as the fit before the saving had done
        with same_groups(named.opt):
            _load_own(named, found)
            for path, part in found.get("inner", {}).items():
                _load_own(inner[path], part)
        misfit = loaded_misfit([named.opt, *(each.opt for each in inner.values())])
        if misfit is not None:
            raise ValueError(misfit)
    except BaseException as error:
        held.restore()
        if isinstance(error, Exception) and not isinstance(error, ValueError):
            raise ValueError(f"it cannot be loaded: {type(error).__name__}: {error}") from error
        raise
    with torch.no_grad():
        for name in named.beside():
            named.held()[name].copy_(found["values"][name])


def _load_own(named: NamedOptimizer, found: dict[str, Any]) -> None:
    opt, whole = named.opt, found.get("whole")
    held = named.held()
    if any(map(is_sharded, held.values())):
        cut = {name: _cut(entry, held[name]) for name, entry in found["state"].items()}
        found = {**found, "state": cut}
    opt.load_state_dict(_packed(found, named) if whole is None else whole)
    if whole is None and type(opt).load_state_dict is Optimizer.load_state_dict:
        _undo_casts(opt, found, held)


def _cut(entry: Any, p: Tensor) -> Any:
    """Return the state of a parameter of which this process has a part."""
    return map_tensors(lambda tensor: part_of(tensor, p), entry)


def _packed(found: dict[str, Any], named: NamedOptimizer) -> dict[str, Any]:
    """Give a state the form that ``opt.load_state_dict`` takes, in the optimizer's own order."""
    opt, groups = named.opt, []
    index: dict[str, int] = {}
    order = named.order(group["names"] for group in found["groups"]) or ()
    for group, names, there in zip(opt.param_groups, named.group_names(), order, strict=True):
        index.update({name: i for i, name in enumerate(names, start=len(index))})
        known = {key: group[key] for key in opt.defaults if key in group}  # of a newer version
        options = found["groups"][there]["options"]
        if any(map(is_sharded, group["params"])):  # torch has no fused kernel for all of them
            options = {k: v for k, v in options.items() if k != "fused"} | _of(group, "fused")
        groups.append({**known, **options, "params": [index[name] for name in names]})
    state = {index[name]: entry for name, entry in found["state"].items()}
    others = found["rest"].get("state", {})
    return {**found["rest"], "state": {**others, **state}, "param_groups": groups}


def _of(group: dict[str, Any], key: str) -> dict[str, Any]:
    return {key: group[key]} if key in group else {}


def _undo_casts(opt: Optimizer, found: dict[str, Any], held: Mapping[str, Tensor]) -> None:
    """Give values their own dtypes back: torch casts all to the parameter's, and spoils text."""
    for name, entry in found["state"].items():
        if isinstance(entry, dict) and found["params"][name][1] == kind_of(held[name]):
            state = opt.state[held[name]]
            for key in entry.keys() & state.keys() - {"step"}:  # which has rules of its own
                state[key] = _exact(entry[key], state[key])


def _exact(saved: Any, loaded: Any) -> Any:
    if isinstance(saved, Tensor):
        return loaded if saved.dtype == loaded.dtype else saved.to(loaded.device)
    if isinstance(saved, dict):
        return {key: _exact(value, loaded[key]) for key, value in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_exact(*both) for both in zip(saved, loaded, strict=True))
    return saved
