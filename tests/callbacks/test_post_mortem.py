"""The post-mortem: what failed, where, and the rate that it proposes."""

import math

import pytest
import torch
from bad_numbers import INF, NAN, BreaksAt, data_with_nan_in_batch, toy_learner_of
from scripted import same, weights
from torch import nn

from onecycle import (
    Callback,
    GradientAccumulation,
    MixedPrecision,
    ParamScheduler,
    TerminateOnNonFinite,
    exponential,
    linear,
)
from onecycle.callbacks import non_finite
from onecycle.testing import toy_learner


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
    learn = toy_learner(check=False, loss_func=lambda pred, yb: pred.sum() * 0 + next(script))
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
    monkeypatch.setattr(non_finite, "read_every", lambda device: 10)
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
