"""An optimizer's state by the names of its parameters: taken, compared before it is loaded, loaded.

By position, as ``opt.state_dict()`` has it, each layer would go on with the momentum of another
one where layers or groups are listed in another order; and the fused kernels write beyond the end
of a momentum that is too small.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from onecycle.checkpoints.description import name_of
from onecycle.optim.loss_module import LOSS
from onecycle.optim.several import each_of
from onecycle.optim.wrapped import same_groups

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

#: What torch's own optimizers keep of a parameter: single numbers, what has the parameter's shape,
#: and means of its rows and columns.
_NUMBERS = ("step", "eta", "mu", "mu_product")
_ELEMENTWISE = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"),
    *("grad_avg", "acc_delta", "sum", "prev", "step_size", "ax", "variance"),
)
_OF_SIDES = ("row_var", "col_var")
_PARTS = {"class": str, "groups": list, "params": dict, "state": dict, "rest": dict, "values": dict}


def parameter_names(learn: LoopState) -> dict[int, str]:
    """Name every parameter of the model, the loss function and the optimizer.

    Args:
        learn: The learner.

    Returns:
        Names by the id of the parameter: as ``model.named_parameters()`` has them; with
        ``loss_func.`` before, those of a loss module; by position, as in ``opt.0.3``, what the
        optimizer holds besides. Of several names of a shared weight it is the first in the
        alphabet, whatever the order of the layers.
    """
    named: dict[int, str] = {}
    for prefix, module in (("", learn.model), (LOSS, learn.loss_module)):
        if module is not None:
            own = dict(module.named_parameters(remove_duplicate=False))
            for name in sorted(own):
                named.setdefault(id(own[name]), prefix + name)
    for g in range(len(learn.groups)):
        others = [p for p in learn.groups.params(g) if id(p) not in named]
        named.update({id(p): f"opt.{g}.{i}" for i, p in enumerate(others)})
    twice = [name for name, n in Counter(named.values()).items() if n > 1]
    if twice:
        raise ValueError(
            f"two parameters would have the name {twice[0]!r} in a file: give the part of the "
            "model that is called so another name"
        )
    return named


def opt_name(opt: Optimizer) -> str:
    """Name the class of an optimizer, or of each of several.

    Args:
        opt: The optimizer.
    """
    return " and ".join(name_of(type(each)) for each in each_of(opt))


def opt_state(learn: LoopState) -> dict[str, Any]:
    """Return the state of a learner's optimizer, by name.

    Tensors are those of the optimizer, not copies.

    Args:
        learn: The learner.

    Returns:
        ``class``; ``groups``: the names of the parameters of each, and its ``options``;
        ``params``: the shape and dtype of each parameter; ``state``: what the optimizer keeps of
        each; ``rest``: all else that its ``state_dict`` has; ``values``: the parameters that are
        not the model's. Where the ``state_dict`` has a form of its own: ``whole``, not its parts.
    """
    opt, names, whole = learn.opt, parameter_names(learn), learn.opt.state_dict()
    held = _held(opt, names)
    found: dict[str, Any] = {
        "class": opt_name(opt),
        "groups": [{"names": _names(group, names), "options": {}} for group in opt.param_groups],
        "params": {name: [_shape(p), _kind(p)] for name, p in held.items()},
        "state": {},
        "rest": {},
        "values": {name: held[name].detach() for name in _beside(learn, held)},
    }
    packed = _packed_groups(opt, whole)
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


def _packed_groups(opt: Optimizer, whole: Any) -> list[dict[str, Any]] | None:
    """Return the groups of a ``state_dict`` of torch's form; ``None`` for another form."""
    if not isinstance(whole, dict) or not isinstance(whole.get("state"), dict):
        return None
    groups = whole.get("param_groups")
    sizes = [len(group["params"]) for group in opt.param_groups]
    if not isinstance(groups, list) or [len(group.get("params", ())) for group in groups] != sizes:
        return None
    return groups


