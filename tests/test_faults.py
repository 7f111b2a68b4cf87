"""Whatever fails, and wherever: nothing is lost, and the learner is ready for its next fit."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from afterwards import left_behind, not_ready, run, run_of
from exported_callbacks import EXPORTED, maker
from tiny_learner import X, Y, tiny, tiny_for
from torch.utils.data import DataLoader, Dataset

from onecycle import (
    Callback,
    Cancel,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    Learner,
    OnecycleError,
    Recorder,
    files,
)
from onecycle.callbacks import progress
from onecycle.callbacks.tables import TerminalTable
from onecycle.core.events import EVENTS

CANCELS = (CancelStep, CancelBatch, CancelTrain, CancelValid, CancelEpoch, CancelFit)
FAULTS: tuple[type[BaseException], ...] = (ValueError, KeyboardInterrupt, SystemExit, *CANCELS)

#: What makes an event fire that only a cancel causes.
TRIGGERS: dict[str, tuple[str, type[Cancel]]] = {
    "after_cancel_step": ("before_step", CancelStep),
    "after_cancel_batch": ("after_pred", CancelBatch),
    "after_cancel_train": ("before_batch", CancelTrain),
    "after_cancel_validate": ("before_validate", CancelValid),
    "after_cancel_epoch": ("before_train", CancelEpoch),
    "after_cancel_fit": ("before_epoch", CancelFit),
}


class Injected:
    """Raises a fault in one event of one callback, and hears every clean-up."""

    def __init__(self, kind: type[BaseException], event: str, at: int, *, after: bool) -> None:
        self.fault, self.event, self.at, self.after = kind("deliberate"), event, at, after
        self.place: tuple[str, int, str, int] | None = None
        self.cleaned: list[Callback] = []
        self.callbacks: list[Callback] = []
        self._n = 0

    def into(self, callback: Callback) -> Callback:
        own = getattr(callback, self.event, None)

        def handler(self_: Callback, learn: Learner) -> None:
            self._n += 1
            due = self._n == self.at
            if due and not self.after:
                self._raise(self_, learn)
            if own is not None:
                own(learn)  # which may end in a cancel of its own: then there is no fault
            if due:
                self._raise(self_, learn)

        setattr(callback, self.event, MethodType(handler, callback))
        return callback

    def _raise(self, callback: Callback, learn: Learner) -> None:
        kind = "training" if learn.training else "validation"
        self.place = (type(callback).__name__, learn.epoch, kind, learn.iter)
        raise self.fault

    def watch(self, callback: Callback) -> None:
        """Hear the clean-up of a callback, before whatever it does."""
        own = getattr(callback, "cleanup_fit", None)

        def handler(self_: Callback, learn: Learner) -> None:
            self.cleaned.append(self_)
            if own is not None:
                own(learn)

        callback.cleanup_fit = MethodType(handler, callback)  # type: ignore[attr-defined]
        self.callbacks.append(callback)

    def out_of(self, callback: Callback) -> None:
        for name in EVENTS:
            vars(callback).pop(name, None)


def trigger(event: str) -> list[Callback]:
    """Return the callback that makes an event fire."""
    if event not in TRIGGERS:
        return []
    where, cancel = TRIGGERS[event]

    def raise_it(learn: Learner) -> None:
        if learn.training or where == "before_validate":
            raise cancel("to make the event fire")

    return [Callback(**{where: raise_it})]


def faulted(
    make: Callable[[], Callback], kind: type[BaseException], event: str, at: int, after: bool
) -> list[str]:
    """Run a fit with a fault in it; return the rules that it broke, in words."""
    torch.manual_seed(1)
    callback = make()
    learn = tiny_for(callback)
    injected = Injected(kind, event, at, after=after)
    injected.into(callback)
    others = trigger(event)
    run_kind = run_of(callback)
    for each in (*learn.cbs, *others, callback):
        if each.takes_part_in(run_kind):
            injected.watch(each)
    error = raised_by(lambda: run(learn, 2, callback, *others))
    for each in (*learn.cbs, callback):
        injected.out_of(each)
    broken = [] if injected.place or error is None else [f"an error of another origin: {error!r}"]
    if injected.place:
        broken += wrong_error(injected, error)
    newest_first = sorted(injected.callbacks, key=lambda each: each.stage)[::-1]
    if injected.cleaned != newest_first:
        broken.append(f"cleaned up {injected.cleaned} instead of {newest_first}")
    return broken + left_behind(learn, callback) + not_ready(learn, make, callback)


def raised_by(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def wrong_error(injected: Injected, error: BaseException | None) -> list[str]:
    """List what is wrong with the error that came, or with its notes."""
    assert injected.place is not None
    name, epoch, kind, batch = injected.place
    if isinstance(injected.fault, Cancel):  # acts, or says that it could not
        fine = error is None or (
            isinstance(error, OnecycleError)
            and (f"{name} in {injected.event}" in str(error) or "no update was tried" in str(error))
        )
        return [] if fine else [f"a cancel became {error!r}"]
    if error is not injected.fault:
        return [f"{injected.fault!r} became {error!r}"]
    if not isinstance(error, Exception):
        return []
    place = f"{name} in {injected.event}, epoch {epoch}, {kind} batch {batch},"
    notes = [note for note in error.__notes__ if place in note]
    return [] if len(notes) == 1 else [f"{place!r} is not once in {error.__notes__}"]


#: Of how many combinations the fast tests try one for each callback.
ONE_IN = 28


def combinations(every: int, seed: int) -> list[tuple[type[BaseException], str, int, bool]]:
    """Return fault, event, the how manieth time, and before or after: one in so many of all.

    Together as many seeds have them all.
    """
    often = {"fit": 1, "epoch": 2, "train": 2, "validate": 2, "batch": 3, "step": 2}
    product = [
        (fault, event, 1 + (i + j) % often[EVENTS[event].scope], after)
        for (i, event), (j, fault) in itertools.product(enumerate(EVENTS), enumerate(FAULTS))
        for after in (False, True)
    ]
    random.Random(0).shuffle(product)
    return product[seed % every :: every]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Let every fit have bars, drawn into nowhere at each batch; gives the tables."""
    tables: list[Any] = []

    def new_table(n_epoch: int | None) -> Any:
        tables.append(TerminalTable())
        return tables[-1]

    monkeypatch.setattr(progress, "new_table", new_table)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # slow, and no power fails here
    with contextlib.redirect_stdout(None):
        yield tables


