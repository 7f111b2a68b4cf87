"""The plans behind the verbs: their rates at every update, and what they freeze."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad

from onecycle import EMA, SWA, Callback, Checkpoint, GradientAccumulation, Stage, one_cycle
from onecycle.testing import toy_learner


def two_groups(model):
    return [model[0].parameters(), model[2].parameters()]


def record(learn, name):
    return learn.recorder.history[name].values


def half_cosine(top, j, n):
    return top * (1 + math.cos(math.pi * j / max(1, n - 1))) / 2


sgd = partial(SGD, momentum=0.9)


# fit_clr_beta --------------------------------------------------------------------------------


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


# fit_flat_cos --------------------------------------------------------------------------------


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


# fit_sgdr ------------------------------------------------------------------------------------


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


# freeze --------------------------------------------------------------------------------------


def body_and_head():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(body, nn.Linear(8, 1))


def split_body_and_head(model):
    return [model[0].parameters(), model[1].parameters()]


def normed_learner(**options):
    toy = toy_learner()
    options = {"splitter": split_body_and_head, "opt_func": sgd, "lr": 0.01} | options
    learn = type(toy)(
        toy.dls, body_and_head(), nn.functional.mse_loss, device="cpu", seed=0, **options
    )
    learn.cbs = toy.cbs
    return learn


def trainable(learn):
    return [name for name, p in learn.model.named_parameters() if p.requires_grad]


HEAD = ["1.weight", "1.bias"]
NORM = ["0.1.weight", "0.1.bias"]
BODY = ["0.0.weight"]


@pytest.mark.parametrize("wd", [None, 0.1])
def test_frozen_groups_keep_their_weights_and_their_norms_go_on_training(wd):
    learn = normed_learner(wd=wd)
    learn.freeze()
    assert trainable(learn) == NORM + HEAD
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.fit(1)
    changed = [n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == NORM + HEAD
    learn.unfreeze()
    learn.fit(1)
    changed = [n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == BODY + NORM + HEAD


@pytest.mark.parametrize("thaw_in", ["between fits", "a callback", "by hand"])
def test_what_thaws_late_trains_on_as_with_an_optimizer_that_is_not_fused(thaw_in):
    # Torch's fused SGD fails on a group in which some have a momentum and some have none.
    def train(learn):
        learn.freeze()
        learn.fit(1)
        if thaw_in == "a callback":
            thaw = Callback(before_epoch=lambda learn: learn.unfreeze() if learn.epoch else None)
            return learn.fit(2, cbs=[thaw])
        if thaw_in == "between fits":
            learn.unfreeze()
        for p in learn.model.parameters():
            p.requires_grad_(True)
        learn.lr_find(1e-5, 1e-3, num_it=8, show_plot=False)
        return learn.fit(2)

    fused, plain = normed_learner(), normed_learner(opt_func=partial(sgd, fused=False))
    assert fused.opt.param_groups[0]["fused"]
    train(fused)
    train(plain)
    for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_norms_freeze_too_on_request():
    learn = normed_learner()
    learn.freeze(train_bn=False)
    assert trainable(learn) == HEAD


@pytest.mark.parametrize(
    ("n", "expected"), [(0, BODY + NORM + HEAD), (1, HEAD), (-1, HEAD), (-2, BODY + NORM + HEAD)]
)
def test_freeze_to_counts_groups_from_either_end_and_can_thaw(n, expected):
    learn = normed_learner()
    for first in (1, 0, 1):
        learn.freeze_to(first)
    learn.freeze_to(n, train_bn=False)
    assert trainable(learn) == expected


STATISTICS = ("0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked")


def statistics(learn):
    state = learn.model.state_dict()
    return [state[name].clone() for name in STATISTICS]


def same(left, right):
    return all(map(torch.equal, left, right))


def test_frozen_norms_keep_their_statistics_bit_for_bit_and_the_others_follow_the_data():
    for train_bn in (False, True):
        learn = normed_learner()
        learn.fit(1)
        learn.freeze(train_bn=train_bn)
        before = statistics(learn)
        learn.fit(2)  # a validation pass lies between the two training passes
        assert same(statistics(learn), before) is not train_bn


def test_a_frozen_norm_computes_with_its_statistics_and_not_with_those_of_the_batch():
    learn, seen = normed_learner(), []
    learn.fit(1)
    norm = learn.model[0][1]
    norm.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out)))
    learn.freeze(train_bn=False)
    learn.fit(1)
    for xb, out in seen:
        expected = (xb - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        torch.testing.assert_close(out, expected * norm.weight + norm.bias, rtol=1e-4, atol=1e-6)
    assert len(seen) == 16


@pytest.mark.parametrize("thaw", ["unfreeze", "freeze"])
def test_thawing_lets_the_statistics_follow_again(thaw):
    learn = normed_learner()
    learn.freeze(train_bn=False)
    learn.fit(1)
    before = statistics(learn)
    getattr(learn, thaw)()
    assert learn.model[0][1].training == learn.model.training
    learn.fit(1)
    assert not same(statistics(learn), before)


def test_the_norms_of_groups_that_train_are_not_frozen():
    learn = normed_learner()
    learn.freeze_to(0, train_bn=False)
    before = statistics(learn)
    learn.fit(1)
    assert not same(statistics(learn), before)


def test_freezing_and_thawing_within_a_fit_act_at_once():
    seen = []

    def watch(learn):
        seen.append(learn.model[0][1].num_batches_tracked.item())
        if learn.n_updates == 2:
            learn.freeze(train_bn=False)
        if learn.n_updates == 5:
            learn.unfreeze()

    normed_learner().fit(1, cbs=[Callback(after_step=watch)])
    assert seen == [1, 2, 2, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("average", [EMA, SWA])
def test_an_average_of_the_weights_leaves_frozen_norms_alone(average):
    learn = normed_learner()
    learn.fit(1)
    learn.freeze(train_bn=False)
    before = statistics(learn)
    learn.fit(2, cbs=[average()])
    assert same(statistics(learn), before)


def test_a_range_test_leaves_frozen_norms_frozen():
    learn = normed_learner()
    learn.freeze(train_bn=False)
    before, seen = statistics(learn), []
    watch = Callback(after_step=lambda learn: seen.append(learn.model[0][1].training))
    watch.stage = Stage.PREPARE
    learn.cbs.append(watch)
    learn.lr_find(1e-5, 1e-3, num_it=12, show_plot=False)
    learn.fit(1)
    assert seen == [False] * (12 + 8)
    assert same(statistics(learn), before)


@pytest.mark.parametrize("every", ["1 epoch", "3 updates"])
def test_a_resumed_fit_knows_which_norms_were_frozen_meanwhile(tmp_path, every):
    def freeze(learn):
        if learn.total_updates == 6:
            learn.freeze(train_bn=False)

    def run(folder, **options):
        learn = normed_learner()
        learn.fit(2, **options, cbs=[Checkpoint(tmp_path / folder, every, keep=9), freezing])
        return learn

    freezing = Callback(after_step=freeze)
    whole = run("whole")
    newest = sorted((tmp_path / "whole").iterdir())[-2]  # after the sixth update, before the end
    resumed = run("resumed", resume=newest)
    assert resumed.model[0][1].num_batches_tracked == 6
    assert same(resumed.model.state_dict().values(), whole.model.state_dict().values())


def test_a_norm_without_parameters_goes_with_the_module_around_it():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU())
    head = nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 1))
    toy = toy_learner()
    learn = type(toy)(
        toy.dls,
        nn.Sequential(body, head),
        nn.functional.mse_loss,
        splitter=split_body_and_head,
        device="cpu",
    )
    learn.cbs = toy.cbs
    learn.freeze(train_bn=False)
    learn.fit(1)
    assert (body[1].num_batches_tracked, head[0].num_batches_tracked) == (0, 8)


def test_freezing_touches_nothing_but_requires_grad():
    learn = normed_learner()
    learn.fit(1)
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups]
    learn.freeze()
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())
    assert groups == [
        {k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups
    ]


@pytest.mark.parametrize("n", [-2, 1, 7])
def test_a_group_that_is_not_there_is_refused_with_a_table_of_those_that_are(n):
    learn = toy_learner()
    with pytest.raises(ValueError, match=rf"group {n}: expected -1 to 0(?s:.*)trainable"):
        learn.freeze_to(n)
    assert all(p.requires_grad for p in learn.model.parameters())


@pytest.mark.parametrize("n", [None, 1.0, "head", True])
def test_what_is_no_number_of_a_group_is_refused(n):
    with pytest.raises(TypeError, match="takes the number of a parameter group"):
        toy_learner().freeze_to(n)


# fine_tune -----------------------------------------------------------------------------------


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
