"""Single samples out of the batches that a learner runs: input, target, prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onecycle.core.callback import Callback, Stage
from onecycle.data.calls import input_of, target_of
from onecycle.data.samples import only_sample, sample_of
from onecycle.data.transfer import to_device
from onecycle.errors import CancelFit, CancelValid
from onecycle.explanations import describe
from onecycle.record.weights import counts_any, targets_in

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample, on the CPU, without a batch dimension.

    Attributes:
        input: What the model was given of it.
        target: Its target.
        pred: What the model says of it; ``None`` where it was not asked.
        loss: Its loss, likewise.
        index: Its place in the pass, from 0.
        counts: Whether the loss counts its target: not one that is ``ignore_index`` throughout.
    """

    input: Any
    target: Any
    pred: Any = None
    loss: float | None = None
    index: int = 0
    counts: bool = True


class TrainingBatch(Callback):
    """Keeps samples of the first training batch as the model would see it, and ends the fit.

    Args:
        n: How many samples at most.
    """

    stage = Stage.RECORD  # after everything that prepares a batch
    during = "train"
    runs_in = frozenset(("range_test",))

    def __init__(self, n: int) -> None:
        self.n = n
        self.samples: list[Sample] = []

    def before_batch(self, learn: Loop) -> None:
        """Keep them."""
        learn.pred = None  # where a fit goes on around this, it is that of another batch
        size = min(self.n, learn.batch_size(learn.batch))
        self.samples.extend(sample_at(learn, i) for i in range(size))
        raise CancelFit("the samples are there")


def predicted_samples(learn: Loop, dl: Iterable[Any], n: int) -> list[Sample]:
    """Predict the first samples of a loader; leaves everything as it was.

    Args:
        learn: The learner.
        dl: An iterable of batches.
        n: How many samples at most.
    """
    found: list[Sample] = []

    def collect(learn: Loop) -> None:
        if learn.pred is not None:
            place = len(found)
            size = min(learn.batch_size(learn.batch), n - place)
            found.extend(sample_at(learn, i, index=place + i) for i in range(size))
        if len(found) >= n:
            raise CancelValid

    learn.infer(dl, collect, with_loss=False)
    return found


def sample_at(learn: Loop, i: int, *, index: int = 0, loss: float | None = None) -> Sample:
    """Take one sample out of the batch that a learner is running.

    Args:
        learn: The learner.
        i: Its place in the batch.
        index: Its place in the pass.
        loss: Its loss.
    """
    n = learn.batch_size(learn.batch)
    parts = input_of(learn.model, learn.xb), targets_of(learn), scores_of(learn.pred)
    x, y, pred = (only_sample(sample_of(to_device(part, _CPU), i, n)) for part in parts)
    return Sample(x, y, pred, loss, index, counts_any(learn.loss_func, y))


def targets_of(learn: Loop) -> Any:
    """Return the targets of the batch that a learner is running; of a dict the labels alone."""
    found = target_of(learn.model, learn.batch, learn.yb)
    labels = targets_in(learn.batch) if found is not None and learn.yb is learn.batch else None
    return found if labels is None else labels


def scores_of(pred: Any) -> Any:
    """Return of what a model says the tensor of scores: itself, or what is called ``logits``.

    Example:
        >>> scores_of({"loss": 0.5, "logits": torch.zeros(1)})
        tensor([0.])
    """
    if isinstance(pred, Mapping):
        return pred.get("logits", pred)
    return getattr(pred, "logits", pred)


def classes_in(
    scores: Any, targets: Any, threshold: float | None, ignored: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Return the classes that are said and those that are right, of a batch, and their number.

    Args:
        scores: Of shape ``(batch, classes, ...)``; or with a threshold one for each target.
        targets: Class indices of shape ``(batch, ...)``; negative ones are not counted.
        threshold: Above it a score says 1, else 0.
        ignored: A class index that is not counted either.

    Raises:
        TypeError, ValueError: If they are none of that.
    """
    if not isinstance(scores, Tensor) or not isinstance(targets, Tensor):
        raise TypeError(
            f"expected a tensor of scores and one of class indices; got {describe(scores)} and "
            f"{describe(targets)}"
        )
    if scores.isnan().any():
        raise ValueError("the model predicts NaN: it says no class")
    if threshold is not None:
        if scores.numel() != targets.numel():
            raise ValueError(
                f"with threshold= there is one score for each target; got {describe(scores)} and "
                f"{describe(targets)}"
            )
        if targets.is_floating_point() and not ((targets == 0) | (targets == 1)).all():
            raise ValueError(
                "with threshold= each target is 0 or 1, of which numbers between or beside them "
                f"would be taken for one; got {describe(targets)}, from {float(targets.min()):g} "
                f"to {float(targets.max()):g}"
            )
        said, right, n = (scores > threshold).long().flatten(), targets.long().flatten(), 2
    elif not _are_of_classes(scores, targets):
        raise ValueError(
            "expected scores of shape (batch, classes, ...) and class indices of shape "
            f"(batch, ...); got {describe(scores)} and {describe(targets)}. Of two classes with "
            "one score give threshold=, 0 for logits or 0.5 for probabilities"
        )
    elif targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"expected class indices as targets; got {describe(targets)}")
    else:
        said, right, n = scores.argmax(1).flatten(), targets.long().flatten(), scores.shape[1]
    counted = right >= 0 if ignored is None else (right >= 0) & (right != ignored)
    said, right = said[counted], right[counted]
    if right.numel() and int(right.max()) >= n:
        raise ValueError(f"a target is class {int(right.max())}, and there are {n} classes")
    return said, right, n


def _are_of_classes(scores: Tensor, targets: Tensor) -> bool:
    has_classes = scores.ndim >= 2 and scores.shape[1] > 1
    return has_classes and scores.shape[:1] + scores.shape[2:] == targets.shape
