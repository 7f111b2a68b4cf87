"""A loss that is NaN or infinite ends the fit with a post-mortem, or its update is skipped."""

import pytest
import torch
from bad_numbers import INF, NAN, BreaksAt, data_with_nan_in_batch, toy_learner_of
from scripted import same, weights
from torch import nn

from onecycle import (
    Callback,
    CancelFit,
    CancelTrain,
    GradientAccumulation,
    MixedPrecision,
    TerminateOnNonFinite,
)
from onecycle.callbacks import non_finite
from onecycle.testing import toy_learner


def expected_reason(learn, value, bad):
    """Write the sentence from the record of the updates before."""
    loss = learn.recorder.history["train_loss"].values[bad - 2]
    lr = learn.recorder.history["lr"].values[bad - 2]
    return (
        f"the training loss became {value} at update {bad} (learning rate 0.01); the last finite "
        f"one was {loss:.6g} at update {bad - 1} (learning rate {lr:.4g})"
    )


@pytest.mark.parametrize("value", [NAN, INF])
def test_fit_ends_and_names_the_update_and_the_last_finite_loss(value, caplog):
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, value))
    stop = TerminateOnNonFinite()
    learn.fit(5, lr=0.01, cbs=[stop])
    assert learn.stop_reason == expected_reason(learn, value, 7)
    assert caplog.messages == [f"TerminateOnNonFinite: {learn.stop_reason}\n{stop.post_mortem}"]
    assert learn.total_updates == 6


def test_weights_on_the_cpu_are_those_of_the_update_before():
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, NAN))
    learn.fit(5, lr=0.01, cbs=[TerminateOnNonFinite()])
    other = toy_learner(n_batches=4)
    other.fit(None, lr=0.01, max_updates=6)
    assert same(weights(learn), weights(other))
    assert all(parameter.grad is None for parameter in learn.model.parameters())


@pytest.mark.parametrize(("block", "updates"), [(5, 10), (100, 12)])
def test_late_reading_names_the_true_update(monkeypatch, block, updates):
    monkeypatch.setattr(non_finite, "read_every", lambda device: block)
    learn = toy_learner(n_batches=12, loss_func=BreaksAt(7, NAN))
    learn.fit(5, lr=0.01, cbs=[TerminateOnNonFinite()])
    assert learn.stop_reason == expected_reason(learn, NAN, 7)
    assert updates - 1 <= learn.total_updates <= updates
    assert "valid_loss" not in learn.recorder.history


def test_late_reading_reads_once_a_block(monkeypatch):
    monkeypatch.setattr(non_finite, "read_every", lambda device: 5)
    reads = []
    stack = torch.stack
    monkeypatch.setattr(non_finite.torch, "stack", lambda x: reads.append(len(x)) or stack(x))
    learn = toy_learner(n_batches=12)
    learn.dls.valid = None
    learn.fit(2, cbs=[TerminateOnNonFinite()])
    monkeypatch.undo()
    # The first looks at the parameters; the last of each epoch is the Recorder's, of its updates.
    assert reads == [4, 5, 5, 2, 12, 5, 5, 2, 12]


def test_accelerator_reads_in_blocks_and_the_cpu_at_once():
    assert non_finite.read_every(torch.device("cpu")) == 1
    assert 16 <= non_finite.read_every(torch.device("cuda")) <= 256


def test_update_is_counted_over_the_life_of_the_learner():
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, NAN))
    stop = TerminateOnNonFinite()
    learn.fit(1, lr=0.01, cbs=[stop])
    assert learn.stop_reason is None
    learn.fit(1, lr=0.01, cbs=[stop])
    assert learn.stop_reason == expected_reason(learn, NAN, 7)


def test_first_update_has_no_finite_loss_before_it():
    learn = toy_learner(loss_func=BreaksAt(1, NAN))
    learn.fit(1, lr=0.01, cbs=[TerminateOnNonFinite()])
    assert learn.stop_reason == (
        "the training loss became nan at update 1 (learning rate 0.01), the first of this fit"
    )


def test_losses_of_an_earlier_fit_are_forgotten(monkeypatch):
    monkeypatch.setattr(non_finite, "read_every", lambda device: 100)

    def give_up(learn):
        if learn.iter == 2:
            raise CancelFit("enough")

    learn = toy_learner(n_batches=4, loss_func=BreaksAt(3, NAN), opt_func=torch.optim.SGD)
    start = weights(learn)
    stop = TerminateOnNonFinite()
    learn.fit(1, cbs=[stop, Callback(after_batch=give_up)])
    assert learn.stop_reason == "enough"
    learn.loss_func = nn.functional.mse_loss
    learn.model.load_state_dict(start)
    learn.fit(1, cbs=[stop])
    assert learn.stop_reason is None


def test_cancelled_pass_is_read_too(monkeypatch):
    monkeypatch.setattr(non_finite, "read_every", lambda device: 100)

    def end_pass(learn):
        if learn.training and learn.iter == 3:
            raise CancelTrain("enough")

    learn = toy_learner(n_batches=8, loss_func=BreaksAt(3, NAN))
    learn.fit(3, lr=0.01, cbs=[TerminateOnNonFinite(), Callback(after_batch=end_pass)])
    assert learn.stop_reason == expected_reason(learn, NAN, 3)


