"""`Turns`: several optimizers that step one after the other in each batch, each by its own loss."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from torch import Tensor

from onecycle.arguments import shown
from onecycle.core.handlers import Handlers, fire, report
from onecycle.core.loop import Loop
from onecycle.errors import Cancel, CancelBatch, OnecycleError
from onecycle.explanations import require_loss
from onecycle.optim.several import Optimizers
from onecycle.optim.stepper import Stepper

#: Gives the name of an optimizer with the loss that it steps by, for each turn of a batch.
Losses = Generator[tuple[str, Tensor], None, None]


class Turns(Loop):
    """A loop that trains a batch in turns where `compute_losses` is overridden.

    Any other learner is trained as `Loop` does it: which of both is asked once for each pass.
    """

    def compute_losses(self, batch: Any) -> Losses:
        """Yield an optimizer's name and its loss, for each that steps, in their order.

        To be overridden where optimizers take turns, as those of a GAN do; this replaces
        `predict_batch` and `compute_loss` in training. What is yielded is differentiated, and that
        optimizer steps, before the next line of this method runs; gradients that others got from
        this loss are dropped.
        Which of them a batch trains, and how often, is what is written here; ``self.n_updates``
        counts the updates of the fit. One update is one step of each optimizer that the batch gave
        a loss for, at least of one. An optimizer whose parameters are all frozen is passed over.

        The learner needs optimizers with names: ``opt_func=`` or ``opt=`` as a dict. Its record
        has the sum of an update's losses as ``"train_loss"``, and each one under a name such as
        ``"train_loss/critic"``. Of the events, ``after_loss``, ``before_backward``,
        ``after_backward`` and ``before_step`` fire in each turn, with ``learn.loss`` and
        ``learn.stepper`` of that turn; ``after_pred`` does not fire; the others fire once. A turn
        that is skipped in ``before_step`` leaves the others as they are; where no optimizer
        stepped, the update was skipped. Validation goes by `predict_batch` and `compute_loss`.
        Several processes take the same turns, each loss is that over the samples of all of them,
        by their number, and only a callback can pass over a batch.

        Args:
            batch: The whole batch, as ``self.batch``; ``self.xb`` and ``self.yb`` are its parts.

        Yields:
            The name of an optimizer, and a scalar loss with its graph.

        Raises:
            ValueError, TypeError: In a fit, before its first batch, where the learner has one
                optimizer alone, or what is made for one loss takes part: `GradientAccumulation`,
                `MixedPrecision` in fp16 (bf16 is fine), `CudaGraph`. At the first batch, for what
                is no name of an optimizer with a loss, or comes twice.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from torch.nn.functional import softplus
            >>> from onecycle import Learner, TensorLoader
            >>> class GAN(Learner):
            ...     def compute_losses(self, batch):
            ...         generator, critic = self.model["generator"], self.model["critic"]
            ...         fake = generator(torch.randn(len(self.xb), 2))
            ...         false, true = critic(fake.detach()), critic(self.xb)
            ...         yield "critic", (softplus(false) + softplus(-true)).mean()
            ...         if self.n_updates % 2 == 1:  # every second update
            ...             yield "generator", softplus(-critic(fake)).mean()
            >>> parts = nn.ModuleDict({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)})
            >>> opts = {name: torch.optim.Adam(part.parameters()) for name, part in parts.items()}
            >>> data = TensorLoader(torch.randn(32, 2), batch_size=8)
            >>> learn = GAN((data, None), parts, opt=opts, device="cpu")
            >>> with learn.no_bar():
            ...     learn.fit(1)
            >>> learn.recorder.history["train_loss/generator"].updates
            array([2, 4])
        """
        raise NotImplementedError

    @property
    def trains_in_turns(self) -> bool:
        """Whether a training batch has a loss for each of several optimizers."""
        return type(self).compute_losses is not Turns.compute_losses

    def _batch_trainer(self) -> Callable[[Any, Handlers], None]:
        if not self.trains_in_turns:
            return super()._batch_trainer()
        return partial(self._train_in_turns, turn_steppers(self))

    def _train_in_turns(self, steppers: dict[str, Stepper], batch: Any, on: Handlers) -> None:
        try:
            self._take(batch)
            if on.before_batch:
                fire(self, on.before_batch, "before_batch")
            self._update_in_turns(steppers, on)
        except CancelBatch as cancel:
            self._batch_cancelled(cancel, on)
        if on.after_batch:
            report(self, on.after_batch, "after_batch")

    def _update_in_turns(self, steppers: dict[str, Stepper], on: Handlers) -> None:
        """Make an update; what was stepped counts as one, whatever ends the turns."""
        own, made, cancelled = self.stepper, dict[str, Tensor](), None
        self.turn_losses = made
        try:
            self._take_turns(steppers, made, on)
        except Cancel as cancel:
            cancelled = cancel
        finally:
            self.stepper = own
            own.zero_grad()
            if made:
                self.update_loss = sum(made.values())
                self.n_updates += 1
                self.total_updates += 1
        if made and on.after_step:
            report(self, on.after_step, "after_step")
        if cancelled is not None:
            raise cancelled
        if not made:
            self.n_skipped += 1

    def _take_turns(
        self, steppers: dict[str, Stepper], made: dict[str, Tensor], on: Handlers
    ) -> None:
        losses, taken, whole = self.compute_losses(self.batch), set[str](), self.stepper
        if not isinstance(losses, Generator):
            raise TypeError(
                "compute_losses must yield an optimizer's name and its loss, as in yield "
                f'"critic", loss; it returned {shown(losses)}'
            )
        with closing(losses):
            while (turn := self._next_turn(losses)) is not None:
                name, loss = _checked(turn, steppers, taken)
                self._agree_on([*steppers].index(name))
                taken.add(name)
                self.stepper = steppers[name]
                is_frozen = not any(p.requires_grad for p in self.stepper.params)
                if not is_frozen and self._step_by(loss, on):
                    made[name] = self.loss
                whole.zero_grad()
        self._agree_on(-1)
        if not taken:
            raise ValueError(
                "compute_losses yielded no loss for a batch: yield at least one, or raise "
                "CancelBatch to pass over the batch"
            )

    def _next_turn(self, losses: Losses) -> Any:
        """Let the method run to its next loss, in the contexts of a forward pass."""
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context)
            try:
                return next(losses, None)
            except Cancel as cancel:
                if self.processes is None:
                    raise
                raise OnecycleError(
                    "compute_losses raised a cancel, of which the other processes do not hear: let "
                    "a callback raise it, in before_batch say"
                ) from cancel

    def _agree_on(self, turn: int) -> None:
        """Refuse turns by which the gradients of several processes would be mixed up."""
        if self.processes is not None and not self.processes.is_alike(turn):
            raise OnecycleError(
                "compute_losses of this process and of another one go by other turns: which "
                "optimizer steps must not depend on the samples of one, but on self.n_updates say"
            )

    def _step_by(self, loss: Tensor, on: Handlers) -> bool:
        """Differentiate the loss of a turn, and step; return whether that was done."""
        self.loss_grad, self.loss = loss, loss.detach()
        if on.after_loss:
            fire(self, on.after_loss, "after_loss")
        if on.before_backward:
            fire(self, on.before_backward, "before_backward")
        self.stepper.backward(self.loss_grad)
        self.update_loss = self.loss
        if self._postponed(on):
            raise OnecycleError(
                "a callback postponed the update in after_backward (CancelStep), which one of "
                "several turns cannot be: skip it in before_step"
            )
        self.stepper.unscale()
        if self._skipped(on):
            fire(self, on.after_cancel_step, "after_cancel_step")
            return False
        return self.stepper.step()


def turn_steppers(learn: Loop) -> dict[str, Stepper]:
    """Return what makes the steps of each optimizer of a learner, by their names.

    Args:
        learn: The learner, in a fit that every callback has prepared.

    Raises:
        ValueError: If there is one optimizer alone, or a callback counts on one loss.
    """
    name = f"{type(learn).__name__}.compute_losses"
    if not isinstance(learn.opt, Optimizers):
        raise ValueError(
            f"{name} has optimizers step in turns, and the learner has one, "
            f"{type(learn.opt).__name__}: give it several by name, such as "
            'opt={"critic": Adam(...), "generator": Adam(...)}'
        )
    if learn.batches_per_update > 1:
        raise ValueError(
            f"{name} has optimizers step in turns, in each batch: GradientAccumulation cannot "
            "make one update of several"
        )
    plain = type(learn.make_stepper(learn.opt))
    if type(learn.stepper) is not plain or learn.stepper.forward_pass is not None:
        raise ValueError(
            f"{name} has optimizers step in turns, and a callback has the updates made in another "
            f"way, of one loss ({learn.stepper.forward_pass or learn.stepper!r}): leave it out (of "
            'mixed precision, MixedPrecision("bf16") makes none)'
        )
    return {name: Stepper(opt) for name, opt in learn.opt.members.items()}


def _checked(turn: Any, steppers: dict[str, Stepper], taken: set[str]) -> tuple[str, Tensor]:
    names = ", ".join(map(repr, steppers))
    if not isinstance(turn, tuple) or len(turn) != 2:
        raise TypeError(
            "compute_losses must yield an optimizer's name and its loss, as in yield "
            f'"critic", loss; it yielded {shown(turn)}'
        )
    name, loss = turn
    if name not in steppers:
        raise ValueError(f"compute_losses must yield one of {names} with a loss; got {name!r}")
    if name in taken:
        raise ValueError(
            f"compute_losses yielded {name!r} twice for a batch: an optimizer steps once in an "
            "update; give it the next batch, and the others a loss every few updates"
        )
    return name, require_loss(loss)
