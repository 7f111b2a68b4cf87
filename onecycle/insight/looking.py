"""`show_batch` and `show_results`: what the model sees, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Callback
from onecycle.insight.names import class_names
from onecycle.insight.samples import TrainingBatch, predicted_samples
from onecycle.insight.shown import Decode, draw_samples
from onecycle.training.predicting import valid_or

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop


def show_batch(
    learn: Loop,
    run: Callable[[Sequence[Callback], int], None],
    n: int,
    *,
    decode: Decode | None,
    ax: Axes | None,
) -> Axes:
    """Show samples of the next training batch: see `Learner.show_batch`.

    Args:
        learn: The learner.
        run: Runs updates with some callbacks, as in a range test.
        n: How many samples at most.
        decode: Makes of an input what is shown.
        ax: Where to draw.
    """
    look = TrainingBatch(check_count("n", n))
    with preserved(learn):
        run([look], 1)
    dl = learn.dls.train
    classes = class_names(learn.dls, dl)
    return draw_samples(look.samples, dl=dl, classes=classes, decode=decode, ax=ax)


def show_results(
    learn: Loop, n: int, dl: Iterable[Any] | None, *, decode: Decode | None, ax: Axes | None
) -> Axes:
    """Show samples with what the model says of them: see `Learner.show_results`."""
    loader = valid_or(learn, dl)
    samples = predicted_samples(learn, loader, check_count("n", n))
    classes = class_names(learn.dls, loader)
    return draw_samples(samples, dl=loader, classes=classes, decode=decode, ax=ax)
