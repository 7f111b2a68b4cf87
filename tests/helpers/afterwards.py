"""What a fit left behind, and whether the next one is that of a new learner."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from learner_state import trained
from tiny_learner import tiny_for

from onecycle import Callback, Learner, Recorder
from onecycle.checkpoints.opt_state import load_opt_state, opt_state
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.restore import RngState


def run_of(callback: Callback | None) -> Any:
    return "fit" if callback is None or callback.takes_part_in("fit") else "range_test"


def run(learn: Learner, n_epoch: int, callback: Callback | None, *others: Callback) -> None:
    """Run a fit, or the range test that a callback is for."""
    cbs = [*others, *([] if callback is None else [callback])]
    if run_of(callback) == "fit":
        learn.fit(n_epoch, lr=0.01, cbs=cbs)
        return
    with preserved(learn):
        learn.run_fit(None, cbs=cbs, run="range_test", max_updates=4)


def left_behind(learn: Learner, callback: Callback | None) -> list[str]:
    """List what a fit left that it should not have, and what is missing in its record."""
    kept = [
        name
        for name in ("batch", "xb", "yb", "pred", "loss", "loss_grad", "update_loss", "_run")
        if getattr(learn, name) is not None
    ]
    if any(p.grad is not None for p in learn.model.parameters()) or learn.batches_in_window:
        kept.append("gradients")
    if len(learn.cbs) != 1:
        kept.append("callbacks")
    recorders = [cb for cb in (*learn.cbs, callback) if isinstance(cb, Recorder)]
    for recorder in recorders:
        for name in ("train_loss", "lr", "momentum"):
            series = recorder.history.get(name)
            updates = [] if series is None else series.updates.tolist()
            if updates != list(range(1, learn.total_updates + 1)):
                kept.append(f"{name} at {updates} of {learn.total_updates} updates")
            if series is not None and len(series.values) != len(updates):
                kept.append(f"{len(series.values)} values in {name} at {len(updates)} updates")
    return kept


def not_ready(learn: Learner, make: Callable[[], Callback], callback: Callback | None) -> list[str]:
    """List where the next fit differs from that of a new learner, rebuilt from what is there."""
    rebuilt = tiny_for(callback)
    rebuilt.model.load_state_dict(deepcopy(learn.model.state_dict()))
    load_opt_state(rebuilt, deepcopy(opt_state(learn)))
    rebuilt.total_updates, rebuilt.total_epochs = learn.total_updates, learn.total_epochs
    rebuilt.recorder.load_state_dict(learn.recorder.state_dict())
    again = None
    if callback is not None:
        again = make()
        again.load_state_dict(callback.state_dict())
    rng = RngState()
    run(learn, 1, callback)
    found = trained(learn)
    rng.restore()
    run(rebuilt, 1, again)
    expected = trained(rebuilt)
    return [
        f"the next fit differs in {name}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
