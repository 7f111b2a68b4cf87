"""`TopLosses`: the samples that a model is most wrong about."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from onecycle.arguments import check_count
from onecycle.insight.names import class_names, written
from onecycle.insight.samples import Sample, sample_at
from onecycle.insight.shown import Decode, draw_samples, said_of
from onecycle.training.predicting import sample_losses, valid_or

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop


@dataclass(frozen=True, eq=False, repr=False)
class TopLosses(Sequence[Sample]):
    """The samples of the highest loss, the highest first; prints as a table.

    Attributes:
        samples: Each with ``input``, ``target``, ``pred``, ``loss`` and ``index``, its place in
            the pass.
        classes: What the classes are called, or ``None``.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> worst = learn.top_losses(3)
        >>> losses = learn.get_preds(with_loss=True).losses
        >>> worst[0].loss == float(losses.max()), worst[0].index == int(losses.argmax())
        (True, True)
    """

    samples: tuple[Sample, ...]
    classes: list[str] | None
    _dl: Any

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, i: int | slice) -> Sample | tuple[Sample, ...]:
        """Return one of the samples, or some."""
        return self.samples[i]

    def __len__(self) -> int:
        return len(self.samples)

    def plot(self, ax: Axes | None = None, *, decode: Decode | None = None) -> Axes:
        """Draw them, each with what is said, what is right, and the loss.

        Args:
            ax: Where to draw; a new figure if ``None``.
            decode: Makes of an input what is shown: see `Learner.show_batch`.
        """
        return draw_samples(self.samples, dl=self._dl, classes=self.classes, decode=decode, ax=ax)

    def __repr__(self) -> str:
        rows = [("index", "loss", "target", "prediction")]
        for each in self.samples:
            target, said = written(each.target, self.classes), said_of(each, self.classes)
            rows.append((str(each.index), f"{each.loss:.4g}", target, said))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def top_losses(learn: Loop, k: int, dl: Iterable[Any] | None) -> TopLosses:
    """Find the samples of the highest loss: see `Learner.top_losses`."""
    check_count("k", k)
    loader = valid_or(learn, dl)
    best: list[tuple[float, int, Sample]] = []  # a heap; of two equal losses the first stays
    seen = 0

    def collect(learn: Loop) -> None:
        nonlocal seen
        if learn.pred is None:
            return
        for i, loss in enumerate(sample_losses(learn).tolist()):
            rank = math.inf if math.isnan(loss) else loss  # the worst of all; it compares as none
            if len(best) < k or rank > best[0][0]:
                sample = sample_at(learn, i, index=seen + i, loss=loss)
                if not sample.counts:  # of nothing that counts the mean is NaN, and no fault
                    continue
                push = heapq.heappush if len(best) < k else heapq.heapreplace
                push(best, (rank, -sample.index, sample))
        seen += learn.batch_size(learn.batch)

    learn.infer(loader, collect, with_loss=False)
    ordered = sorted(best, key=lambda entry: entry[:2], reverse=True)
    samples = tuple(sample for _, _, sample in ordered)
    return TopLosses(samples, class_names(learn.dls, loader), loader)
