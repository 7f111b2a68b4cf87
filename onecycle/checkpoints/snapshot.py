"""`Snapshot`: all of a learner that training changes, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from onecycle.core.restore import Capture, RngState, kept_grad_mode, surely
from onecycle.core.state import LoopState
from onecycle.data.held import hold_loaders
from onecycle.data.held_calls import hold_calls
from onecycle.data.streams import Stream


class Snapshot:
    """Everything of a learner that training changes, in memory.

    That is: parameters, buffers, gradients, ``requires_grad``, the train/eval flag and the own
    fields of every module; the optimizer's state and ``param_groups``, and which of them belong
    together; the callbacks' own fields, gradient scalers included; every random number generator,
    those of the loaders too; what loss function and metrics keep; the learner's fields. Not
    restored is what lives outside: files, and the state of data sets; nor what a callback keeps in
    objects of its own, such as a Recorder its history.

    Args:
        learn: The learner to remember.

    Raises:
        ValueError: If a lazy module has not seen a batch yet, so that it has no parameters to
            remember.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> snapshot = Snapshot(learn)
        >>> learn.fit(1)
        >>> snapshot.restore()
        >>> learn.total_updates
        0
    """

    def __init__(self, learn: LoopState) -> None:
        loaders = (*learn.dls.loaders(), learn.dl)
        capture = Capture(ignored=loaders)  # a list of batches is data, not state
        roots = [root for root in (learn.model, learn.loss_module) if root is not None]
        modules = [module for root in roots for module in root.modules()]
        parameters = [*learn.stepper.params, *(p for root in roots for p in root.parameters())]
        if has_lazy(learn):
            raise ValueError(
                "a lazy module has no parameters yet that could be put back afterwards: "
                "run one batch through the model first"
            )
        gradients = [p.grad for p in parameters]
        for fields in (learn, learn.groups, *modules, *learn.cbs, *learn.metrics):
            if hasattr(fields, "__dict__"):
                capture.add(vars(fields))
        capture.add(gradients)
        self._capture = capture
        self._parameters = [(p, p.requires_grad, p.grad) for p in parameters]
        self._loaders = hold_loaders(learn.dls, *loaders)
        functions = [getattr(metric, "func", None) for metric in learn.metrics]
        self._calls = hold_calls(learn.loss_func, *functions)
        self._rng = RngState()

    def restore(self) -> None:
        """Put everything back, in place: the same tensors, dicts and lists as before."""
        self._capture.restore()
        self._loaders()
        self._calls()
        for parameter, requires_grad, gradient in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        self._rng.restore()


def has_lazy(learn: LoopState) -> bool:
    """Tell whether a lazy module has not seen a batch yet, so that it has no parameters."""
    roots = [root for root in (learn.model, learn.loss_module) if root is not None]
    parameters = [*learn.stepper.params, *(p for root in roots for p in root.parameters())]
    return any(isinstance(parameter, nn.UninitializedParameter) for parameter in parameters)


@contextmanager
def preserved(learn: LoopState) -> Iterator[None]:
    """Run a block that leaves nothing behind in a learner, whatever happens in it.

    A training loader that goes on from epoch to epoch begins anew in the block, and goes on after
    it as if the block had not been.
    """
    snapshot = Snapshot(learn)
    with kept_grad_mode():
        try:
            learn.stream = Stream()
            yield
        finally:
            surely(snapshot.restore)
