"""`Learner.export`: what is needed to predict, in one file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.arguments import check_one_of
from onecycle.checkpoints.graphs import Graph, plain_graph
from onecycle.checkpoints.readable import readable
from onecycle.checkpoints.sealed import write_sealed
from onecycle.core.restore import hold_modes, preserved_rng
from onecycle.data.calls import call_model
from onecycle.data.nested import leaves, map_tensors
from onecycle.data.transfer import to_device
from onecycle.errors import CancelValid
from onecycle.optim.modes import switch
from onecycle.training.onnx_files import batch_shapes, check_onnx, write_onnx
from onecycle.training.predictor import FORMAT, READS
from onecycle.vision.datasets import image_steps

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

Reads = Literal["auto", "softmax", "sigmoid", "exp", "values"]

_CPU = torch.device("cpu")

#: How predictions read that were trained by a loss function.
_READ_BY: dict[Any, str] = {
    F.cross_entropy: "softmax",
    nn.CrossEntropyLoss: "softmax",
    F.binary_cross_entropy_with_logits: "sigmoid",
    nn.BCEWithLogitsLoss: "sigmoid",
    F.nll_loss: "exp",
    nn.NLLLoss: "exp",
}


def export(learn: Loop, path: Path, reads: Reads) -> None:
    """Write what is needed to predict: see `Learner.export`.

    Args:
        learn: The learner.
        path: Where to write; a file that is there is replaced.
        reads: How predictions read, or ``"auto"``.
    """
    check_one_of("reads", reads, ("auto", *READS))
    is_onnx = path.suffix.lower() == ".onnx"
    if is_onnx:
        check_onnx()
    loss = learn.loss_func.func if isinstance(learn.loss_func, partial) else learn.loss_func
    known = _READ_BY.get(loss if loss in _READ_BY else type(loss), "values")
    steps = image_steps(learn.dls)
    words = {
        "classes": learn.dls.classes,
        "reads": known if reads == "auto" else reads,
        "image": None if steps is None else vars(steps),
    }
    put_back = hold_modes(learn.opt, learn.model)
    try:
        switch(learn.opt, training=False)
        xb = _first_input(learn)
        if is_onnx:
            write_onnx(learn.model, xb, path, words)
            return
        graph, constants = _graph(learn.model, xb)
        state = readable(learn.model.state_dict(), "the state of the model")
    finally:
        put_back()
    parts = {"graph": graph, "state": state, "constants": constants}
    write_sealed(path, {"predictor": FORMAT, **parts, **words})
    if isinstance(graph, str):
        log.warning(
            "export: %s holds the weights alone (%s): load_predictor(path, model=...) needs a "
            "model of the same kind",
            path,
            graph,
        )


def _first_input(learn: Loop) -> Any:
    """Return what the model gets of a first batch, as in validation; leave everything as it was."""
    found: list[Any] = []

    def keep(learn: Loop) -> None:
        found.extend((learn.xb, learn.pred))
        raise CancelValid("one batch is enough")

    learn.infer(
        learn.dls.train if learn.dls.valid is None else learn.dls.valid, keep, with_loss=False
    )
    xb, pred = found
    learn.model.eval()
    with torch.no_grad(), preserved_rng():
        own = call_model(learn.model, xb)
    if not _same_bits(own, pred):
        log.warning(
            "export: the model itself gives other numbers than learn.get_preds, in which callbacks "
            "(such as MixedPrecision) or predict_batch take part: the file has the model alone"
        )
    return to_device(xb, _CPU)


def _graph(model: nn.Module, xb: Any) -> tuple[dict[str, Any] | str, dict[str, Tensor]]:
    """Return the operators that a model calls and their constants; or why there are none."""
    inputs = tuple(xb) if type(xb) in (tuple, list) else (xb,)
    if not all(isinstance(part, Tensor) and part.ndim and len(part) for part in inputs):
        return f"its input is no tensor, but a {type(xb).__name__}", {}
    try:
        with torch.no_grad(), preserved_rng():
            return _exported(deepcopy(model).to(_CPU).eval(), inputs)
    except Exception as error:  # whatever torch.export and the model say
        reason = str(error).strip().splitlines()
        return f"{type(error).__name__}: {reason[0][:200] if reason else ''}", {}


def _exported(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    few = tuple(torch.cat([part, part, part])[:3].contiguous() for part in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of the lists in which an LSTM has its weights
        exported = torch.export.export(model, few, dynamic_shapes=batch_shapes(model, few))
    graph, constants = plain_graph(exported)
    tensors = {"state": model.state_dict(), "constant": constants}
    run = Graph(graph, tensors, _CPU)
    _try(run, model, few)
    rows = [[str(each.dtype).removeprefix("torch."), list(each.shape[1:])] for each in inputs]
    return {"inputs": rows, **graph}, {k: v.contiguous() for k, v in constants.items()}


def _try(run: Graph, model: nn.Module, few: tuple[Tensor, ...]) -> None:
    """Compare what the operators say of batches of 1, 2 and 3 samples with what the model says.

    torch has attention twice: in fused kernels that only a model in evaluation mode calls, and in
    operators, which are what it exports. They agree to rounding.
    """
    is_rounded = False
    for size in (1, 2, 3):
        part = [each[:size] for each in few]
        found, own = run(part), model(*part)
        if _same_bits(found, own):
            continue
        with _attention_in_operators():
            is_rounded = _same_bits(found, model(*part))
        if not is_rounded:
            raise ValueError("the operators that torch.export found give other numbers")
        torch.testing.assert_close(found, own, equal_nan=True)
    if is_rounded:
        log.warning(
            "export: the file has attention as torch's operators, for which learn.get_preds takes "
            "torch's fused kernels: what they predict may differ by rounding"
        )


@contextmanager
def _attention_in_operators() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same_bits(one: Any, other: Any) -> bool:
    """Tell whether two nested values are the same to the bit, but for which NaN one is."""
    if map_tensors(_kind, one) != map_tensors(_kind, other):
        return False
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(
        bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in pairs if isinstance(a, Tensor)
    )


def _kind(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape
