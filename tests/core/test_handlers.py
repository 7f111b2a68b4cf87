"""Which handlers hear an event, who hears of an error, and where it says it was."""

import itertools
import re
from contextlib import suppress

import pytest
import torch
from torch.nn import functional as F
from traced_loop import NORMAL, Boom, Tracer, no_gradients, sgd

from onecycle import (
    Callback,
    CancelBatch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    OnecycleError,
    Stage,
)
from onecycle.core import handlers as handlers_module
from onecycle.core import loop as loop_module
from onecycle.core.events import BATCH_EVENTS, EVENTS
from onecycle.testing import toy_learner


def test_a_reporting_event_reaches_every_callback_before_a_cancel_acts():
    seen = []

    def stop(learn):
        raise CancelFit("enough")

    save = Callback(after_step=lambda learn: seen.append(learn.n_updates))
    save.stage = Stage.SAVE
    stopper = Callback(after_step=stop)
    stopper.stage = Stage.PREPARE  # before the recorder
    learn = toy_learner()
    learn.fit(1, cbs=[stopper, save])
    assert seen == [1]
    assert learn.recorder.history["train_loss"].updates.tolist() == [1]
    assert (learn.stop_reason, learn.total_updates) == ("enough", 1)


@pytest.mark.parametrize(
    "cancels", list(itertools.permutations([CancelBatch, CancelTrain, CancelFit]))
)
def test_the_widest_cancel_of_a_reporting_event_acts(cancels):
    def raising(cancel):
        def raise_it(learn):
            raise cancel(cancel.__name__)

        return Callback(after_step=raise_it)

    learn = toy_learner()
    learn.fit(1, cbs=[raising(cancel) for cancel in cancels])
    assert learn.stop_reason == "CancelFit"
    assert learn.total_updates == 1
    assert "valid_loss" not in learn.recorder.history


def test_other_events_stop_at_the_first_cancel():
    def stop(learn):
        raise CancelBatch

    seen = []
    learn = toy_learner(n_batches=1)
    learn.dls.valid = None
    learn.fit(1, cbs=[Callback(after_pred=stop), Callback(after_pred=seen.append)])
    assert not seen


@pytest.mark.parametrize("event", [e for e in dict.fromkeys(NORMAL) if e != "cleanup_fit"])
def test_after_an_error_only_cleanup_fit_fires(event):
    tracer, learn = Tracer(event, Boom("the words")), toy_learner(n_batches=2)
    with pytest.raises(Boom, match="the words"):
        learn.fit(2, cbs=[tracer])
    assert tracer.trace == [*NORMAL[: NORMAL.index(event) + 1], "cleanup_fit"]
    assert no_gradients(learn)
    learn.fit(1)


def test_an_error_keeps_its_type_and_names_callback_event_epoch_and_batch():
    class Faulty(Callback):
        def after_loss(self, learn):
            if learn.epoch == 1 and learn.iter == 1:
                raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        toy_learner(n_batches=2).fit(2, cbs=[Faulty()])
    notes = " ".join(caught.value.__notes__)
    assert re.search(r"Faulty in after_loss, epoch 1, training batch 1, after 3 updates", notes)


def test_an_error_in_validation_says_so():
    class Faulty(Callback):
        during = "valid"

        def after_loss(self, learn):
            raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        toy_learner(n_batches=2).fit(2, cbs=[Faulty()])
    assert "epoch 0, validation batch 0, after 2 updates" in " ".join(caught.value.__notes__)


def test_an_error_of_the_model_says_where_it_was():
    learn = toy_learner(n_batches=2)
    learn.loss_func = lambda pred, yb: F.mse_loss(pred, yb[:3].expand(5, 1))
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    assert "epoch 0, training batch 0, after 0 updates" in " ".join(caught.value.__notes__)


def test_an_error_of_the_loader_names_the_batch():
    class Broken:
        def __len__(self):
            return 5

        def __iter__(self):
            yield torch.zeros(2, 4), torch.zeros(2, 1)
            raise OSError("disk gone")

    learn = toy_learner()
    learn.dls.train = Broken()
    with pytest.raises(OSError, match="disk gone") as caught:
        learn.fit(1)
    assert "by the loader while drawing batch 1" in " ".join(caught.value.__notes__)


def test_a_cancel_out_of_its_scope_names_callback_event_and_place():
    class Faulty(Callback):
        def before_epoch(self, learn):
            if learn.epoch:
                raise CancelValid("no reason at all")

    words = "CancelValid.*Faulty in before_epoch, epoch 1.*no validation pass is running"
    with pytest.raises(OnecycleError, match=words):
        toy_learner(n_batches=2).fit(2, cbs=[Faulty()])


def test_cleanup_runs_newest_first_and_cannot_hide_the_first_error():
    order = []

    def failing(name):
        def clean(learn):
            order.append(name)
            raise ValueError(f"cleanup of {name}")

        return Callback(cleanup_fit=clean)

    def stop(learn):
        raise Boom("first")

    cbs = [failing("old"), failing("new"), Callback(after_loss=stop)]
    with pytest.raises(Boom, match="first") as caught:
        toy_learner().fit(1, cbs=cbs)
    assert order == ["new", "old"]
    notes = " ".join(caught.value.__notes__)
    assert "cleanup of new" in notes
    assert "cleanup of old" in notes