def check_all(make: Callable[[], Callback], every: int, tables: list[Any], seed: int) -> None:
    broken, own = [], make()
    # After the callback's own handler is the same as before, where it has none.
    cases = [(*case, after and hasattr(own, case[1])) for *case, after in combinations(every, seed)]
    for kind, event, at, after in dict.fromkeys(cases):
        # A Recorder that cancels before it has recorded leaves the gap of its own will.
        records = isinstance(own, Recorder) and event == "after_step"
        wrong = faulted(make, kind, event, at, after or records)
        wrong += ["a bar is open"] if any(table.bar_is_open for table in tables) else []
        tables.clear()
        when = "after" if after else "before"
        broken += [f"{kind.__name__} {when} {event} no. {at}: {rule}" for rule in wrong]
    assert broken == []


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_a_fault_in_any_event_loses_nothing(
    kind: type[Callback], tmp_path: Path, terminal: list[Any]
) -> None:
    check_all(maker(kind, tmp_path), ONE_IN, terminal, EXPORTED.index(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_every_fault_in_every_event_loses_nothing(
    kind: type[Callback], tmp_path: Path, terminal: list[Any]
) -> None:
    check_all(maker(kind, tmp_path), 1, terminal, 0)


class LeavesMomentum(Callback):
    """Puts back what it changed, but not after an error."""

    def before_fit(self, learn: Learner) -> None:
        learn.model[1].momentum /= 2

    def after_fit(self, learn: Learner) -> None:
        learn.model[1].momentum *= 2


class KeepsGradients(Callback):
    def cleanup_fit(self, learn: Learner) -> None:
        for p in learn.model.parameters():
            p.register_hook(lambda gradient: gradient * 2)


@pytest.mark.parametrize("kind", [LeavesMomentum, KeepsGradients])
def test_a_callback_that_leaks_on_an_error_is_found_out(
    kind: type[Callback], terminal: list[Any]
) -> None:
    with pytest.raises(AssertionError, match="the next fit differs"):
        check_all(kind, 8, terminal, 0)


def test_the_combinations_of_the_fast_suite_have_every_fault_in_every_event() -> None:
    seen = {
        (fault, event)
        for seed in range(len(EXPORTED))
        for fault, event, _, _ in combinations(ONE_IN, seed)
    }
    assert len(seen) == len(FAULTS) * len(EVENTS)


# Faults elsewhere -------------------------------------------------------------------------


class Failing:
    """Does what it wraps, and fails at one of its calls."""

    def __init__(self, call: Callable[..., Any], fault: BaseException, at: int) -> None:
        self.call, self.fault, self.at, self.n = call, fault, at, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.n += 1
        if self.n == self.at:
            raise self.fault
        return self.call(*args, **kwargs)


class FailingLoader:
    """Fails while it is started, or while a batch is drawn."""

    def __init__(self, fault: BaseException, at: int) -> None:
        self.fault, self.at, self.n = fault, at, 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        self._fail_if_due()
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        for i in range(2):
            self._fail_if_due()
            yield X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]

    def _fail_if_due(self) -> None:
        self.n += 1
        if self.n == self.at:
            raise self.fault


def in_forward(learn: Learner, fault: BaseException, at: int) -> None:
    learn.model.forward = Failing(learn.model.forward, fault, at)  # type: ignore[method-assign]


def in_loss(learn: Learner, fault: BaseException, at: int) -> None:
    assert learn.loss_func is not None
    learn.loss_func = Failing(learn.loss_func, fault, at)


def in_backward(learn: Learner, fault: BaseException, at: int) -> None:
    fails = Failing(lambda gradient: None, fault, at)
    learn.model[0].weight.register_hook(fails)  # type: ignore[index]


def in_step(learn: Learner, fault: BaseException, at: int) -> None:
    learn.opt.step = Failing(learn.opt.step, fault, at)  # type: ignore[method-assign]


def in_metric(learn: Learner, fault: BaseException, at: int) -> None:
    learn.metrics[0].update = Failing(learn.metrics[0].update, fault, at)


def in_loader(learn: Learner, fault: BaseException, at: int) -> None:
    learn.dls.train = FailingLoader(fault, at)


PARTS = {
    "loader": (in_loader, 6),
    "forward": (in_forward, 6),
    "loss": (in_loss, 6),
    "backward": (in_backward, 4),
    "step": (in_step, 4),
    "metric": (in_metric, 2),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_fault_outside_of_the_callbacks_loses_nothing(
    part: str, kind: type[BaseException], terminal: list[Any]
) -> None:
    spoil, times = PARTS[part]
    for at in range(1, times + 1):
        learn, fault = tiny(check=False), kind("deliberate")
        learn.cbs.append(progress.Progress())
        spoil(learn, fault, at)
        places: list[tuple[int, str, int]] = []
        assert fit_fails(learn, Callback(cleanup_fit=noting(places))) is fault
        ((epoch, during, batch),) = places
        if isinstance(fault, Exception):
            place = f"epoch {epoch}, {during} batch {batch},"
            assert sum(place in note for note in fault.__notes__) == 1
        learn.cbs.pop()
        assert left_behind(learn, None) == []
        assert not any(table.bar_is_open for table in terminal)
        mend(learn)
        assert not_ready(learn, Callback, None) == []


def fit_fails(learn: Learner, callback: Callback) -> BaseException | None:
    return raised_by(lambda: run(learn, 2, None, callback))


def noting(places: list[tuple[int, str, int]]) -> Callable[[Learner], None]:
    def note(learn: Learner) -> None:
        places.append((learn.epoch, "training" if learn.training else "validation", learn.iter))

    return note


def mend(learn: Learner) -> None:
    """Take every `Failing` out of a learner."""
    good = tiny()
    vars(learn.model).pop("forward", None)
    vars(learn.opt).pop("step", None)
    learn.model[0].weight._backward_hooks = None  # type: ignore[index]
    learn.loss_func, learn.metrics, learn.dls = good.loss_func, good.metrics, good.dls


class FailingDataset(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if i == 5:
            raise LookupError(f"sample {i} is unreadable")
        return X[i], Y[i]


@pytest.mark.parametrize("persistent", [False, True])
def test_a_fault_in_a_worker_arrives_with_its_type_and_leaves_no_process(persistent: bool) -> None:
    loader = DataLoader(
        FailingDataset(), 2, num_workers=1, persistent_workers=persistent, timeout=60
    )
    learn = tiny(loader)
    with pytest.raises(LookupError, match="sample 5 is unreadable") as error:
        learn.fit(2)
    notes = error.value.__notes__
    assert sum("raised by the loader while drawing batch 2" in note for note in notes) == 1
    assert left_behind(learn, None) == []
    learn.dls.train = tiny().dls.train
    assert not_ready(learn, Callback, None) == []
