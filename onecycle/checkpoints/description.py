"""What a function or an object is, in words that are the same in every process."""

from __future__ import annotations

import enum
import hashlib
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle.schedules.shapes import Schedule

#: What is in these packages is named without them.
_AT_HOME = ("", "builtins", "onecycle", "torch")
_DEPTH = 2  # how far what is held is followed
_LONGEST = 64  # of the containers that are written out
_LARGEST = 16  # of the tensors that are


def name_of(thing: Any) -> str:
    """Name a class or a function so that it is found again, wherever its package moves it.

    Args:
        thing: The class or function.

    Returns:
        Its qualified name, after that of its package; torch's and onecycle's without.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> name_of(mse_loss), name_of(np.ndarray), name_of(torch.optim.SGD)
        ('mse_loss', 'numpy.ndarray', 'SGD')
    """
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    package = (getattr(thing, "__module__", None) or "").partition(".")[0]
    if package == "__mp_main__":  # the main module in a process that was spawned
        package = "__main__"
    return name if package in _AT_HOME else f"{package}.{name}"


def described(value: Any, *, without: frozenset[str] = frozenset()) -> str:
    """Describe a function or an object by its qualified name and its plain fields.

    Fields of a closure are the values that it holds, those of a lambda its numbers and names too;
    those of a ``functools.partial`` its arguments; those of an object its public ones. What they
    hold is written out where it is plain, a function or a module, and else named by its class.

    Args:
        value: Anything.
        without: Fields to leave out.

    Returns:
        One line. It never holds an address, so that it is the same in another process.

    Example:
        >>> described(partial(nn.functional.cross_entropy, label_smoothing=0.1))
        'partial(cross_entropy, label_smoothing=0.1)'
        >>> described(nn.HuberLoss(delta=0.5))
        "HuberLoss(reduction='mean', delta=0.5)"
        >>> described(lambda pred, y: (pred - y).abs().pow(1.5).mean())
        '<lambda>(abs, pow, mean, 1.5)'
    """
    return _described(value, _DEPTH, without)


def plain(value: Any) -> Any:
    """Return a value as a file holds it: numbers and containers as such, the rest described.

    Schedules become the dicts that `Schedule.from_dict` reads, where their class has a kind.

    Args:
        value: Anything.

    Example:
        >>> plain({"max_norm": np.float64(0.5), "dtype": torch.float16, "loss": nn.L1Loss})
        {'max_norm': 0.5, 'dtype': 'torch.float16', 'loss': 'L1Loss'}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Schedule):
        try:
            return value.to_dict()
        except TypeError:  # its class has no kind, or that of one within
            return described(value)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return described(value)


def _described(value: Any, depth: int, without: frozenset[str] = frozenset()) -> str:
    value = _uncompiled(value)
    simple = _simple(value)
    if simple is not None:
        return simple
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _container(value, depth)
    if isinstance(value, partial):
        parts = [_described(part, depth) for part in (value.func, *value.args)]
        return _call("partial", parts, value.keywords, depth)
    if isinstance(value, MethodType):
        return f"{_described(value.__self__, depth)}.{value.__func__.__name__}"
    if isinstance(value, FunctionType):
        parts, fields = _of_function(value) if depth > 0 else ([], {})
        return (
            _call(name_of(value), parts, fields, depth - 1) if parts or fields else name_of(value)
        )
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return name_of(value)
    is_told = depth == _DEPTH or (depth > 0 and isinstance(value, nn.Module | Schedule))
    fields = _of_object(value) if is_told else {}
    kept = {name: part for name, part in fields.items() if name not in without}
    return _call(name_of(type(value)), [], kept, depth - 1)


def _call(name: str, parts: list[str], fields: dict[str, Any], depth: int) -> str:
    named = [f"{field}={_described(value, depth)}" for field, value in fields.items()]
    return f"{name}({', '.join(parts + named)})"


def _uncompiled(value: Any) -> Any:
    """Return what torch.compile was given, where it made the value."""
    if isinstance(value, FunctionType):
        return getattr(value, "_torchdynamo_orig_callable", value)
    return value._modules.get("_orig_mod", value) if isinstance(value, nn.Module) else value


def _simple(value: Any) -> str | None:
    """Write out what has no parts; ``None`` for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        return f"{name_of(type(value))}.{value.name}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    return _array(value) if isinstance(value, Tensor | np.ndarray) else None


def _array(value: Tensor | np.ndarray[Any, Any]) -> str:
    """Write out a small array; give a digest of a larger one."""
    kind = f"{value.dtype}".removeprefix("torch.")
    if isinstance(value, Tensor):
        if value.requires_grad or value.layout != torch.strided or value.is_meta:
            return f"tensor({kind})"  # what trains is state
        value = value.detach().cpu().contiguous()
        if value.is_floating_point() and value.numel() <= _LARGEST:
            value = value.double()  # not every dtype can be listed
        value = (value.view(torch.uint8) if value.numel() > _LARGEST else value).numpy()
    if value.dtype.hasobject:
        return f"array({kind})"
    if value.size <= _LARGEST:
        return f"tensor({value.tolist()}, {kind})"
    return f"tensor({kind}, {hashlib.sha256(value.tobytes()).hexdigest()[:12]})"


def _container(value: Any, depth: int) -> str:
    if len(value) > _LONGEST or depth < 0:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_described(v, depth - 1)}' for key, v in value.items())}}}"
    parts = [_described(part, depth - 1) for part in value]
    return f"[{', '.join(sorted(parts) if isinstance(value, set | frozenset) else parts)}]"


def _of_function(function: FunctionType) -> tuple[list[str], dict[str, Any]]:
    """Return what a lambda does, as far as it tells, and the values that a function holds."""
    code, fields = function.__code__, dict(function.__kwdefaults__ or {})
    parts: list[str] = []
    if "<" not in function.__qualname__:  # of a module: its name says all
        return parts, {}
    arguments = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    fields |= dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            fields[name] = cell.cell_contents
        except ValueError:  # not yet filled
            continue
    if function.__name__ == "<lambda>":
        numbers = [repr(const) for const in code.co_consts if isinstance(const, float)]
        parts = [*code.co_names, *numbers]
    return parts, fields


def _of_object(value: Any) -> dict[str, Any]:
    """Return the public fields of an object, and the parts of a module."""
    fields = {n: v for n, v in getattr(value, "__dict__", {}).items() if not n.startswith("_")}
    if isinstance(value, nn.Module):
        fields.pop("training", None)
        fields |= dict(value.named_children())
    return fields
