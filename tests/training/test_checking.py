import logging

import pytest
import torch
import torch.nn.functional as F
from learner_state import LearnerState
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from onecycle import Callback, GradientAccumulation, Learner, TensorLoader, accuracy
from onecycle.core.events import EVENTS
from onecycle.testing import toy_learner
from onecycle.training.checking import check_between_updates

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]


def classifier(*last, x=X, y=Y, loss=F.cross_entropy, model=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 3), *last) if model is None else model
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 64, 32)]
    given = {"device": "cpu", "seed": 0, "lr": 0.01} | options
    return Learner((batches, batches), model, loss, **given)


def said(learn, caplog):
    caplog.clear()
    with learn.no_bar(), caplog.at_level(logging.WARNING, "onecycle"):
        learn.fit(1)
    return [message for message in caplog.messages if message.startswith("check: ")]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x)


WRONG = {
    "softmax under cross-entropy": (lambda: classifier(nn.Softmax(1)), "leave the softmax out"),
    "its module": (
        lambda: classifier(nn.Softmax(1), loss=nn.CrossEntropyLoss()),
        "leave the softmax out",
    ),
    "nll on scores": (lambda: classifier(loss=F.nll_loss), "nll_loss takes logarithms"),
    "sigmoid under logits": (
        lambda: classifier(
            nn.Sigmoid(), y=F.one_hot(Y, 3).float(), loss=F.binary_cross_entropy_with_logits
        ),
        "leave the sigmoid out",
    ),
    "pixels up to 255": (lambda: classifier(x=X.abs() * 127), "the inputs are large"),
    "a first loss far above guessing": (lambda: classifier(x=X * 20), "guessing among 3 classes"),
    "labels from 1": (lambda: classifier(y=Y % 2 + 1), "no label is 0"),
    "targets that are left out": (
        lambda: classifier(y=torch.where(torch.arange(64) % 5 == 0, -100, Y)),
        "give the Learner loss_weight=token_weight()",
    ),
    "a layer that is not used": (lambda: classifier(model=Head()), "does not reach unused.weight"),
    "NaN in the data": (lambda: classifier(x=X.log()), "holds NaN"),
    "one class": (
        lambda: classifier(model=nn.Linear(6, 1), y=Y * 0),
        "an output for each class",
    ),
}


@pytest.mark.parametrize("make", [make for make, _ in WRONG.values()], ids=list(WRONG))
def test_a_mistake_that_one_batch_can_tell_is_told_before_the_first_update(make, caplog, request):
    words = WRONG[request.node.callspec.id][1]
    learn = make()
    with caplog.at_level(logging.WARNING, "onecycle"), learn.no_bar():
        at_update = []
        told = Callback(before_step=lambda learn: at_update.append(words in caplog.text))
        learn.fit(1, cbs=[told])
    assert at_update[0]


@pytest.mark.parametrize(
    "make",
    [
        classifier,
        lambda: classifier(loss=nn.CrossEntropyLoss()),
        lambda: classifier(nn.LogSoftmax(1), loss=F.nll_loss),
        lambda: classifier(nn.LogSoftmax(1)),  # of no use, and no mistake
        lambda: classifier(
            model=nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), x=100 * X
        ),  # the model scales
        lambda: classifier(y=F.one_hot(Y, 3).float(), loss=F.binary_cross_entropy_with_logits),
        lambda: classifier(y=torch.randn(64, 3), loss=F.mse_loss),
        lambda: classifier(metrics=[accuracy], cbs=[GradientAccumulation(2)]),
        toy_learner,
    ],
)
def test_a_learner_without_a_mistake_hears_nothing(make, caplog):
    assert said(make(), caplog) == []


def test_only_the_first_fit_is_looked_at_and_check_false_switches_it_off(caplog):
    learn = classifier(nn.Softmax(1))
    assert len(said(learn, caplog)) == 1
    assert said(learn, caplog) == []
    assert said(classifier(nn.Softmax(1), check=False), caplog) == []


def test_a_metric_that_cannot_work_fails_before_the_first_update():
    def broken(pred, target):
        raise ZeroDivisionError

    learn = classifier(metrics=[broken])
    with pytest.raises(ZeroDivisionError), learn.no_bar():
        learn.fit(1)
    assert learn.total_updates == 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fit_that_was_looked_at_ends_in_the_bits_of_one_that_was_not(dropout):
    def weights(check):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(dropout))
        model.append(nn.Linear(8, 3))
        data = TensorDataset(X, Y)
        dls = DataLoader(data, 16, shuffle=True), DataLoader(data, 32, shuffle=True)
        learn = Learner(
            dls, model, F.cross_entropy, metrics=[accuracy], seed=0, device="cpu", check=check
        )
        with learn.no_bar():
            learn.fit(2, lr=0.01)
        return [p.detach().clone() for p in model.parameters()], learn.recorder.history

    (looked, history), (not_looked, other) = weights(True), weights(False)
    assert all(map(torch.equal, looked, not_looked))
    assert history["valid_loss"].values.tolist() == other["valid_loss"].values.tolist()


def test_a_loss_that_counts_its_calls_counts_none_of_the_look():
    class Counting(nn.Module):
        calls = 0

        def forward(self, pred, target):
            self.calls += 1
            return F.cross_entropy(pred, target)

    learn = classifier(loss=Counting())
    with learn.no_bar():
        learn.fit(1)
    assert learn.loss_func.calls == 4  # two batches of training, two of validation


