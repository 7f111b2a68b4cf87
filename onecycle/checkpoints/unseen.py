"""What training changes and no checkpoint holds: found when the first one is taken, and named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from onecycle.checkpoints.learner_fields import field_states
from onecycle.checkpoints.opt_names import optimizers_within

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

#: Where a value stands, and what can be compared of it.
_Marks = dict[str, Any]


class Unseen:
    """Remembers fields when a fit begins, to see which of them it changes.

    Numbers and tensors that an optimizer keeps in plain fields are state that a checkpoint has no
    place for; so are buffers that are registered in training, and optimizers that a callback
    holds. What the model keeps in fields is looked at by `Sources`.

    Args:
        learn: The learner, before the first batch.
    """

    def __init__(self, learn: LoopState) -> None:
        self._names = _state_names(learn)
        self._marks = _marks(learn)

    def found(self, learn: LoopState) -> list[str]:
        """Name what has changed and is in no checkpoint, each with where it stands.

        Args:
            learn: The learner, at its first checkpoint.
        """
        now = _marks(learn)
        changed = [name for name, mark in self._marks.items() if now.get(name, mark) != mark]
        new = _state_names(learn) - self._names - set(_first_names(learn))
        left_out = field_states(learn)[1]
        return [
            *sorted(changed),
            *(f"{name}, which is registered in training" for name in sorted(new)),
            *(f"learn.{name}" for name in left_out),
            *_in_callbacks(learn),
        ]


def _state_names(learn: LoopState) -> set[str]:
    return {f"learn.model.{name}" for name in learn.model.state_dict()}


def _first_names(learn: LoopState) -> Iterator[str]:
    for name in learn.first_buffers[0]:
        yield f"learn.model.{name}"


def _marks(learn: LoopState) -> _Marks:
    marks: _Marks = {}
    for path, opt in {"": learn.opt, **optimizers_within(learn.opt)}.items():
        if type(opt).state_dict is Optimizer.state_dict:
            marks |= _of_fields(f"learn.opt.{path}".rstrip("."), vars(opt))
    return marks


def _of_fields(where: str, fields: dict[str, Any]) -> _Marks:
    return {
        f"{where}.{name}": _mark(value)
        for name, value in fields.items()
        if not name.startswith("_") and _mark(value) is not None and name != "training"
    }


def _mark(value: Any) -> Any:
    """Return what tells a value from a changed one; ``None`` for what is not looked at."""
    if isinstance(value, Tensor):
        return (id(value), value._version) if value.grad_fn is None else None
    return value if type(value) in (int, float) else None


def _in_callbacks(learn: LoopState) -> list[str]:
    """Name the optimizers that callbacks hold, where these say nothing of their state."""
    return [
        f"{type(callback).__name__}.{name}"
        for callback in learn.cbs
        if not callback.state_dict()
        for name, value in vars(callback).items()
        if isinstance(value, Optimizer) and value is not learn.opt
    ]
