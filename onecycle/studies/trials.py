"""Trials: one fit under several seeds, each from the same state of a learner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from onecycle.arguments import check_callable, check_count, check_list, shown
from onecycle.callbacks.progress import clock
from onecycle.callbacks.progress import number as written
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.run_bar import RunBar, is_watched
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Stage
from onecycle.optim.sharded import parts_of
from onecycle.record.history import History
from onecycle.schedules.shapes import Array

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer

#: Makes a model like the learner's, with new weights: its class, or a function without arguments.
Init = Callable[[], nn.Module]


def run_trials(
    learn: Trainer,
    fit: Callable[[Trainer], Any],
    seeds: Sequence[int],
    *,
    init: Init | None = None,
    label: str = "trial",
    place: tuple[int, int] | None = None,
) -> dict[int, History]:
    """Run a fit once for each seed, each time from the same state; leave the learner as it was.

    The seed is put into Python's, NumPy's and torch's generators, and is the learner's seed: it
    governs new weights, data order and dropout. Updates and epochs count from 0, so that a trial
    of a learner that has not been trained is, to the bit, the fit of a new one with that seed.

    The learner's callbacks take part, but for those that would write a trial into files or onto
    the screen: the stages `Stage.RECORD` and `Stage.SAVE`, and `Progress`, in whose place there is
    a bar for each trial, and a line when it is done. ``with learn.no_bar():`` does without it.

    Args:
        learn: The learner.
        fit: Trains it: ``lambda learn: learn.fit_one_cycle(5, 0.1)``. What it sets on the way,
            such as a weight decay, lasts for one trial.
        seeds: Whole numbers of at least 0, all different.
        init: Makes a model like the learner's; it is called under each seed, and the trial starts
            from its weights with an empty optimizer state. By default every trial starts from
            the weights and the optimizer state that the learner has.
        label: What the printed lines begin with.
        place: The number of the first of these trials in a study, and how many that makes in all;
            by default these are all.

    Returns:
        The record of each seed's trial.

    Raises:
        TypeError: If seeds are no list of whole numbers, or ``init`` makes no model.
        ValueError: If there is no seed, one comes twice or is negative, or ``init`` makes another
            model.
        RuntimeError: If the learner is in the middle of a fit.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=4)
        >>> trials = run_trials(learn, lambda learn: learn.fit(2), [0, 1])
        >>> [len(history["train_loss"]) for history in trials.values()], learn.total_updates
        ([8, 8], 0)
    """
    found = check_seeds(seeds)
    records, first, total = dict[int, History](), *(place or (1, len(found)))
    watched = is_watched(learn)
    for number, seed in enumerate(found, first):
        began = perf_counter()
        bar = [RunBar(f"fit {number}/{total}: {label}, seed {seed}")] if watched else []
        with preserved(learn), learn.no_bar():
            recorder = _begin(learn, seed, init)
            with learn.added_cbs(bar):
                fit(learn)
        records[seed] = recorder.history
        if watched:
            ends = _ends(recorder)
            print(f"{label}, seed {seed}: {ends}{clock(perf_counter() - began)}", flush=True)
    return records


def _ends(recorder: Recorder) -> str:
    """Write what the last validation of a trial gave, where there was one."""
    metrics = (name for names in recorder.metric_parts.values() for name in names)
    ends = {name: recorder.history.get(name) for name in ("valid_loss", *metrics)}
    return "".join(
        f"{name} {written(series.values[-1])}, " for name, series in ends.items() if series
    )


def last_values(records: Iterable[History], metric: str) -> Array:
    """Return what the fit of each seed ended at; NaN where validation gave nothing."""
    series = [record.get(metric) for record in records]
    return np.array([s.values[-1] if s else math.nan for s in series], np.float64)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds as a list, or refuse them.

    Raises:
        TypeError: If they are no list of whole numbers.
        ValueError: If there is none, or one comes twice or is negative.
    """
    listed = check_list("seeds", seeds, "whole numbers, such as range(4)")
    found = [check_count("a seed", seed, least=0) for seed in listed]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"expected one or more seeds, all different; got {shown(seeds)}")
    return found


def check_init(init: Init | None) -> None:
    """Refuse what could not make a model: a class of models may."""
    if init is not None and not (isinstance(init, type) and issubclass(init, nn.Module)):
        check_callable("init", init)


def _begin(learn: Trainer, seed: int, init: Init | None) -> Recorder:
    """Make the learner one that has not been trained, under a seed, with a record of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if init is not None:
        _take_weights(learn.model, init)
        learn.opt.state.clear()
    learn.seed = seed
    learn.total_updates = learn.total_epochs = 0
    learn.metrics = deepcopy(learn.metrics)  # theirs may be in the middle of a pass
    in_training = any(isinstance(cb, Recorder) and cb.train_metrics for cb in learn.cbs)
    recorder = Recorder(train_metrics=in_training)
    learn.cbs = [recorder, *(cb for cb in learn.cbs if cb.stage not in (Stage.RECORD, Stage.SAVE))]
    return recorder


def _take_weights(model: nn.Module, init: Init) -> None:
    made = init() if callable(init) and not isinstance(init, nn.Module) else None
    if not isinstance(made, nn.Module):
        raise TypeError(
            "init must make a torch.nn.Module when it is called without arguments, such as the "
            f"class of the model; got {shown(init)}"
        )
    try:
        model.load_state_dict(parts_of(made.state_dict(), model.state_dict()))
    except RuntimeError as error:
        raise ValueError(f"init must make a model like the learner's: {error}") from error
