"""What a message must say of a wrong argument, and which arguments an annotation allows."""

from __future__ import annotations

import numbers
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

# What a message says ----------------------------------------------------------------------

#: Other words for parameters in messages.
WORDS = {
    "metrics": ("metric",),
    "seeds": ("seed",),
    "batch_sizes": ("batch_size",),
    "dropouts": ("dropout",),
    "dl": ("loader", "batch", "the model got"),
    "x": ("batch", "the model got"),
    "dls": ("DataLoaders", "training loader"),
    "train": ("training loader",),
    "valid": ("validation loader",),
    "milestones": ("milestone",),
    "phases": ("phase",),
    "n": ("group",),
    "suggest_funcs": ("rule",),
    "policies": ("policy",),
    "policy": ("lr",),
    "schedules": ("Schedule",),
    "make": ("function",),
    "obj": ("attribute",),
    "name": ("attribute",),
    "gamma": ("factor",),
    "loss_func": ("loss",),
    "model": ("the model got", "matrix"),
    "opt": ("optimizer",),
    "lr_max": ("lr",),
    "cbs": ("callback", "Callback"),
    "moms": ("momentum", "moms"),
    "wd": ("weight_decay",),
    "wds": ("weight_decay", "wd"),
    "use_clr_beta": ("div", "pct", "momentum"),
}


def names(parameter: str, value: Any, message: str) -> bool:
    """Tell whether a message names the argument, and what came."""
    words = (parameter, *WORDS.get(parameter, ()))
    if parameter in ("x", "dl", "dls") and "the model got" in message:
        return True
    pattern = "|".join(map(re.escape, words))
    has_name = re.search(rf"(?<![A-Za-z])({pattern})(?![a-z])", message)
    shown = {f(value) for f in (repr, str)} | {type(value).__name__, getattr(value, "__name__", "")}
    shown |= {f(part) for part in _flat(value) for f in (repr, str)}
    shown |= {type(part).__name__ for part in _flat(value)} | {_shape(value)}
    shown |= {f"{value:g}", f"{value:.4g}"} if isinstance(value, float) else set()
    if isinstance(value, list | tuple):
        shown |= {f"got {len(value)}"}
    if _is_empty(value):
        shown |= {"empty", "none", "no ", "got 0"}
    if isinstance(value, torch.Tensor):
        shown |= {"tensor(", str(value.dtype)}
    if callable(value):  # what it returned, or would have had to take, tells which it is
        shown |= {"got ", "returned", "takes", "called with"}
    if isinstance(value, Iterator):
        shown |= {"no batch"}
    if value is None:
        shown |= {"nothing", "give a"}
    return bool(has_name) and any(text and text in message for text in shown)


def _shape(value: Any) -> str:
    try:
        return str(tuple(np.shape(value)))
    except ValueError:
        return ""


def _is_empty(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return 0 in value.shape
    return hasattr(value, "__len__") and not isinstance(value, type) and len(value) == 0


def _flat(value: Any) -> list[Any]:
    """Return what a value holds; of any other the value alone."""
    if isinstance(value, np.ndarray | torch.Tensor):
        value = [] if _is_meta(value) else value.tolist()
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


# What an annotation allows ----------------------------------------------------------------


def may_be(annotation: Any, value: Any) -> bool:
    """Tell whether a value may be valid by an annotation; whether it is depends on its range."""
    text = annotation if isinstance(annotation, str) else _text(annotation)
    return any(_may_be(part.strip(), value) for part in _split(text))


def _text(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return str(annotation)
    is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__name__ if is_plain else str(annotation)


def _split(text: str) -> list[str]:
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == "|" and not depth:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]]


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0 and not _is_meta(value):
        value = value.item()
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and abs(value) < float("inf")


def _is_whole(value: Any) -> bool:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and abs(value) < 2**63


#: Types of words that have a name.
ALIASES = {
    "Mode": ("auto", "min", "max"),
    "During": ("train", "valid", "both"),
    "Policy": ("cosine", "linear", "three_phase", "smith", "torch"),
    "Extend": ("keep", "restretch", "tail"),
    "Words": ("auto", "same", "ignore"),
}


def _may_be(part: str, value: Any) -> bool:
    part = part.replace("collections.abc.", "").replace("typing.", "")
    name = part.split("[")[0].split(".")[-1]
    if part in ("Any", "object", "ArrayLike") or part.startswith(("Union[", "Iterable", "Default")):
        return part != "Default"
    if part == "None":
        return value is None
    if part.startswith("Literal") or part in ALIASES:
        words = ALIASES.get(part) or typing.get_args(eval(part, {"Literal": typing.Literal}))
        return any(type(value) is type(word) and value == word for word in words)
    simple: dict[str, Callable[[Any], bool]] = {
        "bool": lambda v: isinstance(v, bool | np.bool_),
        "int": _is_whole,
        "float": _is_number,
        "str": lambda v: isinstance(v, str),
        "Path": lambda v: isinstance(v, os.PathLike),
        "GroupValues": lambda v: _is_number(v) or _numbers(v) or isinstance(v, slice),
        "Handler": callable,
        "OptFunc": callable,
        "OptFuncs": callable,
        "Asked": lambda v: (
            callable(v) or (hasattr(v, "__len__") and not _is_single(v) and not len(v))
        ),
        "Curve": callable,
        "Dataset": lambda v: hasattr(type(v), "__getitem__") and not isinstance(v, str | bytes),
        "Splitter": callable,
        "Init": callable,
        "Callable": callable,
    }
    if name in simple:
        return simple[name](value)
    if name in ("Sequence", "tuple", "list"):
        inner = part[part.find("[") + 1 : -1].split(",")[0]
        is_list = hasattr(value, "__len__") and not isinstance(value, str | bytes | dict)
        return is_list and not _is_single(value) and all(may_be(inner, each) for each in value)
    if name in ("Mapping", "dict"):
        return isinstance(value, Mapping) and not value
    return any(each.__name__ == name for each in type(value).__mro__)


def _is_single(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0


def _numbers(value: Any) -> bool:
    is_list = isinstance(value, list | tuple | np.ndarray | torch.Tensor)
    is_list = is_list and not _is_single(value) and not _is_meta(value)
    return is_list and all(map(_is_number, value))
