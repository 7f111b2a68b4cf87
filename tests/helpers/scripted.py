"""A metric whose values are written down beforehand."""

from collections.abc import Iterable

import torch

from onecycle import Learner
from onecycle.testing import toy_learner


class Scripted:
    """Returns the next of the given values after each validation pass."""

    def __init__(self, values: Iterable[float], name: str = "score") -> None:
        self.name = name
        self._values = iter(values)

    def reset(self) -> None:
        pass

    def update(self, pred: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def compute(self) -> float:
        return next(self._values)


def scripted_learner(values: Iterable[float], name: str = "score", **options: object) -> Learner:
    """Make a small learner that has one metric, with these values epoch by epoch."""
    return toy_learner(n_batches=2, metrics=[Scripted(values, name)], **options)


def weights(learn: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learn.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
