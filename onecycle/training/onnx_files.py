"""A model as an ONNX file, by torch's own exporter, tried before it is kept."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.core.restore import preserved_rng
from onecycle.data.nested import leaves
from onecycle.files import atomic_write

#: What the exporter needs, and what the file is tried with.
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
#: The weights that one file can hold, in bytes: beyond it they would be in a second one.
_LARGEST = 2**31 - 2**24
#: How far numbers may lie from the model's, by the largest of them.
_CLOSE = 1e-4


def check_onnx() -> None:
    """Refuse an export without the packages that it needs.

    Raises:
        ImportError: With the command that installs them.
    """
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"an ONNX file needs {name}, which is not installed: pip install 'onecycle[onnx]'"
            ) from error


def write_onnx(model: nn.Module, xb: Any, path: Path, words: Mapping[str, Any]) -> None:
    """Write a model in evaluation mode, for batches of any size.

    Args:
        model: The model; it is left as it is.
        xb: What it gets of a batch: a tensor, or a tuple of them, on the CPU.
        path: Where to write.
        words: What else the file says, each as JSON, by its name.

    Raises:
        ValueError: If torch cannot write the model, or the file gives other numbers; nothing is
            written then.
    """
    inputs = tuple(xb) if type(xb) in (tuple, list) else (xb,)
    if not all(isinstance(part, Tensor) and part.ndim and len(part) for part in inputs):
        raise ValueError(f"an ONNX file takes tensors; the model gets a {type(xb).__name__}")
    size = sum(each.nbytes for each in model.state_dict().values() if isinstance(each, Tensor))
    if size > _LARGEST:
        raise ValueError(f"an ONNX file holds up to 2 GiB; the model has {size:,} bytes of weights")
    few = tuple(torch.cat([part, part, part])[:3].contiguous() for part in inputs)
    model = deepcopy(getattr(model, "_orig_mod", model)).to("cpu").eval()  # of torch.compile
    with atomic_write(path) as temporary, torch.no_grad(), preserved_rng(), _quiet():
        try:
            program = torch.onnx.export(
                model,
                few,
                dynamo=True,
                verbose=False,
                dynamic_shapes=batch_shapes(model, few),
            )
        except Exception as error:  # whatever torch.onnx and the model say
            cause = error.__cause__ or error  # torch tells of its own steps around it
            reason = (str(cause).strip().splitlines() or [""])[0][:300]
            raise ValueError(
                f"torch.onnx cannot write this model: {type(cause).__name__}: {reason}"
            ) from error
        if program is None:
            raise ValueError("torch.onnx has written nothing")
        program.model.metadata_props.update({k: json.dumps(v) for k, v in words.items()})
        program.save(str(temporary))
        _try(model, few, temporary)


def batch_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Return what torch's exporters are told of inputs whose first dimension may be of any size.

    Args:
        model: What is called with them.
        inputs: The inputs.
    """
    batch = torch.export.Dim("batch")
    each = tuple({0: batch} for _ in inputs)
    kinds = [known.kind for known in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return each
    n = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return each if len(each) <= n else (*each[:n], each[n:])  # of *args they are a tuple


def _try(model: nn.Module, few: tuple[Tensor, ...], path: Path) -> None:
    """Compare what the file says of batches of 3, 2 and 1 samples with what the model says."""
    for size in (3, 2, 1):
        part = [each[:size] for each in few]
        own = [each for each in leaves(model(*part)) if isinstance(each, Tensor)]
        try:
            found = _said(path, part)
        except Exception as error:  # whatever the runtime says
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"onnxruntime cannot run the ONNX file: {reason}") from error
        if [each.shape for each in found] != [each.shape for each in own]:
            raise ValueError("the ONNX file gives predictions of another shape than the model")
        for a, b in zip(found, (each.double() for each in own), strict=True):
            differ = (a != b) & ~(a.isnan() & b.isnan())
            apart = float((a - b)[differ].abs().max()) if differ.any() else 0.0
            if not apart <= _CLOSE * max(1.0, float(b[differ].abs().max()) if apart else 1.0):
                raise ValueError(
                    f"the ONNX file gives other numbers than the model: up to {apart:.1e} apart"
                )


def _said(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    return [torch.as_tensor(each).double() for each in session.run(None, feed)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own words from the person, who can do nothing about them."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
