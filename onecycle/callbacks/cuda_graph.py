"""`CudaGraph`: batches and optimizer steps of a fit launched as CUDA graphs. Experimental."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook as has_global_hook

from onecycle.arguments import check_flag
from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.non_finite import TerminateOnNonFinite
from onecycle.callbacks.precision import MixedPrecision
from onecycle.core.callback import Callback
from onecycle.core.handlers import handler_owner
from onecycle.cuda_graphs.batches import GraphedBatches, all_modules, training_handlers
from onecycle.cuda_graphs.capture import Cuda
from onecycle.cuda_graphs.step import CapturedStepper
from onecycle.optim.stepper import ScaledStepper

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: Events between prediction and backward pass, which are one piece in a graph.
_WITHIN = ("after_pred", "after_loss", "before_backward")
#: The handlers of them that may be there: the first is captured too, the second only looks.
_KNOWN = (MixedPrecision.after_pred, TerminateOnNonFinite.after_loss)
#: The contexts that may be there: what they set holds while a batch is captured.
_KNOWN_CONTEXTS = (MixedPrecision.forward_context, BackendFlags.forward_context)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ONCE = "and that Python would run once only"


class CudaGraph(Callback):
    """Replay forward pass, loss and backward pass of a training batch as a CUDA graph.

    Where a model is small, the GPU waits for Python, which launches one kernel after the other. A
    graph launches all of them at once. The first three batches of a fit run one by one; then one
    is captured, and from there on a batch is copied to where the graph reads it, and the graph is
    replayed. It launches the same kernels, so that results should agree to the bit.

    The optimizer's step is not part of that graph, so that callbacks hear of ``after_backward`` and
    ``before_step`` in between, and may clip the gradients, say. By default it runs as ever, on
    numbers that a schedule may change for each update, in any optimizer; a fused step is a few
    kernels, however large the model. With ``step=True`` it is a second graph, whose rate, momentum
    and decay are tensors on the device, filled before it is replayed. While only the rate changes,
    that graph has torch's fused kernels. They take no other number as a tensor: once momentum
    is cycled too, it has operations of the same formulas. These read the numbers as float32, so
    that results agree with those of the fused step to rounding, no longer to the bit.

    Replayed are training batches of the nesting, shapes and dtypes of the first one, if all their
    tensors are dense and on the device. Others, such as a smaller last batch, and validation and
    range tests run as ever. If at the beginning of an epoch other parameters train, a layer is in
    another mode, or the loss function or the place of a weight in memory is another, the batches of
    that epoch are captured anew; within an epoch all this must stay as it is.

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

    Experimental: this has not run on a GPU yet. Its logic is tested on the CPU with a stand-in for
    the capture; the capture itself and what it gains are neither tested nor measured.

    Args:
        step: Whether the optimizer's step is a graph too: that of torch's SGD, Adam and AdamW if
            they are fused, as they are by default on CUDA. Else a log message says why not.

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

    needs_whole_model = True

    def __init__(self, *, step: bool = False) -> None:
        self.step = check_flag("step", step)
        self._batches: GraphedBatches | None = None
        self._is_off = False

    def describe_step(self, learn: Loop) -> str | None:
        """Say that a graph makes the updates, where it will."""
        is_captured = self.step and CapturedStepper.why_not(learn.opt) is None
        return CapturedStepper.kind if is_captured and why_not(learn) is None else None

    def before_fit(self, learn: Loop) -> None:
        """Refuse a second one, and several processes."""
        if sum(isinstance(callback, CudaGraph) for callback in learn.cbs) > 1:
            raise ValueError("two CudaGraph would capture the same batches: keep one in cbs")
        if learn.processes is not None:
            raise ValueError(
                "CudaGraph replays the steps of one process: leave it out where several train"
            )
        self._is_off = False

    def before_train(self, learn: Loop) -> None:
        """Look at what the pass will run; by now every callback has prepared the fit."""
        if self._is_off:
            return
        reason = why_not(learn)
        if reason is not None:
            self._give_up(reason)
        elif self._batches is None:
            cuda = Cuda(learn.device)
            captured = self._captured_stepper(learn, cuda) if self.step else None
            self._batches = GraphedBatches(learn, cuda, captured, self._give_up)
            self._batches.install()
        else:
            self._batches.check_graph()

    def cleanup_fit(self, learn: Loop) -> None:
        """Give the learner its own stepper back, and free the graph."""
        if self._batches is not None:
            self._batches.remove()
            self._batches = None

    def _captured_stepper(self, learn: Loop, cuda: Cuda) -> CapturedStepper | None:
        reason = CapturedStepper.why_not(learn.opt)
        if reason is None:
            return CapturedStepper(learn.opt, cuda)
        log.warning("CudaGraph: the optimizer's step is not captured: %s", reason)
        return None

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
    on = training_handlers(learn)
    for event in _WITHIN:
        for handler in getattr(on, event):
            if getattr(handler, "__func__", None) not in _KNOWN:
                return f"{handler_owner(handler)} handles {event}, {_ONCE}"
    for callback in (each for each in learn.cbs if each.takes_part_in("fit")):
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
    parts = all_modules(learn)
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
