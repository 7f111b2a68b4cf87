"""`SnapshotEnsemble`: the models at the ends of a fit's cycles, predicting together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.callbacks.monitor import Mode, direction_of
from onecycle.core.callback import Callback
from onecycle.record.metrics import Metric, MetricFunction, accuracy, as_metrics
from onecycle.record.values import named_numbers

if TYPE_CHECKING:
    from onecycle.core.loop import Loop
    from onecycle.record.predictions import Predictions

#: Rates that differ by less are the same: a schedule that holds a rate may round it.
_SAME_RATE = 1e-6


@dataclass(frozen=True)
class EnsembleReport:
    """What an ensemble is worth, compared with its members; prints as a table.

    Attributes:
        metric: The name of the metric.
        members: The metric of each member, in the order they were taken.
        ensemble: The metric of their mean prediction.
        gain: By how much the ensemble is better than the best member; negative if it is worse. A
            member whose metric is NaN is not the best.
    """

    metric: str
    members: tuple[float, ...]
    ensemble: float
    gain: float

    def __str__(self) -> str:
        rows = [(f"member {i}", value) for i, value in enumerate(self.members, start=1)]
        rows += [("ensemble", self.ensemble), ("gain", self.gain)]
        width = max(10, len(self.metric))
        lines = [f"{name:<10} {value:>{width}.4f}" for name, value in rows]
        return "\n".join([f"{'':<10} {self.metric:>{width}}", *lines])


class SnapshotEnsemble(Callback):
    """Keep the model at the end of each cycle of a fit, to predict with all of them.

    A cycle ends where the learning rate of the last parameter group, after it fell, rises again,
    and at the end of the fit: ``fit_sgdr(3, ...)`` gives three members, one cycle gives one. A
    cycle of a single update has no fall and gives none. A fit that is cancelled gives no member
    for the cycle that it breaks off. Each fit begins anew.

    Attributes:
        members: The states of the model at the ends of the cycles, on the CPU, oldest first.

    Source:
        Huang et al., "Snapshot Ensembles: Train 1, get M for free", arXiv:1704.00109.

    Example:
        >>> from onecycle import Learner, SnapshotEnsemble, TensorLoader
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2)
        >>> loader = TensorLoader(x, (x[:, 0] > x[:, 1]).long(), batch_size=8)
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> learn = Learner((loader, loader), model, nn.functional.cross_entropy, device="cpu")
        >>> ensemble = SnapshotEnsemble()
        >>> with learn.no_bar():
        ...     learn.fit_sgdr(3, 1, 0.02, cbs=[ensemble])
        >>> len(ensemble.members), ensemble.get_preds(learn).preds.shape
        (3, torch.Size([64, 2]))
    """

    during = "train"

    needs_whole_model = True

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.members: list[dict[str, Any]] = []
        self._rate = math.inf
        self._fell = self._cancelled = False

    def before_fit(self, learn: Loop) -> None:
        """Begin a new ensemble."""
        self._begin()
        self._slot = learn.groups.slots("lr", len(learn.groups) - 1)[0]

    def before_batch(self, learn: Loop) -> None:
        """Take a member, if the rate that is now set begins a new cycle."""
        rate = self._slot.get()
        if math.isclose(rate, self._rate, rel_tol=_SAME_RATE):
            return
        if rate > self._rate and self._fell:
            self.members.append(_copied_state(learn.model))
        self._fell = rate < self._rate < math.inf
        self._rate = rate

    def after_cancel_fit(self, learn: Loop) -> None:
        """Remember that the last cycle did not come to its end."""
        self._cancelled = True

    def after_fit(self, learn: Loop) -> None:
        """Take the last member."""
        if learn.n_updates and not self._cancelled:
            self.members.append(_copied_state(learn.model))

    def get_preds(self, learn: Any, dl: Iterable[Any] | None = None) -> Predictions:
        """Predict a whole loader with every member; leaves the learner as it was.

        Args:
            learn: The learner whose model the members are of. It classifies: the model returns
                scores of shape ``(batch, classes)`` or ``(batch, classes, ...)``, of which the
                softmax is taken.
            dl: By default the validation loader.

        Returns:
            As ``learn.get_preds``, with the mean of the members' probabilities as ``preds``.

        Raises:
            ValueError: If there is no member, the model's predictions are no scores of classes,
                or the loader gives another order each time.
        """
        return _mean(self._member_preds(learn, dl))

    def evaluate(
        self,
        learn: Any,
        dl: Iterable[Any] | None = None,
        *,
        metric: MetricFunction | Metric = accuracy,
        mode: Mode = "auto",
    ) -> EnsembleReport:
        """Measure every member and the ensemble; leaves the learner as it was.

        Args:
            learn: As in `get_preds`.
            dl: By default the validation loader.
            metric: What a `Learner` takes as a metric, of one number; it is given probabilities.
            mode: Which way it is better, as for `EarlyStopping`.

        Returns:
            The metric of each member and of the ensemble, and the gain over the best member.

        Raises:
            ValueError: As in `get_preds`; if which way the metric is better is not known.
            TypeError: If the metric gives several numbers.
        """
        ((name, given),) = as_metrics([metric]).items()
        sign = -1.0 if direction_of(name, given, mode) == "min" else 1.0
        each = self._member_preds(learn, dl)
        *members, ensemble = (_measured(name, given, found) for found in [*each, _mean(each)])
        best = max((sign * value for value in members if not math.isnan(value)), default=math.nan)
        return EnsembleReport(name, tuple(members), ensemble, sign * ensemble - best)

    def _member_preds(self, learn: Any, dl: Iterable[Any] | None) -> list[Predictions]:
        if not self.members:
            raise ValueError(
                "the ensemble has no member: pass it to a fit, as in "
                "learn.fit_sgdr(..., cbs=[ensemble])"
            )
        own, found = _copied_state(learn.model), []
        try:
            for member in self.members:
                learn.model.load_state_dict(member)
                raw = learn.get_preds(dl)
                found.append(replace(raw, preds=_probabilities(raw.preds)))
        finally:
            learn.model.load_state_dict(own)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the members, and where the rate stands."""
        return {"members": list(self.members), "rate": self._rate, "fell": self._fell}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.members = list(state["members"])
        self._rate, self._fell = state["rate"], state["fell"]


def _copied_state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        is_tensor = isinstance(value, Tensor)
        state[name] = value.detach().to("cpu", copy=True) if is_tensor else deepcopy(value)
    return state


def _probabilities(preds: Any) -> Tensor:
    if not isinstance(preds, Tensor) or preds.ndim < 2 or preds.shape[1] < 2:
        came = tuple(preds.shape) if isinstance(preds, Tensor) else type(preds).__name__
        raise ValueError(
            "the ensemble takes the mean of class probabilities: expected scores of shape "
            f"(samples, classes, ...) with two classes or more; got {came}"
        )
    return preds.softmax(1, dtype=torch.promote_types(preds.dtype, torch.float32))


def _mean(each: list[Predictions]) -> Predictions:
    first = each[0]
    for other in each[1:]:
        first.require_same_targets(other)
    return replace(first, preds=torch.stack([found.preds for found in each]).mean(0))


def _measured(name: str, metric: Metric, found: Predictions) -> float:
    measure = deepcopy(metric)
    measure.reset()
    measure.update(found.preds, found.targets)
    values = named_numbers(name, measure.compute())
    if list(values) != [name]:
        raise TypeError(
            f"the metric of an ensemble is one number; {name} gave {', '.join(values)}: give one "
            "of them alone"
        )
    return values[name]
