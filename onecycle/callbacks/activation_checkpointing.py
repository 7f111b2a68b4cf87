"""`ActivationCheckpointing`: blocks that are computed again for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onecycle.core.callback import Callback
from onecycle.optim.named_modules import check_blocks, matching

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class ActivationCheckpointing(Callback):
    """Keep only the inputs of named blocks for the backward pass, and compute the rest again there.

    That saves the memory of what lies within the blocks, for about a third more computing where
    they are most of the model. Training ends in the same bits as without it: random numbers of
    torch (dropout) are drawn again as they were, and buffers (the statistics of batch norm) are
    what they were, and change once. What a block does besides in Python, it does twice; random
    numbers of NumPy or Python in it would be others.

    Args:
        blocks: Names of modules as in ``model.named_modules()``, in which ``*`` stands for any part
            between two dots: ``["layers.*"]``. None may lie in another one.

    Raises:
        TypeError, ValueError: Before the first batch, where no module has such a name, one lies in
            another, or the model is compiled.

    Source:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.

    Example:
        >>> from onecycle import ActivationCheckpointing
        >>> from onecycle.testing import toy_learner
        >>> learn, other = toy_learner(), toy_learner()
        >>> learn.fit(1, cbs=[ActivationCheckpointing(["0", "1"])])
        >>> other.fit(1)
        >>> learn.validate() == other.validate()
        True
    """

    runs_in = frozenset(("fit", "range_test"))

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = check_blocks(blocks)
        if not self.blocks:
            raise ValueError('blocks must be names of modules, such as ["layers.*"]; got none')
        self._wrapped: list[tuple[nn.Module, Any]] = []

    def before_fit(self, learn: Loop) -> None:
        """Wrap the blocks."""
        parts = learn.model.modules()
        if any(p._compiled_call_impl is not None or hasattr(p, "_orig_mod") for p in parts):
            raise ValueError(
                "a compiled model chooses by itself what is computed again: leave out compile=, or "
                "ActivationCheckpointing"
            )
        self._wrapped = []
        for module in matching(learn.model, self.blocks).values():
            own = vars(module).get("forward")
            if not isinstance(own, _Again):  # as in a range test in the middle of a fit
                self._wrapped.append((module, own))
                module.forward = _Again(module, own)

    def cleanup_fit(self, learn: Loop) -> None:
        """Give the blocks their own forward pass back."""
        wrapped, self._wrapped = self._wrapped, []
        for module, own in wrapped:
            del module.forward
            if own is not None:
                module.forward = own


class _Again:
    """The forward pass of a block, which is run again where its gradients are asked for.

    An object, and no function that holds the block: a copy of the model has a block of its own.
    """

    def __init__(self, module: nn.Module, own: Callable[..., Any] | None) -> None:
        self.module, self.own = module, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._run(args, kwargs)
        # With a parameter, the device of its random numbers is known whatever the arguments are.
        known = next(self.module.parameters(), None)
        return checkpoint(
            self._run, args, kwargs, known, use_reentrant=False, context_fn=self._contexts
        )

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any], _: Any = None) -> Any:
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _SameBuffers(self.module)


class _SameBuffers(AbstractContextManager[None]):
    """Lets a block have the buffers that it had when this was made, and leave its own alone."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (part._buffers, name, buffer.detach().clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._own: list[Tensor | None] = []

    def __enter__(self) -> None:
        self._own = [buffers[name] for buffers, name, _ in self._kept]
        for buffers, name, value in self._kept:
            buffers[name] = value.clone()

    def __exit__(self, *_: object) -> None:
        for (buffers, name, _value), own in zip(self._kept, self._own, strict=True):
            buffers[name] = own
