"""What is added to an error: what came, and what to do."""

from __future__ import annotations

import inspect
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger("onecycle")

#: What a model or a loss function raises when it does not like what it got.
BAD_CALL = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def describe(value: Any) -> str:
    """Say in a few words what a value is: shape and dtype of tensors, types of the rest.

    Example:
        >>> describe((torch.zeros(8, 3), "text"))
        'tuple of ((8, 3) float32, str)'
    """
    if isinstance(value, Tensor):
        if value.is_nested:  # some of them have no shape, and raise
            return f"nested ({value.size(0)}, ...) {_name(value.dtype)}"
        return f"{tuple(value.shape)} {_name(value.dtype)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} of {{{_listed([f'{key}: {describe(v)}' for key, v in value.items()])}}}"
    if isinstance(value, tuple | list):
        return f"{kind} of ({_listed([describe(part) for part in value])})"
    return kind


def explain_model_error(error: Exception, model: nn.Module, xb: Any) -> None:
    """Add to an error of the model what it got, and what to do where that is known.

    Args:
        error: What the model raised.
        model: The model.
        xb: Its input.
    """
    if not is_out_of_memory(error):
        _add(error, f"the model got {describe(xb)}", _model_advice(str(error), model, xb))


def explain_loss_error(error: Exception, pred: Any, targets: tuple[Any, ...]) -> None:
    """Add to an error of the loss function what it got, and what to do where that is known.

    Args:
        error: What the loss function raised.
        pred: The prediction.
        targets: The targets, none or more.
    """
    if not is_out_of_memory(error):
        came = " and target ".join(map(describe, (pred, *targets)))
        _add(error, f"the loss function got pred {came}", _loss_advice(str(error), pred, targets))


def explain_backward_error(error: Exception, loss: Tensor) -> None:
    """Add to an error of the backward pass why this loss cannot be differentiated.

    Args:
        error: What the backward pass raised.
        loss: The loss with its graph.
    """
    if loss.ndim:
        came = f"the loss must be one number and has shape {tuple(loss.shape)}"
        advice = "take its mean (without a loss_func, the model itself must return the loss)"
        _add(error, came, advice)
    elif not loss.requires_grad:
        came = "the loss does not depend on any parameter that trains"
        advice = "look for .detach(), .item(), torch.no_grad or an argmax on the way to it"
        _add(error, came, advice)
    elif loss.is_complex():
        _add(error, f"the loss must be real and is {_name(loss.dtype)}", "take its .real or .abs()")


def explain_out_of_memory(error: Exception, xb: Any) -> None:
    """Add to an out-of-memory error what the batch was and what to lower; free what it holds.

    The frames of an error hold the batch and the graph, and whoever keeps the error (a notebook
    keeps the last one) would keep the memory: their local variables are cleared.

    Args:
        error: Any error; nothing happens to one of another kind.
        xb: The input that the model got.
    """
    if is_out_of_memory(error):
        came = f"out of memory with the input {describe(xb)}"
        advice = (
            "lower the batch size (find_batch_size() tells which one fits; MicroBatches() makes "
            "the same update in parts), use MixedPrecision or ActivationCheckpointing, or a "
            "smaller model or input; the next fit can start at once"
        )
        _add(error, came, advice)
        chain: BaseException | None = error
        while chain is not None:
            traceback.clear_frames(chain.__traceback__)
            chain = chain.__cause__ or chain.__context__


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device, or the CPU, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def require_loss(loss: Any) -> Tensor:
    """Return a loss, or refuse what is no tensor.

    Raises:
        TypeError: Naming what came.
    """
    if isinstance(loss, Tensor):
        return loss
    advice = {
        "float": "leave out .item() or float()",
        "NoneType": "does the loss function end with return?",
    }.get(type(loss).__name__, "without a loss_func, the model itself must return the loss")
    raise TypeError(f"the loss must be a tensor of one number; got {describe(loss)}: {advice}")


def tell_broadcast(pred: Any, targets: tuple[Any, ...]) -> None:
    """Warn of shapes with which a loss is silently wrong: see `accidental_broadcast`.

    Args:
        pred: The prediction.
        targets: The targets, none or more.
    """
    warning = accidental_broadcast(pred, targets)
    if warning is not None:
        log.warning("%s", warning)


def accidental_broadcast(pred: Any, targets: tuple[Any, ...]) -> str | None:
    """Say so if prediction and target would be compared each with each, or return ``None``.

    A loss that subtracts ``(n,)`` from ``(n, 1)`` gets ``(n, n)`` differences, and trains towards
    the mean of the targets without an error. A target that is spread over a larger prediction is
    taken for meant.

    Example:
        >>> accidental_broadcast(torch.zeros(8, 2), (torch.zeros(8, 1),)) is None
        True
        >>> print(accidental_broadcast(torch.zeros(8, 1), (torch.zeros(8),)))
        pred (8, 1) float32 and target (8,) float32 broadcast to (8, 8): each sample would be ...
    """
    target = targets[0] if len(targets) == 1 else None
    if not isinstance(pred, Tensor) or not isinstance(target, Tensor):
        return None
    if pred.is_nested or target.is_nested:
        return None
    try:
        shape = np.broadcast_shapes(pred.shape, target.shape)
    except ValueError:  # the loss function knows what to do with them, or raises an error
        return None
    if math.prod(shape) <= max(pred.numel(), target.numel()):
        return None
    return (
        f"pred {describe(pred)} and target {describe(target)} broadcast to {shape}: each "
        "sample would be compared with every other; give both one shape, with unsqueeze or squeeze"
    )


