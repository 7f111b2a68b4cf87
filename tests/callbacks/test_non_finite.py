"""A loss that is NaN or infinite ends the fit with a post-mortem, or its update is skipped."""

import math

import pytest
import torch
from scripted import same, weights
from torch import nn

from onecycle import (
    Callback,
    CancelFit,
    CancelTrain,
    GradientAccumulation,
    Learner,
    MixedPrecision,
    ParamScheduler,
    TensorLoader,
    TerminateOnNonFinite,
    exponential,
    linear,
)
from onecycle.callbacks import non_finite
from onecycle.testing import toy_learner

NAN, INF = math.nan, math.inf


class BreaksAt:
    """A loss that is not finite from the given call on."""

    def __init__(self, call, value):
        self.call, self.value, self.calls = call, value, 0

    def __call__(self, pred, yb):
        loss = nn.functional.mse_loss(pred, yb)
        if not pred.requires_grad:  # validation
            return loss
        self.calls += 1
        return loss * self.value if self.calls >= self.call else loss


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
    monkeypatch.setattr(non_finite, "_read_every", lambda device: block)
    learn = toy_learner(n_batches=12, loss_func=BreaksAt(7, NAN))
    learn.fit(5, lr=0.01, cbs=[TerminateOnNonFinite()])
    assert learn.stop_reason == expected_reason(learn, NAN, 7)
    assert updates - 1 <= learn.total_updates <= updates
    assert "valid_loss" not in learn.recorder.history


def test_late_reading_reads_once_a_block(monkeypatch):
    monkeypatch.setattr(non_finite, "_read_every", lambda device: 5)
    reads = []
    stack = torch.stack
    monkeypatch.setattr(non_finite.torch, "stack", lambda x: reads.append(len(x)) or stack(x))
    learn = toy_learner(n_batches=12)
    learn.dls.valid = None
    learn.fit(2, cbs=[TerminateOnNonFinite()])
    monkeypatch.undo()
    assert reads == [5, 5, 2, 5, 5, 2, 24]  # the last is the Recorder's, after the fit


def test_accelerator_reads_in_blocks_and_the_cpu_at_once():
    assert non_finite._read_every(torch.device("cpu")) == 1
    assert 16 <= non_finite._read_every(torch.device("cuda")) <= 256


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
    monkeypatch.setattr(non_finite, "_read_every", lambda device: 100)

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
    monkeypatch.setattr(non_finite, "_read_every", lambda device: 100)

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
        ({"action": "stopp"}, "action must be 'stop' or 'skip'; got 'stopp'"),
        ({"max_skips": 0}, "max_skips must be at least 1; got 0"),
        ({"max_skips": 1.5}, "max_skips must be an integer"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        TerminateOnNonFinite(**arguments)


# The post-mortem --------------------------------------------------------------------------


def post_mortem(learn, *cbs, n_epoch=5, **options):
    stop = TerminateOnNonFinite()
    learn.fit(n_epoch, cbs=[*cbs, stop], **options)
    return stop.post_mortem


def two_groups(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def test_last_updates_are_those_of_the_record_with_rate_and_momentum_of_each_group():
    learn = toy_learner(loss_func=BreaksAt(15, NAN), splitter=two_groups)
    rates = ParamScheduler({"lr": [linear(0.0, 0.01), linear(0.0, 0.1)]})
    found = post_mortem(learn, rates)
    history = learn.recorder.history
    assert [row.update for row in found.updates] == list(range(5, 16))
    assert [row.loss for row in found.updates[:-1]] == history["train_loss"].values[4:].tolist()
    assert [list(row.lr) for row in found.updates[:-1]] == history["lr"].values[4:].tolist()
    # The update that failed was not made; its rates are 14 of 39 steps up.
    assert found.updates[-1].lr == pytest.approx((0.01 * 14 / 39, 0.1 * 14 / 39))
    assert found.updates[-1].momentum == (0.9, 0.9)
    assert math.isnan(found.loss)


def test_only_updates_of_this_fit_are_shown():
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, NAN))
    learn.fit(1)
    assert [row.update for row in post_mortem(learn).updates] == [5, 6, 7]


