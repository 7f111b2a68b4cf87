"""The plans behind the verbs: their rates at every update."""

import math

import numpy as np
import pytest
import torch
from grouped_learner import record, two_groups
from learner_state import LearnerState
from normed_learner import BODY, HEAD, NORM, normed_learner, sgd, trainable
from torch.optim import Adagrad

from onecycle import Callback, GradientAccumulation, one_cycle
from onecycle.testing import toy_learner


def half_cosine(top, j, n):
    return top * (1 + math.cos(math.pi * j / max(1, n - 1))) / 2


def test_fit_clr_beta_has_the_golden_values_of_fastai():
    learn = toy_learner(50, 1, opt_func=sgd)
    learn.fit_clr_beta(2, 1e-3, (10, 10, 0.95, 0.85))
    golden = {0: (0.1, 0.95), 1: (0.12, 0.947778), 22: (0.54, 0.901111), 45: (1, 0.85)}
    golden |= {46: (0.98, 0.852222), 67: (0.56, 0.898889), 90: (0.1, 0.95), 91: (0.0901, 0.95)}
    golden |= {95: (0.0505, 0.95), 99: (0.0109, 0.95)}
    for i, (lr, momentum) in golden.items():
        assert record(learn, "lr")[i] == pytest.approx(1e-3 * lr, rel=1e-9)
        assert record(learn, "momentum")[i] == pytest.approx(momentum, rel=1e-6)


def test_fit_clr_beta_with_two_numbers_leaves_momentum_alone():
    learn = toy_learner(10, opt_func=sgd, splitter=two_groups)
    learn.fit_clr_beta(1, slice(0.001, 0.1), (10, 20))
    assert set(record(learn, "momentum").ravel()) == {0.9}
    assert record(learn, "lr")[4].tolist() == pytest.approx([0.001, 0.1])


@pytest.mark.parametrize(
    ("use", "words"),
    [((10,), r"expected \(div, pct\)"), ((10, 10, 0.9), "max_mom"), ((10, 110), "pct is in perc")],
)
def test_fit_clr_beta_refuses_what_is_no_cycle(use, words):
    learn = toy_learner()
    with pytest.raises(ValueError, match=words):
        learn.fit_clr_beta(1, 0.1, use)
    assert learn.total_updates == 0


def test_fit_clr_beta_refuses_momentum_where_the_optimizer_has_none():
    with pytest.raises(ValueError, match="Adagrad has no hyperparameter 'momentum'"):
        toy_learner(opt_func=Adagrad).fit_clr_beta(1, 0.1, (10, 10, 0.95, 0.85))


def test_fit_flat_cos_holds_each_groups_rate_then_lets_it_fall():
    learn = toy_learner(9, splitter=two_groups)
    learn.fit_flat_cos(1, [0.01, 0.1], div_final=100, pct_start=0.5)
    for g, rate in enumerate((0.01, 0.1)):
        fall = [rate / 100 + half_cosine(rate * 0.99, j, 5) for j in range(5)]
        assert record(learn, "lr")[:, g] == pytest.approx([rate] * 4 + fall, rel=1e-9)
    assert set(record(learn, "momentum").ravel()) == {0.9}


def test_fit_flat_cos_takes_the_learners_rate_and_the_decay_and_callbacks_of_the_fit():
    learn, seen = toy_learner(3, lr=0.02), []
    learn.fit_flat_cos(1, wd=0.3, cbs=[Callback(after_step=seen.append)])
    assert record(learn, "lr")[0] == 0.02
    assert learn.groups.get("weight_decay") == [0.3]
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("n_cycles", "cycle_len", "mult", "epochs"),
    [(3, 1, 2, [1, 2, 4]), (3, 2, 1, [2, 2, 2]), (2, 2, 3, [2, 6]), (1, 2, 2, [2])],
)
def test_each_cycle_of_fit_sgdr_goes_from_its_maximum_to_zero(n_cycles, cycle_len, mult, epochs):
    learn = toy_learner(5)
    learn.fit_sgdr(n_cycles, cycle_len, 0.1, cycle_mult=mult)
    expected = [half_cosine(0.1, j, 5 * n) for n in epochs for j in range(5 * n)]
    np.testing.assert_allclose(record(learn, "lr"), expected, rtol=1e-9, atol=1e-18)
    assert learn.total_epochs == sum(epochs)


