"""`EMA` and `SWA`: train one set of weights, and judge and keep the average of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from onecycle.arguments import check_fraction, check_momentum
from onecycle.core.callback import Callback, Stage
from onecycle.core.restore import preserved_rng
from onecycle.data.generators import order_seed, seed_all
from onecycle.errors import CancelValid
from onecycle.optim.sharded import part_of

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class WeightAverage:
    """A running average of a model's weights, which can take their place for a while.

    Averaged are the parameters and the running statistics of normalization layers. Other buffers
    are not: they may be counters, or masks with infinities, of which no mean can be made. Half
    precision is averaged in float32, in which a small step is not rounded away.

    Attributes:
        count: How many times the weights were averaged.
        values: The average, by the names of the model; empty before the first time.

    Example:
        >>> model, average = nn.Linear(1, 1, bias=False), WeightAverage()
        >>> for weight in (1.0, 3.0):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     average.update(model, 1 / (average.count + 1))
        >>> average.put_in(model)
        >>> model.weight.item()
        2.0
        >>> average.take_out()
        >>> model.weight.item()
        3.0
    """

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[str, Tensor] = {}
        self._live: list[Tensor] = []
        self._trained: list[tuple[Tensor, Tensor]] = []

    def update(self, model: nn.Module, weight: float) -> None:
        """Move the average towards the weights of now, without waiting for the device.

        Args:
            model: The model, the same each time.
            weight: How far, in [0, 1]: 1 forgets the average. The first time is always 1.
        """
        self._bind(model)
        if self.count:
            averages = list(self.values.values())
            with torch.no_grad():
                live = [tensor.to(a.dtype) for tensor, a in zip(self._live, averages, strict=True)]
                torch._foreach_lerp_(averages, live, weight)
        self.count += 1

    def put_in(self, model: nn.Module) -> None:
        """Put the average into the model, in place, until `take_out` or `keep`."""
        if self.is_in or not self.count:
            return
        self._bind(model)
        self._trained = [
            (t, t.detach().clone()) for t in chain(model.parameters(), model.buffers())
        ]
        with torch.no_grad():
            for live, value in zip(self._live, self.values.values(), strict=True):
                live.copy_(value)

    @property
    def is_in(self) -> bool:
        """Whether the average is in the model for now."""
        return bool(self._trained)

    def take_out(self) -> None:
        """Put the trained weights and buffers back, in place, where the average is in."""
        with torch.no_grad():
            for live, trained in self._trained:
                live.copy_(trained)
        self._trained = []

    def keep(self) -> None:
        """Leave the average in the model for good."""
        self._trained = []

    def adopt_statistics(self) -> None:
        """Take the running statistics that the model has now, while the average is in."""
        for live, value in zip(self._live, self.values.values(), strict=True):
            if not isinstance(live, nn.Parameter):
                value.copy_(live)

    def _bind(self, model: nn.Module) -> None:
        """Find the model's tensors, and their averages: those of a restart, or new ones."""
        if self._live:
            return
        named = _averaged_tensors(model)
        if self.values and self.values.keys() != named.keys():
            raise ValueError(
                "the average that was loaded is of another model: they differ in "
                f"{sorted(self.values.keys() ^ named.keys())[:3]}"
            )
        self._live = list(named.values())
        self.values = {
            name: part_of(self.values.get(name, tensor.detach()), tensor).to(
                tensor.device, torch.promote_types(tensor.dtype, torch.float32), copy=True
            )
            for name, tensor in named.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and how many times it was made."""
        return {"count": self.count, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.count, self.values = state["count"], dict(state["values"])
        self._live = []


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    statistics = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in (module.running_mean, module.running_var)
    }
    named = chain(
        model.named_parameters(),
        ((name, buffer) for name, buffer in model.named_buffers() if id(buffer) in statistics),
    )
    return {name: t for name, t in named if t.is_floating_point() or t.is_complex()}


class _Averaging(Callback):
    """Averages the weights; validation sees the average, and the fit leaves it in the model."""

    def __init__(self) -> None:
        self._average = WeightAverage()

    def before_fit(self, learn: Loop) -> None:
        """Begin a new average."""
        if any(isinstance(cb, _Averaging) and cb is not self for cb in learn.cbs):
            raise ValueError("one fit can leave one average in the model: use EMA or SWA, not two")
        self._average = WeightAverage()

    def before_validate(self, learn: Loop) -> None:
        """Put the average into the model."""
        self._put_in(learn)

    def after_validate(self, learn: Loop) -> None:
        """Put the trained weights back."""
        self._average.take_out()

    def after_epoch(self, learn: Loop) -> None:
        """Put the trained weights back where a cancel of the epoch ended its validation."""
        self._average.take_out()

    def after_fit(self, learn: Loop) -> None:
        """Leave the average in the model."""
        if not self._average.count:
            log.warning("%s averaged no update: the weights are as trained", type(self).__name__)
        self._put_in(learn)
        self._average.keep()

    def cleanup_fit(self, learn: Loop) -> None:
        """Put the trained weights back after an error, and free the memory."""
        self._average.take_out()
        self._average = WeightAverage()

    @contextmanager
    def as_validated(self, learn: Loop) -> Iterator[None]:
        """Return a context in which the average is in the model."""
        was_in = self._average.is_in
        self._put_in(learn)
        try:
            yield
        finally:
            if not was_in:
                self._average.take_out()

    def _put_in(self, learn: Loop) -> None:
        self._average.put_in(learn.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the average so far; empty outside a fit."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._average.load_state_dict(state)


class EMA(_Averaging):
    """Keep an exponential moving average of the weights, and end the fit with it.

    After each update ``average = d * average + (1 - d) * weights``, for the parameters and for
    the running statistics of normalization layers. At the t-th update ``d`` is
    ``min(decay, t / (t + 9))``, so that the first weights, which are bad, are soon forgotten, and
    a short fit averages too. The average begins as the weights after the first update.

    Validation inside the fit sees the average, so that what is recorded and monitored is what
    the fit leaves in the model: also if it is cancelled, but not after an error, which leaves the
    weights as trained. The optimizer keeps its own state. Each fit begins a new average.

    Between validations the model holds the weights in training; `SaveModel` writes the average
    all the same, and restores that of the best epoch.

    Args:
        decay: The share of the average that an update keeps, in [0, 1). The average spans about
            ``1 / (1 - decay)`` updates.

    Raises:
        ValueError: If ``decay`` is out of range; before the first batch, if another callback of
            the fit averages too.

    Source:
        Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J.
        Control Optim. 30 (1992), for averaging. The bound on the early decay is that of
        TensorFlow's ``tf.train.ExponentialMovingAverage``, ``(1 + n) / (10 + n)``, with
        ``n = t - 1``.

    Example:
        >>> from onecycle import EMA
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(3, lr=0.01, cbs=[EMA(0.99)])
        >>> recorded = learn.recorder.history["valid_loss"].values.tolist()
        >>> learn.validate()["valid_loss"] == recorded[-1]
        True
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = check_momentum("decay", decay)

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the decay."""
        return {"average.kind": "EMA", "average.decay": self.decay}

    def after_step(self, learn: Loop) -> None:
        """Take the weights of this update into the average."""
        n = self._average.count
        self._average.update(learn.model, 1 - min(self.decay, (1 + n) / (10 + n)))


class SWA(_Averaging):
    """Average the weights of the last updates equally, and end the fit with the average.

    Every update from ``start`` on counts the same. The averaged weights get statistics of their
    own for batch norm: a pass over the training loader in training mode, without gradients,
    takes the cumulative mean over its batches. That is done before each validation that sees
    the average, and at the end; models without batch norm need no such pass.

    From ``start`` on, validation inside the fit sees the average, and the fit leaves it in the
    model: also if it is cancelled, but not after an error, which leaves the weights as trained.
    The optimizer keeps its own state. Each fit begins a new average. It was made for a rate that
    stays high, as in ``fit(..., lr)``: where the rate falls to nothing, the weights that are
    averaged are nearly the same.

    Between validations the model holds the weights in training; `SaveModel` writes the average
    all the same, and restores that of the best epoch.

    Args:
        start: The position in the fit from which the weights are averaged, in [0, 1]: 0 for all
            updates, 1 for the last one alone.

    Raises:
        ValueError: If ``start`` is out of range; before the first batch, if another callback of
            the fit averages too, or if nothing tells how many updates the fit will make.

    Source:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
        arXiv:1803.05407.

    Example:
        >>> from onecycle import SWA
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(4, lr=0.01, cbs=[SWA(start=0.5)])
        >>> recorded = learn.recorder.history["valid_loss"].values.tolist()
        >>> learn.validate()["valid_loss"] == recorded[-1]
        True
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        self.start = check_fraction("start", start)
        self._statistics_of = 0

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return where averaging begins."""
        return {"average.kind": "SWA", "average.start": self.start}

    def before_fit(self, learn: Loop) -> None:
        """Begin a new average, after checking that the fit has a known length."""
        super().before_fit(learn)
        self._statistics_of = 0
        _ = learn.pos  # raises, and says what to do, where the length is unknown

    def after_step(self, learn: Loop) -> None:
        """Take the weights of this update into the average, if its turn has come."""
        planned = learn.n_updates_planned or 1
        position = (learn.n_updates - 1) / max(1, planned - 1)  # at which the update was made
        if position >= self.start:
            self._average.update(learn.model, 1 / (self._average.count + 1))

    def _put_in(self, learn: Loop) -> None:
        super()._put_in(learn)
        if self._statistics_of < self._average.count:
            _recompute_statistics(learn)
            self._average.adopt_statistics()
            self._statistics_of = self._average.count


class _TrainingMode(Callback):
    """Lets an inference pass run in training mode."""

    stage = Stage.PREPARE

    def before_batch(self, learn: Loop) -> None:
        learn.set_mode(True)


def _recompute_statistics(learn: Loop) -> None:
    """Take the statistics of batch norm anew, as ``torch.optim.swa_utils.update_bn`` does."""
    norms = [
        module
        for module in learn.model.modules()
        if isinstance(module, _BatchNorm) and module not in (*learn.frozen_norms, *learn.eval_parts)
    ]
    if not any(norm.track_running_stats for norm in norms):
        return
    longest = learn.max_updates and learn.max_updates * learn.batches_per_update
    limit = learn.steps_per_epoch or longest  # a loader without an end must have one of them

    def stop(learn: Loop) -> None:
        if learn.iter + 1 == limit:
            raise CancelValid("the batches of an epoch are done")

    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean: every batch counts the same
        with learn.added_cbs([_TrainingMode()]), preserved_rng():
            seed_all(order_seed(learn.seed, learn.total_updates))  # alike in every process
            learn.infer(learn.dls.train, stop, with_loss=False)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
