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
    A batch in one part trains to the same bits as without this.

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
            `MixUp`, `CutMix` or `CudaGraph`, callbacks that handle ``after_pred``, or parameters
            that have hooks.
        Exception: The error of the device, where one sample is too large, or a batch has parts
            that cannot be taken apart by samples.

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

    def __init__(self, size: int | None = None) -> None:
        self.size = None if size is None else check_count("size", size)

    def before_fit(self, learn: Loop) -> None:
        """Refuse what needs the whole batch at once."""
        for other in learn.cbs:
            if isinstance(other, _NEED_ALL) and other is not self:
                name = type(other).__name__
                raise ValueError(f"MicroBatches and {name} cannot both have a batch: keep one")
        for handler in training_handlers(learn).after_pred:
            if getattr(handler, "__func__", None) is not MixedPrecision.after_pred:
                raise ValueError(
                    f"{handler_owner(handler)} handles after_pred, and MicroBatches has no "
                    "prediction of a whole batch that the loss is made of: keep one of them"
                )

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
    """Makes prediction, loss and gradients of a training batch in the learner's place."""

    def __init__(self, learn: Loop, callback: MicroBatches) -> None:
        self._learn, self._callback = learn, callback
        self._after_pred = training_handlers(learn).after_pred
        self._loss: Tensor | None = None

    def predict_batch(self, batch: Any) -> Any:
        """Return the prediction; of a training batch, loss and gradients are made with it."""
        learn, callback, self._loss = self._learn, self._callback, None
        if not learn.training:
            return learn.predict_batch(batch)
        n = learn.batch_size(batch)
        buffers, rng = KeptBuffers(learn.model, learn.loss_module), RngState()
        while True:
            n_parts = 1 if callback.size is None else math.ceil(n / callback.size)
            try:
                return self._run(n, n_parts)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if reason := self._why_not_smaller(n, n_parts):
                    error.add_note(
                        f"onecycle: MicroBatches cannot run this batch in parts: {reason}"
                    )
                    raise
            # Here the error is gone, and with it the memory that its frames held.
            buffers.put_back()
            rng.restore()
            self._halve(n, n_parts)

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the loss that was made with the prediction."""
        loss, self._loss = self._loss, None
        return self._learn.compute_loss(pred, batch) if loss is None else loss

    def _why_not_smaller(self, n: int, n_parts: int) -> str | None:
        learn = self._learn
        if n_parts >= n:
            return "one sample is too large for the memory"
        if any(isinstance(m, nn.RNNBase) and not m.batch_first for m in learn.model.modules()):
            return "it may have time first (a recurrent layer without batch_first=True)"
        try:
            part_of((learn.batch, learn.xb, learn.yb), slice(0, 1), n)
        except ValueError as error:
            return str(error)
        return None

    def _halve(self, n: int, n_parts: int) -> None:
        learn, size = self._learn, math.ceil(math.ceil(n / n_parts) / 2)
        self._callback.size = size
        free_memory(learn.device)
        log.warning(
            "MicroBatches: out of memory with %d samples at once; from here on at most %d, in as "
            "many updates as before",
            math.ceil(n / n_parts),
            size,
        )
        if any(isinstance(m, _NormBase) and m.training for m in learn.model.modules()):
            log.warning(
                "MicroBatches: the model has batch norm, which sees %d samples at once from here "
                "on: its updates are not those of whole batches",
                size,
            )

    def _run(self, n: int, n_parts: int) -> Any:
        """Run the batch; return its prediction, and keep its loss."""
        learn, preds, sizes = self._learn, [], []
        whole = learn.batch, learn.xb, learn.yb
        total = _Total(learn, n, n_parts)
        try:
            for rows in _rows(n, n_parts):
                if n_parts > 1:
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
        self._loss = total.loss()
        pred = preds[0] if n_parts == 1 else concatenate(preds, sizes)
        return map_tensors(_WithoutGraph.of, pred)


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


class _WithoutGraph(torch.autograd.Function):
    """A prediction that may be looked at, and refuses to be differentiated."""

    @staticmethod
    def of(pred: Tensor) -> Tensor:
        """Return a prediction as such."""
        if not pred.is_floating_point():
            return pred
        anchor = torch.zeros((), device=pred.device, requires_grad=True)
        guarded: Tensor = _WithoutGraph.apply(pred, anchor)
        return guarded

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
