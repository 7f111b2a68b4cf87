"""`GraphedBatches`: training batches captured once as a CUDA graph, and replayed. Experimental."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.core.handlers import Handlers
from onecycle.cuda_graphs.capture import Cuda
from onecycle.data.nested import map_tensors
from onecycle.optim.stepper import Stepper

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: How many batches run before one is captured, so that whatever is made at first use exists.
WARM_UP = 3

_PLAIN = (str, bytes, bool, int, float, type(None))


@dataclass(frozen=True)
class Results:
    """What a batch gives; of a graph the tensors which every replay overwrites.

    Attributes:
        pred: The prediction.
        loss: The loss, detached.
        gradients: Those of the stepper's parameters.
    """

    pred: Any
    loss: Tensor
    gradients: list[Tensor | None]


@dataclass(frozen=True)
class _Graph:
    """A graph, where it reads and writes, and what it holds for."""

    inputs: list[Tensor]
    results: Results
    replay: Callable[[], None]
    fixed: list[Any]


class GraphedBatches(Stepper):
    """Has the place of a learner's stepper for a fit, and makes its updates with that one.

    One call of ``predict_batch`` makes a batch's prediction, loss and gradients. The loop gets
    each where it asks for it. Experimental: no GPU has run it yet.

    Args:
        learn: The learner.
        cuda: What captures a batch.
        captured: Makes the updates of replayed batches; ``None`` for the learner's own stepper.
        give_up: Called with the reason if the capture fails.
    """

    def __init__(
        self,
        learn: Loop,
        cuda: Cuda,
        captured: Stepper | None,
        give_up: Callable[[str], None],
    ) -> None:
        super().__init__(learn.opt)
        self._learn, self._cuda, self._give_up = learn, cuda, give_up
        self.own = learn.stepper
        self._captured = captured or self.own
        self._loss: Tensor | None = None
        self._gradients: list[Tensor | None] | None = None  # of the next backward pass
        self._are_static = False  # whether they are a graph's, always in the same place
        self._size = learn.batch_sizes.of(learn.epoch)
        self._forget_graph()

    def install(self) -> None:
        """Take the place of the learner's stepper."""
        self._learn.stepper, self.forward_pass = self, self

    def remove(self) -> None:
        """Give the learner its own stepper back, and free the graph."""
        self._learn.stepper, self.forward_pass = self.own, None
        self._forget_graph()

    def check_graph(self) -> None:
        """Capture anew, after another warm-up, if it holds for another model or batch size."""
        before, self._size = self._size, self._learn.batch_sizes.of(self._learn.epoch)
        is_other = self._graph is not None and self._graph.fixed != _fixed(self._learn)
        if is_other or before != self._size:
            self._forget_graph()

    def _forget_graph(self) -> None:
        self._graph: _Graph | None = None
        self._form: Any = None
        self._warmed_up = 0

    # What the loop calls -------------------------------------------------------------------

    def predict_batch(self, batch: Any) -> Any:
        """Return the prediction; of a training batch, loss and gradients are made with it."""
        learn = self._learn
        self._loss = self._gradients = None
        # Gradients that wait would be overwritten.
        results = self._results() if learn.training and not learn.batches_in_window else None
        if results is None:
            return learn.predict_batch(batch)
        # The record keeps losses, and a replay writes each to the same place.
        self._loss, self._gradients = results.loss.clone(), results.gradients
        self._are_static = self._graph is not None
        return results.pred

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the loss that was made with the prediction."""
        loss = self._loss
        return self._learn.compute_loss(pred, batch) if loss is None else loss

    def backward(self, loss: Tensor) -> None:
        """Give the parameters the gradients that were made with the prediction, if they were."""
        if self._gradients is None:
            self._are_static = False
            self.own.backward(loss)
            return
        for p, gradient in zip(self.params, self._gradients, strict=True):
            p.grad = gradient
        self._gradients = None

    def describe(self) -> str:
        """Say what makes the next update: that of a replayed batch may be a graph too."""
        return (self._captured if self._are_static else self.own).describe()

    def unscale(self) -> None:
        """Let the learner's stepper give the gradients their final scale."""
        self.own.grad_factor, self.grad_factor = self.grad_factor, 1.0
        self.own.unscale()

    def step(self) -> bool:
        """Make the update, of gradients that a graph has written with what is for those."""
        return (self._captured if self._are_static else self.own).step()

    def zero_grad(self) -> None:
        """Drop all gradients, those too that were not asked for."""
        self._gradients, self.grad_factor = None, 1.0
        self.own.zero_grad()

    # The graph -----------------------------------------------------------------------------

    def _results(self) -> Results | None:
        """Return what the batch gives, or ``None`` if it is to run as ever."""
        learn = self._learn
        tensors: dict[int, tuple[int, Tensor]] = {}
        form = _form((learn.batch, learn.xb, learn.yb), learn.device, tensors)
        if self._form is None:
            self._form = form
        if form != self._form:
            return None
        if self._warmed_up < WARM_UP:
            self._warmed_up += 1
            return self._cuda.run(self._compute)
        if self._graph is None:
            self._graph = self._capture()
        graph = self._graph
        if graph is None:
            return None
        for static, (_, tensor) in zip(graph.inputs, tensors.values(), strict=True):
            static.copy_(tensor, non_blocking=True)
        graph.replay()
        return graph.results

    def _capture(self) -> _Graph | None:
        """Capture this batch; give up where that fails."""
        learn = self._learn
        statics: dict[int, Tensor] = {}

        def static(tensor: Tensor) -> Tensor:
            if id(tensor) not in statics:
                statics[id(tensor)] = tensor.clone()
            return statics[id(tensor)]

        parts = map_tensors(static, (learn.batch, learn.xb, learn.yb))

        def compute() -> Results:
            given = learn.batch, learn.xb, learn.yb
            learn.batch, learn.xb, learn.yb = parts
            try:
                return self._compute()
            finally:
                learn.batch, learn.xb, learn.yb = given

        try:
            results, replay = self._cuda.capture(compute)
            return _Graph(list(statics.values()), results, replay, _fixed(learn))
        except Exception as error:
            self._drop_gradients()
            lines = str(error).splitlines() or [""]
            self._give_up(f"the capture failed with {type(error).__name__}: {lines[0]}")
            return None
        finally:
            # Weights that autocast has cast were captured too: none of it has run.
            torch.clear_autocast_cache()

    def _compute(self) -> Results:
        """Do what the loop does from the prediction to the gradients."""
        learn = self._learn
        # They hold the autograd graph of the batch before, which another stream may have made.
        learn.pred = learn.loss_grad = None
        learn.pred = learn.predict_batch(learn.batch)
        for handler in training_handlers(learn).after_pred:
            handler(learn)
        loss = learn.compute_loss(learn.pred, learn.batch)
        # In the loop, the backward pass is outside the contexts of the forward pass.
        with torch.autocast(learn.device.type, enabled=False):
            self.own.backward(loss)
        gradients = [p.grad for p in self.params]
        self._drop_gradients()
        return Results(map_tensors(Tensor.detach, learn.pred), loss.detach(), gradients)

    def _drop_gradients(self) -> None:
        for p in self.params:
            p.grad = None


