import gc
import itertools
import random
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from traced_loop import NORMAL, Boom, Tracer, no_gradients, parameters, same, sgd

from onecycle import (
    Callback,
    Cancel,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    DataLoaders,
    Learner,
    OnecycleError,
    Progress,
    Stage,
    TensorLoader,
)
from onecycle.core.events import BATCH_EVENTS, EVENTS
from onecycle.optim.stepper import Stepper
from onecycle.record.history import BLOCK
from onecycle.testing import toy_learner

SCOPES = {
    CancelFit: "fit",
    CancelEpoch: "epoch",
    CancelTrain: "train",
    CancelValid: "validate",
    CancelBatch: "batch",
    CancelStep: "step",
}


def traced(at=None, error=None, where=None, n_epoch=2):
    learn, tracer = toy_learner(n_batches=2), Tracer(at, error, where)
    learn.fit(n_epoch, cbs=[tracer])
    return learn, tracer.trace


# The order of events ----------------------------------------------------------------------


def test_a_fit_fires_the_events_in_the_order_that_is_drawn():
    _, trace = traced()
    assert trace == NORMAL
    assert len(NORMAL) == 3 + 2 * (6 + 2 * 8 + 2 * 4)  # counted by hand from the design


def test_one_epoch_of_one_batch_written_out():
    learn, tracer = toy_learner(n_batches=1), Tracer()
    learn.fit(1, cbs=[tracer])
    assert tracer.trace == [
        "before_fit",
        "before_epoch",
        "before_train",
        "before_batch",
        "after_pred",
        "after_loss",
        "before_backward",
        "after_backward",
        "before_step",
        "after_step",
        "after_batch",
        "after_train",
        "before_validate",
        "before_batch",
        "after_pred",
        "after_loss",
        "after_batch",
        "after_validate",
        "after_epoch",
        "after_fit",
        "cleanup_fit",
    ]


def test_without_a_validation_loader_no_validation_event_fires():
    learn, tracer = toy_learner(n_batches=2), Tracer()
    learn.dls.valid = None
    learn.fit(1, cbs=[tracer])
    assert not [event for event in tracer.trace if "validate" in event]
    assert tracer.trace.count("before_batch") == 2


def places():
    """List every place where something can be raised, with the parts of the loop it is in."""
    outer = {
        "fit": ["fit"],
        "epoch": ["fit", "epoch"],
        "train": ["fit", "epoch", "train"],
        "validate": ["fit", "epoch", "validate"],
        "batch": ["fit", "epoch", "train", "batch"],
        "step": ["fit", "epoch", "train", "batch"],
    }
    for event in EVENTS:
        if event.startswith("after_cancel"):
            continue
        inside = list(outer[EVENTS[event].scope])
        if event in ("after_backward", "before_step"):
            inside.append("step")
        if event in ("after_fit", "after_epoch", "after_train", "after_validate", "after_batch"):
            inside.remove(EVENTS[event].scope)
        if event == "cleanup_fit":
            inside = []
        yield event, True, inside
        if event in BATCH_EVENTS:
            yield event, False, ["validate" if s == "train" else s for s in inside]


@pytest.mark.parametrize("cancel", SCOPES)
@pytest.mark.parametrize(("event", "training", "inside"), list(places()))
def test_a_cancel_at_any_event_ends_its_own_scope_and_nothing_else(event, training, inside, cancel):
    def here(learn):
        return learn.training == training or EVENTS[event].scope != "batch"

    scope = SCOPES[cancel]
    per_pass = [i for i, name in enumerate(NORMAL) if name == event]
    k = per_pass[0] if training else per_pass[2]
    if scope not in inside:
        tracer = Tracer(event, cancel("the reason"), here)
        learn = toy_learner(n_batches=2)
        with pytest.raises(OnecycleError, match=f"{cancel.__name__}.*the reason") as caught:
            learn.fit(2, cbs=[tracer])
        assert not isinstance(caught.value, Cancel)
        assert tracer.trace == NORMAL[: k + 1] + ["cleanup_fit"] * (event != "cleanup_fit")
    else:
        learn, trace = traced(event, cancel("the reason"), here)
        closing = "after_batch" if scope == "step" else f"after_{scope}"
        rest = NORMAL[NORMAL.index(closing, k + 1) :]
        told = [f"after_cancel_{scope}"]
        if event == "after_backward" and scope == "step":
            told = []  # postponed: the next batch makes the update
        assert trace == NORMAL[: k + 1] + told + rest
        assert learn.stop_reason == ("the reason" if told else None)
    assert no_gradients(learn)
    learn.fit(1)  # and the learner is usable


