"""Fits that land, and fits that are killed, at an update that is asked for."""

import math

from grouped_learner import grouped_learner

from onecycle import Callback

N = 6  # batches of an epoch


def learner(**options):
    return grouped_learner(N, **options)


def half_cosine(start, end, n):
    weights = [(1 + math.cos(math.pi * j / max(1, n - 1))) / 2 for j in range(n)]
    return [start * weight + end * (1 - weight) for weight in weights]


def when(event, update, act):
    """Act once, at the first such event after so many updates."""
    left = [1]

    def handler(learn):
        if learn.training and learn.n_updates >= update and left:
            left.pop()
            act(learn)

    return Callback(**{event: handler})


def lands(updates, at, event="after_step"):
    return when(event, at, lambda learn: learn.land(updates))


class KilledError(Exception):
    pass


def kill(learn):
    raise KilledError
