"""`Predictions`: what inference over a whole loader returns."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Predictions:
    """What `Learner.get_preds` returns.

    Attributes:
        preds: The predictions of all samples, shape ``(samples, ...)``; a tuple or dict of such
            where the model returns one.
        targets: The targets, likewise; ``None`` where the loader has none.
    """

    preds: Any
    targets: Any
