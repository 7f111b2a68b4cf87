"""`AttributeScheduler`: a schedule for anything that is no hyperparameter of the optimizer."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from onecycle.arguments import check_is, check_text
from onecycle.checkpoints.description import name_of
from onecycle.core.callback import Callback, Stage
from onecycle.data.loaders import TensorLoader
from onecycle.errors import ScheduleConflictError
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class AttributeScheduler(Callback):
    """Drive an attribute of any object by a schedule: a dropout's ``p``, the weight of a loss.

    The value is set before each training batch, as `ParamScheduler` does it, and stays as it is
    after the fit. A tensor is filled in place.

    Args:
        obj: The object, such as a layer of the model, a loss, or another callback.
        name: The attribute, which must be there already.
        schedule: Of the position in the fit.

    Raises:
        TypeError: If it is no schedule, or the attribute is no number.
        ValueError: If the object has no such attribute, or is a loader or a sampler: its number of
            batches is the length of the fit. Another batch size is another fit.
        ScheduleConflictError: Before the first batch, if two of them drive one attribute.

    Example:
        >>> from torch import nn
        >>> from onecycle import AttributeScheduler, linear
        >>> from onecycle.testing import toy_learner
        >>> dropout = nn.Dropout(0.5)
        >>> learn = toy_learner(n_batches=3)
        >>> learn.model.append(dropout)  # doctest: +ELLIPSIS
        Sequential(...
        >>> learn.fit(1, cbs=[AttributeScheduler(dropout, "p", linear(0.5, 0.0))])
        >>> dropout.p
        0.0
    """

    stage = Stage.PREPARE
    during = "train"
    runs_in = frozenset(("fit",))

    def __init__(self, obj: object, name: str, schedule: Schedule) -> None:
        check_is("schedule", schedule, Schedule, "linear(0.5, 0.0)")
        if not hasattr(obj, check_text("name", name)):
            near = difflib.get_close_matches(name, dir(obj), n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{type(obj).__name__} has no attribute {name!r}{hint}")
        value = getattr(obj, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, Tensor) and value.is_floating_point()):
            raise TypeError(
                f"{type(obj).__name__}.{name} must be a number or a tensor of floats; got {value!r}"
            )
        if isinstance(obj, DataLoader | Sampler | TensorLoader):
            raise ValueError(
                f"{name!r} of a {type(obj).__name__} cannot be scheduled: the number of batches, "
                "and with it the length of the fit and of every schedule, would change on the way. "
                "Train in several fits, each with learn.dls of its own batch size; or let "
                "GradientAccumulation make larger updates"
            )
        self.obj, self.name, self.schedule = obj, name, schedule

    def before_fit(self, learn: Loop) -> None:
        """Refuse what cannot work, before anything runs."""
        learn.pos  # noqa: B018 - raises where the number of updates cannot be known
        for other in learn.cbs:
            if (
                isinstance(other, AttributeScheduler)
                and other is not self
                and (other.obj is self.obj and other.name == self.name)
            ):
                raise ScheduleConflictError(
                    f"two AttributeSchedulers drive {self.name!r} of the same "
                    f"{type(self.obj).__name__}: remove one of them from cbs"
                )

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return whose attribute is driven, and the schedule."""
        modules = {id(module): f"model.{name}" for name, module in learn.model.named_modules()}
        modules[id(learn.loss_func)] = "loss_func"
        owner = modules.get(id(self.obj), name_of(type(self.obj)))
        return {"drives": f"{owner}.{self.name}", "schedule": self.schedule}

    def before_batch(self, learn: Loop) -> None:
        """Put the value of this update in force."""
        value = self.schedule(learn.pos)
        old = getattr(self.obj, self.name)
        if isinstance(old, Tensor):
            with torch.no_grad():
                old.fill_(value)
        else:
            setattr(self.obj, self.name, value)