def test_gradient_norms_are_those_of_the_failing_batch():
    class Huge:
        """A loss that is not finite, with finite gradients, at the third batch."""

        calls = 0

        def __call__(self, pred, yb):
            self.calls += 1
            return pred.mean() + (INF if self.calls >= 3 else 0.0)

    learn = toy_learner(loss_func=Huge(), splitter=two_groups, opt_func=torch.optim.SGD)
    seen = []

    def by_hand(learn):
        if learn.n_updates == 2:
            groups = two_groups(learn.model)
            for group in groups:
                grads = torch.autograd.grad(learn.loss_grad, group, retain_graph=True)
                seen.append(math.sqrt(sum(float(g.pow(2).sum()) for g in grads)))

    found = post_mortem(learn, Callback(after_loss=by_hand), lr=0.01)
    assert found.gradient_norms == pytest.approx(tuple(seen))
    assert found.loss == INF


class NaNLayer(nn.Module):
    """Passes its input on; from the third call in training on, as NaN."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return x * NAN if self.calls >= 3 else x


def test_first_module_with_a_bad_output_is_named():
    block = nn.Sequential(nn.Linear(8, 8), NaNLayer())
    model = nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 1))
    found = post_mortem(toy_learner_of(model))
    assert found.bad_module == "1.1 (NaNLayer)"
    assert found.bad_parameters == ()
    assert found.bad_inputs == ()
    assert "first bad output: 1.1 (NaNLayer)" in str(found)


def toy_learner_of(model, **options):
    toy = toy_learner()
    learn = Learner(toy.dls, model, nn.functional.mse_loss, device="cpu", seed=0, **options)
    learn.cbs = [cb for cb in learn.cbs if type(cb).__name__ != "Progress"]
    return learn


def data_with_nan_in_batch(k, n_batches=8):
    x = torch.randn(8 * n_batches, 4, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    x[8 * k + 3, 1:3] = NAN
    return TensorLoader(x, y, batch_size=8)


def test_a_bad_batch_is_named_and_no_rate_is_proposed():
    learn = toy_learner()
    learn.dls.train = data_with_nan_in_batch(2)
    found = post_mortem(learn)
    assert found.bad_inputs == ("input (8, 4): 2 of 32 values",)
    assert found.bad_module == "0 (Linear)"
    assert found.lr is None
    assert found.reason == "the batch itself is not finite; look at the data"


def test_an_empty_part_of_a_batch_is_named():
    learn = toy_learner(loss_func=lambda pred, yb: pred.mean() + yb.mean())
    learn.dls.train = [(torch.zeros(8, 4), torch.zeros(0, 1))]
    assert post_mortem(learn).bad_inputs[0] == "target (0, 1) is empty"


def test_bad_parameters_are_named():
    def spoil(learn):
        if learn.n_updates == 3:
            learn.model[2].bias.data.fill_(INF)

    found = post_mortem(toy_learner(), Callback(after_step=spoil), lr=0.01)
    assert found.bad_parameters == ("2.bias",)
    assert found.bad_module == "2 (Linear)"


def test_proposed_rate_is_a_tenth_of_the_one_where_the_smoothed_loss_was_lowest():
    losses = [5.0, 4.0, 3.0, 2.0, 9.0, 9.0, NAN]
    # By hand: the bias-corrected average of weight 0.9.
    average, smoothed = 0.0, []
    for n, loss in enumerate(losses[:-1], 1):
        average = 0.9 * average + 0.1 * loss
        smoothed.append(average / (1 - 0.9**n))
    assert smoothed.index(min(smoothed)) == 3
    script = iter(losses)
    learn = toy_learner(loss_func=lambda pred, yb: pred.sum() * 0 + next(script))
    rates = ParamScheduler({"lr": linear(0.0, 39.0)})  # 1 more with each of 40 updates
    found = post_mortem(learn, rates)
    assert found.lr == pytest.approx(0.3)
    assert found.reason.startswith("a tenth of the one at update 4,")


def test_no_rate_is_proposed_for_the_first_update():
    found = post_mortem(toy_learner(loss_func=BreaksAt(1, NAN)))
    assert found.lr is None
    assert "the initial weights" in found.reason


def test_a_rate_far_too_high_is_found_out_and_the_proposed_one_trains():
    learn = toy_learner(n_batches=20, opt_func=torch.optim.SGD)
    found = post_mortem(learn, ParamScheduler({"lr": exponential(1e-3, 100.0)}))
    again = toy_learner(n_batches=20, opt_func=torch.optim.SGD)
    again.fit(5, lr=found.lr, cbs=[TerminateOnNonFinite()])
    assert again.stop_reason is None
    losses = again.recorder.history["valid_loss"].values
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [None, "bf16", "fp16"])
def test_the_examination_leaves_everything_as_it_was(dtype):
    def states(examine):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        cbs = [MixedPrecision(dtype)] if dtype else []
        learn = toy_learner_of(model, cbs=cbs)
        look = Callback(after_batch=examine) if examine else Callback()
        learn.fit(2, lr=0.01, cbs=[GradientAccumulation(2), look])
        return weights(learn), torch.get_rng_state()

    found = []

    def examine(learn):
        if learn.training:
            found.append(non_finite.examine(learn, learn.total_updates + 1, 1.0))

    (plain, rng), (examined, rng_after) = states(None), states(examine)
    assert same(plain, examined)
    assert torch.equal(rng, rng_after)
    assert len(found) == 16
    assert all(each.gradient_norms[0] > 0 and each.failure is None for each in found)


def test_a_batch_that_cannot_be_run_again_leaves_a_gap_in_the_report():
    class Once(BreaksAt):
        def __call__(self, pred, yb):
            if self.calls == self.call:
                raise ValueError("only once")
            return super().__call__(pred, yb)

    found = post_mortem(toy_learner(loss_func=Once(3, NAN)))
    assert found.failure == "ValueError: only once"
    assert found.gradient_norms == ()
    assert "second run:       ended in ValueError: only once" in str(found)


def test_a_report_that_comes_late_says_so_and_has_the_rate_of_the_failure(monkeypatch):
    monkeypatch.setattr(non_finite, "_read_every", lambda device: 10)
    learn = toy_learner(n_batches=12, loss_func=BreaksAt(7, NAN))
    found = post_mortem(learn, ParamScheduler({"lr": linear(0.0, 59.0)}))
    assert found.update == 7
    assert found.batches_late == 3
    assert found.updates[-1].lr == pytest.approx((6.0,))
    assert "noticed:          3 batches late" in str(found)


def test_the_report_is_a_table():
    learn = toy_learner(loss_func=BreaksAt(3, NAN))
    lines = str(post_mortem(learn, lr=0.01)).splitlines()
    assert lines[0].split() == ["update", "loss", "learning", "rate", "momentum"]
    assert lines[3].split() == ["3", "nan", "0.01", "0.9"]
    assert [line.split(":")[0] for line in lines[4:]] == [
        "gradient norm",
        "parameters",
        "batch",
        "first bad output",
        "proposed rate",
    ]


def test_a_fit_that_does_not_fail_has_no_post_mortem():
    learn = toy_learner(loss_func=BreaksAt(3, NAN))
    stop = TerminateOnNonFinite()
    learn.fit(1, cbs=[stop])
    assert stop.post_mortem is not None
    learn.loss_func = nn.functional.mse_loss
    learn.fit(1, cbs=[stop])
    assert stop.post_mortem is None


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


def test_a_fit_without_the_callback_warns_once_at_its_end(caplog):
    learn = toy_learner(n_batches=4, loss_func=BreaksAt(7, NAN))
    learn.fit(1)
    assert caplog.messages == []
    learn.fit(2)
    assert caplog.messages == [
        "the training loss of 6 updates was NaN or infinite, first at update 7: with "
        "cbs=[TerminateOnNonFinite()] the fit ends there, and says what was wrong"
    ]
    learn.loss_func = lambda pred, yb: pred.sum() * 0 + 1.0
    caplog.clear()
    for parameter in learn.model.parameters():
        parameter.data.fill_(0.1)
    learn.opt.state.clear()
    learn.fit(1)
    assert caplog.messages == []
