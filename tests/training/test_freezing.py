"""Freezing: which weights train, and what a norm keeps."""

from functools import partial

import pytest
import torch
from normed_learner import BODY, HEAD, NORM, normed_learner, sgd, split_body_and_head, trainable
from torch import nn

from onecycle import EMA, SWA, Callback, Checkpoint, Stage
from onecycle.testing import toy_learner


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
