"""`SpikeStop`: end the fit, or skip the update, when the training loss jumps over its level."""

from __future__ import annotations

import logging
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onecycle.arguments import check_count, check_one_of, check_positive
from onecycle.callbacks.non_finite import read_every
from onecycle.core.callback import Callback
from onecycle.errors import CancelFit, CancelStep
from onecycle.optim.buffers import KeptBuffers
from onecycle.optim.several import Optimizers

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: The standard deviation of normal numbers, in median absolute deviations from their median.
_NORMAL = 1.4826
#: The spread is taken to be at least this part of the level, of losses that hardly change.
_LEAST = 0.01


class SpikeStop(Callback):
    """End the fit, or skip the update, when the training loss jumps far over its recent level.

    The level is the median of the last losses, and their spread that of their distances to it,
    neither of which a single jump moves. A loss that is over the level by more than ``sigmas``
    times the spread is a spike; so is one that is NaN or infinite. Spikes do not become part of
    the level, and nothing is judged before there are ``window`` losses in the fit. Losses are those
    of updates: of accumulated batches their mean; where optimizers take turns, each has a level.

    With ``action="stop"``, on the CPU, the fit ends before the update, and the weights are those of
    the one before. On an accelerator losses are read in blocks, so that the loop does not wait for
    the device: the fit ends up to 64 updates late. ``learn.stop_reason`` names the true update.

    With ``action="skip"``, the update is not made: weights, optimizer and buffers (the statistics
    of batch norm) stay as they are, ``learn.n_skipped`` grows, the schedules wait, and training
    goes on. This reads one number from the device for each update.

    Args:
        action: ``"stop"`` or ``"skip"``.
        sigmas: By how many standard deviations a loss must be over the level, above 0. They are
            1.4826 times the median distance, and at least a hundredth of the level.
        window: Of how many updates the level is, at least 5.
        patience: How many spikes in a row end the fit, at least 1; by default 1 with ``"stop"``,
            and 10 with ``"skip"``.

    Raises:
        ValueError, TypeError: For an action or a number that is none.

    Example:
        >>> from onecycle import SpikeStop
        >>> from onecycle.testing import toy_learner
        >>> def jumps(pred, yb):
        ...     return ((pred - yb) ** 2).mean() * (1000 if learn.n_updates == 12 else 1)
        >>> learn = toy_learner(loss_func=jumps)
        >>> learn.fit(2, cbs=[SpikeStop(window=10)])
        >>> learn.n_updates, learn.stop_reason.partition(" to ")[0]
        (12, 'the training loss jumped')
        >>> learn.fit(2, cbs=[SpikeStop("skip", window=10, patience=3)])
        >>> learn.n_updates, learn.n_skipped
        (12, 2)
    """

    during = "train"

    def __init__(
        self,
        action: Literal["stop", "skip"] = "stop",
        *,
        sigmas: float = 10.0,
        window: int = 50,
        patience: int | None = None,
    ) -> None:
        check_one_of("action", action, ("stop", "skip"))
        self.action, self.sigmas = action, check_positive("sigmas", sigmas)
        self.window = check_count("window", window, least=5)
        given = patience if patience is not None else 1 if action == "stop" else 10
        self.patience = check_count("patience", given)
        self._levels: dict[str, deque[float]] = {}
        self._in_row: dict[str, int] = {}
        self._unread: list[tuple[str, int, Tensor]] = []
        self._block, self._is_skipping = 1, False
        self._buffers = KeptBuffers()

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what a spike is, and what is done."""
        names = ("action", "sigmas", "window", "patience")
        return {name: getattr(self, name) for name in names}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew."""
        self._levels, self._in_row, self._unread = {}, {}, []
        self._block, self._is_skipping = read_every(learn.device), False

    def before_batch(self, learn: Loop) -> None:
        """Keep the buffers, which a batch that is to be skipped changes in the forward pass."""
        if self.action == "skip" and not learn.batches_in_window:
            self._buffers = KeptBuffers(learn.model)

    def before_step(self, learn: Loop) -> None:
        """Judge the loss of the update that is about to be made, or keep it to be read."""
        name, update = _whose(learn), learn.total_updates + 1
        if self.action == "stop":
            self._unread.append((name, update, learn.update_loss))
            if len(self._unread) >= self._block:
                self._read()
        elif self._is_spike(name, update, float(learn.update_loss)):
            self._is_skipping = True
            raise CancelStep

    def after_cancel_step(self, learn: Loop) -> None:
        """Put the buffers back."""
        if self._is_skipping:
            self._is_skipping = False
            self._buffers.put_back()

    def after_train(self, learn: Loop) -> None:
        """Read what is left, before the model is validated."""
        self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        device = unread[-1][2].device  # those of a checkpoint come from the CPU
        losses = torch.stack([loss.to(device).flatten()[0] for *_, loss in unread]).tolist()
        for (name, update, _), loss in zip(unread, losses, strict=True):
            self._is_spike(name, update, loss)

    def _is_spike(self, name: str, update: int, loss: float) -> bool:
        """Tell whether a loss is a spike, or else let it count; end the fit after too many."""
        level = self._levels.setdefault(name, deque(maxlen=self.window))
        limit, over = float("inf"), ""
        if len(level) == self.window:
            usual = median(level)
            spread = _NORMAL * median([abs(each - usual) for each in level])
            limit = usual + self.sigmas * max(spread, _LEAST * abs(usual))
            over = f", over {limit:.6g} (the median of {self.window} was {usual:.6g})"
        if loss <= limit and loss < float("inf"):
            level.append(loss)
            self._in_row[name] = 0
            return False
        in_row = self._in_row[name] = self._in_row.get(name, 0) + 1
        whose = f"training loss of {name!r}" if name else "training loss"
        said = f"the {whose} jumped to {loss:.6g} at update {update}{over}"
        if in_row >= self.patience:
            said += f": {in_row} spikes in a row" if in_row > 1 else ""
            log.warning("SpikeStop: %s", said)
            raise CancelFit(said)
        if self.action == "skip":
            log.warning("SpikeStop: %s: the update is skipped", said)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses, those that wait unread, and the spikes in a row."""
        levels = {name: list(level) for name, level in self._levels.items()}
        return {"levels": levels, "in_row": dict(self._in_row), "unread": list(self._unread)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        levels = state["levels"].items()
        self._levels = {name: deque(level, maxlen=self.window) for name, level in levels}
        self._in_row, self._unread = dict(state["in_row"]), [*map(tuple, state["unread"])]


def _whose(learn: Loop) -> str:
    """Return the name of the optimizer that is about to step, where they take turns."""
    members = learn.opt.members if isinstance(learn.opt, Optimizers) else {}
    return next((name for name, opt in members.items() if opt is learn.stepper.opt), "")
