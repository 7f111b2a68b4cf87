"""Every error of its own that onecycle raises, and the cancels that steer the loop.

A wrong argument is a plain ``ValueError`` or ``TypeError``. What breaks a rule of
onecycle has a type here, so that a program can tell the cases apart:

    Exception
    ├── OnecycleError
    │   ├── UnknownEventError        a callback method looks like an event and is none
    │   ├── MissingCallbackError     `requires` names a callback that is not there
    │   ├── ScheduleConflictError    two callbacks schedule the same hyperparameter
    │   └── CheckpointError          a file cannot be read as what it should be
    └── Cancel                       control flow, caught by the loop: not an error
        ├── CancelStep               skip or postpone this optimizer update
        ├── CancelBatch              leave this batch
        ├── CancelTrain              end this training pass
        ├── CancelValid              end this validation pass
        ├── CancelEpoch              end this epoch
        └── CancelFit                end the fit

The errors that concern an argument also derive from ``ValueError`` or ``TypeError``.
"""

from typing import ClassVar


class OnecycleError(Exception):
    """Base of the errors that are onecycle's own."""


class UnknownEventError(OnecycleError, TypeError):
    """A callback defines a method that looks like an event and is none."""


class MissingCallbackError(OnecycleError, ValueError):
    """A callback requires another one that takes no part in the fit."""


class ScheduleConflictError(OnecycleError, ValueError):
    """Two callbacks schedule the same hyperparameter of the same parameter group."""


class CheckpointError(OnecycleError):
    """A file cannot be read as a onecycle checkpoint."""


class Cancel(Exception):  # noqa: N818 - control flow, not an error
    """Base of the exceptions by which a callback steers the loop.

    Args:
        reason: Why, in words for a person. The loop keeps it in ``learn.stop_reason``.

    Attributes:
        reason: The same.
        ends: The part of the loop that it ends.
        width: How large that part is: of several cancels the widest acts.
        raised_by: Who raised it, filled in by the loop.
    """

    ends: ClassVar[str] = "part of the loop"
    width: ClassVar[int] = 0
    raised_by: str = "the model, the loss or the loader"

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def out_of_place(self, where: str) -> str:
        """Say that it was raised where there is nothing that it could end."""
        return (
            f"{type(self).__name__} was raised by {self.raised_by}, {where}, where no {self.ends} "
            f"is running that it could end (reason: {self.reason or 'none given'})"
        )


class CancelStep(Cancel):
    """Raised in ``after_backward``: postpone the update. In ``before_step``: skip it."""

    ends = "update"
    width = 0


class CancelBatch(Cancel):
    """Leave this batch; ``after_cancel_batch`` and ``after_batch`` follow."""

    ends = "batch"
    width = 1


class CancelTrain(Cancel):
    """End this training pass; validation still runs."""

    ends = "training pass"
    width = 2


class CancelValid(Cancel):
    """End this validation pass."""

    ends = "validation pass"
    width = 3


class CancelEpoch(Cancel):
    """End this epoch; the next one begins."""

    ends = "epoch"
    width = 4


class CancelFit(Cancel):
    """End the fit; ``after_cancel_fit``, ``after_fit`` and ``cleanup_fit`` follow."""

    ends = "fit"
    width = 5
