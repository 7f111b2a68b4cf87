"""The batch loop: fit, epoch, pass, batch, update. The only caller of events.

`onecycle.core.events` draws what happens here. Everything that can be known once for a fit (the
handlers of each event, the plan of updates, how an update is made) is made once, so that the
loop itself looks nothing up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from threading import get_ident
from typing import Any

import torch

from onecycle.core.callback import Callback, Handler, Run
from onecycle.core.checks import check_callbacks, check_requirements
from onecycle.core.handlers import Handlers, clean_up, explain, fire, report, where
from onecycle.core.restore import (
    RngState,
    hold_modes,
    kept_grad_mode,
    preserved_rng,
    surely,
)
from onecycle.core.state import LoopState
from onecycle.data.held import hold_loaders
from onecycle.data.lengths import batches_in, least, updates_in
from onecycle.data.nested import split_batch
from onecycle.data.passes import set_epoch, start_pass
from onecycle.data.resized import SizesByEpoch
from onecycle.data.sizes import warn_of_single_sample
from onecycle.data.transfer import to_device
from onecycle.errors import (
    Cancel,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    OnecycleError,
)
from onecycle.optim.build import ready_state
from onecycle.optim.checks import check_trains
from onecycle.optim.heap import kept_heap
from onecycle.optim.loss_module import in_evaluation
from onecycle.optim.modes import switch

log = logging.getLogger("onecycle")

_END = object()


class Loop(LoopState):
    """Runs fits and inference passes over a model, and fires the events.

    `onecycle.learner.Learner` derives from it and adds the verbs; what a callback reads is in
    `onecycle.core.state`.
    """

    def plan_updates(self) -> None:
        """Set ``n_updates_planned`` from the loader, the limits and the accumulation."""
        planned = updates_in(self.epoch_lengths(), self.n_epoch, self.batches_per_update)
        self.n_updates_planned = self.n_updates_scheduled = least(planned, self.max_updates)

    def plan_pass(self) -> None:
        """Set ``n_iter`` of this training pass from the loader and the limits, as they are now."""
        left = self.updates_left()
        if left is not None:
            left = self.iter + left * self.batches_per_update - self.batches_in_window
        whole = self.epoch_length(self.epoch)
        self.n_iter = least(batches_in(self.epoch, whole, self.n_epoch), left)

    def make_handlers(self, callbacks: Sequence[Callback]) -> tuple[Handlers, Handlers]:
        """Return the tables of a run's handlers, for training and for validation."""
        return Handlers(callbacks, "train"), Handlers(callbacks, "valid")

    # The loop -----------------------------------------------------------------------------

    def run_fit(
        self,
        n_epoch: float | None,
        *,
        cbs: Sequence[Callback] = (),
        run: Run = "fit",
        steps_per_epoch: int | None = None,
        max_updates: int | None = None,
    ) -> None:
        """Run a fit or a range test; the learner's verbs end up here."""
        if self._run is not None:
            raise RuntimeError(f"a {self._run} is running: a callback cannot start another {run}")
        with self._turn, self.added_cbs(cbs), kept_grad_mode(), kept_heap():
            self._begin(n_epoch, run, steps_per_epoch, max_updates)
            try:
                try:
                    self._run = run
                    self._scope("fit", CancelFit, self._epochs)
                except BaseException as error:
                    self._end(error)
                    raise
                self._end(None)
            except Cancel as cancel:
                raise OnecycleError(cancel.out_of_place(where(self))) from cancel
            finally:  # also when a second Ctrl-C cuts the clean-up short
                self._run = None
                self.forget_batch()
                self._drop_gradients()

    def _begin(
        self, n_epoch: float | None, run: Run, steps_per_epoch: int | None, max_updates: int | None
    ) -> None:
        self._thread = get_ident()
        callbacks = [callback for callback in self.cbs if callback.takes_part_in(run)]
        check_requirements(callbacks)
        check_trains(self.model, self.loss_module, self.opt, self.device)
        warn_of_single_sample(self.model, self.dls.train)
        self._on, self._on_valid = self.make_handlers(callbacks)
        self._held: Sequence[Callback] = ()
        self._contexts = self._forward_contexts(callbacks)
        self.n_epoch, self.steps_per_epoch, self.max_updates = n_epoch, steps_per_epoch, max_updates
        self.epoch = self.iter = self.n_updates = self.n_skipped = 0
        self.training, self.stop_reason, self.rng = True, None, None
        self.validates, self.between_batches, self.valid_set = True, 0, ""
        self.batches_per_update, self.batch_sizes = 1, SizesByEpoch({})
        ready_state(self.opt)
        self.stepper = self.make_stepper(self.opt)
        self._drop_gradients()
        self.plan_updates()

    def _end(self, error: BaseException | None) -> None:
        """Let every callback clean up; none can hide the first error."""
        explain(self, error)
        first = clean_up(self, self._on.cleanup_fit, error)
        if first is not error and first is not None:
            raise first
        if error is None and (self.n_skipped or self.stop_reason is None) and self.shortfall():
            log.warning(self.shortfall())

    def _epochs(self) -> None:
        try:
            self._run_epochs()
        finally:  # the weights that a fit leaves are those to evaluate, save and predict with
            switch(self.opt, training=False)

    def _run_epochs(self) -> None:
        # Resumed within an epoch, the fit may have made that epoch's last update already.
        tried = -1 if self.iter else self.n_updates + self.n_skipped
        for self.epoch in self.epochs_left():
            try:
                self._scope("epoch", CancelEpoch, self._passes)
            finally:  # an epoch that was cut short has used its order of the data too
                self.total_epochs += 1
            if self.updates_left() == 0:
                break
            if self.n_epoch is None and self.n_updates + self.n_skipped == tried:
                raise OnecycleError(
                    f"no update was tried in epoch {self.epoch}, and nothing but max_updates ends "
                    "this fit: every batch or the whole pass was cancelled"
                )
            tried = self.n_updates + self.n_skipped

    def _passes(self) -> None:
        self._set_up_pass(self.dls.train, training=True)
        self._scope("train", CancelTrain, self._train)
        if self._run == "fit" and self.validates:
            self.run_validation()

    def run_validation(self) -> None:
        """Run the validation passes of a fit with their events, one for each validation set."""
        for self.valid_set, loader in self.dls.valid_sets().items():
            self._set_up_pass(loader, training=False)
            self._scope("validate", CancelValid, self._validate)

    def _set_up_pass(self, dl: Any, *, training: bool) -> None:
        self.dl, self.training, self.iter = dl, training, 0
        self.set_mode(training)
        switch(self.opt, training=training)
        self.n_iter = self.count_batches(dl)
        if training:
            set_epoch(dl, self.total_epochs)
            self.plan_pass()

    def _train(self) -> None:
        on, train_batch = self._on, self._batch_trainer()
        try:
            for self.iter, batch in enumerate(self._batches(), self.iter):
                train_batch(batch, on)
            if self.batches_in_window:  # the pass ended before the window was full
                try:
                    self._update(on)
                except CancelBatch as cancel:
                    self._cancelled("batch", cancel, on)
        finally:
            self._drop_gradients()

    def _batch_trainer(self) -> Callable[[Any, Handlers], None]:
        """Return what trains a batch; asked once for each pass, since there are other ways."""
        return self._train_batch

    def _train_batch(self, batch: Any, on: Handlers) -> None:
        window = self.batches_in_window
        try:
            self._take(batch)
            self._forward(on)
            if on.before_backward:
                fire(self, on.before_backward, "before_backward")
            self.batches_in_window = window + 1
            self.stepper.backward(self.loss_grad)
            self.update_loss = self.loss
            if not self._postponed(on):
                self._update(on)
        except CancelBatch as cancel:
            if self.batches_in_window > window:  # its gradients are among those that wait
                self._drop_gradients()
            self._batch_cancelled(cancel, on)
        if on.after_batch:
            report(self, on.after_batch, "after_batch")

    def _postponed(self, on: Handlers) -> bool:
        """Let every callback see the gradients; one is enough to postpone the update."""
        postponed = False
        for handler in on.after_backward:
            try:
                fire(self, (handler,), "after_backward")
            except CancelStep:
                postponed = True
        return postponed

    def _update(self, on: Handlers) -> None:
        stepper = self.stepper
        try:
            stepper.unscale()
            if self._skipped(on) or not stepper.step():
                self.n_skipped += 1
                fire(self, on.after_cancel_step, "after_cancel_step")
            else:
                self.n_updates += 1
                self.total_updates += 1
                if on.after_step:
                    report(self, on.after_step, "after_step")
        finally:
            stepper.zero_grad()
            self.batches_in_window = 0

    def _skipped(self, on: Handlers) -> bool:
        if on.before_step:
            try:
                fire(self, on.before_step, "before_step")
            except CancelStep as cancel:
                self.stop_reason = cancel.reason or self.stop_reason
                return True
        return False

    def _validate(self) -> None:
        put_back = self.stream.hold(self.dl)
        try:
            with torch.no_grad(), preserved_rng(), in_evaluation(self.loss_module):
                for self.iter, batch in enumerate(self._batches()):
                    self._valid_batch(batch, self._on_valid)
        finally:
            surely(put_back)

    def _valid_batch(self, batch: Any, on: Handlers, *, with_loss: bool = True) -> None:
        try:
            self._take(batch)
            self._forward(on, with_loss=with_loss)
        except CancelBatch as cancel:
            self._batch_cancelled(cancel, on)
        if on.after_batch:
            report(self, on.after_batch, "after_batch")

    def _batch_cancelled(self, cancel: Cancel, on: Handlers) -> None:
        self.pred = self.loss = self.loss_grad = None  # nobody counts the batch before
        self._cancelled("batch", cancel, on)

    def _batches(self) -> Iterator[Any]:
        """Draw the batches of this pass; its order is a function of the seed and the epoch."""
        drawn, batches = self.iter, None
        while True:
            try:  # not around the yield: what comes while this is closed would be lost
                if batches is None:
                    batches = self._begin_pass(drawn)
                    self.go_on_with_rng()
                # Asked for each batch: a landing may change n_iter; validation goes to the end.
                batch = _END if self.training and drawn == self.n_iter else next(batches, _END)
            except Exception as error:
                error.add_note(f"onecycle: raised by the loader while drawing batch {drawn}")
                raise
            if batch is _END:
                break
            yield batch
            drawn += 1
        if not drawn:
            name = "training" if self.training else "validation"
            raise ValueError(f"the {name} loader gave no batch: it is empty")

    def _begin_pass(self, skip: int) -> Iterator[Any]:
        order = self.seed, self.total_epochs
        if not self.training:
            return start_pass(self.dl, *order, skip=skip)
        dl = self.batch_sizes.loader(self.dl, self.epoch)
        return self.stream.start(dl, *order, skip=skip, n_iter=self.n_iter)

    def _take(self, batch: Any) -> None:
        self.batch = to_device(batch, self.device)
        self.xb, self.yb = split_batch(self.batch, self.n_inp)

    def _forward(self, on: Handlers, *, with_loss: bool = True) -> None:
        if on.before_batch:
            fire(self, on.before_batch, "before_batch")
        if not self._contexts:
            self._predict(on, with_loss)
            return
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context)
            self._predict(on, with_loss)

    def _predict(self, on: Handlers, with_loss: bool) -> None:
        forward_pass = self.stepper.forward_pass or self
        self.pred = forward_pass.predict_batch(self.batch)
        if on.after_pred:
            fire(self, on.after_pred, "after_pred")
        if with_loss:
            loss = self.loss_grad = forward_pass.compute_loss(self.pred, self.batch)
            self.loss = loss.detach() if loss.requires_grad else loss
            if on.after_loss:
                fire(self, on.after_loss, "after_loss")

    def infer(
        self,
        dl: Any,
        collect: Handler,
        *,
        cbs: Sequence[Callback] = (),
        with_loss: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Run the model over a loader in evaluation mode, and leave everything as it was.

        No event of a fit fires; only callbacks that prepare batches (`Stage.PREPARE`) take part.
        Calls from several threads take turns: they share the model and the learner's fields.

        Args:
            dl: An iterable of batches.
            collect: Called with the learner after each batch.
            cbs: Callbacks besides the learner's.
            with_loss: Whether the loss is computed too.
            inference_mode: Use ``torch.inference_mode`` instead of ``no_grad``; a little faster,
                but tensors that the model caches can then never take part in training.

        Raises:
            RuntimeError: If a fit is running in another thread.
        """
        if self._run is not None and self._thread != get_ident():
            raise RuntimeError(
                f"a {self._run} is running in another thread, which would go on with what this "
                "leaves: wait for its end, or call this in a callback"
            )
        gradients_off = torch.inference_mode() if inference_mode else torch.no_grad()
        with self._turn, kept_grad_mode(), kept_heap(), gradients_off:
            self._infer(dl, [*self.cbs, *cbs], collect, with_loss)

    def _infer(self, dl: Any, cbs: Sequence[Callback], collect: Handler, with_loss: bool) -> None:
        callbacks = [callback for callback in cbs if callback.takes_part_in("inference")]
        on = Handlers([*callbacks, Callback(after_batch=collect)], "valid")
        fields, rng = dict(vars(self)), RngState()
        put_back_modes = hold_modes(self.opt, self.model, self.loss_module)
        put_back_loader = hold_loaders(*(own for own in self.dls.loaders() if own is dl))

        def put_back() -> None:
            rng.restore()
            put_back_loader()
            put_back_modes()
            for name in vars(self).keys() - fields.keys():
                del vars(self)[name]
            vars(self).update(fields)  # never emptied: other threads read them

        try:
            with suppress(CancelValid), in_evaluation(self.loss_module):
                self._contexts = self._forward_contexts(callbacks)
                self._set_up_pass(dl, training=False)
                for self.iter, batch in enumerate(self._batches()):
                    self._valid_batch(batch, on, with_loss=with_loss)
        except Cancel as cancel:
            raise OnecycleError(cancel.out_of_place(where(self))) from cancel
        except Exception as error:
            explain(self, error)
            raise
        finally:
            surely(put_back)

    # Events -------------------------------------------------------------------------------

    def _scope(self, name: str, cancel_type: type[Cancel], body: Callable[[], None]) -> None:
        """Run a part of the loop between its two events; its own cancel ends it."""
        on = self._on
        try:
            fire(self, getattr(on, f"before_{name}"), f"before_{name}")
            body()
        except cancel_type as cancel:
            self._cancelled(name, cancel, on)
        report(self, getattr(on, f"after_{name}"), f"after_{name}")

    def _cancelled(self, name: str, cancel: Cancel, on: Handlers) -> None:
        self.stop_reason = cancel.reason or self.stop_reason
        fire(self, getattr(on, f"after_cancel_{name}"), f"after_cancel_{name}")

    # Callbacks and checks -----------------------------------------------------------------

    @contextmanager
    def added_cbs(self, cbs: Sequence[Callback]) -> Iterator[None]:
        """Run a block with more callbacks."""
        check_callbacks(cbs)
        before, ours = self.cbs, [*self.cbs, *cbs]
        try:
            self.cbs = ours
            yield
        except GeneratorExit:  # Ctrl-C while this was entered: it ends after those around it
            before = before if self.cbs is ours else self.cbs
            raise
        finally:
            surely(lambda: vars(self).update(cbs=before))

    def join_fit(self, callback: Callback, held: Sequence[Callback]) -> None:
        """Let a callback take part in the running fit, and schedulers set nothing any more."""
        self.cbs = [*self.cbs, callback]
        self._build_handlers(held)

    def leave_fit(self, callback: Callback) -> None:
        """Let a callback hear no more of what is running; from here on it costs nothing."""
        self.cbs = [each for each in self.cbs if each is not callback]
        self._build_handlers(self._held)

    def _build_handlers(self, held: Sequence[Callback]) -> None:
        self._held = held
        callbacks = [each for each in self.cbs if each.takes_part_in(self._run or "fit")]
        self._on.build(callbacks, "train", held)
        self._on_valid.build(callbacks, "valid", held)

    def _forward_contexts(self, callbacks: list[Callback]) -> list[AbstractContextManager[Any]]:
        found = (callback.forward_context(self) for callback in callbacks)
        return [context for context in found if context is not None]

    def _drop_gradients(self) -> None:
        self.stepper.zero_grad()
        self.batches_in_window = 0