def test_validation_loss_and_a_finite_fit_do_not_stop():
    learn = toy_learner(
        loss_func=lambda pred, yb: (pred - yb).pow(2).mean() * (1 if pred.requires_grad else NAN)
    )
    learn.fit(2, cbs=[TerminateOnNonFinite()])
    assert learn.stop_reason is None
    assert learn.n_updates == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"action": "stopp"}, "action must be one of .'stop', 'skip'.; got 'stopp'"),
        ({"max_skips": 0}, "max_skips must be at least 1; got 0"),
        ({"max_skips": 1.5}, "max_skips must be an integer"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        TerminateOnNonFinite(**arguments)


# Skip -------------------------------------------------------------------------------------


def normed(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def test_a_fit_that_skips_a_bad_batch_ends_in_the_bits_of_one_without_that_batch():
    learn, other = toy_learner_of(normed()), toy_learner_of(normed())
    learn.dls.train = data_with_nan_in_batch(2)
    other.dls.train = [batch for k, batch in enumerate(learn.dls.train) if k != 2]
    learn.fit(3, lr=0.01, cbs=[TerminateOnNonFinite("skip")])
    other.fit(3, lr=0.01)
    assert (learn.n_updates, learn.n_skipped) == (21, 3)
    assert same(weights(learn), weights(other))  # batch norm's statistics too
    assert learn.stop_reason is None


def test_without_the_skip_that_batch_spoils_the_model():
    learn = toy_learner_of(normed())
    learn.dls.train = data_with_nan_in_batch(2)
    learn.fit(1, lr=0.01)
    assert learn.model[1].running_mean.isnan().all()
    assert learn.model[0].weight.isnan().all()


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    def spoil(learn):
        if learn.iter == 2:
            learn.model[0].bias.grad[0] = INF

    learn = toy_learner()
    learn.fit(1, cbs=[TerminateOnNonFinite("skip"), Callback(after_backward=spoil)])
    assert (learn.n_updates, learn.n_skipped) == (7, 1)
    assert all(tensor.isfinite().all() for tensor in weights(learn).values())


def test_a_bad_batch_skips_its_whole_window():
    learn = toy_learner_of(normed())
    learn.dls.train = data_with_nan_in_batch(2)
    other = toy_learner_of(normed())
    other.dls.train = [batch for k, batch in enumerate(learn.dls.train) if k not in (2, 3)]
    learn.fit(1, cbs=[GradientAccumulation(2), TerminateOnNonFinite("skip")])
    other.fit(1, cbs=[GradientAccumulation(2)])
    assert (learn.n_updates, learn.n_skipped) == (3, 1)
    assert same(weights(learn), weights(other))


@pytest.mark.parametrize("max_skips", [1, 3])
def test_so_many_skips_in_a_row_end_the_fit_with_a_post_mortem(max_skips):
    learn = toy_learner(loss_func=BreaksAt(6, NAN))
    stop = TerminateOnNonFinite("skip", max_skips=max_skips)
    before = toy_learner()
    learn.fit(5, lr=0.01, cbs=[stop])
    before.fit(None, lr=0.01, max_updates=5)
    assert (learn.n_updates, learn.n_skipped) == (5, max_skips)
    assert learn.stop_reason.startswith(f"{max_skips} updates in a row were skipped")
    assert stop.post_mortem.update == 6
    assert [row.update for row in stop.post_mortem.updates] == [1, 2, 3, 4, 5, 6]
    assert same(weights(learn), weights(before))


def test_skips_that_are_not_in_a_row_do_not_add_up():
    learn = toy_learner()
    learn.dls.train = data_with_nan_in_batch(2, n_batches=3)
    learn.fit(6, cbs=[TerminateOnNonFinite("skip", max_skips=2)])
    assert (learn.n_updates, learn.n_skipped) == (12, 6)


def test_infinite_gradients_of_fp16_are_left_to_its_scaler():
    precision = MixedPrecision("fp16", init_scale=2.0**40)
    learn = toy_learner(n_batches=40, cbs=(precision,), opt_func=torch.optim.SGD)
    learn.fit(1, cbs=[TerminateOnNonFinite("skip", max_skips=2)])
    assert learn.n_skipped > 15
    assert learn.stop_reason is None


def test_a_bad_loss_in_fp16_is_skipped():
    learn = toy_learner(cbs=(MixedPrecision("fp16", init_scale=8.0),))
    learn.dls.train = data_with_nan_in_batch(2)
    learn.fit(2, cbs=[TerminateOnNonFinite("skip")])
    assert (learn.n_updates, learn.n_skipped) == (14, 2)
    assert all(tensor.isfinite().all() for tensor in weights(learn).values())


def test_skips_in_a_row_are_counted_on_after_a_restart():
    stop = TerminateOnNonFinite("skip", max_skips=3)
    resume = Callback(before_train=lambda learn: stop.load_state_dict({"unread": [], "skips": 2}))
    learn = toy_learner(loss_func=BreaksAt(1, NAN))
    learn.fit(1, cbs=[stop, resume])
    assert learn.n_skipped == 1
    assert stop.state_dict() == {"unread": [], "skips": 3}


# Without the callback ---------------------------------------------------------------------


def test_a_fit_without_the_callback_warns_once_in_the_epoch_where_it_happens(caplog):
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, NAN))
    learn.fit(1)
    assert caplog.messages == []
    learn.fit(2)
    assert caplog.messages == [
        "the training loss of 2 updates was NaN or infinite, first at update 7: with "
        "cbs=[TerminateOnNonFinite()] the fit ends there, and says what was wrong"
    ]
    learn.loss_func = lambda pred, yb: pred.sum() * 0 + 1.0
    caplog.clear()
    for parameter in learn.model.parameters():
        parameter.data.fill_(0.1)
    learn.opt.state.clear()
    learn.fit(1)
    assert caplog.messages == []
