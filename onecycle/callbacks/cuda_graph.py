"""`CudaGraph`: forward pass, loss and backward pass, launched as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_global_hook

from onecycle.callback import Callback
from onecycle.callbacks.attribute_schedule import AttributeScheduler
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.non_finite import TerminateOnNonFinite
from onecycle.callbacks.precision import MixedPrecision
from onecycle.handlers import Handlers, handler_owner
from onecycle.nested import map_tensors
from onecycle.stepper import ScaledStepper, Stepper

if TYPE_CHECKING:
    from onecycle.loop import Loop

log = logging.getLogger("onecycle")

#: How many batches run before one is captured, so that whatever is made at first use exists.
WARM_UP = 3

#: Events between prediction and backward pass, which are one piece in a graph.
_WITHIN = ("after_pred", "after_loss", "before_backward")
#: The handlers of them that may be there: the first is captured too, the second only looks.
_KNOWN = (MixedPrecision.after_pred, TerminateOnNonFinite.after_loss)
#: The contexts that may be there: what they set holds while a batch is captured.
_KNOWN_CONTEXTS = (MixedPrecision.forward_context, BackendFlags.forward_context)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ONCE = "and that Python would run once only"
_REPLACED = ("predict_batch", "compute_loss")
_PLAIN = (str, bytes, bool, int, float, type(None))


class CudaGraph(Callback):
    """Replay forward pass, loss and backward pass of a training batch as one CUDA graph.

    Where a model is small, the GPU waits for Python, which launches one kernel after the other. A
    graph launches all of them at once. The first three batches of a fit run one by one; then one
    is captured, and from there on a batch is copied to where the graph reads it, and the graph is
    replayed. It launches the same kernels, so that results should agree to the bit.

    The optimizer's step stays outside. In the graph, rate, momentum and weight decay would be the
    numbers of the moment of capture, unless they were tensors on the device, which SGD of torch
    takes for the rate alone. Outside, a schedule may change all of them for each update, in any
    optimizer; and a fused step is a few kernels, however large the model.

    Replayed are training batches of the nesting, shapes and dtypes of the first one. Others, such
    as a smaller last batch, and validation and range tests run as ever. If at the beginning of an
    epoch other parameters train, a layer is in another mode, or the loss function or the place of
    a weight in memory is another, the batches of that epoch are captured anew; within an epoch all
    this must stay as it is.

    A graph holds kernels and no Python. Where that would matter, the fit runs without one, and a
    log message says why: not on CUDA; gradient accumulation; fp16 (bf16 by `MixedPrecision` is
    captured); callbacks that handle ``after_pred``, ``after_loss`` or ``before_backward``, or
    replace the loss, as `MixUp` does (`TerminateOnNonFinite` only looks, and may); an
    `AttributeScheduler` of a number in the model; hooks of modules or parameters; a compiled
    model; and when the capture fails, as it does if the model waits for the device. Nobody
    notices what else a model does in Python, such as counting its batches or choosing a branch:
    it is done while the batch is captured, and never again.

    ``learn.pred`` of a training batch is overwritten by the next one: clone what you keep. The
    graph has memory of its own, as much as a training batch needs, until the fit ends.

    This has not run on a GPU yet. Its logic is tested on the CPU with a stand-in for the capture;
    the capture itself and what it gains are neither tested nor measured.

    Raises:
        ValueError: Before the first batch, if there are two of them.

    Example:
        >>> from onecycle import CudaGraph
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(1, cbs=[CudaGraph()])  # on a CPU it changes nothing
        >>> learn.n_updates
        8
    """

    during = "train"

    def __init__(self) -> None:
        self._batches: _GraphedBatches | None = None
        self._is_off = False

    def before_fit(self, learn: Loop) -> None:
        """Refuse a second one."""
        if sum(isinstance(callback, CudaGraph) for callback in learn.cbs) > 1:
            raise ValueError("two CudaGraph would capture the same batches: keep one in cbs")
        self._is_off = False

    def before_train(self, learn: Loop) -> None:
        """Look at what the pass will run; by now every callback has prepared the fit."""
        if self._is_off:
            return
        reason = why_not(learn)
        if reason is not None:
            self._give_up(reason)
        elif self._batches is None:
            self._batches = _GraphedBatches(learn, self._give_up)
            self._batches.install()
        else:
            self._batches.check_graph()

    def before_batch(self, learn: Loop) -> None:
        """Expect the loop to predict a batch."""
        if self._batches is not None:
            self._batches.expect()

    def cleanup_fit(self, learn: Loop) -> None:
        """Give the learner its own methods back, and free the graph."""
        if self._batches is not None:
            self._batches.remove()
            self._batches = None

    def _give_up(self, reason: str) -> None:
        self._is_off = True
        if self._batches is not None:
            self._batches.remove()
            self._batches = None
        log.warning("CudaGraph: this fit runs without a graph: %s", reason)


def why_not(learn: Loop) -> str | None:
    """Say why the batches of a fit cannot be captured; ``None`` if they can.

    Args:
        learn: The learner, in a fit that every callback has prepared.
    """
    if not Cuda.serves(learn.device):
        return f"the device is {learn.device}, and a graph needs CUDA"
    if learn.batches_per_update > 1:
        return "gradients of several batches are accumulated, and a graph overwrites them"
    if isinstance(learn.stepper, ScaledStepper):
        return "the gradient scaler of fp16 is not captured; bf16 needs none"
    return _why_not_callbacks(learn) or _why_not_model(learn)


def _why_not_callbacks(learn: Loop) -> str | None:
    on = _handlers(learn)
    for event in _WITHIN:
        for handler in getattr(on, event):
            if getattr(handler, "__func__", None) not in _KNOWN:
                return f"{handler_owner(handler)} handles {event}, {_ONCE}"
    for callback in _taking_part(learn):
        name = type(callback).__name__
        own = type(callback).forward_context
        if own not in _KNOWN_CONTEXTS and callback.forward_context(learn) is not None:
            return f"{name} has a forward_context, {_ONCE}"
        if isinstance(callback, AttributeScheduler) and _is_captured(callback, learn):
            owner = type(callback.obj).__name__
            return f"{name} drives {callback.name!r} of {owner}, which a graph takes for constant"
    return None


def _is_captured(scheduler: AttributeScheduler, learn: Loop) -> bool:
    """Tell whether a graph would hold the value that is scheduled."""
    value = getattr(scheduler.obj, scheduler.name)
    is_read_anew = isinstance(value, Tensor) and value.device == learn.device
    return not is_read_anew and not isinstance(scheduler.obj, Callback)


def _why_not_model(learn: Loop) -> str | None:
    parts = _modules(learn)
    if any(_is_compiled(part) for part in (*parts, learn.loss_func)):
        return "the model or the loss is compiled; compile='reduce-overhead' has graphs of its own"
    for module in parts:
        if any(getattr(module, hooks, None) for hooks in _HOOKS):
            return f"{type(module).__name__} has a hook, {_ONCE}"
    if has_global_hook():  # type: ignore[no-untyped-call]  # torch's
        return f"there is a hook of all modules, {_ONCE}"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in learn.model.parameters()):
        return f"a parameter has a hook, {_ONCE}"
    return None


def _is_compiled(part: Any) -> bool:
    return (
        hasattr(part, "_orig_mod")
        or hasattr(part, "_torchdynamo_orig_callable")
        or getattr(part, "_compiled_call_impl", None) is not None
    )


def _taking_part(learn: Loop) -> list[Callback]:
    return [callback for callback in learn.cbs if callback.takes_part_in("fit")]


def _handlers(learn: Loop) -> Handlers:
    """Return the handlers of a training batch, as the loop has them."""
    return Handlers(_taking_part(learn), "train")


def _modules(learn: Loop) -> list[nn.Module]:
    """List all modules of the model, and of the loss where it is one."""
    roots = [part for part in (learn.model, learn.loss_func) if isinstance(part, nn.Module)]
    return [module for root in roots for module in root.modules()]


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


class Cuda:
    """All that needs CUDA: a stream, and how a function is captured on it.

    Args:
        device: The device, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Tell whether a device has graphs."""
        return device.type == "cuda"

    def run(self, function: Callable[[], Results]) -> Results:
        """Run a function on the stream of the capture.

        Autograd adds up gradients on the stream that a parameter was first used on, and that
        cannot be captured if it is the default one.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = function()
        current.wait_stream(self._stream)
        return results

    def capture(self, function: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Record what a function launches, without running it; return results and replay."""
        generator = torch.cuda.default_generators[self._device.index]
        state = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        # Thread-local, since the thread of a loader that pins memory may allocate meanwhile.
        capture = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(self._stream), _original_error(capture):
                results = function()
        except BaseException:
            # The generator may still believe that it is captured, and refuse to draw.
            generator.graphsafe_set_state(state)
            raise
        return results, graph.replay


@contextmanager
def _original_error(capture: torch.cuda.graph) -> Iterator[None]:
    """Capture a block; an error in it is raised, not the one that then ends the capture."""
    capture.__enter__()
    try:
        yield
    except BaseException:
        with suppress(Exception):
            capture.__exit__(None, None, None)
        raise
    capture.__exit__(None, None, None)


@dataclass(frozen=True)
class _Graph:
    """A graph, where it reads and writes, and what it holds for."""

    inputs: list[Tensor]
    results: Results
    replay: Callable[[], None]
    fixed: list[Any]


class _GraphedStepper(Stepper):
    """Makes the updates of another stepper, of gradients that may be there already."""

    def __init__(self, own: Stepper) -> None:
        super().__init__(own.opt)
        self.own = own
        self.gradients: list[Tensor | None] | None = None

    def backward(self, loss: Tensor) -> None:
        if self.gradients is None:
            self.own.backward(loss)
            return
        for p, gradient in zip(self.params, self.gradients, strict=True):
            p.grad = gradient
        self.gradients = None

    def unscale(self) -> None:
        self.own.grad_factor, self.grad_factor = self.grad_factor, 1.0
        self.own.unscale()

    def step(self) -> bool:
        return self.own.step()

    def zero_grad(self) -> None:
        self.gradients, self.grad_factor = None, 1.0
        self.own.zero_grad()


class _GraphedBatches:
    """Stands between the loop and a learner's own methods during a fit.

    One call of ``predict_batch`` makes a batch's prediction, loss and gradients. The loop gets
    each where it asks for it.

    Args:
        learn: The learner.
        give_up: Called with the reason if the capture fails.
    """

    def __init__(self, learn: Loop, give_up: Callable[[str], None]) -> None:
        self._learn, self._give_up = learn, give_up
        self._cuda = Cuda(learn.device)
        self._own_predict, self._own_loss = learn.predict_batch, learn.compute_loss
        self._before = {name: vars(learn)[name] for name in _REPLACED if name in vars(learn)}
        self._stepper = _GraphedStepper(learn.stepper)
        self._is_expected = False
        self._loss: Tensor | None = None
        self._forget_graph()

    def install(self) -> None:
        """Take the place of the learner's methods and of its stepper."""
        self._learn.stepper = self._stepper
        vars(self._learn).update({name: getattr(self, name) for name in _REPLACED})

    def remove(self) -> None:
        """Give the learner its own methods and stepper back, and free the graph."""
        fields = vars(self._learn)
        for name in _REPLACED:
            fields.pop(name, None)
        fields.update(self._before)
        self._learn.stepper = self._stepper.own
        self._forget_graph()

    def check_graph(self) -> None:
        """Capture anew, after another warm-up, if the graph holds for another model."""
        if self._graph is not None and self._graph.fixed != _fixed(self._learn):
            self._forget_graph()

    def _forget_graph(self) -> None:
        self._graph: _Graph | None = None
        self._form: Any = None
        self._warmed_up = 0

    # What the loop calls -------------------------------------------------------------------

    def expect(self) -> None:
        """Take the next prediction for the loop's; all others are made as ever."""
        self._is_expected, self._loss, self._stepper.gradients = True, None, None

    def predict_batch(self, batch: Any) -> Any:
        """Return the prediction; in the loop, loss and gradients are made with it."""
        learn, is_expected = self._learn, self._is_expected
        self._is_expected = False
        # A range test within the fit is none of it; gradients that wait would be overwritten.
        is_ours = learn.training and learn.running == "fit" and not learn.batches_in_window
        results = self._results() if is_expected and is_ours else None
        if results is None:
            return self._own_predict(batch)
        # The record keeps losses, and a replay writes each to the same place.
        self._loss, self._stepper.gradients = results.loss.clone(), results.gradients
        return results.pred

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the loss that was made with the prediction, once."""
        loss, self._loss = self._loss, None
        return self._own_loss(pred, batch) if loss is None else loss

    # The graph -----------------------------------------------------------------------------

    def _results(self) -> Results | None:
        """Return what the batch gives, or ``None`` if it is to run as ever."""
        learn = self._learn
        tensors: dict[int, tuple[int, Tensor]] = {}
        form = _form((learn.batch, learn.xb, learn.yb), tensors)
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
        learn.pred = self._own_predict(learn.batch)
        for handler in _handlers(learn).after_pred:
            handler(learn)
        loss = self._own_loss(learn.pred, learn.batch)
        # In the loop, the backward pass is outside the contexts of the forward pass.
        with torch.autocast(learn.device.type, enabled=False):
            self._stepper.own.backward(loss)
        gradients = [p.grad for p in self._stepper.params]
        self._drop_gradients()
        return Results(map_tensors(Tensor.detach, learn.pred), loss.detach(), gradients)

    def _drop_gradients(self) -> None:
        for p in self._stepper.params:
            p.grad = None


def _form(value: Any, tensors: dict[int, tuple[int, Tensor]]) -> Any:
    """Return all of a nested value but the numbers in its tensors, to compare; collect those.

    Args:
        value: Of tensors, tuples, lists, dicts and plain values; anything else is equal to
            nothing, and so is a tensor that is sparse or takes a gradient.
        tensors: Gets each tensor once, by its id, with its place among them.
    """
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.requires_grad:
        place, _ = tensors.setdefault(id(value), (len(tensors), value))
        return place, value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, Mapping):
        return type(value), [(key, _form(part, tensors)) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return type(value), [_form(part, tensors) for part in value]
    return value if isinstance(value, _PLAIN) else object()


def _fixed(learn: Loop) -> list[Any]:
    """List what a graph holds for: what is computed and in which memory, but no values."""
    modules = _modules(learn)
    own = [(*m.parameters(recurse=False), *m.buffers(recurse=False)) for m in modules]
    places = [(t.data_ptr(), t.requires_grad) for tensors in own for t in tensors]
    return [learn.loss_func, [(module, module.training) for module in modules], places]