def test_cancel_batch_before_backward_written_out():
    _, trace = traced("before_backward", CancelBatch(), n_epoch=1)
    head = ["before_fit", "before_epoch", "before_train"]
    cancelled = ["before_batch", "after_pred", "after_loss", "before_backward"]
    assert trace[:9] == [*head, *cancelled, "after_cancel_batch", "after_batch"]


def test_cancel_fit_in_a_step_written_out():
    _, trace = traced("after_step", CancelFit())
    assert trace[-4:] == ["after_step", "after_cancel_fit", "after_fit", "cleanup_fit"]
    assert trace.count("after_batch") == trace.count("after_train") == 0


def test_cancel_epoch_in_the_first_epoch_leaves_the_second_whole():
    _, trace = traced("before_train", CancelEpoch())
    second = NORMAL[NORMAL.index("after_epoch") :]
    head = ["before_fit", "before_epoch", "before_train", "after_cancel_epoch"]
    assert trace == head + second


def test_a_fit_cannot_start_another_fit():
    again = Callback(after_epoch=lambda learn: learn.fit(1))
    learn = toy_learner(n_batches=2)
    with pytest.raises(RuntimeError, match="a fit is running"):
        learn.fit(1, cbs=[again])
    learn.fit(1)


def test_the_callbacks_of_a_fit_leave_with_it_also_after_an_error():
    learn = toy_learner(n_batches=2)
    before = list(learn.cbs)
    with pytest.raises(Boom):
        learn.fit(1, cbs=[Tracer("after_pred", Boom())])
    assert learn.cbs == before


def test_no_batch_prediction_or_graph_outlives_a_fit():
    learn, alive = toy_learner(n_batches=2), []
    keep = Callback(after_loss=lambda learn: alive.append(weakref.ref(learn.loss_grad)))
    learn.fit(1, cbs=[keep])
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4
    assert learn.xb is learn.yb is learn.batch is learn.pred is learn.loss is None


# Cancels and gradients --------------------------------------------------------------------


def postpone_odd(learn):
    if learn.iter % 2 == 0:
        raise CancelStep


