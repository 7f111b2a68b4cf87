"""Where a fit stands: all that a callback reads on ``learn``, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.data.calls import call_model
from onecycle.data.lengths import Lengths, least
from onecycle.data.loaders import DataLoaders, n_batches, with_batch_size
from onecycle.data.resized import SizesByEpoch
from onecycle.data.sizes import BatchSizes
from onecycle.data.streams import Stream
from onecycle.explanations import (
    BAD_CALL,
    explain_loss_error,
    explain_model_error,
    require_loss,
    tell_broadcast,
)
from onecycle.optim.buffers import buffer_shapes
from onecycle.optim.loss_module import loss_module
from onecycle.optim.modes import freeze_norms, put_in_training
from onecycle.processes import Processes
from onecycle.record.weights import LossWeights, Weight

if TYPE_CHECKING:
    from onecycle.core.callback import Callback, Run
    from onecycle.core.restore import RngState
    from onecycle.optim.groups import ParamGroups
    from onecycle.optim.stepper import Stepper
    from onecycle.record.metrics import MetricSet


class LoopState:
    """What a callback reads on ``learn``, and may write unless it says otherwise.

    Attributes:
        model: What is trained.
        dls: The training and validation loaders; ``dl`` is the one in use.
        loss_func: Called with ``(pred, yb)``; ``None`` for a model that returns its loss. A ``yb``
            that is a tuple is several targets, and each is an argument.
        opt: The optimizer; ``groups`` gives its hyperparameters by name.
        cbs: All callbacks that take part, those of this fit included.
        metrics: The metrics computed on validation.
        first_buffers: The shapes that the buffers of model and loss function had when the learner
            was made; some take shape in training.
        frozen_norms: The layers that stay in evaluation mode: see `freeze_norms`.
        eval_parts: The parts of the model that were put in evaluation mode by hand, and stay so.
        device: Where the model and the batches are.
        seed: The data order is a function of it and of ``total_epochs``.
        batch, xb, yb: The batch on the device, whole and split; writing ``xb`` changes what the
            model sees.
        pred: What the model returned.
        loss_grad: The loss with its graph: what is differentiated. May be rewritten.
        loss: The loss detached, on the device: what is reported. Nobody writes it.
        update_loss: The loss of the update just made: the mean over its accumulated batches, or
            the sum of ``turn_losses``.
        turn_losses: Where optimizers take turns, the loss that each stepped by, by its name.
        epoch, n_epoch: The epoch, from 0, and their number, perhaps with a fraction (``None``:
            until ``max_updates``).
        iter, n_iter: The batch of this pass, from 0, and their number (``None``: unknown). A pass
            begins at the batch that ``iter`` names after ``before_train``.
        stream: Where the training loader stands if it has no order of its own: see `Stream`.
        rng: Random states to go on with once the next pass has begun, or ``None``; set by a
            resume, since passing over batches may draw from them.
        event: The event that was fired last.
        training: Whether this is a training pass.
        n_updates: The updates made in this fit.
        n_skipped: The updates skipped in this fit.
        n_updates_planned: The updates this fit will make; ``None`` if that cannot be known.
        n_updates_scheduled: The updates over which the schedules run: those planned, save where a
            resumed fit keeps the plan of a shorter or longer one.
        total_updates, total_epochs: The same over the learner's life.
        batches_per_update: How many batches make one update; set in ``before_fit``, before
            `plan_updates`.
        batch_sizes: How many samples of the training loader make a batch of all processes, from
            which epoch of this fit on, where not those of its own batches; set like that.
        batches_in_window: The batches whose gradients wait for the next update.
        stepper: How an update is made, and a batch's loss where not by the learner's own methods;
            each fit begins with a new one of ``make_stepper``.
        valid_set: The name of the validation set of this pass, or of the last one; ``""`` for the
            only one, and of several for the first.
        validates: Whether this epoch ends with validation; may be set until ``after_train``.
        between_batches: While validation stands between two training batches, how many of them
            are done in this epoch; else 0.
        stop_reason: The reason that the last cancel gave, or ``None``.
        is_cancelled: Whether a callback before this one has answered the event that fires with a
            cancel, which acts when all have heard of it.
        loss_weights: What `loss_weight` asks.
        processes: The processes that train together; ``None`` for one alone.
        whole_weight: What `loss_weight` is for the batch of all processes; ``None`` in one.
        sharded: What each process has a part of; ``None`` where it has the whole model.
    """

    batch: Any
    xb: Any
    yb: Any
    pred: Any
    loss: Any
    loss_grad: Any
    update_loss: Any
    processes: Processes | None = None
    whole_weight: Weight | None = None
    sharded: Any = None

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        loss_func: Callable[..., Tensor] | None,
        groups: ParamGroups,
        *,
        cbs: Sequence[Callback],
        metrics: Sequence[Any],
        seed: int,
        n_inp: int | None,
        loss_weights: LossWeights,
        make_stepper: Callable[[Optimizer], Stepper],
    ) -> None:
        self.dls, self.model, self.loss_func = dls, model, loss_func
        self.opt, self.groups = groups.opt, groups
        self.make_stepper, self.stepper = make_stepper, make_stepper(groups.opt)
        self.cbs, self.metrics = list(cbs), list(metrics)
        self.first_buffers = [buffer_shapes(model), buffer_shapes(self.loss_module)]
        self.frozen_norms: list[nn.Module] = []
        self.eval_parts: list[nn.Module] = []
        self.device, self.seed, self.n_inp = next(model.parameters()).device, seed, n_inp
        self.dl: Any = dls.train
        self.epoch = self.iter = self.n_updates = self.n_skipped = 0
        self.total_updates = self.total_epochs = self.batches_in_window = 0
        self.batches_per_update, self.between_batches, self.batch_sizes = 1, 0, SizesByEpoch({})
        self.n_epoch: float | None = 0
        self.n_iter: int | None = None
        self.n_updates_planned: int | None = None
        self.n_updates_scheduled: int | None = None
        self.steps_per_epoch: int | None = None
        self.max_updates: int | None = None
        self.rng: RngState | None = None
        self.training, self.is_cancelled, self.validates = False, False, True
        self.stop_reason: str | None = None
        self.event = self.valid_set = ""
        self._run: Run | None = None
        self._sizes, self.loss_weights, self.stream = BatchSizes(), loss_weights, Stream()
        self._turn, self._thread = RLock(), 0  # what runs has its turn, and is in this thread
        self.forget_batch()

    # What a subclass may override ---------------------------------------------------------

    def predict_batch(self, batch: Any) -> Any:
        """Return what the model says of ``self.xb``: see `onecycle.data.calls.call_model`."""
        xb = self.xb
        try:
            return self.model(xb) if isinstance(xb, Tensor) else call_model(self.model, xb)
        except BAD_CALL as error:
            explain_model_error(error, self.model, xb)
            raise

    def batch_size(self, batch: Any) -> int:
        """Return how many samples a batch has: see `onecycle.data.sizes.BatchSizes`."""
        return self._sizes(batch, self.n_inp)

    def loss_weight(self, pred: Any, batch: Any) -> Weight:
        """Return how much the loss of a batch counts where several are averaged.

        By default what ``loss_weight=`` of the learner returns, or else what the loss is a mean of:
        of torch's cross-entropy and negative log-likelihood the targets that are not
        ``ignore_index``, or their class weights; of any other the samples, `batch_size`.
        """
        weight = self.loss_weights(self.loss_func, pred, batch, self.yb)
        return self.batch_size(batch) if weight is None else weight

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        """Return the scalar loss of ``pred`` against ``self.yb``, with its graph."""
        yb = self.yb
        targets = () if yb is None else yb if type(yb) is tuple else (yb,)
        try:
            if self.loss_func is None:
                loss = pred["loss"] if isinstance(pred, Mapping) else getattr(pred, "loss", pred)
            else:
                if not self.iter and not self.total_updates:
                    tell_broadcast(pred, targets)
                loss = self.loss_func(pred, *targets)
        except BAD_CALL as error:
            explain_loss_error(error, pred, targets)
            raise
        return require_loss(loss)

    def measure_batch(self, means: MetricSet) -> None:
        """Add loss and metrics of the batch to the means of a pass, unless it was cancelled."""
        if self.pred is None:
            return
        if type(self).loss_weight is LoopState.loss_weight:  # whose default is asked once, below
            weight = self.loss_weights(self.loss_func, self.pred, self.batch, self.yb)
        else:
            weight = self.loss_weight(self.pred, self.batch)
        means.update(self.pred, self.yb, self.loss, self.batch_size(self.batch), weight)

    @property
    def has_samples(self) -> bool:
        """Whether this process has samples in the batch: one of several may only stand in."""
        return True

    @property
    def trains_in_turns(self) -> bool:
        """Whether a training batch has a loss for each of several optimizers."""
        return False

    # The passes -----------------------------------------------------------------------------

    def count_batches(self, dl: Any, size: int | None = None) -> int | None:
        """Return how many batches a pass over a loader has; ``None`` where it does not say.

        Args:
            dl: The loader.
            size: The samples of a batch; ``None`` for the loader's own.
        """
        return n_batches(dl if size is None else with_batch_size(dl, size))

    def epoch_length(self, epoch: int) -> int | None:
        """Return how many batches a whole epoch of this fit has; ``None`` if that is unknown."""
        batches = self.count_batches(self.dls.train, self.batch_sizes.of(epoch))
        return least(batches, self.steps_per_epoch)

    def epoch_lengths(self) -> Lengths:
        """Return `epoch_length` of the epochs at which the batch size changes, 0 among them."""
        return {epoch: self.epoch_length(epoch) for epoch in self.batch_sizes.changes}

    def whole_batch_size(self, dl: Any) -> int | None:
        """Return how many samples a batch of a loader has, where the loader says it."""
        size = getattr(dl, "batch_size", None)
        return size if isinstance(size, int) else None

    def stored_beside(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint of the fit holds besides its state."""
        return {}

    # The mode of the model ------------------------------------------------------------------

    def set_mode(self, training: bool) -> None:
        """Put the model in training or evaluation mode, but for what stays in evaluation mode."""
        if training:
            self.eval_parts = put_in_training(self.model, self.eval_parts, self.frozen_norms)
        else:
            self.model.eval()

    def freeze_norms(self, norms: Iterable[nn.Module]) -> None:
        """Keep these layers in evaluation mode in every pass, and no others from now on."""
        frozen, self.frozen_norms = self.frozen_norms, list(norms)
        self.eval_parts = freeze_norms(self.model, self.frozen_norms, self.eval_parts, frozen)

    @property
    def loss_module(self) -> nn.Module | None:
        """The module of the loss function, where it is one and none of the model's."""
        return loss_module(self.model, self.loss_func)

    # Where the fit stands -----------------------------------------------------------------

    @property
    def running(self) -> Run | None:
        """What is running: a fit, a range test, or nothing."""
        return self._run

    @property
    def pos(self) -> float:
        """The position in the schedules: updates done / (updates scheduled - 1), at most 1."""
        if self.n_updates_scheduled is None:
            raise ValueError(
                "the position needs the number of planned updates, and the training loader has no "
                "length: give steps_per_epoch= or max_updates="
            )
        return min(1.0, self.n_updates / max(1, self.n_updates_scheduled - 1))

    @property
    def pct_train(self) -> float:
        """The share of the fit's batches that is done."""
        if not self.n_epoch or not self.n_iter:
            return self.pos
        part = min(1.0, self.n_epoch - self.epoch)  # the last epoch may be a part of one
        return (self.epoch + part * self.iter / self.n_iter) / self.n_epoch

    def updates_left(self) -> int | None:
        """Return how many updates ``max_updates`` still allows; ``None`` without a limit."""
        if self.max_updates is None:
            return None
        return max(0, self.max_updates - self.n_updates - self.n_skipped)

    def epochs_left(self) -> Iterator[int]:
        """Give the epochs to run, from where the fit stands; a resumed one may be at its end.

        The number of epochs may change meanwhile: a landing is counted in updates alone.
        """
        if self.updates_left() == 0 and not self.iter:
            return
        epoch = self.epoch
        while self.n_epoch is None or epoch < self.n_epoch:
            yield epoch
            epoch += 1

    def shortfall(self) -> str:
        """Say that the schedule did not reach its end, and why; nothing where it did."""
        planned = self.n_updates_planned
        if planned is None or self.n_updates >= planned:
            return ""
        position = max(0, self.n_updates - 1) / max(1, planned - 1)
        return (
            f"{self.n_updates} of {planned} planned updates were made, {self.n_skipped} skipped: "
            f"the schedule ended at position {position:.4g}"
        )

    def go_on_with_rng(self) -> None:
        """Put the random states of a resumed fit in force, if there are any."""
        if self.rng is not None:
            self.rng.restore()
            self.rng = None

    def forget_batch(self) -> None:
        """Keep no batch, prediction or graph alive."""
        self.batch = self.xb = self.yb = self.pred = None
        self.loss = self.loss_grad = self.update_loss = None
        self.turn_losses: dict[str, Tensor] = {}
