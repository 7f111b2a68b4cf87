"""The batch loop, drawn, with every event in its place.

This is the whole of what `onecycle.core.loop` does, and the only vocabulary that a callback
needs. A validation that `onecycle.callbacks.validate.Validate` asks for also stands between two
training batches; with several validation sets there is a pass for each.
`learn.show_training_loop()` prints the drawing with the callbacks of a learner at their events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

#: The loop as pseudocode; a line ``fire NAME`` is an event.
LOOP = """\
fire before_fit
for each epoch:
    fire before_epoch
    fire before_train
    for each training batch:
        fire before_batch
        pred = model(xb)
        fire after_pred
        loss = loss_func(pred, yb)
        fire after_loss
        fire before_backward
        loss.backward()
        fire after_backward
        once per optimizer update:
            fire before_step
            optimizer.step()
            fire after_step
        fire after_batch
    fire after_train
    fire before_validate
    for each validation batch, without gradients:
        fire before_batch
        pred = model(xb)
        fire after_pred
        loss = loss_func(pred, yb)
        fire after_loss
        fire after_batch
    fire after_validate
    fire after_epoch
fire after_fit
fire cleanup_fit
"""

Scope = Literal["fit", "epoch", "train", "validate", "batch", "step"]


@dataclass(frozen=True)
class Event:
    """One event of the loop.

    Attributes:
        name: The name of the callback method that handles it.
        scope: The part of the loop that it belongs to, and that a cancel ends.
        when: When it fires, in one sentence.
        reports: Whether it tells of something done. If a handler of such an event raises a
            cancel, the handlers after it hear of the event first, so that an update which was
            made is also recorded and saved.
    """

    name: str
    scope: Scope
    when: str
    reports: bool = False


_ALL = (
    Event("before_fit", "fit", "Once, when everything is known and nothing has run."),
    Event("before_epoch", "epoch", "At the start of each epoch."),
    Event("before_train", "train", "The model is in training mode; the first batch is next."),
    Event("before_batch", "batch", "xb and yb are on the device; the model has not seen them."),
    Event("after_pred", "batch", "pred is there; the loss is not."),
    Event("after_loss", "batch", "loss and loss_grad are there."),
    Event("before_backward", "batch", "Training only: the last place to rewrite loss_grad."),
    Event("after_backward", "batch", "Raw gradients; a CancelStep here postpones the update."),
    Event("before_step", "step", "Unscaled, final gradients; a CancelStep here skips the update."),
    Event("after_step", "step", "An update was made; n_updates has grown.", reports=True),
    Event("after_batch", "batch", "The batch is done, or was cancelled.", reports=True),
    Event("after_train", "train", "The training pass is done, or was cancelled.", reports=True),
    Event("before_validate", "validate", "The model is in evaluation mode."),
    Event("after_validate", "validate", "The validation pass is done or cancelled.", reports=True),
    Event("after_epoch", "epoch", "The epoch is done, or was cancelled.", reports=True),
    Event("after_fit", "fit", "The fit is done or cancelled; not after an error.", reports=True),
    Event("cleanup_fit", "fit", "Always, newest callback first: also on an error or Ctrl-C."),
    Event("after_cancel_step", "step", "An update was skipped; its gradients are gone."),
    Event("after_cancel_batch", "batch", "A CancelBatch was raised."),
    Event("after_cancel_train", "train", "A CancelTrain was raised."),
    Event("after_cancel_validate", "validate", "A CancelValid was raised."),
    Event("after_cancel_epoch", "epoch", "A CancelEpoch was raised."),
    Event("after_cancel_fit", "fit", "A CancelFit was raised."),
)

#: Every event by name, in the order of the loop.
EVENTS: Mapping[str, Event] = MappingProxyType({event.name: event for event in _ALL})

#: The events that fire for each batch, in training and in validation.
BATCH_EVENTS = ("before_batch", "after_pred", "after_loss", "after_batch", "after_cancel_batch")

#: A method of a callback whose name starts like this is meant to be an event.
EVENT_PREFIXES = ("before_", "after_", "cleanup_", "on_")
