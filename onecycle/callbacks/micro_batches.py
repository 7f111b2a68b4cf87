"""`MicroBatches`: a batch that the memory cannot hold runs in parts, and makes the same update."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

from onecycle.arguments import check_count
from onecycle.callbacks.cuda_graph import CudaGraph
from onecycle.callbacks.mixing import CutMix, MixUp
from onecycle.callbacks.precision import MixedPrecision
from onecycle.core.callback import Callback
from onecycle.core.handlers import fire, handler_owner
from onecycle.core.restore import RngState
from onecycle.cuda_graphs.batches import training_handlers
from onecycle.data.nested import concatenate, map_tensors
from onecycle.data.samples import part_of
from onecycle.explanations import explain_backward_error, is_out_of_memory
from onecycle.optim.buffers import KeptBuffers
from onecycle.optim.stepper import ScaledStepper
from onecycle.record.weights import weight_beside

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class MicroBatches(Callback):
    """Run each training batch in parts, as small as the memory asks for, and make the same update.

    A batch that runs out of memory, in its forward or backward pass, is run again in two parts,
    then in four, and so on; the batches after it keep to parts of that size, which is stored in
    checkpoints. The gradients of the parts are added up as those of one batch, each part weighted
    by `Learner.loss_weight`, so that the update is that of the whole batch up to rounding. The
    loop knows nothing of it: schedules, the record and other callbacks see one batch and one loss.
    A batch in one part trains to the same bits as without this. Of several processes each halves
    its part for itself; a fit that is resumed goes on with the size of the first one.

    Not the same as in one part are layers and losses that look at a whole batch, like batch norm or
    a contrastive loss, which see the parts (for batch norm a warning says so), and the random
    numbers of dropout, which are drawn for each part. What a failed attempt changed, buffers and
    random generators, is put back before the next. A fit that ran out of memory without this may be
    resumed with it.

    ``learn.pred`` has no graph then: a callback that lets a loss depend on it is refused by the
    backward pass. The optimizer's own memory, validation and prediction are not its business;
    `find_batch_size` looks for a batch size that fits as it is.

    Args:
        size: The samples that run at once at most; by default the whole batch, until that runs
            out of memory.

    Attributes:
        size: As it is now; ``None`` as long as whole batches fit.

    Raises:
        TypeError, ValueError: For what is no number of samples; before the first batch, with
            `MixUp`, `CutMix` or `CudaGraph`, or parameters that have hooks; with a ``size`` also
            for callbacks that handle ``after_pred``.
        Exception: The error of the device, where one sample is too large, a batch has parts that
            cannot be taken apart by samples, or a callback handles ``after_pred``.

    Example:
        >>> from onecycle import MicroBatches
        >>> from onecycle.testing import toy_learner
        >>> whole, parts = toy_learner(), toy_learner()
        >>> whole.fit(1)
        >>> parts.fit(1, cbs=[MicroBatches(3)])
        >>> parts.n_updates
        8
        >>> losses = [learn.recorder.history["train_loss"].values for learn in (whole, parts)]
        >>> float(abs(losses[0] - losses[1]).max()) < 1e-5
        True
    """

    # In no stage that a resume compares: a fit that ran out of memory may go on with it.
    runs_in = frozenset(("fit", "range_test"))
    needs_whole_model = True

    def __init__(self, size: int | None = None) -> None:
        self.size = None if size is None else check_count("size", size)

    def before_fit(self, learn: Loop) -> None:
        """Refuse what needs the whole batch at once."""
        for other in learn.cbs:
            if isinstance(other, _NEED_ALL) and other is not self:
                name = type(other).__name__
                raise ValueError(f"MicroBatches and {name} cannot both have a batch: keep one")
        if self.size is not None:
            _check_handlers(learn)

    def before_train(self, learn: Loop) -> None:
        """Take the forward pass of training batches over, from whatever makes the updates."""
        if any(p._backward_hooks for p in learn.stepper.params):
            raise ValueError(
                "a parameter has a hook on its gradient, which MicroBatches would call twice: "
                "leave one of them out"
            )
        learn.stepper.forward_pass = _Parts(learn, self)

    def cleanup_fit(self, learn: Loop) -> None:
        """Give it back."""
        learn.stepper.forward_pass = None

    def state_dict(self) -> dict[str, Any]:
        """Return the size that fits."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.size = state["size"]


_NEED_ALL = (MixUp, CutMix, CudaGraph, MicroBatches)