def _form(value: Any, device: torch.device, tensors: dict[int, tuple[int, Tensor]]) -> Any:
    """Return all of a nested value but the numbers in its tensors, to compare; collect those.

    Args:
        value: Of tensors, tuples, lists, dicts and plain values; anything else is equal to
            nothing, and so is a tensor that is elsewhere, where Python can read it, is sparse or
            takes a gradient.
        device: Where the tensors are that a graph reads.
        tensors: Gets each tensor once, by its id, with its place among them.
    """
    if isinstance(value, Tensor):
        if value.device != device or value.layout is not torch.strided or value.requires_grad:
            return object()
        place, _ = tensors.setdefault(id(value), (len(tensors), value))
        return place, value.shape, value.stride(), value.dtype
    if isinstance(value, Mapping):
        return type(value), [(key, _form(part, device, tensors)) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return type(value), [_form(part, device, tensors) for part in value]
    return value if isinstance(value, _PLAIN) else object()


def _fixed(learn: Loop) -> list[Any]:
    """List what a graph holds for: what is computed and in which memory, but no values."""
    modules = all_modules(learn)
    own = [(*m.parameters(recurse=False), *m.buffers(recurse=False)) for m in modules]
    places = [(t.data_ptr(), t.requires_grad) for tensors in own for t in tensors]
    return [learn.loss_func, [(module, module.training) for module in modules], places]


def training_handlers(learn: Loop) -> Handlers:
    """Return the handlers of a training batch, as the loop has them."""
    return Handlers([each for each in learn.cbs if each.takes_part_in("fit")], "train")


def all_modules(learn: Loop) -> list[nn.Module]:
    """List all modules of the model, and of the loss where it is one."""
    roots = (learn.model, learn.loss_module)
    return [module for root in roots if root is not None for module in root.modules()]