def test_a_postponed_update_keeps_and_adds_gradients():
    learn = sgd(4)
    learn.fit(1, cbs=[Callback(after_backward=postpone_odd)])
    bare, reference = sgd(4), []
    recorded = []
    spy = Callback(before_batch=lambda learn: recorded.append(learn.batch))
    spy.during = "train"
    sgd(4).fit(1, cbs=[spy])
    for first, second in (recorded[:2], recorded[2:]):
        loss = sum(F.mse_loss(bare.model(x), y) for x, y in (first, second))
        reference = torch.autograd.grad(loss, list(bare.model.parameters()))
        with torch.no_grad():
            for p, g in zip(bare.model.parameters(), reference, strict=True):
                p -= 0.05 * g
    for ours, theirs in zip(parameters(learn), parameters(bare), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert learn.total_updates == 2
    assert learn.n_skipped == 0
    assert learn.recorder.history["train_loss"].updates.tolist() == [1, 2]


def test_a_window_that_is_not_full_at_the_end_of_the_pass_is_applied():
    learn = sgd(3)
    tracer = Tracer()
    learn.dls.valid = None
    learn.fit(1, cbs=[Callback(after_backward=postpone_odd), tracer])
    assert tracer.trace[-7:-3] == ["after_batch", "before_step", "after_step", "after_train"]
    assert learn.total_updates == 2
    assert no_gradients(learn)


def test_a_skipped_update_is_counted_and_changes_nothing(caplog):
    def skip(learn):
        raise CancelStep("not this one")

    learn, seen = sgd(3), []
    before = parameters(learn)
    told = Callback(after_cancel_step=lambda learn: seen.append(learn.n_skipped))
    learn.fit(1, cbs=[Callback(before_step=skip), told])
    assert same(parameters(learn), before)
    assert seen == [1, 2, 3]
    assert (learn.n_updates, learn.total_updates, learn.n_skipped) == (0, 0, 3)
    assert learn.stop_reason == "not this one"
    assert len(learn.recorder.history["train_loss"]) == 0
    assert "0 of 3 planned updates were made, 3 skipped" in caplog.text


def test_skips_do_not_lengthen_the_fit_and_it_says_where_the_schedule_ended(caplog):
    def skip_two(learn):
        if learn.iter in (2, 5):
            raise CancelStep

    learn = sgd(10)
    learn.fit_one_cycle(1, 0.1, moms=False, cbs=[Callback(before_step=skip_two)])
    lrs = learn.recorder.history["lr"].values
    full = sgd(10)
    full.fit_one_cycle(1, 0.1, moms=False)
    assert lrs.tolist() == full.recorder.history["lr"].values.tolist()[:8]  # the schedule waited
    assert f"position {7 / 9:.4g}" in caplog.text


@pytest.mark.parametrize(
    ("reason", "skips", "warns"),
    [("enough", False, False), (None, False, True), ("enough", True, True)],
)
def test_a_fit_that_was_stopped_with_a_reason_warns_only_of_what_it_skipped(
    reason, skips, warns, caplog
):
    def stop(learn):
        if learn.n_updates == 2:
            raise CancelFit(reason)

    def skip(learn):
        if skips and not learn.n_skipped:
            raise CancelStep

    learn = sgd(6)
    learn.fit(1, cbs=[Callback(after_step=stop, before_step=skip)])
    assert learn.n_updates == 2
    said = f"2 of 6 planned updates were made, {int(skips)} skipped: the schedule ended at position"
    assert [said in message for message in caplog.messages] == [True] * warns


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_fit_that_updates_alone_end_ends_at_the_first_epoch_without_any(good):
    def cancel(learn):
        if learn.epoch > 20:
            raise KeyboardInterrupt  # so that a fit that goes on for ever fails here
        if learn.epoch >= good:
            raise CancelTrain

    learn = sgd(2)
    with pytest.raises(OnecycleError, match=f"no update was tried in epoch {good},"):
        learn.fit(None, max_updates=50, cbs=[Callback(before_train=cancel)])
    assert learn.total_updates == 2 * good


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_a_loader_that_gives_nothing_is_named(kind):
    learn = sgd(2)
    setattr(learn.dls, "train" if kind == "training" else "valid", iter(()))
    with pytest.raises(ValueError, match=f"the {kind} loader gave no batch"):
        learn.fit(1)


def test_skips_count_against_max_updates():
    def skip_first(learn):
        if learn.iter == 0:
            raise CancelStep

    learn = sgd(4)
    learn.fit(None, max_updates=6, cbs=[Callback(before_step=skip_first)])
    assert (learn.n_updates, learn.n_skipped) == (4, 2)


def test_cancel_batch_before_backward_keeps_the_gradients_that_wait():
    """Batch 0 is postponed, batch 1 is left before backward, batch 2 makes the update."""

    def leave(learn):
        if learn.iter == 1:
            raise CancelBatch

    def postpone(learn):
        if learn.iter == 0:
            raise CancelStep

    both = Callback(after_loss=leave, after_backward=postpone)
    both.during = "train"
    learn, seen = sgd(3), []
    spy = Callback(before_step=lambda learn: seen.append((learn.iter, learn.batches_in_window)))
    learn.fit(1, cbs=[both, spy])
    assert seen == [(2, 2)]


def test_cancel_batch_after_backward_drops_the_gradients_it_is_mixed_with():
    def leave(learn):
        if learn.iter == 1:
            raise CancelBatch
        if learn.iter == 0:
            raise CancelStep

    learn, reference = sgd(3), sgd(3)
    learn.fit(1, cbs=[Callback(after_backward=leave)])

    def only_last(learn):
        if learn.iter < 2:
            raise CancelBatch

    last = Callback(before_batch=only_last)
    last.during = "train"
    reference.fit(1, cbs=[last])
    assert learn.total_updates == reference.total_updates == 1
    assert same(parameters(learn), parameters(reference))


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_backward"])
def test_a_cancelled_training_batch_shows_no_loss_of_another_batch(event):
    def leave(learn):
        if learn.iter == 1:
            raise CancelBatch

    seen = []
    canceller = Callback(**{event: leave})
    reader = Callback(after_batch=lambda learn: seen.append(learn.loss is None))
    canceller.during = reader.during = "train"
    learn = sgd(3)
    learn.fit(1, cbs=[canceller, reader])
    assert seen == [False, True, False]
    losses = learn.recorder.history["train_loss"].values
    assert len(losses) == len(set(losses)) == 2


def test_a_cancelled_validation_batch_is_not_counted():
    def leave(learn):
        if learn.iter == 1:
            raise CancelBatch

    learn = sgd(3)
    canceller = Callback(before_batch=leave)
    canceller.during = "valid"
    learn.fit(1, cbs=[canceller])
    kept = list(learn.dls.valid)
    kept = [kept[0], kept[2]]
    with torch.no_grad():
        expected = torch.stack([F.mse_loss(learn.model(x), y) for x, y in kept]).mean()
    assert learn.recorder.history["valid_loss"].values == pytest.approx([float(expected)])


@pytest.mark.parametrize("cancel", [CancelTrain, CancelEpoch, CancelFit])
@pytest.mark.parametrize("event", ["after_backward", "before_step", "after_batch"])
def test_a_cancel_leaves_no_gradients_and_the_next_fit_equals_a_fresh_one(event, cancel):
    learn, fresh = sgd(4), sgd(4)
    initial = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(1, cbs=[Tracer(event, cancel())])
    assert no_gradients(learn)
    learn.model.load_state_dict(initial)
    fresh.total_epochs = learn.total_epochs  # the order of the data is a function of it
    learn.fit(2)
    fresh.fit(2)
    assert same(parameters(learn), parameters(fresh))


@pytest.mark.parametrize("event", ["after_backward", "after_batch", "after_train", "after_epoch"])
def test_an_epoch_that_was_cut_short_has_used_up_its_order(event):
    def orders(learn):
        seen = []
        spy = Callback(before_batch=lambda learn: seen.append(learn.xb[0, 0].item()))
        spy.during = "train"
        return seen, spy

    learn = sgd(4)
    first, spy = orders(learn)
    stopper = Tracer(event, CancelFit())
    learn.fit(3, cbs=[spy, stopper])
    second, spy = orders(learn)
    learn.fit(1, cbs=[spy])
    assert first != second[: len(first)]
    assert learn.total_epochs == 2


def test_one_wrong_batch_loader_length_does_not_block_the_learner():
    class Odd:
        def __len__(self):
            raise NotImplementedError("ask later")

        def __iter__(self):
            yield torch.zeros(2, 4), torch.zeros(2, 1)

    learn = toy_learner(n_batches=2)
    train, learn.dls.train = learn.dls.train, Odd()
    with pytest.raises(NotImplementedError):
        learn.fit(1)
    learn.dls.train = train
    learn.fit(1)
    assert learn.total_updates == 2


# Loaders without a length, and other batches ----------------------------------------------


class Stream:
    """Batches without end and without a length; each pass starts anew."""

    def __init__(self, limit=None):
        self.limit, self.passes = limit, 0

    def __iter__(self):
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        for _ in itertools.count() if self.limit is None else range(self.limit):
            x = torch.randn(4, 4, generator=generator)
            yield x, x.sum(1, keepdim=True)


def quiet(dls, model, *args, **options):
    learn = Learner(dls, model, *args, device="cpu", seed=0, **options)
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def streamed(limit=None):
    return quiet((Stream(limit), None), nn.Linear(4, 1), F.mse_loss, lr=0.01)


def test_steps_per_epoch_ends_an_epoch_of_an_endless_loader():
    learn, planned = streamed(), []
    spy = Callback(before_fit=lambda learn: planned.append(learn.n_updates_planned))
    learn.fit(3, steps_per_epoch=4, cbs=[spy])
    assert (learn.total_updates, learn.total_epochs, planned) == (12, 3, [12])


@pytest.mark.parametrize("limit", [None, 4])
def test_max_updates_ends_a_fit_exactly(limit):
    learn = streamed(limit)
    learn.fit(None, max_updates=10)
    assert learn.total_updates == 10
    assert learn.dls.train.passes == (1 if limit is None else 3)


def test_max_updates_ends_a_fit_in_the_middle_of_an_epoch_and_validates():
    learn = toy_learner(n_batches=4)
    learn.fit(5, max_updates=6)
    assert (learn.total_updates, learn.total_epochs) == (6, 2)
    assert learn.recorder.history["valid_loss"].updates.tolist() == [4, 6]


def test_max_updates_beyond_the_epochs_does_not_stretch_the_plan():
    learn = toy_learner(n_batches=4)
    learn.fit_one_cycle(2, 0.1, max_updates=100)
    assert learn.total_updates == 8
    assert learn.recorder.history["lr"].values[-1] == 0.1 / 1e5


def test_a_schedule_over_a_loader_without_length_says_what_it_needs():
    learn = streamed(4)
    with pytest.raises(ValueError, match=r"steps_per_epoch= or max_updates="):
        learn.fit_one_cycle(1, 0.1)
    learn.fit_one_cycle(None, 0.1, max_updates=7)
    assert learn.recorder.history["lr"].values[-1] == 0.1 / 1e5


def test_plain_training_over_a_loader_without_length_needs_no_plan():
    learn = streamed(3)
    learn.fit(2)
    assert learn.total_updates == 6
    assert learn.n_updates_planned is None


def test_the_plan_is_known_at_before_fit_and_follows_the_accumulation():
    def accumulate(learn):
        learn.batches_per_update = 3
        learn.plan_updates()

    learn, planned = toy_learner(n_batches=8), []
    first = Callback(before_fit=accumulate)
    first.stage = Stage.PREPARE
    spy = Callback(before_fit=lambda learn: planned.append(learn.n_updates_planned))
    learn.fit(2, cbs=[first, spy])
    assert planned == [6]  # ceil(8 / 3) in each of two epochs


def test_a_list_of_batches_is_a_loader():
    batches = [(torch.full((2, 4), float(i)), torch.zeros(2, 1)) for i in range(3)]
    learn, seen = quiet((batches, batches), nn.Linear(4, 1), F.mse_loss), []
    learn.fit(2, cbs=[Callback(before_batch=lambda learn: seen.append(learn.xb[0, 0].item()))])
    assert seen == [0.0, 1.0, 2.0] * 4


@pytest.mark.parametrize("as_attribute", [True, False])
def test_a_dict_batch_goes_to_the_model_as_keywords_which_returns_its_loss(as_attribute):
    class Output(dict):
        def __init__(self, loss):
            super().__init__(loss=loss)
            self.loss = loss

    class SelfMade(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, inputs, labels):
            loss = F.mse_loss(self.layer(inputs), labels)
            return Output(loss) if as_attribute else loss

    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    batches = [{"inputs": x[i : i + 4], "labels": x[i : i + 4, :1]} for i in range(0, 16, 4)]
    learn = quiet((batches, batches), SelfMade(), lr=0.05)
    learn.fit(10)
    losses = learn.recorder.history["valid_loss"].values
    assert losses[-1] < losses[0] / 2


def test_several_inputs_and_targets_are_split_by_n_inp():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, a, b):
            return self.layer(a + b)

    a, b, y = torch.ones(8, 4), torch.ones(8, 4), torch.ones(8, 1)
    loader = TensorLoader(a, b, y, y, batch_size=4)
    learn, seen = (
        quiet((loader, None), Sum(), lambda p, y1, y2: F.mse_loss(p, y1 * y2), n_inp=2),
        [],
    )
    learn.fit(1, cbs=[Callback(before_batch=lambda learn: seen.append((learn.xb, learn.yb)))])
    assert [len(part) for part in seen[0]] == [2, 2]


