"""What cannot work is refused before the first batch."""

import pytest
import torch
from torch import nn
from traced_loop import parameters, same, sgd

from onecycle import Callback, MissingCallbackError, Recorder, Stage
from onecycle.testing import toy_learner


def freeze(learn):
    learn.model.requires_grad_(False)


no_grad = torch.no_grad()


def empty_loader(learn):
    class Empty:
        def __iter__(self):
            return iter(())

    learn.dls.train = Empty()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda learn: learn.fit(0), ValueError, "n_epoch must be at least 1; got 0"),
        (lambda learn: learn.fit(-1), ValueError, "n_epoch must be at least 1; got -1"),
        (lambda learn: learn.fit(-0.5), ValueError, "n_epoch must be positive; got -0.5"),
        (lambda learn: learn.fit(float("nan")), ValueError, "n_epoch must be finite; got nan"),
        (lambda learn: learn.fit(True), TypeError, "n_epoch must be an integer; got True"),
        (lambda learn: learn.fit("2"), TypeError, "n_epoch must be an integer"),
        (lambda learn: learn.fit(None), ValueError, "needs max_updates"),
        (lambda learn: learn.fit(1, max_updates=0), ValueError, "max_updates must be at least"),
        (lambda learn: learn.fit(1, steps_per_epoch=2.0), TypeError, "steps_per_epoch must be"),
        (lambda learn: learn.fit(1, lr=-0.1), ValueError, "lr must be finite and not negative"),
        (lambda learn: learn.fit(1, lr=float("nan")), ValueError, "lr must be finite"),
        (lambda learn: learn.fit(1, lr="0.1"), TypeError, "lr must be a number"),
        (lambda learn: learn.fit(1, lr=True), TypeError, "lr must be a number"),
        (lambda learn: learn.fit(1, lr=[0.1, 0.2]), ValueError, r"expected one lr(?s:.*)group"),
        (lambda learn: learn.fit(1, wd=-1.0), ValueError, "wd must not be negative"),
        (lambda learn: learn.fit(1, cbs=[Recorder]), TypeError, "write it with parentheses"),
        (lambda learn: learn.fit(1, cbs=Recorder()), TypeError, "cbs must be a list"),
        (lambda learn: learn.fit_one_cycle(1, -0.1), ValueError, "lr_max must be finite"),
        (lambda learn: learn.fit_one_cycle(1, [1, 2]), ValueError, "expected one lr_max"),
        (lambda learn: learn.fit_one_cycle(1, 0.1, 0.0), ValueError, "div must be positive"),
        (lambda learn: learn.fit_one_cycle(1, pct_start=30), ValueError, "did you mean 0.3"),
        (lambda learn: learn.fit_one_cycle(1, moms=(0.9, 0.8)), ValueError, "three numbers"),
        (lambda learn: learn.fit_one_cycle(1, moms=()), ValueError, "three numbers"),
        (lambda learn: learn.fit_one_cycle(1, moms=(0.9, 0.8, 1.0)), ValueError, "three num"),
        (lambda learn: learn.fit_one_cycle(1, policy="cosin"), ValueError, "policy must be"),
        (lambda learn: (freeze(learn), learn.fit(1)), ValueError, "set requires_grad"),
        (lambda learn: no_grad(learn.fit)(1), RuntimeError, "gradients are switched off here"),
        (lambda learn: no_grad(learn.lr_find)(), RuntimeError, "gradients are switched off here"),
        (lambda learn: (empty_loader(learn), learn.fit(1)), ValueError, "gave no batch"),
        (
            lambda learn: (learn.model.to("meta"), learn.fit(1)),
            ValueError,
            "'0.weight' is on meta, and the batches go to cpu",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_batch(call, error, words):
    batches = []
    learn = sgd(2, cbs=(Callback(before_batch=batches.append),))
    before, state = parameters(learn), dict(learn.opt.state)
    with pytest.raises(error, match=words):
        call(learn)
    assert not batches
    assert learn.total_updates == 0
    assert state == dict(learn.opt.state) == {}
    if learn.model[0].weight.device.type != "meta":
        assert same(parameters(learn), before)
        learn.model.requires_grad_(True)
        learn.dls.train = sgd(2).dls.train
        learn.fit(1)  # and the learner is usable
        assert learn.total_updates == 2


def test_a_class_instead_of_an_object_in_the_callbacks_is_refused_by_the_learner_too():
    with pytest.raises(TypeError, match="write it with parentheses"):
        toy_learner(cbs=(Recorder,))


class Needy(Callback):
    requires = (Recorder,)


def test_a_required_callback_that_is_missing_is_refused_before_anything_runs():
    seen = []
    learn = toy_learner(cbs=(Callback(before_fit=seen.append, cleanup_fit=seen.append),))
    weights = [p.clone() for p in learn.model.parameters()]
    with (
        learn.removed_cbs(Recorder),
        pytest.raises(MissingCallbackError, match=r"Needy requires Recorder.*add Recorder\(\)"),
    ):
        learn.fit(1, cbs=[Needy()])
    assert not seen
    assert all((p == w).all() for p, w in zip(learn.model.parameters(), weights, strict=True))
    learn.fit(1)  # and the learner is usable


def test_a_required_callback_is_found_wherever_it_stands_in_the_list():
    learn = toy_learner(n_batches=2)
    with learn.removed_cbs(Recorder):
        learn.fit(1, cbs=[Needy(), Recorder()])
    assert learn.total_updates == 2


def test_a_required_callback_may_be_a_subclass():
    class MyRecorder(Recorder):
        pass

    learn = toy_learner(n_batches=2, cbs=(MyRecorder(),))
    assert type(learn.recorder) is MyRecorder  # the learner adds no second one
    learn.fit(1, cbs=[Needy()])
    assert len(learn.recorder.history["train_loss"]) == 2


def test_a_required_callback_must_take_part_in_this_run():
    callback = Needy()
    callback.stage, callback.runs_in = Stage.PREPARE, frozenset(("range_test",))
    with pytest.raises(MissingCallbackError, match="Recorder"):
        toy_learner(cbs=(callback,)).lr_find(show_plot=False)


@pytest.mark.parametrize(("loss_func", "hinted"), [(nn.MSELoss, True), ("mse", False)])
def test_a_loss_function_that_is_none_is_refused_and_a_class_with_a_hint(loss_func, hinted):
    with pytest.raises(TypeError, match="loss_func must be called with") as error:
        toy_learner(loss_func=loss_func)
    assert ("write it with parentheses" in str(error.value)) is hinted


@pytest.mark.parametrize(("cbs", "hinted"), [([Recorder], True), (["Recorder"], False)])
def test_what_is_no_callback_is_refused_and_a_class_with_a_hint(cbs, hinted):
    with pytest.raises(TypeError, match="cbs must be Callback objects") as error:
        toy_learner(cbs=cbs)
    assert ("write it with parentheses" in str(error.value)) is hinted