def test_an_error_in_cleanup_alone_is_raised_after_every_cleanup():
    order = []

    def clean(learn):
        order.append("failed")
        raise Boom("in cleanup")

    cbs = [Callback(cleanup_fit=lambda learn: order.append("done")), Callback(cleanup_fit=clean)]
    learn = toy_learner(n_batches=2)
    with pytest.raises(Boom, match="in cleanup"):
        learn.fit(1, cbs=cbs)
    assert order == ["failed", "done"]
    learn.fit(1)


def test_an_interrupt_is_cleaned_up_after_and_goes_on():
    tracer, learn = Tracer("after_step", KeyboardInterrupt()), toy_learner(n_batches=2)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, cbs=[tracer])
    assert tracer.trace[-2:] == ["after_step", "cleanup_fit"]
    assert no_gradients(learn)
    assert not [cb for cb in learn.cbs if cb is tracer]
    learn.fit(1)
    assert learn.total_updates == 3


def test_an_error_carries_one_note_of_its_place():
    def fail(learn):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        sgd(3).fit(1, cbs=[Callback(after_loss=fail)])
    assert sum("training batch 0" in note for note in caught.value.__notes__) == 1


@pytest.mark.parametrize("event", [name for name in EVENTS if "cancel" not in name])
def test_a_cancel_lets_the_others_hear_first_exactly_of_events_that_report(event):
    def cancel(learn):
        raise CancelFit("enough")

    heard = []
    first, second = Callback(**{event: cancel}), Callback(**{event: heard.append})
    # Cleaning up runs the newest first, and nothing may keep a callback from it.
    with suppress(OnecycleError):
        sgd(2).fit(1, cbs=[first, second])
    assert bool(heard) == (EVENTS[event].reports or event == "cleanup_fit")


@pytest.mark.parametrize(
    ("during", "trainings", "validations"), [("train", 3, 0), ("valid", 0, 2), ("both", 3, 2)]
)
def test_during_filters_the_batch_events_and_no_other(during, trainings, validations):
    seen = {event: [] for event in EVENTS}
    callback = Callback(**{e: lambda learn, e=e: seen[e].append(learn.training) for e in EVENTS})
    callback.during = during
    learn = toy_learner(n_batches=3)
    learn.dls.valid.tensors = tuple(tensor[:16] for tensor in learn.dls.valid.tensors)
    learn.fit(1, cbs=[callback])
    for event in set(BATCH_EVENTS) - {"after_cancel_batch"}:
        assert seen[event].count(True) == trainings
        assert seen[event].count(False) == validations
    assert len(seen["after_step"]) == len(seen["before_backward"]) == 3
    assert len(seen["after_train"]) == len(seen["after_validate"]) == 1


def test_an_event_that_nobody_handles_costs_no_call(monkeypatch):
    learn = toy_learner(n_batches=4, check=False)
    fired = []

    def watch(learn, handlers, event):
        fired.append((event, handlers))
        handlers_module.fire(learn, handlers, event)

    monkeypatch.setattr(loop_module, "fire", watch)
    monkeypatch.setattr(loop_module, "report", watch)
    learn.fit(1, cbs=[Callback(after_loss=lambda learn: None)])
    per_batch = [event for event, _ in fired if EVENTS[event].scope in ("batch", "step")]
    assert per_batch.count("after_loss") == 8
    assert set(per_batch) == {"after_loss", "after_step", "after_batch"}  # the last two: Recorder
    assert not [event for event, handlers in fired if event in per_batch and not handlers]


def test_the_event_that_fires_is_named_on_the_learner():
    named = []

    def note(event):
        return lambda learn: named.append((event, learn.event))

    def cancel(learn):
        if learn.training and learn.iter == 1:
            raise CancelBatch

    def skip(learn):
        if learn.iter == 2:
            raise CancelStep

    watch = Callback(**{event: note(event) for event in EVENTS})
    learn = toy_learner(n_batches=4)
    learn.fit(2, cbs=[watch, Callback(after_pred=cancel, before_step=skip)])
    assert {event for event, _ in named} == {*NORMAL, "after_cancel_batch", "after_cancel_step"}
    assert [event for event, name in named if name != event] == []


def test_those_after_a_cancel_see_that_there_is_one_and_nobody_later_does():
    seen = []

    def stop(learn):
        if learn.n_updates == 2:
            raise CancelTrain

    def note(learn):
        seen.append((learn.event, learn.n_updates, learn.is_cancelled))

    before, after = Callback(after_step=note), Callback(after_step=note, after_train=note)
    toy_learner(n_batches=4).fit(1, cbs=[before, Callback(after_step=stop), after])
    assert seen == [
        ("after_step", 1, False),
        ("after_step", 1, False),
        ("after_step", 2, False),
        ("after_step", 2, True),
        ("after_train", 2, False),
    ]


def test_an_error_in_cleanup_says_so():
    def fail(learn):
        raise Boom("late")

    with pytest.raises(Boom) as caught:
        toy_learner(n_batches=2).fit(1, cbs=[Callback(cleanup_fit=fail)])
    assert "in cleanup_fit, epoch 0" in " ".join(caught.value.__notes__)
