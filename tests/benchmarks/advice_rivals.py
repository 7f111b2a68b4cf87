"""Optimizers that promise to need no rate, on the AdamW tasks of `advice.py`.

Each at the setting that its own page advises. Prodigy and D-Adaptation estimate the size of a step
themselves, and are given a rate of 1, here under the same cycle; AdamW without a schedule has a
default rate, which holds through the fit. They come with the extra ``bench``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

from advice_tasks import OPTIMIZERS, Task

from onecycle import Learner


def _cycle(learn: Learner, epochs: int) -> None:
    learn.fit_one_cycle(epochs, 1.0, moms=False)


def _constant(rate: float) -> Callable[[Learner, int], None]:
    return lambda learn, epochs: learn.fit(epochs, rate)


def rivals() -> dict[str, tuple[Callable[..., Any], Callable[[Learner, int], None]]]:
    """Return by name how the optimizer is made, and how it is fitted."""
    from dadaptation import DAdaptAdam
    from prodigyopt import Prodigy
    from schedulefree import AdamWScheduleFree

    warm = {"safeguard_warmup": True, "use_bias_correction": True}  # for schedules with a warm-up
    free = AdamWScheduleFree
    return {
        "Prodigy, cycle to 1": (partial(Prodigy, **warm), _cycle),
        "D-Adaptation of Adam, cycle to 1": (partial(DAdaptAdam, decouple=True), _cycle),
        "schedule-free AdamW at 2.5e-3": (partial(free, warmup_steps=10), _constant(2.5e-3)),
        "schedule-free AdamW at 1e-2": (partial(free, warmup_steps=10), _constant(1e-2)),
    }


def rival_fit(task: Task, name: str, seed: int) -> float:
    """Return the validation loss at the end of a fit of a rival; infinite where not finite."""
    opt_func, run = rivals()[name]
    OPTIMIZERS[name] = opt_func
    learn = replace(task, optimizer=name).learner(seed)
    learn.dls.valid, valid = None, learn.dls.valid
    with redirect_stdout(io.StringIO()), learn.no_bar():
        run(learn, task.epochs)
    loss = learn.validate(valid)["valid_loss"]
    return loss if math.isfinite(loss) else math.inf
