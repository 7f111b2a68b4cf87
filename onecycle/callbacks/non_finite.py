"""`TerminateOnNonFinite`: end the fit, or skip the update, when a loss is NaN or infinite."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from onecycle.arguments import check_count, check_one_of
from onecycle.callbacks.post_mortem import PostMortem, examine
from onecycle.callbacks.recorder import Recorder
from onecycle.core.callback import Callback
from onecycle.errors import CancelFit, CancelStep
from onecycle.optim.buffers import KeptBuffers
from onecycle.optim.groups import listed
from onecycle.optim.sharded import whole_number
from onecycle.optim.stepper import ScaledStepper

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class TerminateOnNonFinite(Callback):
    """End the fit when the training loss becomes NaN or infinite, and find out why.

    ``learn.stop_reason`` names the update (as in ``learn.recorder``: of the learner's life, from
    1), the loss, the learning rate, and the last loss that was finite. ``post_mortem`` has what
    was found; both are logged.

    With ``action="stop"``, on the CPU, the fit ends before that loss is differentiated, and the
    weights are those of the update before (the statistics of batch norm have seen the batch). On
    an accelerator losses are read in blocks, so that the loop does not wait for the device: the
    fit ends up to 64 batches late, with weights that are broken (`SaveModel` gets the best ones
    back). The update named is the true one in both cases. A gradient that is not finite is
    noticed by the loss of the next update.

    With ``action="skip"``, an update whose loss or gradient is not finite is not made: weights,
    optimizer and buffers (the statistics of batch norm) stay as they are, ``learn.n_skipped``
    grows, the schedules wait, and training goes on. This reads one flag from the device for each
    update, as fp16 does, and costs a pass over the gradients. In fp16 infinite gradients are the
    business of the gradient scaler; only the loss is looked at here.

    Args:
        action: ``"stop"`` or ``"skip"``.
        max_skips: With ``"skip"``, the skips in a row that end the fit, at least 1.

    Attributes:
        post_mortem: A `PostMortem` if this ended the last fit, else ``None``.

    Raises:
        ValueError: For another action, or a number of skips that is none.

    Example:
        >>> import math
        >>> from onecycle import TerminateOnNonFinite
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(loss_func=lambda pred, yb: (pred - yb).mean() * math.inf)
        >>> stop = TerminateOnNonFinite()
        >>> learn.fit(1, lr=0.1, cbs=[stop])
        >>> learn.stop_reason
        'the training loss became -inf at update 1 (learning rate 0.1), the first of this fit'
        >>> stop.post_mortem.bad_module is None  # so it is the loss function
        True
    """

    during = "train"
    requires = (Recorder,)

    def __init__(self, action: Literal["stop", "skip"] = "stop", *, max_skips: int = 10) -> None:
        check_one_of("action", action, ("stop", "skip"))
        self.action, self.max_skips = action, check_count("max_skips", max_skips)
        self.post_mortem: PostMortem | None = None
        self._block = 1
        self._unread: list[tuple[int, Tensor]] = []
        self._skips = 0
        self._skipping = False
        self._buffers = KeptBuffers()

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what is done, and when that is given up."""
        skips = self.max_skips if self.action == "skip" else None
        return {"action": self.action, "max_skips": skips}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew."""
        self.post_mortem = None
        self._block = read_every(learn.device)
        self._unread, self._skips, self._skipping = [], 0, False

    # Stop -------------------------------------------------------------------------------------

    def after_loss(self, learn: Loop) -> None:
        """Keep the loss, with the update that it would make; now and then read what is kept."""
        # What is not one number is refused by the backward pass, which says so.
        if self.action == "skip" or learn.loss.numel() != 1:
            return
        self._unread.append((learn.total_updates + 1, learn.loss))
        if len(self._unread) >= self._block:
            self._read(learn)

    def after_train(self, learn: Loop) -> None:
        """Read what is left, before the model is validated."""
        self._read(learn)

    def _read(self, learn: Loop) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        device = unread[-1][1].device  # those of a checkpoint come from the CPU
        losses = torch.stack([loss.to(device) for _, loss in unread]).flatten().tolist()
        for late, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
            if not math.isfinite(loss):
                self.post_mortem = examine(learn, unread[-1 - late][0], loss, late)
                self._end(_became(self.post_mortem))

    # Skip -------------------------------------------------------------------------------------

    def before_batch(self, learn: Loop) -> None:
        """Keep the buffers, which a batch that is not finite would spoil in the forward pass."""
        if self.action == "skip" and not learn.batches_in_window:
            self._buffers = KeptBuffers(learn.model)

    def before_step(self, learn: Loop) -> None:
        """Skip an update whose loss or gradient is not finite."""
        if self.action == "stop":
            return
        values = [learn.update_loss.flatten()[0]]
        gradients = [p.grad for p in learn.stepper.params if p.grad is not None]
        if gradients and not isinstance(learn.stepper, ScaledStepper):
            norm = whole_number(nn.utils.get_total_norm(gradients))
            values.append(norm.to(values[0].device))
        if not torch.isfinite(sum(values)):
            self._skipping = True
            raise CancelStep

    def after_cancel_step(self, learn: Loop) -> None:
        """Put the buffers back; end the fit after too many skips in a row."""
        if not self._skipping:
            return
        self._skipping = False
        self._skips += 1
        self._buffers.put_back()
        if self._skips >= self.max_skips:
            found = examine(learn, learn.total_updates + 1, float(learn.update_loss))
            self.post_mortem = found
            self._end(
                f"{self._skips} updates in a row were skipped, since the training loss (now "
                f"{found.loss:.6g}) or a gradient was not finite, at update {found.update}"
            )

    def after_step(self, learn: Loop) -> None:
        """Count the skips in a row anew."""
        self._skips = 0

    def _end(self, reason: str) -> None:
        log.warning("TerminateOnNonFinite: %s\n%s", reason, self.post_mortem)
        raise CancelFit(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses that wait unread, and the skips in a row."""
        return {"unread": list(self._unread), "skips": self._skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._unread, self._skips = list(state["unread"]), state["skips"]


def read_every(device: torch.device) -> int:
    """Return after how many batches to read: it makes the loop wait, save on the CPU.

    Args:
        device: Where the losses are.
    """
    return 1 if device.type == "cpu" else 64


def _became(found: PostMortem) -> str:
    *before, failed = found.updates
    rate = f"learning rate {listed(failed.lr)}"
    became = f"the training loss became {found.loss} at update {found.update} ({rate})"
    finite = [row for row in before if math.isfinite(row.loss)]
    if not finite:
        return f"{became}, the first of this fit"
    last = finite[-1]
    return (
        f"{became}; the last finite one was {last.loss:.6g} at update {last.update} "
        f"(learning rate {listed(last.lr)})"
    )
