"""For authors of callbacks, and for our own tests: a small learner, and a contract check."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onecycle.arguments import check_callable, check_count, shown
from onecycle.callbacks.progress import Progress
from onecycle.core.callback import Callback, Handler
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.errors import CancelFit
from onecycle.learner import Learner
from onecycle.record.metrics import mse


def toy_learner(
    n_batches: int = 8, batch_size: int = 8, *, cbs: tuple[Callback, ...] = (), **options: object
) -> Learner:
    """Make a learner that fits a line through seeded data on the CPU, without progress bars.

    Args:
        n_batches: The batches of an epoch.
        batch_size: The samples of a batch.
        cbs: Callbacks for every fit.
        **options: Anything that `Learner` takes.

    Returns:
        A learner over a model of two layers; two of them made alike train to the same bits.

    Example:
        >>> learn = toy_learner(n_batches=5)
        >>> learn.fit(2)
        >>> learn.total_updates
        10
    """
    check_count("n_batches", n_batches)
    check_count("batch_size", batch_size)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_batches * batch_size, 4, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(len(x), 1, generator=generator)
    loader = TensorLoader(x, y, batch_size=batch_size, shuffle=True)
    valid = TensorLoader(x, y, batch_size=batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    given = {"loss_func": nn.functional.mse_loss, "metrics": [mse], "device": "cpu", "seed": 0}
    learn = Learner(DataLoaders(loader, valid), model, cbs=cbs, **(given | options))  # type: ignore[arg-type]
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def check_callback(
    make: Callable[[], Callback], learner: Callable[[], Learner] = toy_learner
) -> None:
    """Check that a callback keeps the rules that every callback must keep.

    It must get through two fits in a row, a fit without validation, one that is cancelled and one
    that ends in an error; leave no gradient behind; take back its own ``state_dict`` after it went
    through a file that is read with ``weights_only=True``; and change nothing in a range test.

    Args:
        make: Makes the callback, with what it needs: its class, or a function.
        learner: Makes a fresh learner, the same each time.

    Raises:
        AssertionError: Naming the rule that is broken.

    Example:
        >>> from onecycle import EarlyStopping
        >>> check_callback(EarlyStopping)
    """
    callback, learn = _made("make", make, Callback), _made("learner", learner, Learner)
    learn.fit(2, cbs=[callback])
    learn.fit(1, cbs=[callback])
    _require(callback not in learn.cbs, "a fit's callback is gone after the fit")
    _require_no_gradients(learn, "two fits")
    _check_state(make, callback)

    learn = learner()
    learn.fit(2, cbs=[make(), Callback(after_step=_cancel_at(3))])
    _require_no_gradients(learn, "a cancelled fit")

    callback = make()
    try:
        learn.fit(2, cbs=[callback, Callback(after_loss=_fail_at(3))])
    except _DeliberateError:
        pass
    else:
        _require(False, "an error in another callback is not swallowed")
    _require_no_gradients(learn, "a fit that ended in an error")
    learn.fit(1, cbs=[callback])

    _check_range_test(make, learner())


def _made(name: str, make: Callable[[], Any], kind: type) -> Any:
    if not (isinstance(make, type) and issubclass(make, kind)):
        check_callable(name, make)
    made = make()
    if not isinstance(made, kind):
        raise TypeError(
            f"{name} {shown(make)} must make a {kind.__name__} when it is called; got {shown(made)}"
        )
    return made


class _DeliberateError(Exception):
    """What `check_callback` raises in the middle of a fit."""


def _require(kept: bool, rule: str) -> None:
    if not kept:
        raise AssertionError(f"rule broken: {rule}")


def _require_no_gradients(learn: Learner, after: str) -> None:
    left = [name for name, p in learn.model.named_parameters() if p.grad is not None]
    _require(not left, f"no gradient is left behind after {after}: {left}")


def _cancel_at(update: int) -> Handler:
    def cancel(learn: Learner) -> None:
        if learn.n_updates == update:
            raise CancelFit("a deliberate cancel")

    return cancel


def _fail_at(update: int) -> Handler:
    def fail(learn: Learner) -> None:
        if learn.training and learn.n_updates == update:
            raise _DeliberateError("a deliberate error")

    return fail


def _check_state(make: Callable[[], Callback], callback: Callback) -> None:
    buffer = io.BytesIO()
    torch.save(callback.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    restored = make()
    restored.load_state_dict(state)
    _require(
        repr(restored.state_dict()) == repr(callback.state_dict()),
        "load_state_dict takes back what state_dict gave",
    )


def _check_range_test(make: Callable[[], Callback], learn: Learner) -> None:
    learn.fit(1)
    weights = [p.clone() for p in learn.model.parameters()]
    callback = make()
    with learn.added_cbs([callback]):
        before = repr(callback.state_dict())
        learn.lr_find(num_it=12, show_plot=False)
    _require(repr(callback.state_dict()) == before, "a range test leaves the callback unchanged")
    same = all(map(torch.equal, weights, learn.model.parameters()))
    _require(same, "a range test leaves the weights unchanged")