class _Parts:
    """Makes prediction, loss and gradients of a training batch in the learner's place.

    In one part, each where the loop asks for it; in several, all of them with the prediction.
    """

    def __init__(self, learn: Loop, callback: MicroBatches) -> None:
        self._learn, self._callback = learn, callback
        self._after_pred = training_handlers(learn).after_pred
        self._loss: Tensor | None = None
        self._n = 0

    def predict_batch(self, batch: Any) -> Any:
        """Return the prediction, and keep the loss if it was made with it."""
        learn, self._loss = self._learn, None
        if not learn.training:
            return learn.predict_batch(batch)
        self._n = learn.batch_size(batch)
        self._buffers = KeptBuffers(learn.model, learn.loss_module)
        self._rng = RngState()
        if self._n_parts() == 1:
            try:
                return learn.predict_batch(batch)
            except Exception as error:
                self._check(error)
            self._halve()
        pred, self._loss = self._in_parts()
        return pred

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the loss, whose gradients are made already."""
        learn = self._learn
        if not learn.training:
            return learn.compute_loss(pred, batch)
        loss, self._loss = self._loss, None
        if loss is not None:
            return loss
        total = _Total(learn, self._n, 1)
        try:
            total.add(learn.compute_loss(pred, batch))
            loss = total.loss()
        except Exception as error:
            self._check(error)
        if loss is not None:
            learn.pred = _without_graph(learn.pred)
            return loss
        del pred, total  # they hold the graph
        learn.pred = None
        self._halve()
        learn.pred, made = self._in_parts()
        return made

    def _n_parts(self) -> int:
        return 1 if self._callback.size is None else math.ceil(self._n / self._callback.size)

    def _check(self, error: Exception) -> None:
        """Raise an error that smaller parts cannot mend."""
        reason = self._why_not_smaller() if is_out_of_memory(error) else None
        if reason is not None:
            error.add_note(f"onecycle: MicroBatches cannot make smaller parts: {reason}")
        if reason is not None or not is_out_of_memory(error):
            raise error

    def _why_not_smaller(self) -> str | None:
        learn = self._learn
        if self._n_parts() >= self._n:
            return "one sample is too large for the memory"
        if any(isinstance(m, nn.RNNBase) and not m.batch_first for m in learn.model.modules()):
            return "it may have time first (a recurrent layer without batch_first=True)"
        try:
            part_of((learn.batch, learn.xb, learn.yb), slice(0, 1), self._n)
            _check_handlers(learn)
        except ValueError as error:
            return str(error)
        return None

    def _halve(self) -> None:
        """Go back to before the attempt, with smaller parts; the error is gone by now."""
        learn, before = self._learn, math.ceil(self._n / self._n_parts())
        self._buffers.put_back()
        self._rng.restore()
        size = self._callback.size = math.ceil(before / 2)
        free_memory(learn.device)
        log.warning(
            "MicroBatches: out of memory with %d samples at once; from here on at most %d, in as "
            "many updates as before",
            before,
            size,
        )
        if any(isinstance(m, _NormBase) and m.training for m in learn.model.modules()):
            log.warning(
                "MicroBatches: the model has batch norm, which sees %d samples at once from here "
                "on: its updates are not those of whole batches",
                size,
            )

    def _in_parts(self) -> tuple[Any, Tensor]:
        _check_handlers(self._learn)
        while True:
            try:
                return self._run(self._n, self._n_parts())
            except Exception as error:
                self._check(error)
            self._halve()

    def _run(self, n: int, n_parts: int) -> tuple[Any, Tensor]:
        """Run the batch; return its prediction, and its loss."""
        learn, preds, sizes = self._learn, [], []
        whole = learn.batch, learn.xb, learn.yb
        total = _Total(learn, n, n_parts)
        try:
            for rows in _rows(n, n_parts):
                learn.batch, learn.xb, learn.yb = (part_of(each, rows, n) for each in whole)
                learn.pred = learn.predict_batch(learn.batch)
                if self._after_pred:
                    fire(learn, self._after_pred, "after_pred")
                total.add(learn.compute_loss(learn.pred, learn.batch))
                preds.append(map_tensors(Tensor.detach, learn.pred))
                sizes.append(rows.stop - rows.start)
        finally:
            learn.batch, learn.xb, learn.yb = whole
            learn.pred = None
        return _without_graph(concatenate(preds, sizes)), total.loss()


def _check_handlers(learn: Loop) -> None:
    """Refuse what changes predictions of whole batches: the loss is made of those of parts."""
    for handler in training_handlers(learn).after_pred:
        if getattr(handler, "__func__", None) is not MixedPrecision.after_pred:
            raise ValueError(
                f"{handler_owner(handler)} handles after_pred, and MicroBatches has no "
                "prediction of a whole batch that the loss is made of: keep one of them"
            )


class _Total:
    """Adds up losses and gradients of parts, as those of one batch."""

    def __init__(self, learn: Loop, n: int, n_parts: int) -> None:
        self._learn, self._n, self._n_parts = learn, n, n_parts
        self._params = [p for p in learn.stepper.params if p.requires_grad]
        self._gradients: list[Tensor | None] = [None] * len(self._params)
        self._full: Any = None  # the weight of all parts, if each has that of the first
        self._weight: Any = 0
        self._loss: Any = 0.0
        self._scale: Tensor | None = None
        if isinstance(learn.stepper, ScaledStepper):  # without its scale, gradients would vanish
            self._scale = learn.stepper.scaler.scale(torch.ones((), device=learn.device))

    def add(self, loss: Tensor) -> None:
        """Differentiate the loss of a part, and let go of its graph."""
        learn, detached, part = self._learn, loss.detach(), loss
        if self._n_parts > 1:
            weight = weight_beside(detached, learn.loss_weight(learn.pred, learn.batch))
            if self._full is None:
                first = weight.where(weight > 0, self._n) if isinstance(weight, Tensor) else weight
                self._full = self._n_parts * first
            share = weight / self._full
            part, detached = loss * share, detached * share
            if isinstance(weight, Tensor):
                detached = detached.where(weight > 0, 0)
            self._weight = self._weight + weight
        self._loss = self._loss + detached if self._n_parts > 1 else detached
        for i, gradient in enumerate(self._differentiated(part)):
            if gradient is not None:
                own = self._gradients[i]  # not in place: autograd gives one tensor to several
                self._gradients[i] = gradient if own is None else own + gradient

    def _differentiated(self, part: Tensor) -> tuple[Tensor | None, ...]:
        scaled = part if self._scale is None else part * self._scale
        try:
            with torch.autocast(self._learn.device.type, enabled=False):
                found: tuple[Tensor | None, ...] = torch.autograd.grad(
                    scaled, self._params, allow_unused=True
                )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                explain_backward_error(error, part)
            raise
        finally:
            torch.clear_autocast_cache()  # whose graph is used up
        return found

    def loss(self) -> Tensor:
        """Return the loss of the whole, whose backward pass gives the gradients of the parts."""
        factor: Any = 1.0
        if self._n_parts > 1:
            factor = self._full / self._weight
            if isinstance(factor, Tensor):
                factor = factor.where(torch.as_tensor(self._weight > 0), 0)
        loss = self._loss * factor if self._n_parts > 1 else self._loss
        factor = factor if self._scale is None else factor / self._scale
        found: Tensor = _Gathered.apply(loss, self._gradients, factor, *self._params)
        return found


class _Gathered(torch.autograd.Function):
    """A loss whose gradients are known already: a factor of the loss is one of them too."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor | None], factor: Any, *_: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.factor = gradients, factor
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        factor, gradients = given * ctx.factor, ctx.gradients
        scaled: list[Tensor | None] = []
        for i, gradient in enumerate(gradients):
            gradients[i] = None  # so that there are never two of all
            scaled.append(None if gradient is None else gradient * factor)
        return (None, None, None, *scaled)


def _without_graph(pred: Any) -> Any:
    """Return predictions that may be looked at, and refuse to be differentiated."""

    def guarded(part: Tensor) -> Tensor:
        if not part.is_floating_point():
            return part
        anchor = torch.zeros((), device=part.device, requires_grad=True)
        found: Tensor = _WithoutGraph.apply(part.detach(), anchor)
        return found

    return map_tensors(guarded, pred)


class _WithoutGraph(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, pred: Tensor, __: Tensor) -> Tensor:
        return pred.view_as(pred)

    @staticmethod
    def backward(*_: Any) -> Any:
        raise RuntimeError(
            "MicroBatches has used up the graph of learn.pred, and a callback made the loss depend "
            "on it: put that into compute_loss(self, pred, batch) of the Learner"
        )


def free_memory(device: torch.device) -> None:
    """Give back what nobody uses any more, so that larger pieces can be had.

    Args:
        device: Whose memory is meant.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _rows(n: int, n_parts: int) -> Iterator[slice]:
    """Divide n samples into parts whose sizes differ by at most one."""
    n_parts = max(1, min(n, n_parts))
    for i in range(n_parts):
        yield slice(i * n // n_parts, (i + 1) * n // n_parts)
