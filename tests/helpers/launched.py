"""A function for `launch`, as a person writes it to a module."""

from __future__ import annotations

from together import learner


def train(n_epoch: int) -> list[float]:
    learn = learner()
    learn.fit(n_epoch)
    losses: list[float] = learn.recorder.history["train_loss"].values.tolist()
    return losses


def fail() -> None:
    raise ArithmeticError("nothing can be trained")