class Stream(IterableDataset):
    drawn = 0

    def __iter__(self):
        for batch in BATCHES:
            type(self).drawn += 1
            yield batch


def test_a_stream_is_not_drawn_from_for_the_look():
    Stream.drawn = 0
    seen = []
    loader = DataLoader(Stream(), batch_size=None)
    learn = Learner((BATCHES, loader), nn.Linear(6, 3), F.cross_entropy, device="cpu")
    look = Callback(before_step=lambda learn: seen.append(Stream.drawn))
    with learn.no_bar():
        learn.fit(1, cbs=[look])
    assert seen == [0] * 4
    assert Stream.drawn == 4


def test_from_the_second_batch_on_the_look_costs_no_call():
    learn = classifier()
    tables = []
    with learn.no_bar():
        learn.fit(1, cbs=[Callback(before_batch=lambda learn: tables.append(learn._on))])
    assert tables[-1].after_backward == ()


@pytest.mark.parametrize("batches", [1, 2])
def test_check_makes_updates_and_leaves_nothing_behind(batches):
    learn = toy_learner()
    learn.fit(1)
    before, steps = LearnerState(learn), []
    handle = learn.opt.register_step_post_hook(lambda *_: steps.append(1))
    found = learn.check(batches)
    handle.remove()
    assert len(steps) == batches
    assert before.changes(LearnerState(learn)) == []
    assert found.findings == ()


def test_what_check_found_prints_as_a_list():
    lines = repr(classifier(nn.Softmax(1), metrics=[accuracy]).check()).splitlines()
    assert lines[0].startswith("training:   input (32, 6) float32, target (32,) int64, loss 1.")
    assert lines[1].startswith("validation: valid_loss 1.")
    assert lines[2].startswith("- the predictions are probabilities already")


@pytest.mark.parametrize(
    "call",
    [
        lambda learn: learn.fit(1),
        lambda learn: learn.lr_find(num_it=4, show_plot=False),
        lambda learn: learn.validate(),
    ],
)
def test_parameters_that_are_nan_are_named_before_anything_is_done_with_them(call, caplog):
    learn = toy_learner()
    with torch.no_grad():
        learn.model[2].bias.fill_(float("nan"))
        learn.model[0].weight[0, 0] = float("inf")  # may be meant, as in a mask
    with caplog.at_level(logging.WARNING, "onecycle"):
        call(learn)
    assert caplog.messages[0] == (
        "these parameters are not finite: 2.bias; make the model anew or load a checkpoint"
    )


def test_a_loss_that_turns_nan_is_told_in_the_epoch_it_happens(caplog):
    seen = []

    def spoil(learn):
        seen.append(len(caplog.records))
        if learn.epoch == 1:
            learn.model[0].bias.data.fill_(float("nan"))

    spoiler = Callback(before_epoch=spoil)
    with caplog.at_level(logging.WARNING, "onecycle"):
        toy_learner().fit(4, cbs=[spoiler])
    assert seen == [0, 0, 1, 1]  # once


def test_valid_targets_as_batch_size_make_the_validation_loss_the_mean_over_them():
    class ByTokens(Learner):
        def batch_size(self, batch):
            return int((batch[1] != -100).sum())

    target = torch.where(torch.rand(64, generator=torch.Generator().manual_seed(2)) < 0.6, -100, Y)
    batches = [(X[i : i + 16], target[i : i + 16]) for i in range(0, 64, 16)]
    learn = ByTokens((batches, batches), nn.Linear(6, 3), F.cross_entropy, device="cpu")
    with torch.no_grad():
        expected = F.cross_entropy(learn.model(X), target)
    assert learn.validate()["valid_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_one_of_several_processes_says_that_each_trains_its_own_copy(caplog, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    toy_learner().fit(1)
    (message,) = caplog.messages
    assert message.startswith("this is one of 2 processes, and each trains a copy of its own")


BETWEEN = ("after_pred", "after_loss", "before_backward")


@pytest.mark.parametrize("event", BETWEEN)
def test_between_the_passes_of_a_batch_nothing_may_change_the_weights(event):
    with pytest.raises(RuntimeError, match=f"a range test in {event} would change the weights"):
        check_between_updates(event)


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in BETWEEN])
def test_everywhere_else_the_weights_may_be_changed(event):
    check_between_updates(event)


class Centres(nn.Linear):
    """Takes the mean off its input, in place or not."""

    def __init__(self, in_place):
        super().__init__(6, 3)
        self.in_place = in_place

    def forward(self, x):
        return super().forward(x.sub_(x.mean(0)) if self.in_place else x - x.mean(0))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("kind", ["list", "tensors", "callback", "data set"])
def test_data_that_training_changes_in_place_are_told(kind, in_place, caplog):
    x = X.clone()
    loaders = {
        "tensors": TensorLoader(x, Y, batch_size=32),
        "data set": DataLoader(TensorDataset(x, Y), 32),
    }
    batches = loaders.get(kind) or [(x[:32], Y[:32]), (x[32:], Y[32:])]
    scale = Callback(before_batch=lambda learn: learn.xb.mul_(2) if in_place else None)
    model = nn.Linear(6, 3) if kind == "callback" else Centres(in_place)
    cbs = [scale] if kind == "callback" else []
    learn = Learner((batches, None), model, F.cross_entropy, device="cpu", cbs=cbs)
    told = any("changes the data of the loader in place" in each for each in said(learn, caplog))
    assert told is not torch.equal(x, X)
    assert told is (in_place and kind != "data set")
