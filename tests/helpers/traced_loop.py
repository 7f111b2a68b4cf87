"""The drawing of the loop, played, and what a fit really does."""

import itertools

import torch

from onecycle import Callback
from onecycle.core.events import EVENTS, LOOP
from onecycle.testing import toy_learner


def draw(lines, repeats):
    """Play the drawing of the loop: the events that it fires, in order."""
    events, i = [], 0
    while i < len(lines):
        depth = len(lines[i]) - len(lines[i].lstrip())
        text = lines[i].strip()
        if text.endswith(":"):
            deeper = " " * (depth + 1)
            body = list(itertools.takewhile(lambda x, d=deeper: x.startswith(d), lines[i + 1 :]))
            times = next(n for word, n in repeats.items() if word in text)
            events += draw(body, repeats) * times
            i += len(body)
        elif text.startswith("fire "):
            events.append(text.removeprefix("fire "))
        i += 1
    return events


NORMAL = draw(
    LOOP.splitlines(),
    {"each epoch": 2, "training batch": 2, "validation batch": 2, "update": 1},
)


class Tracer(Callback):
    """Writes down each event, and may raise something at one of them."""

    def __init__(self, at=None, error=None, where=None):
        self.trace, self.at, self.error = [], at, error
        self.where = where or (lambda learn: True)
        super().__init__(**{event: self._note(event) for event in EVENTS})

    def _note(self, event):
        def note(learn):
            self.trace.append(event)
            if event == self.at and self.where(learn):
                self.at = None
                raise self.error

        return note


def parameters(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def no_gradients(learn):
    return all(p.grad is None for p in learn.model.parameters())


class Boom(Exception):  # noqa: N818 - the sound of it
    pass


def sgd(n_batches=4, **options):
    return toy_learner(n_batches, opt_func=torch.optim.SGD, lr=0.05, **options)
