"""What a loss or a metric is a mean over, where nobody says so: tried on the first batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.core.restore import preserved_rng, surely
from onecycle.core.state import LoopState
from onecycle.data.nested import leaves, map_tensors
from onecycle.explanations import accidental_broadcast
from onecycle.record.metrics import MeanMetric, is_ours
from onecycle.record.values import named_parts
from onecycle.record.weights import is_of_indices, mean_of_valid, targets_in, unwrapped

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: Remembers something, and returns what puts it back.
Hold = Callable[[], Callable[[], object]]

#: So many samples of a batch are tried: a loss of few of them costs little.
N_TRIED = 16
#: How far a loss may be off, which may be reckoned in few digits; and a metric.
ROUGH, EXACT = 1e-3, 1e-4


def weight_findings(learn: Loop, hold: Hold) -> Iterator[str]:
    """Say where batches are weighted by samples, and the loss is no mean over samples.

    Args:
        learn: The learner, which has just run a batch.
        hold: Remembers what a call of the loss function may change, and returns what puts it back.
    """
    yield from _of_time_first(learn)
    kind = type(learn)
    is_asked = kind.batch_size is LoopState.batch_size and kind.loss_weight is LoopState.loss_weight
    weight = learn.loss_weights(learn.loss_func, learn.pred, learn.batch, learn.yb)
    if not is_asked or weight is not None:  # the person says it, or the loss has been recognised
        return
    function, options = unwrapped(learn.loss_func)
    ignored = options.get("ignore_index", getattr(function, "ignore_index", None))
    if ignored is None and mean_of_valid(learn.loss_func) is None and _is_torchs(function):
        return  # a mean over samples
    ignored = -100 if ignored is None else ignored
    target = learn.yb if isinstance(learn.yb, Tensor) else targets_in(learn.batch)
    if _has(target, ignored):
        call = "" if ignored == -100 else ignored
        yield (
            f"some targets are {ignored}, by which losses mean ignored ones: if this one is a mean "
            "over the others, batches must count as many as they have, in validation and in "
            f"accumulation: give the Learner loss_weight=token_weight({call})"
        )
    elif kind.compute_loss is LoopState.compute_loss and _may_be_asked_again(function):
        yield from _of_loss(learn, hold)


def _of_time_first(learn: Loop) -> Iterator[str]:
    """Say where a batch may begin with the time, which no shape can tell: as in torch's layers."""
    xb, yb = learn.xb, learn.yb
    if type(learn).batch_size is not LoopState.batch_size:
        return
    for part in (xb, yb):
        if not isinstance(part, Tensor) or part.ndim < 2 or part.size(0) != xb.size(0):
            return
    for name, module in learn.model.named_modules():
        if isinstance(module, nn.RNNBase) and not module.batch_first:
            yield (
                f"the batch size is taken to be {yb.size(0)}, the first dimension of input and "
                f"target; {name or type(module).__name__!r} takes sequences with time first: if "
                "these have it too, override batch_size(self, batch) of the Learner, or use "
                "batch_first=True"
            )
            return


def metric_findings(learn: Loop, hold: Hold) -> Iterator[str]:
    """Say which functions among the metrics are no means over samples, as which they are averaged.

    Args:
        learn: The learner, which has just run a batch.
        hold: Remembers what a call of a metric may change, and returns what puts it back.
    """
    if learn.dls.valid is None or type(learn).batch_size is not LoopState.batch_size:
        return
    yield from _of_ignored(learn)
    for metric in learn.metrics:
        is_plain = type(metric) is MeanMetric and metric.weighted_by == "samples"
        if (
            not is_plain
            or is_ours(metric.func)
            or not _may_be_asked_again(unwrapped(metric.func)[0])
        ):
            continue
        found = _of_halves(learn, metric.func, hold, EXACT)
        if found == "sum":
            yield (
                f"the metric {metric.name} grows with the batch, as a count or a sum: what is "
                "recorded is its mean over batches, by their samples; divide it by the number of "
                "samples, or give an object with reset(), update(pred, target) and compute()"
            )
        elif found == "other":
            yield (
                f"the metric {metric.name} of the first batch is not the mean of that of its "
                "halves, and is averaged over batches by their samples: what must see the whole "
                "pass, as F1, a root or a correlation, is an object with reset(), update(pred, "
                "target) and compute(); a mean over what the loss is a mean over is "
                "MeanMetric(func, weighted_by='loss')"
            )