def test_fit_sgdr_equals_as_many_fits_in_a_row():
    plan, bare = toy_learner(5, opt_func=sgd), toy_learner(5, opt_func=sgd)
    plan.fit_sgdr(2, 1, 0.05)
    for epochs in (1, 2):
        bare.fit_flat_cos(epochs, 0.05, div_final=1e300, pct_start=0.0)
    for ours, theirs in zip(plan.model.parameters(), bare.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_accumulation_does_not_shift_the_cycles():
    learn = toy_learner(5)
    learn.fit_sgdr(2, 1, 0.1, cbs=[GradientAccumulation(2)])
    expected = [half_cosine(0.1, j, 3 * n) for n in (1, 2) for j in range(3 * n)]
    np.testing.assert_allclose(record(learn, "lr"), expected, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("wrong", [(0, 1, 0.1, 2), (1, 0, 0.1, 2), (1, 1, 0.1, 0)])
def test_fit_sgdr_refuses_cycles_that_are_none(wrong):
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        toy_learner().fit_sgdr(*wrong)


def test_fine_tune_trains_the_head_then_everything_at_smaller_rates():
    learn, frozen = normed_learner(), []
    look = Callback(before_epoch=lambda learn: frozen.append(trainable(learn) == NORM + HEAD))
    learn.fine_tune(2, 0.02, freeze_epochs=1, lr_mult=10, cbs=[look])
    assert frozen == [True, False, False]
    lrs = record(learn, "lr")
    first, second = np.arange(8) / 7, np.arange(16) / 15
    assert lrs[:8, 1] == pytest.approx(one_cycle(0.02, pct_start=0.99)(first), rel=1e-12)
    for g, peak in enumerate((0.001, 0.01)):
        expected = one_cycle(peak, div=5.0, pct_start=0.3)(second)
        assert lrs[8:, g] == pytest.approx(expected, rel=1e-12)
    assert trainable(learn) == BODY + NORM + HEAD


def test_fine_tune_without_a_frozen_stage_is_one_cycle():
    learn = normed_learner()
    learn.fine_tune(1, 0.02, freeze_epochs=0)
    assert learn.total_epochs == 1
    assert record(learn, "lr")[0, 1] == 0.01 / 5


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"freeze_epochs": -1}, {"div": 0}, {"pct_start": 30}, {"lr_mult": 0}]
)
def test_fine_tune_refuses_before_the_first_stage(wrong):
    learn = normed_learner()
    with pytest.raises(ValueError, match=r"must be|fraction"):
        learn.fine_tune(**({"epochs": 1} | wrong))
    assert learn.total_updates == 0
    assert trainable(learn) == BODY + NORM + HEAD


# A rate of None


VERBS = {
    "fit": lambda learn, rate: learn.fit(1, rate, wd=0.5),
    "fit_one_cycle": lambda learn, rate: learn.fit_one_cycle(1, lr_max=rate, wd=0.5),
    "fit_flat_cos": lambda learn, rate: learn.fit_flat_cos(1, rate, wd=0.5),
    "fit_sgdr": lambda learn, rate: learn.fit_sgdr(1, 1, lr_max=rate, wd=0.5),
    "fit_clr_beta": lambda learn, rate: learn.fit_clr_beta(1, rate, (10, 10), wd=0.5),
    "fine_tune": lambda learn, rate: learn.fine_tune(1, base_lr=rate, wd=0.5),
    "compare": lambda learn, rate: learn.compare(1, rate),
    "regularization_report": lambda learn, rate: learn.regularization_report(rate, wds=[0, 1]),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_range_test_that_found_nothing_gives_no_rate_to_train_at(verb):
    learn = toy_learner()
    found = learn.lr_find(1e-9, 1e-8, 20, show_plot=False)
    before = LearnerState(learn)
    assert found.suggestion is None
    with pytest.raises(TypeError, match="a range test that found nothing gives None: see its re"):
        verb(learn, found.suggestion)
    assert learn.total_updates == 0
    assert before.changes(LearnerState(learn)) == []


@pytest.mark.parametrize("rates", [[0.1, None], slice(None), slice(None, None)], ids=str)
def test_none_among_the_rates_of_groups_is_none_either(rates):
    learn = toy_learner(splitter=lambda model: [model[0].parameters(), model[2].parameters()])
    with pytest.raises((TypeError, ValueError), match="gives None: see its reason"):
        learn.fit_one_cycle(1, rates)
    assert learn.total_updates == 0


def test_a_rate_that_is_left_out_is_the_learners_own():
    for verb in ("fit", "fit_flat_cos"):
        learn = toy_learner(lr=0.03)
        getattr(learn, verb)(1)
        assert learn.recorder.history["lr"].values[0] == 0.03
    learn = toy_learner(lr=0.03)
    learn.fit_one_cycle(1)
    assert learn.recorder.history["lr"].values[0] == 0.03 / 25
