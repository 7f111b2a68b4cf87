"""Predicting a loader or a sample: what is kept of each batch, and how it is joined."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from onecycle.arguments import check_flags, shown
from onecycle.core.callback import Callback
from onecycle.core.state import LoopState
from onecycle.data.calls import input_of, target_of
from onecycle.data.nested import concatenate, map_tensors
from onecycle.data.samples import batch_of_one, only_sample, sample_of
from onecycle.data.transfer import to_device
from onecycle.record.predictions import Predictions

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

_CPU = torch.device("cpu")

#: What has one entry for each sample.
_ENTRIES = (Tensor, np.ndarray)

#: What an output of a sample may be, among those of a dict.
_OUTPUTS = (Tensor, PackedSequence, np.ndarray, list, Mapping, str, Number)


def valid_or(learn: Loop, dl: Iterable[Any] | None) -> Iterable[Any]:
    """Return a loader, or where none is given the learner's validation loader.

    Raises:
        ValueError: If it has none.
    """
    if dl is None and learn.dls.valid is None:
        raise ValueError("this learner has no validation loader: pass one as dl")
    if dl is not None and (
        not isinstance(dl, Iterable) or isinstance(dl, str | bytes | Mapping | Tensor | type)
    ):
        raise TypeError(f"dl must be an iterable of batches, as a DataLoader; got {shown(dl)}")
    return learn.dls.valid if dl is None else dl  # type: ignore[return-value]


def predict_loader(
    learn: Loop,
    dl: Iterable[Any],
    *,
    cbs: Sequence[Callback] = (),
    with_loss: bool = False,
    with_inputs: bool = False,
    inference_mode: bool = False,
) -> Predictions:
    """Predict a whole loader: see `Learner.get_preds`.

    Args:
        learn: The learner.
        dl: An iterable of batches.
        cbs: Callbacks that take part besides the learner's.
        with_loss: Compute the loss of each sample.
        with_inputs: Keep the inputs.
        inference_mode: As for `Loop.infer`.
    """
    check_flags(with_loss=with_loss, with_inputs=with_inputs, inference_mode=inference_mode)
    kept = _Kept(with_loss, with_inputs)
    learn.infer(dl, kept.add, cbs=cbs, with_loss=False, inference_mode=inference_mode)
    return kept.predictions()


def predict_sample(learn: Loop, x: Any) -> Any:
    """Predict one sample: see `Learner.predict`.

    Args:
        learn: The learner.
        x: Its input.
    """
    batch: Any
    if isinstance(x, Mapping):
        batch = batch_of_one(x)
    else:
        inputs = list(x) if type(x) in (tuple, list) else [x]
        if learn.n_inp not in (None, len(inputs)):
            raise ValueError(f"expected {learn.n_inp} inputs, as n_inp= says; got {len(inputs)}")
        batch = (*map(batch_of_one, inputs), None)  # the last of a batch is no input
    kept = _Kept()
    learn.infer([batch], kept.add, with_loss=False)
    return only_sample(kept.parts["preds"][0]) if kept.parts["preds"] else None


class _Kept:
    """Keeps what is asked for of each batch, on the CPU."""

    def __init__(self, with_loss: bool = False, with_inputs: bool = False) -> None:
        self.parts: dict[str, list[Any]] = {"preds": [], "targets": []}
        if with_loss:
            self.parts["losses"] = []
        if with_inputs:
            self.parts["inputs"] = []
        self._sizes: list[int | None] = []
        self._left_out: dict[str, None] = {}

    def add(self, learn: Loop) -> None:
        """Keep the batch that the learner has just run, unless it was cancelled."""
        if learn.pred is None:
            return
        preds, left_out = _outputs(learn.pred)
        self._left_out |= left_out
        found = {"preds": preds, "targets": target_of(learn.model, learn.batch, learn.yb)}
        if "losses" in self.parts:
            found["losses"] = sample_losses(learn)
        if "inputs" in self.parts:
            found["inputs"] = input_of(learn.model, learn.xb)
        for name, part in found.items():
            self.parts[name].append(_own(to_device(part, _CPU), part))
        self._sizes.append(_size(learn) if any(map(_holds_lists, found.values())) else None)

    def predictions(self) -> Predictions:
        """Return what was kept, joined."""
        if self._left_out:
            log.warning(
                "get_preds keeps the tensors and lists of what the model returns, and leaves out "
                "%s: to have them, let a callback put them in learn.pred, in after_pred",
                ", ".join(self._left_out),
            )
        sizes = [size for size in self._sizes if size is not None]
        known = sizes if len(sizes) == len(self._sizes) else None
        joined = {name: concatenate(part, known) for name, part in self.parts.items()}
        one_each = [len(joined[n]) for n in ("preds", "targets") if isinstance(joined[n], _ENTRIES)]
        if len(set(one_each)) > 1:
            log.warning(
                "get_preds joins %d predictions and %d targets along their first dimension, so "
                "that they do not belong together one by one: give each sample a row of both",
                *one_each,
            )
        return Predictions(**joined)


def _own(kept: Any, given: Any) -> Any:
    """Copy what is no copy: a loader or a model may write its next batch to the same memory."""
    return map_tensors(torch.clone, kept) if kept is given else kept


def _outputs(pred: Any) -> tuple[Any, dict[str, None]]:
    """Return what is kept of a prediction, and of a dict the keys that are not.

    The outputs of model libraries are dicts, which also hold the loss of the batch, and, in tuples
    and objects, caches and the states of every layer: many times the size of a prediction.
    """
    if is_dataclass(pred) and not isinstance(pred, Mapping):
        pred = {field.name: getattr(pred, field.name) for field in fields(pred)}
    if not isinstance(pred, Mapping):
        return pred, {}
    outputs = {key: part for key, part in pred.items() if key != "loss" and part is not None}
    kept = {key: part for key, part in outputs.items() if isinstance(part, _OUTPUTS)}
    return kept, dict.fromkeys(key for key in outputs if key not in kept)


def _holds_lists(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_lists, value.values()))
    return type(value) in (tuple, list)


def _size(learn: Loop) -> int | None:
    try:
        return learn.batch_size(learn.batch)
    except ValueError:  # lists are then taken apart by what is in them alone
        return None


def sample_losses(learn: Loop) -> Tensor:
    """Return the loss of each sample of the batch at hand, as that of a batch of it alone."""
    is_overridden = type(learn).compute_loss is not LoopState.compute_loss
    if learn.loss_func is None and not is_overridden:
        raise ValueError(
            "with_loss=True takes the loss of each sample, and this model returns that of a batch: "
            "give the Learner a loss_func, or predict batches of one sample"
        )
    n, losses = learn.batch_size(learn.batch), []
    pred, batch, xb, yb = learn.pred, learn.batch, learn.xb, learn.yb
    try:
        for i in range(n):
            learn.yb = sample_of(yb, i, n)
            if is_overridden:
                learn.batch, learn.xb = sample_of(batch, i, n), sample_of(xb, i, n)
            losses.append(learn.compute_loss(sample_of(pred, i, n), learn.batch))
    except ValueError as error:
        error.add_note("onecycle: with_loss=True takes the loss of each sample alone")
        raise
    finally:
        learn.batch, learn.xb, learn.yb = batch, xb, yb
    return torch.stack(losses)