def _add(error: Exception, came: str, advice: str | None) -> None:
    error.add_note(f"onecycle: {came}" + (f"; {advice}" if advice else ""))


def _model_advice(message: str, model: nn.Module, xb: Any) -> str | None:
    """Tell from the facts what to do; from torch's words only which of the facts it meant."""
    if "more than 1 value per channel" in message:
        return (
            "batch norm cannot train on one sample: use drop_last=True, or a batch size that does "
            "not leave a last batch of one"
        )
    if "DTensor" in message and any(hasattr(p, "to_local") for p in model.parameters()):
        return (
            'with parallel="fsdp" weights are gathered for the module that has them while it is '
            "called, and here they were used without calling it: call it, or name with blocks= "
            "parts that are called as a whole"
        )
    if not isinstance(xb, Tensor):
        return _nested_advice(message, model, xb)
    if "index out of range" in message and _is_readable(xb):
        return (
            f"its indices go from {int(xb.min())} to {int(xb.max())}, beyond an embedding: map "
            "them, or make it larger"
        )
    if "'indices'" in message:
        return "indices must be integers: convert the input with .long()"
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None and xb.dtype != first.dtype and "type" in message:
        name = _name(first.dtype)
        return f"the parameters are {name}: convert the input with .to(torch.{name})"
    return None


def _nested_advice(message: str, model: nn.Module, xb: Any) -> str | None:
    """Tell what to do about an input that is no tensor."""
    kind, is_whole = type(xb).__name__, type(xb) not in (tuple, list)
    if isinstance(xb, Mapping):
        is_missing = "required" in message and "argument" in message
        return f"its keys must be names that forward takes: {_takes(model)}" if is_missing else None
    if is_whole and hasattr(xb, "_fields") and kind in message:
        return (
            f"a {kind} reaches the model whole, as only a plain tuple or list is taken apart: "
            "return one from collate_fn, or override predict_batch and compute_loss of Learner"
        )
    if is_whole and not hasattr(type(xb), "to") and "device" in message:
        return f"a batch object is moved by its own method to(device), and {kind} has none"
    parts = [xb] if is_whole else xb
    plain = [part for part in parts if isinstance(part, str | bytes | Number | np.ndarray)]
    no_tensors = not any(isinstance(part, Tensor) for part in parts)
    if plain and (no_tensors or any(type(part).__name__ in message for part in plain)):
        return "a batch must hold tensors"
    counted = parts and not is_whole and "positional argument" in message
    return "n_inp= says how many parts of a batch are inputs" if counted else None


def _takes(model: nn.Module) -> str:
    try:
        return ", ".join(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # as of a scripted model
        return "see its class"


def _loss_advice(message: str, pred: Any, targets: tuple[Any, ...]) -> str | None:
    if not targets:
        return "the batch has no target: a batch is (xb, yb)"
    if not isinstance(pred, Tensor):
        return "take the prediction out of what the model returns, in the loss function or in it"
    target = targets[0]
    if len(targets) == 1 and not isinstance(target, Tensor):
        return _nested_target_advice(message, target)
    if len(targets) != 1 or pred.ndim < 2:
        return None
    classes = pred.shape[1]
    if target.is_floating_point():
        if target.shape != (len(pred), *pred.shape[2:]):
            return None
        if "Long" in message:  # torch's word for the labels of a class
            return "class labels must be integers: convert them with .long()"
        return f"for one number each, the model must return {tuple(target.shape)} too"
    if classes == 1:
        return "targets of one output must be floats: convert them with .float()"
    if target.shape == (len(pred), 1):
        return "class labels must have shape (batch,): drop the last dimension with squeeze(1)"
    if _is_readable(target) and target.dtype == torch.int64:
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            return (
                f"labels must be in 0 to {classes - 1} for predictions of {classes} classes, and "
                f"these go from {low} to {high}: map them, or give the model more outputs"
            )
    return None


def _nested_target_advice(message: str, target: Any) -> str | None:
    """Tell what to do about a target that is no tensor, if that is what was complained of."""
    kind = type(target).__name__
    if isinstance(target, np.ndarray | Number):
        return "a loss function of torch takes tensors: convert the targets with torch.tensor"
    if kind not in message:
        return None
    if isinstance(target, list) and any(isinstance(part, Tensor) for part in target):
        return (
            "targets that are nested in a tuple or list are one argument, a list; to get them one "
            "by one let the batch be (xb, y1, y2) and say n_inp="
        )
    if isinstance(target, list):
        return "a loss function of torch takes tensors: convert the targets with torch.tensor"
    return f"it gets the {kind} whole: let a loss function of your own take the target from it"


def _is_readable(tensor: Any) -> TypeGuard[Tensor]:
    """Tell whether integers can be read; not on CUDA, where a failed assert ends everything."""
    if not isinstance(tensor, Tensor) or not tensor.is_cpu or not tensor.numel():
        return False
    return not tensor.is_floating_point() and not tensor.is_complex()


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts if len(parts) <= 4 else [*parts[:3], f"... {len(parts)} parts"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