def test_a_batch_without_targets_trains_on_a_loss_of_the_prediction_alone():
    loader = TensorLoader(torch.ones(8, 4), batch_size=4)
    learn = quiet(
        (loader, loader), nn.Linear(4, 1), lambda pred: (pred - 3).square().mean(), lr=0.05
    )
    learn.fit(10)
    values = learn.recorder.history["valid_loss"].values
    assert values[-1] < values[0] / 2


def test_a_callback_that_writes_xb_changes_what_the_model_sees():
    def zero(learn):
        learn.xb = torch.zeros_like(learn.xb)

    learn, preds = sgd(2), []
    bias = learn.model[2].bias + learn.model[2].weight @ learn.model[0].bias.relu()
    spy = Callback(before_batch=zero, after_pred=lambda learn: preds.append(learn.pred))
    learn.fit(1, cbs=[spy])
    torch.testing.assert_close(preds[0], bias.detach().expand(8, 1))


class Noting(Stepper):
    """Has the learner make prediction and loss, and notes for which pass."""

    def __init__(self, learn):
        super().__init__(learn.opt)
        self.learn, self.forward_pass, self.calls = learn, self, []

    def predict_batch(self, batch):
        assert batch is self.learn.batch
        self.calls.append("train" if self.learn.training else "valid")
        return self.learn.predict_batch(batch)

    def compute_loss(self, pred, batch):
        assert pred is self.learn.pred
        return self.learn.compute_loss(pred, batch) * 3


