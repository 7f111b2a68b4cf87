"""What a loss is a mean over, where neither it nor the person says so: tried on the first batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.core.restore import Capture, preserved_rng, surely
from onecycle.core.state import LoopState
from onecycle.data.nested import leaves, map_tensors
from onecycle.explanations import accidental_broadcast
from onecycle.record.weights import is_of_indices, mean_of_valid, targets_in, unwrapped

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: So many samples of a batch are tried: a loss of few of them costs little.
N_TRIED = 16


def weight_findings(learn: Loop, capture: Callable[[], Capture]) -> Iterator[str]:
    """Say where batches are weighted by samples, and the loss is no mean over samples.

    Args:
        learn: The learner, which has just run a batch.
        capture: Remembers what a call of the loss function may change.
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
    if is_of_indices(target) and bool((target == ignored).any()):
        call = "" if ignored == -100 else ignored
        yield (
            f"some targets are {ignored}, by which losses mean ignored ones: if this one is a mean "
            "over the others, batches must count as many as they have, in validation and in "
            f"accumulation: give the Learner loss_weight=token_weight({call})"
        )
    elif kind.compute_loss is LoopState.compute_loss and _may_be_asked_again(function):
        yield from _of_halves(learn, capture)


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


def _of_halves(learn: Loop, capture: Callable[[], Capture]) -> Iterator[str]:
    targets = () if learn.yb is None else learn.yb if type(learn.yb) is tuple else (learn.yb,)
    kept = capture()
    try:
        with torch.no_grad(), preserved_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _over_what(learn.loss_func, learn.pred, targets, learn.batch_size(learn.batch))
    except Exception:  # whatever this loss cannot do without the batch that it was for
        found = None
    finally:
        surely(kept.restore)
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


def _over_what(loss_func: Any, pred: Any, targets: tuple[Any, ...], n: int) -> str | None:
    """Return what a loss is over a batch and over its halves; ``None`` for the mean, or unknown."""
    m = min(n, N_TRIED)
    tensors = [part for part in leaves((pred, targets)) if part is not None]
    have_rows = all(isinstance(t, Tensor) and t.ndim and t.size(0) == n for t in tensors)
    if m < 2 or not have_rows or accidental_broadcast(pred, targets):  # which is told already
        return None

    def loss_of(rows: slice) -> float:
        def part(tensor: Tensor) -> Tensor:
            is_short = tensor.dtype in (torch.float16, torch.bfloat16)
            return (tensor.detach().float() if is_short else tensor.detach())[rows].clone()

        return float(loss_func(map_tensors(part, pred), *map_tensors(part, targets)))

    whole, again = loss_of(slice(0, m)), loss_of(slice(0, m))
    first, second = loss_of(slice(0, m // 2)), loss_of(slice(m // 2, m))
    if whole != again or not all(map(math.isfinite, (whole, first, second))):
        return None  # drawn at random, or not to be known from these
    mean = (first * (m // 2) + second * (m - m // 2)) / m
    if math.isclose(whole, mean, rel_tol=1e-3, abs_tol=1e-5):
        return None
    return "sum" if math.isclose(whole, first + second, rel_tol=1e-3) else "other"


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
