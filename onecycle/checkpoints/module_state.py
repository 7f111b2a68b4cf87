"""The state of a module: whether one can be loaded for another, and buffers that take shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from onecycle.errors import CheckpointError
from onecycle.optim.buffers import Shapes

_WRAPPERS = ("_orig_mod", "module")
_ADVICE = (
    "_orig_mod. in a name comes from torch.compile, and module. from DistributedDataParallel or "
    "DataParallel"
)


def growing(first: Sequence[Shapes], there: Any) -> list[set[str]]:
    """Return of each module the buffers whose shape is that of training, not of the model.

    Args:
        first: The shapes when this learner was made, of model and loss function.
        there: What should be those when the learner of the file was made.
    """
    told = there if isinstance(there, list) and len(there) == len(first) else [None] * len(first)
    both = ((own, other) for own, other in zip(first, told, strict=True))
    return [
        {name for name in own if isinstance(other, dict) and other.get(name, ()) == own[name]}
        for own, other in both
    ]


def check_fits(
    path: str | Path,
    found: Mapping[str, Any],
    own: Mapping[str, Any],
    of: str = "model",
    free: Collection[str] = (),
) -> None:
    """Refuse a module's state before any of it is loaded: torch would load half of it.

    Args:
        path: The file it comes from, for the message.
        found: The state.
        own: What ``state_dict()`` of the module returns now.
        of: What the module is.
        free: The buffers that may be missing or of another shape, see `growing`.

    Raises:
        CheckpointError: Naming what differs.
    """
    differs = differing(found, own, free)
    if differs:
        raise CheckpointError(f"{path} holds another {of}: {differs}")


def differing(found: Mapping[str, Any], own: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """Say in what two states of modules differ; nothing where one can be loaded for the other."""
    missing = own.keys() - found.keys() - set(free)
    unknown = found.keys() - own.keys() - set(free)
    both = own.keys() & found.keys()
    kinds = [name for name in both if not _kinds_agree(own[name], found[name])]
    shapes = [
        name
        for name in both - set(kinds) - set(free)
        if isinstance(own[name], Tensor) and not is_lazy(own[name])
        if own[name].shape != found[name].shape
    ]
    if not (missing or unknown or kinds or shapes):
        return ""
    wrapped = any(part in _WRAPPERS for name in {*missing, *unknown} for part in _parts(name))
    return (
        f"missing {_some(missing)}, unknown {_some(unknown)}, of another shape {_some(shapes)}"
        + (f", of another kind {_some(kinds)}" if kinds else "")
        + (f" ({_ADVICE})" if wrapped else "")
    )


def _some(names: Iterable[Any]) -> str:
    return str(sorted(names, key=str)[:3])


def _parts(name: Any) -> list[str]:
    return str(name).split(".")


def _kinds_agree(own: Any, found: Any) -> bool:
    """Compare what values are; a lazy layer takes any tensor that is none."""
    if not (isinstance(own, Tensor) and isinstance(found, Tensor)):
        return isinstance(own, Tensor) == isinstance(found, Tensor)  # else a module's extra state
    if is_lazy(own) or is_lazy(found):
        return is_lazy(own)
    return _kind(own) == _kind(found)


def _kind(value: Tensor) -> tuple[Any, ...]:
    dtype = value.dtype
    number = (dtype.is_floating_point, dtype.is_complex, dtype == torch.bool)
    return (*number, value.layout, value.is_quantized, value.is_meta)


def take_shapes(module: nn.Module, found: Mapping[str, Any], free: Collection[str]) -> None:
    """Give buffers the shapes of a state that is to be loaded; those that it lacks become ``None``.

    Args:
        module: The module.
        found: The state, which `check_fits` has accepted.
        free: The buffers that this is for.
    """
    saved = module.state_dict()
    for name in free:
        path, _, last = name.rpartition(".")
        buffers = module.get_submodule(path)._buffers
        own, there = saved.get(name), found.get(name)
        if own is not None and there is None:
            buffers[last] = None
        elif isinstance(there, Tensor) and (own is None or own.shape != there.shape):
            buffers[last] = torch.empty_like(there, device=_device(module))


def _device(module: nn.Module) -> torch.device | None:
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.device for tensor in tensors), None)


# Wrappers -----------------------------------------------------------------------------------


def own_names(found: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Match names that differ only in what wrappers put before them.

    Args:
        found: Names of a file.
        own: Names of a module here.

    Returns:
        The own name for each that has another one in the file; empty where they are the same, or
        cannot be told apart.

    Example:
        >>> own_names(["0.weight", "0.bias"], ["_orig_mod.0.bias", "_orig_mod.0.weight"])
        {'0.weight': '_orig_mod.0.weight', '0.bias': '_orig_mod.0.bias'}
        >>> own_names(["module.0.bias", "module.bias"], ["0.bias", "module.bias"])
        {'module.0.bias': '0.bias'}
    """
    theirs, mine = list(found), list(own)
    bare = {_bare(name): name for name in mine}
    if set(theirs) == set(mine) or len(bare) != len(mine):
        return {}
    matched = {name: bare.get(_bare(name), name) for name in theirs}
    if len(set(matched.values())) != len(matched):
        return {}
    return {name: here for name, here in matched.items() if name != here}


def _bare(name: str) -> str:
    return ".".join(part for part in _parts(name) if part not in _WRAPPERS)


def renamed_state(found: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's state with the names that it has here: see `own_names`.

    Args:
        found: The state.
        own: What ``state_dict()`` of the module returns here.
    """
    names = own_names(found, own)
    if not names:
        return found
    made: OrderedDict[str, Any] = OrderedDict((names.get(k, k), v) for k, v in found.items())
    versions = {_bare(path): told for path, told in getattr(found, "_metadata", {}).items()}
    mine = [path for path in getattr(own, "_metadata", {}) if _bare(path) in versions]
    made._metadata = {path: versions[_bare(path)] for path in mine}  # type: ignore[attr-defined]
    return made


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a nested value in which names are others, as keys of dicts and in lists.

    Args:
        value: The value; it stays as it is.
        names: The new names by the old ones.
    """
    if not names:
        return value
    if isinstance(value, dict):
        return type(value)((names.get(k, k), renamed(part, names)) for k, part in value.items())
    if isinstance(value, list):
        return [renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value