def test_a_stepper_may_make_prediction_and_loss_of_the_loops_batches_and_of_no_others():
    learn, steppers, own = toy_learner(2, check=False), [], []

    def take_over(learn):
        steppers.append(Noting(learn))
        learn.stepper = steppers[0]

    def look(learn):
        own.append((learn.compute_loss(learn.predict_batch(learn.batch), learn.batch), learn.loss))

    learn.fit(1, cbs=[Callback(before_fit=take_over, after_loss=look)])
    assert steppers[0].calls == ["train"] * 2 + ["valid"] * 2
    assert all(torch.equal(3 * loss.detach(), reported) for loss, reported in own)
    learn.fit(1)
    assert len(steppers[0].calls) == 4


def test_a_penalty_added_to_loss_grad_changes_the_gradients_and_not_the_record():
    def add_penalty(learn):
        if learn.training:
            learn.loss_grad = learn.loss_grad + 100 * learn.model[0].weight.square().sum()

    plain, penalised = sgd(1), sgd(1)
    plain.fit(1)
    penalised.fit(1, cbs=[Callback(after_loss=add_penalty)])
    record = [learn.recorder.history["train_loss"].values[0] for learn in (plain, penalised)]
    assert record[0] == record[1]
    assert not same(parameters(plain), parameters(penalised))


