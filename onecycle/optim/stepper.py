"""How an optimizer update is made: backward, unscale, step, zero; plain and gradient-scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from onecycle.arguments import check_is, shown
from onecycle.explanations import explain_backward_error


class ForwardPass(Protocol):
    """What makes prediction and loss of the loop's batches in the learner's place.

    The loop alone calls it, for every batch that it runs, of a validation pass and of inference
    too; who calls the learner's own methods gets these.

    Example:
        >>> from onecycle import Callback
        >>> from onecycle.testing import toy_learner
        >>> class Drier:
        ...     def __init__(self, learn):
        ...         self.learn = learn
        ...
        ...     def predict_batch(self, batch):
        ...         return self.learn.predict_batch(batch)
        ...
        ...     def compute_loss(self, pred, batch):
        ...         return self.learn.compute_loss(pred, batch) + 0.01 * pred.square().mean()
        >>> class Dry(Callback):  # activation regularization, by a callback
        ...     def before_train(self, learn):
        ...         learn.stepper.forward_pass = Drier(learn)
        >>> toy_learner().fit(1, cbs=[Dry()])
    """

    def predict_batch(self, batch: Any) -> Any:
        """Return what the model says of a batch; as the learner's method of this name."""

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the scalar loss; as the learner's method of this name."""


