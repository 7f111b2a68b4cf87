"""`check`: one batch of each loader, run as in a fit, and what looks wrong in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, IterableDataset

from onecycle.core.callback import Callback
from onecycle.core.restore import Capture, surely
from onecycle.data.held_calls import hold_calls
from onecycle.data.loaders import TensorLoader
from onecycle.data.nested import leaves
from onecycle.errors import CancelValid
from onecycle.explanations import accidental_broadcast, describe
from onecycle.record.metrics import MeanMetric, MetricSet
from onecycle.record.names import name_on
from onecycle.training.loss_means import metric_findings, weight_findings

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: Inputs beyond this root mean square were not scaled: pixels up to 255 have about 140.
LARGE_INPUT = 30.0
#: A first loss over so many times that of guessing comes from the scale of inputs or weights.
LARGE_LOSS = 3.0
#: So many samples for each class, and none of class 0: the chance is e^-10.
SAMPLES_PER_CLASS = 10

_CROSS_ENTROPY = (F.cross_entropy, nn.CrossEntropyLoss)
_NLL = (F.nll_loss, nn.NLLLoss)
_BCE_LOGITS = (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss)
_SCALING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding)


@dataclass(frozen=True)
class Check:
    """What `Learner.check` saw; prints as a list.

    Attributes:
        train: What the first training batch was, and its loss.
        valid: The loss and the metrics of the validation batches by name; empty without a loader.
        findings: What looks wrong, a sentence each; empty where nothing does.
    """

    train: str
    valid: dict[str, float]
    findings: tuple[str, ...]

    def __repr__(self) -> str:
        valid = ", ".join(f"{name} {value:.4g}" for name, value in self.valid.items())
        lines = [f"training:   {self.train}", f"validation: {valid or 'no loader'}"]
        return "\n".join([*lines, *(f"- {each}" for each in self.findings or ("nothing found",))])


class FirstBatch(Callback):
    """Looks at the first batch that a learner trains on, before its first update, and leaves.

    Args:
        n_valid: The validation batches that loss and metrics are computed of before.

    Attributes:
        check: What was seen; ``None`` before.
    """

    during = "train"
    runs_in = frozenset(("fit", "range_test"))

    def __init__(self, n_valid: int = 1) -> None:
        self.n_valid = n_valid
        self.check: Check | None = None
        self._valid: dict[str, float] = {}
        self._data: list[tuple[Tensor, int]] = []  # of the first batch, and how often written to

    def before_train(self, learn: Loop) -> None:
        """Try the validation: a metric that cannot work fails here, not after an epoch."""
        self._data = [(each, each._version) for each in _data_of(learn.dl)]
        sets = learn.dls.valid_sets().values()
        is_made = not any(map(is_lazy, learn.model.parameters()))  # the first real batch makes them
        if self.check is None and sets and is_made and all(map(_can_be_drawn, sets)):
            put_back = _hold(learn)
            try:
                self._valid = measure_sets(learn, self.n_valid)
            finally:
                surely(put_back)

    def after_backward(self, learn: Loop) -> None:
        """Look at input, prediction, loss and gradients of the first batch."""
        seen = (
            f"input {describe(learn.xb)}, target {describe(learn.yb)}, loss {float(learn.loss):.4g}"
        )
        with torch.no_grad():
            hold = partial(_hold, learn)
            means = [*weight_findings(learn, hold), *metric_findings(learn, hold)]
            found = [*findings(learn), *means, *self._of_data(learn)]
            targets = learn.yb if type(learn.yb) is tuple else (learn.yb,)
            told = accidental_broadcast(learn.pred, targets)  # logged when the loss was computed
            self.check = Check(seen, self._valid, (*([] if told is None else [told]), *found))
        if learn.running == "fit":
            for finding in found:
                log.warning("check: %s", finding)
        learn.leave_fit(self)

    def _of_data(self, learn: Loop) -> Iterator[str]:
        data, self._data = self._data, []
        if any(each._version != version for each, version in data):
            yield (
                "training changes the data of the loader in place: each epoch, and each "
                "validation on them, has other data; let the model, the loss or a callback make "
                "new tensors, as x - mean does and x.sub_(mean) does not"
            )


def _data_of(dl: Any) -> list[Tensor]:
    """Return the tensors of the first batch, of loaders that give the same ones in each pass."""
    if isinstance(dl, TensorLoader):
        held: Any = dl.tensors
    else:
        held = dl[0] if isinstance(dl, list | tuple) else ()
    return [part for part in leaves(held) if isinstance(part, Tensor) and not part.is_inference()]


def _hold(learn: Loop) -> Callable[[], object]:
    """Remember what a pass without gradients may change: all of model and loss but parameters."""
    functions = [m.func for m in learn.metrics if isinstance(m, MeanMetric)]
    put_back = hold_calls(learn.loss_func, *functions)
    roots = [part for part in (learn.model, learn.loss_module) if part is not None]
    modules = [module for root in roots for module in root.modules()]
    kept = Capture(ignored=[p for module in modules for p in module.parameters(recurse=False)])
    for part in (*modules, learn.loss_func):
        if hasattr(part, "__dict__") and not isinstance(part, type):
            kept.add(vars(part))

    def put_all_back() -> None:
        put_back()
        kept.restore()

    return put_all_back


def check_between_updates(event: str) -> None:
    """Refuse to change the weights, if only for a while, where a backward pass still needs them.

    Args:
        event: The event of a fit from which that is asked.

    Raises:
        RuntimeError: If it lies between the forward and the backward pass of a batch.
    """
    if event in ("after_pred", "after_loss", "before_backward"):
        raise RuntimeError(
            f"a range test in {event} would change the weights that the backward pass of "
            "this batch still needs: call lr_find between two updates, as in after_step"
        )


def warn_of_bad_parameters(learn: Loop) -> None:
    """Say which parameters are NaN, before anything is trained or measured with them."""
    held = [p for p in learn.model.parameters() if type(p) is nn.Parameter and p.numel()]
    floats = [p.detach() for p in held if p.is_floating_point() and p.layout is torch.strided]
    if not floats or floats[0].is_meta:
        return
    largest = torch._foreach_norm(floats, math.inf)  # NaN where one value is
    known = [value.to(floats[0].device, torch.float32) for value in largest]
    if not torch.stack(known).isnan().any():
        return
    names = [name for name, p in learn.model.named_parameters() if bool(p.isnan().any())]
    log.warning(
        "these parameters are not finite: %s; make the model anew or load a checkpoint",
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
    )


def measure(learn: Loop, dl: Iterable[Any], n_batches: int | None = None) -> dict[str, float]:
    """Compute the loss and the metrics over a loader, or its first batches; change nothing.

    Args:
        learn: The learner.
        dl: The loader.
        n_batches: After how many batches to stop.

    Returns:
        ``"valid_loss"`` and each metric by name.
    """
    means = MetricSet(deepcopy(learn.metrics))  # theirs may be in the middle of a pass
    means.reset()

    def collect(learn: Loop) -> None:
        learn.measure_batch(means)
        if learn.iter + 1 == n_batches:
            raise CancelValid

    learn.infer(dl, collect)
    return means.compute()


def measure_sets(learn: Loop, n_batches: int | None = None) -> dict[str, float]:
    """Compute the same over every validation set, by the names of the record."""
    found: dict[str, float] = {}
    for valid_set, dl in learn.dls.valid_sets().items():
        values = measure(learn, dl, n_batches)
        found |= {name_on(name, valid_set): value for name, value in values.items()}
    return found


def _can_be_drawn(dl: Any) -> bool:
    """Tell whether a batch can be drawn here and now, and again in the pass that it belongs to."""
    if isinstance(dl, DataLoader):
        return dl.num_workers == 0 and not isinstance(dl.dataset, IterableDataset)
    return isinstance(dl, list | tuple | TensorLoader)


# What looks wrong -------------------------------------------------------------------------


def findings(learn: Loop) -> Iterator[str]:
    """Say what looks wrong in the batch that a learner has just run, forward and backward."""
    if _is_plain(learn.xb):
        yield from _of_input(learn.xb, learn.model)
    if _is_plain(learn.pred) and isinstance(learn.yb, Tensor):
        yield from _of_prediction(learn.pred, learn.yb, float(learn.loss), learn.loss_func)
    yield from _of_gradients(learn)


def _of_input(xb: Tensor, model: nn.Module) -> Iterator[str]:
    if xb.isnan().any():
        yield "the input of the first training batch holds NaN: look at the data"
        return
    size = float(xb.float().square().mean().sqrt())
    leaves = (module for module in model.modules() if not any(module.children()))
    if size > LARGE_INPUT and not isinstance(next(leaves, None), _SCALING):
        yield (
            f"the inputs are large (root mean square {size:.3g}): bring them to about 1, for "
            "pixels as x / 255, less their mean and by their standard deviation"
        )
    if xb.ndim == 4 and xb.shape[3] in (1, 3, 4) and xb.shape[1] > 4 and xb.shape[2] > 4:
        yield (
            f"images of shape {tuple(xb.shape)} look like (batch, height, width, channels): "
            "torch takes (batch, channels, height, width), x.permute(0, 3, 1, 2)"
        )


def _of_prediction(pred: Tensor, yb: Tensor, loss: float, loss_func: Any) -> Iterator[str]:
    if _is(loss_func, _BCE_LOGITS) and pred.numel() >= 16 and _are_fractions(pred):
        yield (
            "all predictions lie in 0 to 1: binary cross-entropy with logits takes raw scores; "
            "leave the sigmoid out of the model"
        )
    if pred.ndim < 2 or not _is(loss_func, (*_CROSS_ENTROPY, *_NLL)):
        return
    n_classes, of_logs = pred.shape[1], _is(loss_func, _NLL)
    guess = math.log(max(n_classes, 2))
    if n_classes == 1:
        yield "cross-entropy over one class is always 0: give the model an output for each class"
    elif not of_logs and _are_fractions(pred) and _are_one(pred.sum(1)):
        yield (
            "the predictions are probabilities already: cross-entropy takes raw scores and makes "
            "them such; leave the softmax out of the model"
        )
    elif of_logs and not _are_one(pred.logsumexp(1).exp()):
        yield (
            "nll_loss takes logarithms of probabilities, and the predictions are none: use "
            "cross_entropy, or end the model with LogSoftmax(1)"
        )
    elif loss > LARGE_LOSS * guess + 1:
        yield (
            f"the first loss is {loss:.4g}, and guessing among {n_classes} classes has "
            f"{guess:.3g}: the inputs or the first weights are too large"
        )
    are_many = not yb.is_floating_point() and yb.numel() >= SAMPLES_PER_CLASS * n_classes
    if are_many and int(yb.min()) == 1:
        yield f"no label is 0: they must go from 0 to {n_classes - 1}; subtract 1?"


def _of_gradients(learn: Loop) -> Iterator[str]:
    held = {id(p) for p in learn.stepper.params}  # of one optimizer alone, where they take turns
    left = [
        name
        for name, p in learn.model.named_parameters()
        if p.requires_grad and p.grad is None and id(p) in held
    ]
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        yield f"the loss of the first batch does not reach {shown}: these did not train"


def _is(loss_func: Any, kinds: tuple[Any, ...]) -> bool:
    """Tell whether a loss is one of these functions, or an instance of one of these classes."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    return any(loss_func is kind or type(loss_func) is kind for kind in kinds)


def _is_plain(value: Any) -> TypeGuard[Tensor]:
    """Tell whether a value is a tensor of real numbers whose values can be looked at."""
    return (
        type(value) is Tensor
        and value.layout is torch.strided
        and not value.is_nested
        and value.is_floating_point()
        and value.numel() > 0
    )


def _are_fractions(pred: Tensor) -> bool:
    return bool(((pred >= 0) & (pred <= 1)).all())


def _are_one(sums: Tensor) -> bool:
    return bool((sums.float() - 1).abs().max() < 1e-2)
