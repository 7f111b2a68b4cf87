"""`Predictions`: what inference over a whole loader returns."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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

    def require_same_targets(self, other: "Predictions") -> None:
        """Refuse predictions of another pass that are not of the same samples.

        Raises:
            ValueError: If the targets of the two passes differ.
        """
        if isinstance(self.targets, Tensor) and not torch.equal(self.targets, other.targets):
            raise ValueError(
                "the loader gave other targets in another pass, so that the predictions do not "
                "belong together: pass one that does not shuffle or augment on its own"
            )