def test_validation_leaves_every_random_stream_as_it_was():
    def draw_some(learn):
        torch.rand(3), random.random()

    noisy = Callback(before_batch=draw_some)
    noisy.during = "valid"
    torch.manual_seed(1)
    random.seed(1)
    sgd(2).fit(2, cbs=[noisy])
    after = torch.rand(1).item(), random.random()
    torch.manual_seed(1)
    random.seed(1)
    learn = sgd(2)
    learn.dls.valid = None
    learn.fit(2)
    assert after == (torch.rand(1).item(), random.random())


def test_the_model_trains_in_training_mode_and_validates_in_evaluation_mode():
    seen = []
    look = Callback(before_batch=lambda learn: seen.append((learn.training, learn.model.training)))
    sgd(1).fit(2, cbs=[look])
    assert seen == [(True, True), (False, False)] * 2


def test_validation_computes_no_gradients():
    flags = []
    look = Callback(after_loss=lambda learn: flags.append(learn.loss_grad.requires_grad))
    sgd(1).fit(1, cbs=[look])
    assert flags == [True, False]


# The loop against a bare one --------------------------------------------------------------


def test_a_fit_equals_a_bare_loop_to_the_bit():
    learn, recorded = toy_learner(n_batches=5, lr=0.01), []
    spy = Callback(before_batch=lambda learn: recorded.append(learn.batch))
    spy.during = "train"
    toy_learner(n_batches=5).fit(3, cbs=[spy])
    learn.fit(3)
    model = toy_learner().model
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    opt, losses = torch.optim.AdamW(groups, lr=0.01, fused=True), []
    for x, y in recorded:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert same(parameters(learn), list(model.parameters()))
    assert learn.recorder.history["train_loss"].values.tolist() == losses


class CountReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator."""

    READS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_to_copy")

    def __init__(self):
        super().__init__()
        self.reads, self.on = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on and func.name().removeprefix("aten::").split(".")[0] in self.READS:
            self.reads += 1
        return func(*args, **(kwargs or {}))


def count_reads(n_updates, *cbs):
    counter = CountReads()
    switch = Callback(
        before_train=lambda learn: setattr(counter, "on", True),
        after_train=lambda learn: setattr(counter, "on", False),
    )
    switch.stage = Stage.PREPARE
    learn = toy_learner(n_batches=n_updates, batch_size=1, check=False)
    with counter:
        learn.fit_one_cycle(1, 0.1, cbs=[switch, *cbs])
    assert learn.total_updates == n_updates
    return counter.reads


def test_a_training_batch_reads_nothing_from_the_device():
    assert count_reads(BLOCK - 1) == 0


def test_the_count_of_reads_sees_one_that_is_made():
    read = Callback(after_step=lambda learn: learn.loss.item())
    assert count_reads(10, read) == 10


# Determinism ------------------------------------------------------------------------------


def twice(make, **fit):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        learn = make()
        learn.fit_one_cycle(2, 0.05, **fit)
        results.append((parameters(learn), learn.recorder.history["train_loss"].values.tolist()))
    (first, losses), (second, again) = results
    return same(first, second) and losses == again, first


def with_dropout(loader, seed=0):
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))
    learn = Learner((loader, None), model, F.mse_loss, device="cpu", seed=seed)
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Noisy(torch.utils.data.Dataset):
    """Draws from the streams of the worker that it runs in."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return X[i] + torch.rand(4) + random.random(), X[i, :1]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_the_same_bits_twice(workers):
    loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers)

    def make():
        random.seed(3)
        return with_dropout(loader)

    equal, _ = twice(make)
    assert equal


def test_another_seed_gives_another_order():
    loader = DataLoader(TensorDataset(X, X[:, :1]), batch_size=8, shuffle=True)
    _, first = twice(lambda: with_dropout(loader, seed=0))
    _, second = twice(lambda: with_dropout(loader, seed=1))
    assert not same(first, second)


def test_without_a_seed_torch_draws_one():
    loader = DataLoader(TensorDataset(X, X[:, :1]), batch_size=8, shuffle=True)
    equal, _ = twice(lambda: with_dropout(loader, seed=None))
    assert equal


def test_labels_out_of_range_are_explained_and_leave_the_model_as_it_was():
    x, y = torch.randn(8, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2, 7])
    model = nn.Linear(4, 4)
    learn = Learner(
        ([(x, y)], None), model, nn.functional.cross_entropy, cbs=[], device="cpu", seed=0
    )
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(IndexError) as caught, learn.no_bar():
        learn.fit(1)
    notes = "\n".join(caught.value.__notes__)
    assert "labels must be in 0 to 3 for predictions of 4 classes" in notes
    assert "these go from 0 to 7" in notes
    assert all(map(torch.equal, before, model.parameters()))


def test_an_error_of_the_loss_function_says_what_shapes_came():
    x, y = torch.randn(8, 4), torch.randn(8, 3)
    learn = Learner(([(x, y)], None), nn.Linear(4, 4), nn.functional.cross_entropy, device="cpu")
    with pytest.raises(RuntimeError) as caught, learn.no_bar():
        learn.fit(1)
    assert "pred (8, 4) float32 and target (8, 3) float32" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("loss_func", [None, nn.MSELoss(reduction="none")])
def test_a_loss_that_is_not_one_number_is_explained(loss_func):
    batches = [(torch.randn(8, 4), torch.randn(8, 2))]
    learn = Learner((batches, None), nn.Linear(4, 2), loss_func, device="cpu")
    with pytest.raises(RuntimeError) as caught, learn.no_bar():
        learn.fit(1)
    assert "the loss must be one number and has shape (8, 2)" in "\n".join(caught.value.__notes__)


def test_a_loader_shorter_than_steps_per_epoch_is_told(caplog):
    learn = sgd(3)
    learn.fit_one_cycle(2, 0.1, moms=False, steps_per_epoch=10)
    assert caplog.text == ""  # the loader's own length is known, and planned with
    learn.dls = DataLoaders(Stream(3), None)
    learn.fit_one_cycle(2, 0.1, moms=False, steps_per_epoch=10)
    assert "6 of 20 planned updates were made, 0 skipped" in caplog.text


def test_a_fit_that_max_updates_alone_ends_does_not_run_for_ever_without_updates():
    def leave(learn):
        raise CancelBatch

    learn = sgd(3)
    with pytest.raises(OnecycleError, match="no update was tried in epoch 0"):
        learn.fit(None, max_updates=5, cbs=[Callback(before_batch=leave)])