class Stepper:
    """Makes an update of the plain kind.

    The optimizer's step is called without torch's wrappers (about 10 us: a profiler range, the
    search for hooks) as long as no step hook is registered, on this optimizer or globally, and
    nobody has wrapped ``opt.step``, as a scheduler of torch does, or replaced that of the
    class; otherwise the whole ``opt.step()`` runs.

    Attributes:
        kind: What makes the updates, in a few words.
        grad_factor: What the gradients are multiplied with once, before ``before_step``: a number,
            or a 0-dim tensor on the device.
        reason: Why no shorter way makes the updates, in a sentence; ``None`` where one does.
        params: All that the optimizer holds, groups that are added in the fit included.
        forward_pass: What makes prediction and loss; ``None`` for the learner's own methods.

    A callback may have the updates of a fit made in another way, by a stepper of its own.

    Args:
        opt: The optimizer.
        reason: Likewise.

    Example:
        >>> from onecycle import Callback, Stage, Stepper
        >>> from onecycle.testing import toy_learner
        >>> class SignStepper(Stepper):
        ...     def step(self):
        ...         for p in self.params:
        ...             if p.grad is not None:
        ...                 p.grad.sign_()
        ...         return super().step()
        >>> class Signs(Callback):
        ...     stage = Stage.PREPARE  # so that range tests have it too
        ...
        ...     def before_fit(self, learn):
        ...         learn.stepper = SignStepper(learn.opt)
        >>> learn = toy_learner(n_batches=1, opt_func=torch.optim.SGD)
        >>> before = learn.model[2].bias.item()
        >>> learn.fit(1, lr=0.5, cbs=[Signs()])
        >>> abs(learn.model[2].bias.item() - before)
        0.5
    """

    kind = "torch's own step"
    forward_pass: ForwardPass | None = None

    def __init__(self, opt: Optimizer, reason: str | None = None) -> None:
        if isinstance(opt, type) or not hasattr(opt, "param_groups"):
            raise TypeError(f"opt must be an optimizer, such as learn.opt; got {shown(opt)}")
        if reason is not None:
            check_is("reason", reason, str)
        self.opt, self.reason = opt, reason
        self.grad_factor: float | Tensor = 1.0
        self.params: list[nn.Parameter] = []
        self._list_params()
        self._class_step = type(opt).step
        self._bare_step = _bare_step(opt)

    def __repr__(self) -> str:
        """Show what makes the updates."""
        return f"{type(self).__name__}({type(self.opt).__name__}, {self.describe()})"

    def _list_params(self) -> None:
        self._n_groups = len(self.opt.param_groups)
        self.params[:] = [p for group in self.opt.param_groups for p in group["params"]]

    def describe(self) -> str:
        """Say what makes the next update, and why where no shorter way does."""
        return self.kind if self.reason is None else f"{Stepper.kind}: {self.reason}"

    def is_extended(self) -> bool:
        """Tell whether more than the update must run, such as hooks; they may come at any time."""
        opt, fields = self.opt, vars(self.opt)
        return bool(
            self._bare_step is None
            or type(opt).step is not self._class_step
            or "step" in fields
            or "grad_scale" in fields  # as a gradient scaler tells a fused step what to do besides
            or "found_inf" in fields
            or opt._optimizer_step_pre_hooks
            or opt._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those that wait."""
        _differentiate(loss)

    def unscale(self) -> None:
        """Give the gradients their final scale."""
        if len(self.opt.param_groups) != self._n_groups:
            self._list_params()
        if isinstance(self.grad_factor, Tensor) or self.grad_factor != 1.0:
            gradients = [p.grad for p in self.params if p.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, self.grad_factor)
            self.grad_factor = 1.0

    def step(self) -> bool:
        """Step the optimizer.

        Returns:
            Whether an update was made; a gradient scaler may refuse.
        """
        if self.is_extended():
            self.opt.step()
        else:
            with torch.no_grad():
                self._bare_step(self.opt)
        return True

    def zero_grad(self) -> None:
        """Drop all gradients, and what was to be done to them."""
        if len(self.opt.param_groups) != self._n_groups:  # added since, as in before_step
            self._list_params()
        self.grad_factor = 1.0
        for p in self.params:
            p.grad = None


class ScaledStepper(Stepper):
    """Makes an update with a gradient scaler, as fp16 needs.

    One flag is read from the device for each update: whether a gradient is infinite or NaN.

    Args:
        opt: The optimizer.
        scaler: Multiplies the loss, and skips updates with infinite gradients.
    """

    WHY = "a gradient scaler decides whether it is made"

    def __init__(self, opt: Optimizer, scaler: torch.amp.GradScaler) -> None:
        super().__init__(opt, self.WHY)
        self.scaler = scaler
        self._told: Any = _Told(opt, super().step)
        self._unscaled = False

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradients of a scalar loss to those that wait."""
        _differentiate(self.scaler.scale(loss))

    def unscale(self) -> None:
        """Divide the gradients by the loss scale."""
        self.scaler.unscale_(self._told)
        self._unscaled = True
        super().unscale()

    def step(self) -> bool:
        """Step the optimizer unless a gradient is infinite or NaN."""
        made: object = self.scaler.step(self._told)
        self.scaler.update()
        self._unscaled = False
        return made is True

    def zero_grad(self) -> None:
        """Drop all gradients; let the scaler forget an update that was prepared and not made."""
        if self._unscaled:
            self.scaler.update()
            self._unscaled = False
        super().zero_grad()


class _Told:
    """What the scaler gets to see of an optimizer, so that we are told whether it stepped.

    A scaler has no public flag for that. Its scale is a bad sign: it may be set by hand, costs a
    second wait for the device, and no longer falls once it is 0, as after 165 skips in a row. But
    ``GradScaler.step`` returns what the step returns, which here is ``True``, or else ``None``.
    """

    def __init__(self, opt: Optimizer, step: Callable[[], bool]) -> None:
        self._opt, self.step = opt, step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they are now: loading a state replaces the list."""
        return self._opt.param_groups


def _differentiate(loss: Tensor) -> None:
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        explain_backward_error(error, loss)
        raise


def _bare_step(opt: Optimizer) -> Any:
    """Return the innermost step function of one of torch's own optimizers, or ``None``."""
    kind = type(opt)
    if not kind.__module__.startswith("torch.optim.") or opt.defaults.get("differentiable"):
        return None
    step: Any = kind.step
    while is_torchs(step):
        if not hasattr(step, "__wrapped__"):
            return step
        step = step.__wrapped__
    return None  # a wrapper of somebody else is among those of torch


def is_torchs(function: Any) -> bool:
    """Tell whether a function is written in torch: whatever wraps one calls itself as that one.

    Args:
        function: Any function.

    Example:
        >>> from functools import wraps
        >>> step = torch.optim.SGD.step
        >>> is_torchs(step), is_torchs(wraps(step)(lambda opt: step(opt)))
        (True, False)
    """
    names = getattr(function, "__globals__", {})
    return str(names.get("__name__", "")).partition(".")[0] == "torch"


def is_watched() -> bool:
    """Tell whether somebody looks on: a profiler, anomaly mode, or a mode for torch's functions.

    They may come and go at any time, so that it is asked for each update; it costs 0.2 us.
    """
    return bool(
        torch._C._autograd._profiler_enabled()
        or torch.is_anomaly_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
    )