def _of_ignored(learn: Loop) -> Iterator[str]:
    """Name the metrics of ours that count what the loss ignores as wrong classes."""
    function, options = unwrapped(learn.loss_func)
    ignored = options.get("ignore_index", getattr(function, "ignore_index", -100))
    means = [metric for metric in learn.metrics if isinstance(metric, MeanMetric)]
    ours = [m.name for m in means if is_ours(m.func) and hasattr(m.func, "__wrapped__")]
    if ours and _has(learn.yb, ignored):
        yield (
            f"some targets are {ignored}, which {' and '.join(ours)} count as any other class, "
            "and so as wrong: leave them out in a function of your own, and measure it by "
            "MeanMetric(func, weighted_by='loss')"
        )


def _has(target: Any, ignored: int) -> bool:
    is_readable = is_of_indices(target) and not target.is_nested
    return is_readable and bool((target == ignored).any())


def _of_halves(learn: Loop, function: Any, hold: Hold, exact: float) -> str | None:
    """Try a loss or a metric on the batch and its halves, and leave nothing behind."""
    targets = () if learn.yb is None else learn.yb if type(learn.yb) is tuple else (learn.yb,)
    put_back = hold()
    try:
        with torch.no_grad(), preserved_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n = learn.batch_size(learn.batch)
            return _over_what(function, learn.pred, targets, n, exact)
    except Exception:  # whatever this one cannot do without the batch that it was for
        return None
    finally:
        surely(put_back)


def _of_loss(learn: Loop, hold: Hold) -> Iterator[str]:
    found = _of_halves(learn, learn.loss_func, hold, ROUGH)
    if found == "sum":
        yield (
            "the loss grows with the batch, as a sum over it: validation, the record and "
            "accumulation take means of batches; divide it by the number of samples, or tell how "
            "much a batch counts with loss_weight="
        )
    elif found == "other":
        yield (
            "the loss of the first batch is not the mean of the losses of its halves: batches are "
            "weighted by samples, in validation and in accumulation; if it is a mean over "
            "something else, such as valid targets or their class weights, tell how much a batch "
            "counts with loss_weight=, as by token_weight()"
        )


def _over_what(
    function: Any, pred: Any, targets: tuple[Any, ...], n: int, exact: float
) -> str | None:
    """Return what a value is over a batch and over its halves; ``None`` for the mean, or unknown.

    Of several values it is what the first is that is no mean.
    """
    m = min(n, N_TRIED)
    tensors = [part for part in leaves((pred, targets)) if part is not None]
    have_rows = all(isinstance(t, Tensor) and t.ndim and t.size(0) == n for t in tensors)
    if m < 2 or not have_rows or accidental_broadcast(pred, targets):  # which is told already
        return None

    def of(rows: slice) -> list[float]:
        def part(tensor: Tensor) -> Tensor:
            is_short = tensor.dtype in (torch.float16, torch.bfloat16)
            return (tensor.detach().float() if is_short else tensor.detach())[rows].clone()

        found = function(map_tensors(part, pred), *map_tensors(part, targets))
        return [float(value) for value in named_parts("", found).values()]

    whole = of(slice(0, m))
    if whole != of(slice(0, m)):
        return None  # drawn at random
    for cut in (m // 2, max(1, m // 3)):  # one of them alone may happen to agree
        parts = zip(whole, of(slice(0, cut)), of(slice(cut, m)), strict=True)
        for value, first, second in parts:
            mean = (first * cut + second * (m - cut)) / m
            is_known = math.isfinite(value) and math.isfinite(mean)
            if is_known and not math.isclose(value, mean, rel_tol=exact, abs_tol=exact / 100):
                return "sum" if math.isclose(value, first + second, rel_tol=exact) else "other"
    return None


def _may_be_asked_again(function: Any) -> bool:
    """Tell whether a call of a loss function more leaves nothing: what a module keeps is put back.

    A closure may hold anything, a counter or a list of losses to come.
    """
    if isinstance(function, nn.Module):
        return True
    return isinstance(function, FunctionType) and function.__closure__ is None


def _is_torchs(function: Any) -> bool:
    owner = type(function) if isinstance(function, nn.Module) else function
    return str(getattr(owner, "__module__", "")).startswith("torch.nn.")
