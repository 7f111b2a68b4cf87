"""`Validate`: when a fit validates, and on how many batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_cadence, check_count
from onecycle.core.callback import Callback
from onecycle.core.handlers import explain
from onecycle.core.restore import hold_modes, preserved_rng, surely
from onecycle.data.held import hold_loaders
from onecycle.data.lengths import least
from onecycle.errors import CancelValid

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: What a pass between two batches leaves in other hands.
_OF_A_PASS = ("dl", "training", "iter", "n_iter", "batch", "xb", "yb", "pred", "loss", "loss_grad")


class Validate(Callback):
    """Say when a fit validates, instead of at the end of each epoch, and on how many batches.

    A validation that is due within an epoch runs between two batches, when an update is made, with
    all its events, on each validation set. The training goes on as if it had not been there, to
    the bit; what acts on the result, such as `EarlyStopping`, `ReduceLROnPlateau` and `SaveModel`,
    does so at each. The record has a value for each of them, and the table a row. Whatever the
    cadence, a fit that comes to its end ends with one. A resumed fit goes on counting where it was.

    Args:
        every: ``"500 updates"``; ``"0.25 epochs"``, at the first batch that reaches each quarter;
            ``"3 epochs"``, at the end of each third one; or ``"10 minutes"``, that long after the
            last one, or the beginning of the fit.
        batches: On how many batches of each validation set, at least 1: its first ones; by
            default all.

    Raises:
        ValueError: For arguments that are none of these; before the first batch, if there is no
            validation loader, or a second `Validate`, or a part of an epoch is asked for and the
            training loader has no length.

    Example:
        >>> from onecycle import Validate
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=8)
        >>> learn.fit(2, cbs=[Validate("0.5 epochs", batches=4)])
        >>> learn.recorder.history["valid_loss"].updates
        array([ 4,  8, 12, 16])
    """

    def __init__(self, every: str = "1 epoch", *, batches: int | None = None) -> None:
        self.every = every
        self.batches = None if batches is None else check_count("batches", batches)
        self.cadence = check_cadence("every", every, parts_of_epochs=True)
        self._number, self._unit = self.cadence
        if self._number == int(self._number) and self._unit == "epoch":
            self._unit = "whole epoch"
        self._whole = 0  # batches of this epoch, were it whole; 0 where that is unknown
        self._heard = 0  # batches of this epoch
        self._done = 0  # updates at the last validation
        self._done_epochs = 0.0  # epochs of this fit at the last validation
        self._when = 0.0

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return when it is validated, and on how much."""
        return {"every": self.every, "batches": self.batches}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking that there is what it takes."""
        if learn.dls.valid is None:
            raise ValueError(
                "Validate needs a validation loader: give the learner DataLoaders(train, valid)"
            )
        if sum(isinstance(callback, Validate) for callback in learn.cbs) > 1:
            raise ValueError("two Validate would each say when to validate: keep one in cbs")
        if learn.epoch_length(0) is None and self._unit == "epoch":
            raise ValueError(
                f"every={self.every!r} is a part of an epoch, and the training loader has no "
                "length: give steps_per_epoch=, or every= in updates"
            )
        self._heard, self._done, self._done_epochs = 0, 0, 0.0
        self._when = time.monotonic()

    def before_train(self, learn: Loop) -> None:
        """Count the batches of this epoch from its beginning; a resumed one is in its middle."""
        self._whole, self._heard = learn.epoch_length(learn.epoch) or 0, 0

    def before_validate(self, learn: Loop) -> None:
        """Say how long the pass will be."""
        learn.n_iter = least(learn.n_iter, self.batches)

    def after_batch(self, learn: Loop) -> None:
        """Validate, if it is time; end a validation that has had its batches."""
        if not learn.training:
            if learn.iter + 1 == self.batches:
                raise CancelValid
            return
        self._heard = learn.iter + 1
        is_last = self._heard == learn.n_iter  # after which the epoch ends, and validates then
        if not (is_last or learn.batches_in_window or learn.is_cancelled) and self._is_due(learn):
            self._mark(learn)
            self._validate_between(learn)

    def after_train(self, learn: Loop) -> None:
        """Say whether this epoch ends with a validation."""
        ends = learn.n_epoch is not None and learn.epoch + 1 >= learn.n_epoch
        if self._unit == "whole epoch":
            learn.validates = (learn.epoch + 1) % self._number == 0
        else:
            learn.validates = self._is_due(learn)
        if (ends or learn.updates_left() == 0) and learn.n_updates != self._done:
            learn.validates = True
        if learn.validates:
            self._mark(learn)

    def after_validate(self, learn: Loop) -> None:
        """Look at the clock."""
        self._when = time.monotonic()

    def _is_due(self, learn: Loop) -> bool:
        if self._unit == "update":
            return learn.n_updates // self._number > self._done // self._number
        if self._unit == "minute":
            due = time.monotonic() - self._when >= 60 * self._number
            return due if learn.processes is None else learn.processes.any(due)
        if self._unit == "whole epoch":
            return False
        now, last = self._epochs_done(learn), self._done_epochs
        return int(now / self._number + 1e-6) > int(last / self._number + 1e-6)

    def _epochs_done(self, learn: Loop) -> float:
        return learn.epoch + self._heard / max(1, self._whole)

    def _mark(self, learn: Loop) -> None:
        self._done, self._done_epochs = learn.n_updates, self._epochs_done(learn)

    def _validate_between(self, learn: Loop) -> None:
        """Validate between two batches, and put back all that the training pass goes on with."""
        fields = {name: getattr(learn, name) for name in _OF_A_PASS}
        put_back_modes = hold_modes(learn.opt, learn.model, learn.loss_module)
        # A pass over the training loader itself would end the one that is running.
        own = [dl for dl in learn.dls.valid_sets().values() if dl is learn.dls.train]
        put_back_loader = hold_loaders(*own)

        def put_back() -> None:
            put_back_loader()
            put_back_modes()
            vars(learn).update(fields, between_batches=0)

        learn.between_batches = self._heard
        try:
            with preserved_rng():
                learn.run_validation()
        except Exception as error:
            explain(learn, error)
            raise
        finally:
            surely(put_back)

    def state_dict(self) -> dict[str, Any]:
        """Return where the last validation was, and how long ago."""
        waited = time.monotonic() - self._when if self._unit == "minute" else 0.0
        done = {"updates": self._done, "epochs": self._done_epochs}
        return {**done, "heard": self._heard, "waited": waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._done, self._done_epochs = state["updates"], state["epochs"]
        self._heard = state["heard"]
        self._when = time.monotonic() - state["waited"]