def _held(opt: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    return {names[id(p)]: p for group in opt.param_groups for p in group["params"]}


def _beside(learn: LoopState, held: Mapping[str, Tensor]) -> list[str]:
    """List what the optimizer holds and the model does not."""
    own = {id(p) for p in learn.model.parameters()}
    return [name for name, p in held.items() if id(p) not in own]


def _names(group: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    return [names[id(p)] for p in group["params"]]


def _shape(p: Tensor) -> list[int] | None:
    return None if is_lazy(p) else list(p.shape)


def _kind(p: Tensor) -> str:
    return str(p.dtype).removeprefix("torch.")


# Whether it fits ----------------------------------------------------------------------------


def opt_misfit(learn: LoopState, found: Any) -> str | None:
    """Say why a state cannot be loaded; ``None`` if it can. Nothing is changed.

    Args:
        learn: The learner.
        found: What should be what `opt_state` returned.
    """
    if not _is_well_formed(found):
        return "it is none that onecycle wrote"
    if found["class"] != opt_name(learn.opt):
        return f"it is that of {found['class']}"
    names = parameter_names(learn)
    held = _held(learn.opt, names)
    theirs = [name for group in found["groups"] for name in group["names"]]
    if not sorted(theirs) == sorted(held) == sorted(found["params"]):
        return f"it is of other parameters: {_apart(theirs, held)}"
    if _order(found, learn, names) is None:
        sizes = [len(group["names"]) for group in found["groups"]]
        own = [len(group["params"]) for group in learn.opt.param_groups]
        return f"its parameters are divided into other groups: {sizes} there, {own} here"
    if "whole" in found and [group["names"] for group in found["groups"]] != [
        _names(group, names) for group in learn.opt.param_groups
    ]:
        return "its parameters are in another order, and it can only be taken as a whole"
    if unknown := found["state"].keys() - held.keys():
        return f"it has state of parameters that are not there: {_some(unknown)}"
    for name in _beside(learn, held):
        value = found["values"].get(name)
        if not isinstance(value, Tensor) or value.shape != held[name].shape:
            return f"the value of {name!r} is missing, or of another shape"
    return next(filter(None, (_misfit(learn.opt, found, n, p) for n, p in held.items())), None)


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
    return of_groups and all(
        isinstance(each, list) and len(each) == 2 for each in found["params"].values()
    )


def _apart(theirs: Iterable[str], own: Iterable[str]) -> str:
    there, here = set(theirs) - set(own), set(own) - set(theirs)
    return f"only there {_some(there)}, only here {_some(here)}"


def _some(names: Iterable[str]) -> str:
    return str(sorted(names, key=str)[:3])


def _order(found: dict[str, Any], learn: LoopState, names: Mapping[int, str]) -> list[int] | None:
    """Match groups by what they hold.

    Returns:
        For each of the optimizer's groups the index of the file's; ``None`` where they differ.
        Groups that `ParamGroups.separate_decay` would make count as made.
    """
    theirs = [frozenset(group["names"]) for group in found["groups"]]
    for divided in (learn.groups.divided(), learn.groups.divided(finely=True)):
        own = [frozenset(names[id(p)] for p in params) for params in divided]
        if Counter(own) == Counter(theirs):
            left = list(enumerate(theirs))
            return [left.pop([part for _, part in left].index(part))[0] for part in own]
    return None


def _misfit(opt: Optimizer, found: dict[str, Any], name: str, p: Tensor) -> str | None:
    """Say what of a parameter's state does not fit the parameter."""
    shape, kind = found["params"][name]
    if _shape(p) not in (None, shape):
        return f"{name!r} has shape {tuple(p.shape)}, and {tuple(shape or ())} there"
    if isinstance(getattr(torch, str(kind), None), torch.dtype):
        there = getattr(torch, kind)
        if (there.is_floating_point, there.is_complex) != (p.is_floating_point(), p.is_complex()):
            return f"{name!r} is of {_kind(p)}, and of {kind} there"
    else:
        return f"{name!r} is there of something that is no dtype: {kind!r}"
    entry = found["state"].get(name, {})
    if not _is_torchs(opt):  # whose form is its own
        return None
    if not isinstance(entry, dict):
        return f"the state of {name!r} is no dict"
    wrong = (key for key, part in entry.items() if not _fits(key, part, shape or [], p))
    return next((f"{key!r} of {name!r} does not fit the parameter" for key in wrong), None)


def _is_torchs(opt: Optimizer) -> bool:
    """Tell whether torch makes the step, of which it is known what it needs."""
    modules = [getattr(type(o).step, "__module__", None) or "" for o in each_of(opt)]
    return all(module.startswith("torch.optim.") for module in modules)


def _fits(key: Any, value: Any, shape: list[int], p: Tensor) -> bool:
    """Tell whether one value of torch's own state is what its step can take."""
    if key in _NUMBERS:
        if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
            return False
        return isinstance(value, Tensor | int | float) and 0 <= float(value) < math.inf
    if value is None or key not in (*_ELEMENTWISE, *_OF_SIDES):
        return True
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    kinds = (value.is_floating_point(), value.is_complex())
    if kinds != (p.is_floating_point(), p.is_complex()):
        return False
    if key in _OF_SIDES:
        sides = zip(value.shape, shape, strict=False)
        return value.ndim == len(shape) and all(a in (1, b) for a, b in sides)
    return list(value.shape) == shape


# Loading ------------------------------------------------------------------------------------


def load_opt_state(learn: LoopState, found: dict[str, Any]) -> None:
    """Load what `opt_state` returned, of which `opt_misfit` has nothing to say.

    The dicts of the optimizer's groups stay the same objects: schedules and the recorder hold them.

    Args:
        learn: The learner.
        found: The state.
    """
    opt, names = learn.opt, parameter_names(learn)
    if len(found["groups"]) > len(opt.param_groups):
        learn.groups.separate_decay(everywhere=True)  # as the fit before the saving had done
    held, whole = _held(opt, names), found.get("whole")
    with same_groups(opt):
        opt.load_state_dict(_packed(found, learn, names) if whole is None else whole)
    with torch.no_grad():
        for name in _beside(learn, held):
            held[name].copy_(found["values"][name])
    if type(opt).load_state_dict is Optimizer.load_state_dict:
        _undo_casts(opt, found, held)


def _packed(found: dict[str, Any], learn: LoopState, names: Mapping[int, str]) -> dict[str, Any]:
    """Give a state the form that ``opt.load_state_dict`` takes, in the optimizer's own order."""
    opt, groups = learn.opt, []
    index: dict[str, int] = {}
    for group, there in zip(opt.param_groups, _order(found, learn, names) or (), strict=True):
        index.update({name: i for i, name in enumerate(_names(group, names), start=len(index))})
        known = {key: group[key] for key in opt.defaults if key in group}  # of a newer version
        options = found["groups"][there]["options"]
        params = [index[name] for name in _names(group, names)]
        groups.append({**known, **options, "params": params})
    state = {index[name]: entry for name, entry in found["state"].items()}
    others = found["rest"].get("state", {})
    return {**found["rest"], "state": {**state, **others}, "param_groups": groups}


def _undo_casts(opt: Optimizer, found: dict[str, Any], held: Mapping[str, Tensor]) -> None:
    """Give values their own dtypes back: torch casts all to the parameter's, and spoils text."""
    for name, entry in found["state"].items():
        if isinstance(entry, dict) and found["params"][name][1] == _kind(held[name]):
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
