"""`ConfusionMatrix`: which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle import plots
from onecycle.arguments import check_count, check_finite, check_flag
from onecycle.insight.names import class_name, class_names
from onecycle.insight.samples import classes_in, scores_of, targets_of
from onecycle.record.weights import ignored_index
from onecycle.training.predicting import valid_or

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop

#: A matrix of more classes is printed as its most confused pairs.
_PRINTED = 12


@dataclass(frozen=True, eq=False, repr=False)
class ConfusionMatrix:
    """How often each class was taken for each; prints as a table.

    Attributes:
        counts: int64 of shape ``(classes, classes)``: entry ``[i, j]`` is how many samples of
            class i were predicted to be of class j.
        classes: What the classes are called.

    Example:
        >>> confusion = ConfusionMatrix(np.array([[5, 0], [2, 3]]), ["cat", "dog"])
        >>> confusion.accuracy, confusion.most_confused()
        (0.8, [('dog', 'cat', 2)])
    """

    counts: NDArray[np.int64]
    classes: list[str]

    @property
    def accuracy(self) -> float:
        """The share of samples that are on the diagonal; NaN of none."""
        total = int(self.counts.sum())
        return int(np.trace(self.counts)) / total if total else float("nan")

    def most_confused(self, n: int = 10, *, least: int = 1) -> list[tuple[str, str, int]]:
        """Return the pairs of classes that are confused most often.

        Args:
            n: How many at most.
            least: How often at least.

        Returns:
            The actual class, the predicted one, and how often; the most frequent first.
        """
        check_count("n", n)
        check_count("least", least)
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:n]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [
            (self.classes[i], self.classes[j], int(wrong[i, j]))
            for i, j in pairs
            if wrong[i, j] >= least
        ]

    def plot(self, ax: Axes | None = None, *, normalize: bool = False) -> Axes:
        """Draw the matrix, coloured by the share of each actual class.

        Args:
            ax: Where to draw; a new figure if ``None``.
            normalize: Write shares of the actual class into the cells instead of counts.
        """
        check_flag("normalize", normalize)
        return plots.plot_confusion(self.counts, self.classes, normalize=normalize, ax=ax)

    def __repr__(self) -> str:
        n = int(self.counts.sum())
        last = f"accuracy {self.accuracy:.4f} of {n} targets; rows are actual, columns predicted"
        if len(self.classes) > _PRINTED:
            pairs = [f"{actual} taken for {said}: {k}" for actual, said, k in self.most_confused()]
            return "\n".join([*pairs, last])
        rows = [["", *self.classes]]
        rows += [
            [name, *map(str, row)]
            for name, row in zip(self.classes, self.counts.tolist(), strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        return "\n".join([*lines, last])


def confusion_matrix(
    learn: Loop, dl: Iterable[Any] | None, threshold: float | None
) -> ConfusionMatrix:
    """Count which classes are taken for which: see `Learner.confusion_matrix`."""
    loader = valid_or(learn, dl)
    if threshold is not None:
        check_finite("threshold", threshold)
    total = torch.zeros(0, 0, dtype=torch.int64)

    def collect(learn: Loop) -> None:
        nonlocal total
        if learn.pred is None:
            return
        ignored = ignored_index(learn.loss_func) if threshold is None else None
        said, right, n = classes_in(scores_of(learn.pred), targets_of(learn), threshold, ignored)
        found = torch.bincount(n * right + said, minlength=n * n).view(n, n).cpu()
        total = found if not len(total) else total + found

    learn.infer(loader, collect, with_loss=False)
    names = class_names(learn.dls, loader)
    if names is not None and len(names) > len(total):
        raise ValueError(
            f"the model says {len(total)} classes, and the loaders name {len(names)} of them"
        )
    classes = [class_name(i, names) for i in range(len(total))]
    return ConfusionMatrix(total.numpy(), classes)
