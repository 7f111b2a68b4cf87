"""Metrics: functions of one batch, and objects that see a whole validation pass.

Most metrics are plain functions ``(pred, target) -> 0-dim tensor`` that give a mean over the
batch; `MeanMetric` makes the mean over the whole pass of them. What is no such mean (`rmse`,
or any torchmetrics object) has ``reset``, ``update`` and ``compute``, the `Metric` protocol.

A metric of predictions that are NaN is NaN, whoever wrote it: a comparison with NaN says no, and
the argmax of a row of NaN is its first class, which would pass for results.

Nothing here waits for the device until `MetricSet.compute`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, SupportsFloat, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from onecycle.arguments import (
    check_callable,
    check_count,
    check_finite,
    check_flag,
    check_one_of,
    check_text,
    class_hint,
    shown,
)
from onecycle.data.nested import map_tensors
from onecycle.data.sizes import size_of
from onecycle.processes import Processes
from onecycle.record.directions import Direction, agreed, named_direction, stated_direction
from onecycle.record.means import NanWatch, WeightedMean, share
from onecycle.record.values import named_numbers, named_parts
from onecycle.record.weights import Weight, check_weight

#: Returns the mean over a batch: one number, or several in a dict or a tuple.
MetricFunction = Callable[[Any, Any], Any]
_F = TypeVar("_F", bound=MetricFunction)

#: Names under which the record keeps something else.
RESERVED_NAMES = ("update", "train_loss", "valid_loss", "lr", "momentum")
#: By which a metric of torchmetrics asks whether there are others to add up with.
_ASKS = "distributed_available_fn"


@runtime_checkable
class Metric(Protocol):
    """What a metric over a whole validation pass can do.

    It goes by its attribute ``name`` if that is a string, else by the name of its class. If it
    has a method ``to``, it is moved to the device of the loss before the first batch. Which way it
    is better says its attribute ``higher_is_better``, if it has one that is not ``None``.
    """

    def reset(self) -> Any:
        """Forget every batch."""

    def update(self, pred: Any, target: Any) -> Any:
        """Take in one batch."""

    def compute(self) -> Any:
        """Return the metric over the batches since the last reset: see `named_numbers`."""


def _higher_is_better(higher: bool) -> Callable[[_F], _F]:
    """Let a function say which way it is better, whatever it is called later."""

    def said(metric: _F) -> _F:
        cast(Any, metric).higher_is_better = higher
        return metric

    return said


def _share_of(hits: _F) -> _F:
    """Make what says yes or no of each sample the share of yes; it is NaN where a prediction is."""

    @functools.wraps(hits)
    def metric(pred: Tensor, target: Tensor) -> Any:
        value = share(hits(pred, target))  # checks the two
        return torch.where(pred.isnan().any(), math.nan, value)

    return cast(_F, metric)


@_share_of
@_higher_is_better(True)
def accuracy(pred: Tensor, target: Tensor) -> Tensor:
    """Return the share of right classes, that of the highest score against the target.

    Args:
        pred: Scores of shape ``(batch, classes)``, or ``(batch, classes, ...)`` as in
            segmentation: the shapes of ``torch.nn.functional.cross_entropy``.
        target: Class indices of shape ``(batch,)`` or ``(batch, ...)``.

    Returns:
        A 0-dim tensor in [0, 1], or NaN if a score is.

    Raises:
        ValueError: The shapes do not belong together, or the target is no class index.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """
    _check_class_indices("accuracy", pred, target)
    return pred.argmax(1) == target


@_share_of
@_higher_is_better(False)
def error_rate(pred: Tensor, target: Tensor) -> Tensor:
    """Return the share of wrong classes: 1 minus `accuracy`.

    Args:
        pred: Scores of shape ``(batch, classes)`` or ``(batch, classes, ...)``.
        target: Class indices of shape ``(batch,)`` or ``(batch, ...)``.

    Returns:
        A 0-dim tensor in [0, 1], or NaN if a score is.

    Raises:
        ValueError: The shapes do not belong together, or the target is no class index.

    Example:
        >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """
    _check_class_indices("error_rate", pred, target)
    return pred.argmax(1) != target


def top_k_accuracy(k: int = 5) -> MetricFunction:
    """Make the metric that counts a sample as right if its class is among the k best.

    Args:
        k: How many classes may be named, at least 1.

    Returns:
        A metric called ``top_5_accuracy`` for ``k=5``; shapes as in `accuracy`.

    Raises:
        ValueError: ``k`` is below 1.

    Example:
        >>> top_2 = top_k_accuracy(2)
        >>> top_2(torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1]]), torch.tensor([2, 2]))
        tensor(0.5000)
        >>> top_2.__name__
        'top_2_accuracy'
    """
    k = check_count("k", k)
    name = f"top_{k}_accuracy"

    @_higher_is_better(True)
    def metric(pred: Tensor, target: Tensor) -> Tensor:
        _check_class_indices(name, pred, target)
        if pred.shape[1] < k:
            raise ValueError(f"{name} needs {k} classes or more, pred has {pred.shape[1]}")
        best = pred.topk(k, dim=1).indices
        return (best == target.unsqueeze(1)).any(1)

    metric.__name__ = metric.__qualname__ = name
    return _share_of(metric)


def binary_accuracy(threshold: float = 0.0) -> MetricFunction:
    """Make the metric for yes-or-no targets, one or several for each sample.

    Args:
        threshold: A ``pred`` above it says yes: 0 for logits (``BCEWithLogitsLoss``), 0.5 for
            probabilities (``BCELoss``).

    Returns:
        A metric called ``binary_accuracy``. Its ``pred`` and ``target`` have the same shape,
        ``(batch,)``, ``(batch, 1)`` or ``(batch, labels)``; the target is 0 or 1, of any dtype.

    Example:
        >>> metric = binary_accuracy()
        >>> metric(torch.tensor([-2.0, 3.0, 1.0, -1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
        tensor(0.7500)
    """
    check_finite("threshold", threshold)

    @_higher_is_better(True)
    def metric(pred: Tensor, target: Tensor) -> Tensor:
        _check_same_shape("binary_accuracy", pred, target)
        return (pred > threshold) == (target > 0.5)

    metric.__name__ = metric.__qualname__ = "binary_accuracy"
    return _share_of(metric)


@_higher_is_better(False)
def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error.

    Args:
        pred: Predictions of any shape that starts with the batch.
        target: Targets of the same shape.

    Returns:
        A 0-dim tensor, in squared units of the target.

    Raises:
        ValueError: The shapes differ; broadcasting them would give a wrong mean.

    Example:
        >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(2.)
    """
    _check_same_shape("mse", pred, target)
    return (pred - target).square().mean()


@_higher_is_better(False)
def mae(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error.

    Args:
        pred: Predictions of any shape that starts with the batch.
        target: Targets of the same shape.

    Returns:
        A 0-dim tensor, in units of the target.

    Raises:
        ValueError: The shapes differ; broadcasting them would give a wrong mean.

    Example:
        >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(1.)
    """
    _check_same_shape("mae", pred, target)
    return (pred - target).abs().mean()


def rmse() -> "MeanMetric":
    """Make the metric of the root mean squared error, the root taken over the whole pass.

    Returns:
        A metric called ``rmse``, in units of the target; shapes as in `mse`.

    Example:
        >>> metric = rmse()
        >>> metric.update(torch.tensor([3.0, 3.0]), torch.tensor([0.0, 0.0]))
        >>> metric.update(torch.tensor([0.0]), torch.tensor([0.0]))
        >>> metric.compute()  # the root of 18 / 3; the mean of batch roots would be 2
        tensor(2.4495, dtype=torch.float64)
    """
    return MeanMetric(mse, name="rmse", transform=torch.sqrt, higher_is_better=False)


class MeanMetric:
    """The mean of a function of one batch over a whole pass, weighted by samples.

    For a function that is a mean over its samples, the result is that of the function on all
    samples at once, also when the last batch is smaller. One that is a mean over what the loss is
    a mean over, such as valid tokens, is weighted as the loss is.

    Args:
        func: ``(pred, target) -> 0-dim tensor``, a mean over the batch. Only it has to
            understand what ``pred`` and ``target`` are. It may return several such means, in a
            dict or a tuple.
        name: What the metric is called; the name of ``func`` if ``None``.
        transform: Applied to the mean at the end, such as ``torch.sqrt``.
        weighted_by: ``"samples"``: a batch counts as ``batch_size`` of the learner says;
            ``"loss"``: as its ``loss_weight`` does.
        higher_is_better: Whether more of it is better. ``None``: as the class or ``func`` says;
            where neither does, as the names of ``func`` and of the metric are known for.

    Example:
        >>> metric = MeanMetric(mae)
        >>> metric.update(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0]))
        >>> metric.update(torch.tensor([5.0]), torch.tensor([0.0]))
        >>> metric.name, metric.compute().item()
        ('mae', 2.0)

        The share of right tokens among those that count, in batches padded to any length:

        >>> def token_accuracy(pred, target):
        ...     return (pred.argmax(1) == target)[target != -100].float().mean()
        >>> per_token = MeanMetric(token_accuracy, weighted_by="loss", higher_is_better=True)
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        func: MetricFunction,
        *,
        name: str | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        weighted_by: Literal["samples", "loss"] = "samples",
        higher_is_better: bool | None = None,
    ) -> None:
        if isinstance(func, type) or not callable(func) or not _takes_pred_and_target(func):
            came = f"{shown(func)}{class_hint(func)}"
            raise TypeError(f"func must be a function (pred, target) -> 0-dim tensor; got {came}")
        check_one_of("weighted_by", weighted_by, ("samples", "loss"))
        self.func, self.weighted_by = func, weighted_by
        self.name = _function_name(func) if name is None else check_text("name", name)
        if transform is not None:
            check_callable("transform", transform, "mean")
        self.transform = transform
        if higher_is_better is not None:
            self.higher_is_better = check_flag("higher_is_better", higher_is_better)
        self._mean = WeightedMean()
        self._parts: dict[str, WeightedMean] = {}
        self._watch = NanWatch()
        # Of ours that compare, one check at the end does for the whole pass.
        self._compares = is_ours(func) and hasattr(func, "__wrapped__")  # not in a partial

    def reset(self) -> None:
        """Forget every batch."""
        self._mean.reset()
        self._parts = {}
        self._watch.reset()

    def update(self, pred: Any, *targets: Any, weight: Weight | None = None) -> None:
        """Take in one batch, without waiting for the device.

        Args:
            pred: What the model gave for the batch.
            *targets: What it should have given: one, or each of several.
            weight: How much the batch counts; by default its samples, which are
                `onecycle.data.sizes.size_of` the target, or of ``pred`` if the target has none.

        Raises:
            ValueError: The function did not return one number, or a dict or tuple of them.
        """
        if weight is None:
            weight = size_of(targets[0] if len(targets) == 1 else targets, pred)
        if self._compares:
            hits = self.func.__wrapped__(pred, *targets)  # type: ignore[attr-defined]
            self._mean.keep_share(hits, weight)
            self._watch.keep(pred)
            return
        try:
            value = self.func(pred, *targets)
        except TypeError as error:
            takes = "(pred, target)" if len(targets) == 1 else f"pred and {len(targets)} targets"
            error.add_note(f"onecycle: the metric {self.name} was called with {takes}")
            raise
        if isinstance(value, Mapping | tuple | list):
            for name, part in named_parts(self.name, value).items():
                self._parts.setdefault(name, WeightedMean()).add(_one_mean(name, part), weight)
        else:
            self._mean.add(_one_mean(self.name, value), weight)

    def compute(self) -> Any:
        """Return the metric as a 0-dim tensor, still on its device; NaN if no batch came.

        A dict of such, by name, of a function that returns several.
        """
        if self._parts:
            return {name: self._transformed(mean.compute()) for name, mean in self._parts.items()}
        mean = self._transformed(self._mean.compute())
        return torch.where(self._watch.found(), math.nan, mean) if self._compares else mean

    def kept(self) -> tuple[list[WeightedMean], NanWatch]:
        """Return the means of the batches so far, and what looked for NaN in them."""
        return [*self._parts.values()] or [self._mean], self._watch

    def have(self, names: Sequence[str]) -> None:
        """Have values of these names, in this order; new ones begin with nothing."""
        self._parts = {name: self._parts.get(name) or WeightedMean() for name in names}

    def _transformed(self, mean: Tensor) -> Tensor:
        return mean if self.transform is None else self.transform(mean)

    def __repr__(self) -> str:
        return f"MeanMetric({self.name})"


def _one_mean(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(
            f"metric {name} returned a tensor of shape {tuple(value.shape)}: "
            "return one number, the mean over the batch (a 0-dim tensor), or a dict of such; what "
            "has a value for each class is no mean over batches: give an object with reset(), "
            "update(pred, target) and compute()"
        )
    if not isinstance(value, Tensor | SupportsFloat):
        raise TypeError(
            f"metric {name} returned {shown(value)}: return one number, the mean over the batch (a "
            "0-dim tensor), or a dict of such"
        )
    return value


def is_ours(func: Any) -> bool:
    """Tell whether a function is one of this module, or a partial of one."""
    return getattr(_innermost(func), "__module__", None) == __name__


def as_metric(metric: Any) -> Metric:
    """Return what a person gave as a metric in the form of the `Metric` protocol.

    Args:
        metric: A function ``(pred, target) -> 0-dim tensor``, or an object with ``reset``,
            ``update`` and ``compute``, which comes back as it is.

    Returns:
        The metric; a function is wrapped in a `MeanMetric`.

    Raises:
        TypeError: It is neither.

    Example:
        >>> as_metric(accuracy)
        MeanMetric(accuracy)
    """
    expected = (
        "a metric is a function (pred, target) -> 0-dim tensor, "
        "or an object with reset(), update(pred, target) and compute()"
    )
    if isinstance(metric, type):
        raise TypeError(f"{expected}; got the class {metric.__name__}: pass an object of it")
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise TypeError(f"{expected}; got {metric!r}")
    if not _takes_pred_and_target(metric):
        name = _function_name(metric)
        raise TypeError(
            f"{expected}; {name} does not take (pred, target): if it makes a metric, "
            f"pass what it returns, {name}(...)"
        )
    return MeanMetric(metric)


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Return metrics by name, in their order.

    Args:
        metrics: A list or tuple of what `as_metric` takes, or a single one.

    Returns:
        The metrics by name.

    Raises:
        TypeError: One of them is no metric.
        ValueError: Two have the same name, or one has a name that the record uses.

    Example:
        >>> list(as_metrics([accuracy, top_k_accuracy(5)]))
        ['accuracy', 'top_5_accuracy']
    """
    by_name: dict[str, Metric] = {}
    taken: set[str] = set()
    for metric in map(as_metric, metrics if isinstance(metrics, list | tuple) else [metrics]):
        members = _members(metric)
        name = getattr(metric, "name", None)
        if not isinstance(name, str):
            name = ", ".join(members) or type(metric).__name__
        for recorded in members or [name]:
            if recorded in RESERVED_NAMES or recorded in taken:
                other = "two metrics are" if recorded in taken else "the record has something else"
                raise ValueError(
                    f"{other} called {recorded!r}: rename one, for a function with "
                    "MeanMetric(func, name=...), for an object by its attribute `name`, for a "
                    "collection by its prefix"
                )
            taken.add(recorded)
        by_name[name] = metric
    return by_name


def _members(metric: Any) -> dict[str, Any]:
    """Return the metrics of a ``MetricCollection`` of torchmetrics by name, of others none."""
    if not isinstance(metric, nn.ModuleDict):
        return {}
    return dict(zip(metric.keys(), nn.ModuleDict.values(metric), strict=True))


def value_owners(
    metrics: Mapping[str, Metric], parts: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Return by recorded name the metric that the value comes from.

    Args:
        metrics: The metrics by name.
        parts: By metric the names of its values, where a pass has shown them: `MetricSet.parts`.

    Example:
        >>> value_owners(as_metrics([accuracy]), {"accuracy": ["cat", "dog"]})
        {'cat': MeanMetric(accuracy), 'dog': MeanMetric(accuracy)}
    """
    owners: dict[str, Any] = {}
    for name, metric in metrics.items():
        members = _members(metric)
        names = (parts or {}).get(name) or members or [name]
        owners |= {part: members.get(part, metric) for part in names}
    return owners


def better_direction(name: str, metric: Any) -> Direction | None:
    """Return which way a recorded value is better, or ``None`` where neither it nor its name says.

    Args:
        name: What it is recorded as.
        metric: The metric that it comes from, or ``None``.

    Example:
        >>> better_direction("score", MeanMetric(accuracy, name="score"))
        'max'
        >>> better_direction("nll", MeanMetric(nn.functional.cross_entropy, name="nll"))
        'min'
        >>> better_direction("mse", MeanMetric(mse, transform=torch.neg)) is None
        True
    """
    said = stated_direction(metric)
    if said is not None or not isinstance(metric, MeanMetric):
        return said or named_direction(name)
    kind, own = type(metric), _function_name(metric.func)
    is_mean = (kind.update, kind.compute) == (MeanMetric.update, MeanMetric.compute)
    if is_mean and metric.transform is None:
        stated = stated_direction(metric.func)
        return stated or agreed((named_direction(name), named_direction(own)))
    # What is made of the mean may turn it round, and the function's name says nothing.
    return None if name == own else named_direction(name)


class MetricSet:
    """The mean loss and all metrics of one validation pass.

    Args:
        metrics: What `as_metrics` takes.
        processes: Those that share the batches: the results are over all of them. Objects that are
            no `MeanMetric` see every sample in every process.

    Attributes:
        metrics: The metrics by name.
        processes: As given.
        parts: By metric the names of the values that it gave in the last pass: its own, or
            several.

    Example:
        >>> metrics = MetricSet([accuracy])
        >>> pred, target = torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])
        >>> metrics.update(pred, target, loss=torch.tensor(0.25), n=2)
        >>> metrics.compute()
        {'valid_loss': 0.25, 'accuracy': 0.5}
    """

    def __init__(self, metrics: Any = (), processes: Processes | None = None) -> None:
        self.metrics, self.processes = as_metrics(metrics), processes
        self.parts: dict[str, list[str]] = {}
        self._is_empty = True
        self._updates: list[tuple[Callable[..., Any], str | None]] = []
        self._loss = WeightedMean()
        self._watch = NanWatch()
        self._others = [name for name, each in self.metrics.items() if not _gives_nan(each)]

    def reset(self) -> None:
        """Forget every batch."""
        self._is_empty, self._updates = True, []
        self._loss.reset()
        self._watch.reset()
        for metric in self.metrics.values():
            metric.reset()

    def update(
        self, pred: Any, target: Any, loss: Tensor, n: int, loss_weight: Weight | None = None
    ) -> None:
        """Take in one batch, without waiting for the device.

        Args:
            pred: What the model gave for the batch.
            target: What it should have given. Of several targets, which are a tuple, each is an
                argument of its own, as for the loss function.
            loss: The mean loss of the batch, a 0-dim tensor without a graph.
            n: How many samples the batch has; 0 where it only stands in for another process's.
            loss_weight: How much its loss counts, a number or a 0-dim tensor that is not read; by
                default as many as it has samples.

        Raises:
            TypeError, ValueError: If the weight is none.
        """
        if loss_weight is None:
            loss_weight = n
        elif type(loss_weight) is not int or loss_weight < 0:
            check_weight(loss_weight)
        targets = target if type(target) is tuple else (target,)
        if self._is_empty:
            self.begin(loss.device)
        processes, seen = self.processes, None
        for update, weighted_by in self._updates:
            if weighted_by is not None:
                update(pred, *targets, weight=loss_weight if weighted_by == "loss" else n)
            elif processes is None:
                update(pred, *targets)
            else:
                if seen is None:
                    seen = _seen_by_all(processes, (pred, *targets), n, loss.device)
                for each in seen:
                    update(*each)
        if self._others:
            self._look_at(pred, loss)
        self._loss.keep(loss, loss_weight)

    def begin(self, device: torch.device) -> None:
        """Find out once a pass how each metric is called: only the means of functions weigh."""
        self._updates = []
        for metric in self.metrics.values():
            if hasattr(metric, "to"):
                metric.to(device)
            weighted_by = None
            if isinstance(metric, MeanMetric) and type(metric).update is MeanMetric.update:
                weighted_by = metric.weighted_by
            self._updates.append((metric.update, weighted_by))
        self._is_empty = False

    def _kept(self) -> tuple[list[WeightedMean], list[NanWatch]]:
        means, watches = [self._loss], [self._watch]
        for metric in self._means():
            found, watch = metric.kept()
            means += found
            watches.append(watch)
        return means, watches

    def names(self) -> list[list[str]]:
        """Return the names of the values of each mean of a function."""
        return [[*each._parts] for each in self._means()]

    def have(self, said: Sequence[list[list[str]]]) -> None:
        """Let each mean have the values that it has in any of several `names`."""
        for metric, *names in zip(self._means(), *said, strict=True):
            metric.have([name for each in names for name in each])

    def _means(self) -> list[MeanMetric]:
        ours = [each for each in self.metrics.values() if isinstance(each, MeanMetric)]
        return [each for each in ours if type(each).update is MeanMetric.update]

    def sums(self) -> list[float]:
        """Read what is added up over processes: of each mean its sum and weight, and NaN."""
        means, watches = self._kept()
        found = [part for mean in means for part in mean.parts()]
        return [*found, *(float(watch.found()) for watch in watches)]

    def take_sums(self, sums: Sequence[float]) -> None:
        """Take sums over more than this process in place of its own."""
        means, watches = self._kept()
        for i, mean in enumerate(means):
            mean.take(*sums[2 * i : 2 * i + 2])
        for watch, found_in in zip(watches, sums[2 * len(means) :], strict=True):
            watch.take(found_in > 0)

    def _look_at(self, pred: Any, loss: Tensor) -> None:
        """Look for NaN in the predictions: in each tensor of floats."""

        def look(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() and not tensor.is_nested:
                self._watch.keep(tensor if tensor is pred else tensor.detach().sum().to(loss))
            return tensor

        map_tensors(look, pred)

    def compute(self) -> dict[str, float]:
        """Return the results by name: here, and nowhere else, device values become floats.

        Returns:
            ``"valid_loss"``, each batch by its weight, then the metrics in their order, each value
            by its name: see `named_numbers`. Empty if there was no batch.

        Raises:
            TypeError: A metric gave what is no number.
            ValueError: A metric gave several, one of them by a name that is taken.
        """
        if self._is_empty:
            return {}
        if self.processes is not None:
            if self._means():
                self.have(self.processes.gather(self.names()))
            self.take_sums(self.processes.sums(self.sums()))
        results = {"valid_loss": self._loss.compute().item()}
        # Where the loss is a number, what was NaN among the predictions was not meant to count.
        is_broken = math.isnan(results["valid_loss"]) and self._watch.found().item()
        for name, metric in self.metrics.items():
            with _alone(metric):
                values = named_numbers(name, metric.compute())
            if taken := values.keys() & {*RESERVED_NAMES, *results}:
                raise ValueError(
                    f"metric {name} gave a value called {min(taken)!r}, which the record has "
                    "already: rename one"
                )
            if is_broken and name in self._others:
                values = dict.fromkeys(values, math.nan)
            self.parts[name] = list(values)
            results |= values
        return results


@contextmanager
def _alone(metric: Any) -> Iterator[None]:
    """Keep a metric that adds up over processes by itself, as torchmetrics do, from doing so.

    What it has seen is all that it is to see: the samples of every process, or where one predicts
    for itself a whole loader, of which the others need not hear.
    """
    parts = [*metric.modules()] if isinstance(metric, nn.Module) else [metric]
    asked = [each for each in parts if hasattr(each, _ASKS)]
    before = [getattr(each, _ASKS) for each in asked]
    try:
        for each in asked:
            setattr(each, _ASKS, lambda: False)
        yield
    finally:
        for each, own in zip(asked, before, strict=True):
            setattr(each, _ASKS, own)


def _seen_by_all(
    processes: Processes, own: tuple[Any, ...], n: int, device: torch.device
) -> list[tuple[Any, ...]]:
    """Return predictions and targets of each process that has samples of a batch."""
    parts = processes.gather(map_tensors(Tensor.cpu, own) if n else None)
    return [map_tensors(lambda t: t.to(device), part) for part in parts if part]


def _gives_nan(metric: Metric) -> bool:
    """Tell whether a metric is NaN by itself where a prediction is."""
    return type(metric) is MeanMetric and is_ours(metric.func)


def _innermost(func: Any) -> Any:
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _function_name(func: Callable[..., Any]) -> str:
    func = _innermost(func)
    name = getattr(func, "__name__", None)
    return name if isinstance(name, str) else type(func).__name__


def _takes_pred_and_target(func: Callable[..., Any]) -> bool:
    try:
        inspect.signature(func).bind_partial(None, None)  # there may be more targets
    except TypeError:
        return False
    except ValueError:  # a builtin that has no signature to look at
        return True
    return True


def _check_tensors(name: str, pred: Tensor, target: Tensor) -> None:
    if isinstance(pred, Tensor) and isinstance(target, Tensor):
        return
    which, value = ("target", target) if isinstance(pred, Tensor) else ("pred", pred)
    raise TypeError(f"{name} needs tensors; {which} is {shown(value)}")


def _check_class_indices(name: str, pred: Tensor, target: Tensor) -> None:
    if not (isinstance(pred, Tensor) and isinstance(target, Tensor)):
        _check_tensors(name, pred, target)
    shape = pred.shape
    if len(shape) < 2 or shape[1] == 1:
        raise ValueError(
            f"{name} compares classes and needs pred of shape (batch, classes, ...), got "
            f"{tuple(shape)}: for one yes-or-no score for each sample use "
            "binary_accuracy(threshold)"
        )
    if target.is_floating_point():
        raise ValueError(
            f"{name} needs class indices as target, got {target.dtype}: for one-hot or "
            "probability targets pass your own function that takes target.argmax(1)"
        )
    expected = (shape[0], *shape[2:])
    if target.shape != expected:
        raise ValueError(
            f"{name} needs target of shape {expected} for pred of shape "
            f"{tuple(shape)}, classes in dimension 1, got {tuple(target.shape)}: "
            "squeeze or transpose one of them, take argmax(1) of a one-hot target"
        )


def _check_same_shape(name: str, pred: Tensor, target: Tensor) -> None:
    _check_tensors(name, pred, target)
    if pred.shape != target.shape:
        raise ValueError(
            f"{name} needs pred and target of the same shape, got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}: squeeze or unsqueeze one of them"
        )
