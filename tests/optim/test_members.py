"""What the groups are of an optimizer that a person made."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from onecycle import Callback, GradientClip, Learner, TorchScheduler, one_cycle
from onecycle.optim.wrapped import same_groups
from onecycle.testing import toy_learner


def body_and_head(model):
    return [model[0].parameters(), model[2].parameters()]


def opt_learner(make_groups, opt_func=AdamW, **options):
    toy = toy_learner()
    opt = opt_func(make_groups(toy.model))
    learn = Learner(toy.dls, toy.model, mse_loss, opt=opt, device="cpu", seed=0, **options)
    learn.cbs = toy.cbs
    return learn


def decay_groups(model, wd=0.1):
    weights, biases = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    return [{"params": weights, "weight_decay": wd}, {"params": biases, "weight_decay": 0.0}]


def four_groups(model):
    return [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in model.parameters()]


GROUPS = {
    "decay and none": (decay_groups, [[0, 1]]),
    "decay groups, all 0": (partial(decay_groups, wd=0.0), [[0, 1]]),
    "body and head": (
        lambda m: [{"params": [*part.parameters()]} for part in (m[0], m[2])],
        [[0], [1]],
    ),
    "other rates": (
        lambda m: [
            {"params": [*part.parameters()], "lr": lr} for part, lr in ((m[0], 1), (m[2], 2))
        ],
        [[0], [1]],
    ),
    "rates and decay": (
        lambda m: [{**group, "lr": 1e-3 * (i // 2 + 1)} for i, group in enumerate(four_groups(m))],
        [[0, 1], [2, 3]],
    ),
    "names are no hyperparameters": (
        lambda m: [{**g, "name": n} for g, n in zip(decay_groups(m), "ab", strict=True)],
        [[0, 1]],
    ),
}


@pytest.mark.parametrize(("make", "members"), GROUPS.values(), ids=GROUPS)
def test_groups_that_differ_in_decay_alone_are_one(make, members):
    assert opt_learner(make).groups.members == members


def test_groups_that_the_optimizer_function_makes_itself_are_read_likewise():
    toy = toy_learner()

    def make(params, lr):
        return AdamW(decay_groups(toy.model), lr=lr)

    learn = Learner(toy.dls, toy.model, mse_loss, make, device="cpu", seed=0)
    assert learn.groups.members == [[0, 1]]


@pytest.mark.parametrize("verb", ["freeze", "fine_tune"])
def test_with_decay_groups_freezing_is_refused_before_anything_happens(verb):
    learn = opt_learner(decay_groups)
    with pytest.raises(ValueError, match=rf"{verb} lets the last .*there is one(?s:.*)splitter="):
        getattr(learn, verb)(*([1] if verb == "fine_tune" else []))
    assert all(p.requires_grad for p in learn.model.parameters())
    assert learn.total_updates == 0


def test_a_splitter_says_what_the_groups_of_an_optimizer_are():
    learn = opt_learner(four_groups, splitter=body_and_head)
    assert learn.groups.members == [[0, 1], [2, 3]]
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.freeze()
    learn.fit_one_cycle(1, 0.01)
    moved = [not torch.equal(p, q) for p, q in zip(before, learn.model.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(0.001, 0.01))
    lrs = learn.recorder.history["lr"].values[8:]
    for g, peak in enumerate((0.001, 0.01)):
        assert lrs[:, g] == pytest.approx(one_cycle(peak)(np.arange(8) / 7), rel=1e-12)
    assert [group["lr"] for group in learn.opt.param_groups] == [lrs[-1, g] for g in (0, 0, 1, 1)]


def test_a_group_across_two_of_the_splitters_is_refused():
    with pytest.raises(ValueError, match="group 0 holds parameters of the splitter's groups 0, 1"):
        opt_learner(decay_groups, splitter=body_and_head)


def test_an_optimizer_without_one_of_the_splitters_groups_is_refused():
    with pytest.raises(ValueError, match="holds no parameter of the splitter's group 0"):
        opt_learner(lambda m: [*m[2].parameters()], splitter=body_and_head)


def test_a_decay_that_is_set_leaves_the_group_without_one_alone():
    learn = opt_learner(decay_groups)
    learn.fit(1, wd=0.3)
    assert [group["weight_decay"] for group in learn.opt.param_groups] == [0.3, 0.0]
    assert learn.groups.get("weight_decay") == [0.3]


def test_rates_that_differ_within_a_group_keep_their_ratio():
    def make(model):
        lrs = (1e-4, 2e-4, 1e-3, 1e-3)
        return [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), lrs, strict=True)]

    learn = opt_learner(make, splitter=body_and_head)
    assert learn.lr == [1e-4, 1e-3]
    assert [group["lr"] for group in learn.opt.param_groups] == [1e-4, 2e-4, 1e-3, 1e-3]
    learn.fit(1, [0.01, 0.1])
    assert [group["lr"] for group in learn.opt.param_groups] == [0.01, 0.02, 0.1, 0.1]


def test_rates_without_a_ratio_are_refused():
    def make(model):
        lrs = (0.0, 2e-4, 1e-3, 1e-3)
        return [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), lrs, strict=True)]

    with pytest.raises(ValueError, match="have no ratio to the first"):
        opt_learner(make, splitter=body_and_head)


# lr_scale -----------------------------------------------------------------------------------


def layer_decay(model, scales=(0.25, 1.0), lr=0.08):
    parts = zip((model[0], model[2]), scales, strict=True)
    return [
        {"params": [p], "lr": lr, "lr_scale": scale, "weight_decay": 0.0 if p.ndim < 2 else 0.01}
        for part, scale in parts
        for p in part.parameters()
    ]


def test_lr_scale_multiplies_every_rate_and_the_record_shows_what_the_groups_have():
    learn = opt_learner(layer_decay)
    assert learn.groups.members == [[0, 1], [2, 3]]
    assert learn.lr == [0.08, 0.08]
    assert learn.groups.in_force("lr") == [0.02, 0.08]
    learn.fit_one_cycle(1, 0.4)
    expected = one_cycle(0.4)(np.arange(8) / 7)
    recorded = learn.recorder.history["lr"].values
    for g, scale in enumerate((0.25, 1.0)):
        assert recorded[:, g] == pytest.approx(scale * expected, rel=1e-12)
    assert [group["lr"] for group in learn.opt.param_groups] == [
        recorded[-1, g] for g in (0, 0, 1, 1)
    ]


def test_training_with_lr_scale_equals_a_loop_by_hand():
    learn = opt_learner(layer_decay, partial(SGD, momentum=0.9))
    plain = toy_learner().model
    learn.dls.train = batches = [*learn.dls.valid]
    learn.fit(2, 0.04)
    opt = SGD(
        [{**group, "lr": 0.04 * group["lr_scale"]} for group in layer_decay(plain)],
        momentum=0.9,
    )
    for xb, yb in 2 * batches:
        opt.zero_grad()
        mse_loss(plain(xb), yb).backward()
        opt.step()
    assert all(map(torch.equal, learn.model.parameters(), plain.parameters()))


def test_the_range_test_keeps_to_lr_scale():
    learn, seen = opt_learner(layer_decay), []
    learn.opt.register_step_pre_hook(
        lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups])
    )
    lrs = learn.lr_find(1e-4, 1e-1, 12, show_plot=False).lrs
    assert np.array(seen) == pytest.approx(np.outer(lrs, (0.25, 0.25, 1, 1)), rel=1e-12)


def test_an_optimizer_that_was_in_use_is_not_scaled_twice(caplog):
    learn = opt_learner(layer_decay)
    again = Learner(learn.dls, learn.model, mse_loss, opt=learn.opt, device="cpu", seed=0)
    assert again.lr == pytest.approx([0.08, 0.08], rel=1e-12)
    assert again.groups.in_force("lr") == pytest.approx([0.02, 0.08], rel=1e-12)
    assert caplog.messages == []


def test_rates_of_which_it_cannot_be_told_whether_they_are_scaled_are_told(caplog):
    learn = opt_learner(partial(layer_decay, scales=(0.5, 0.5)))
    assert learn.lr == [0.08]
    assert "are taken as they are before it is applied" in caplog.text
    caplog.clear()
    opt_learner(partial(layer_decay, scales=(0.5, 0.5)), lr=0.1)
    assert caplog.messages == []


def test_a_scale_of_zero_lets_a_group_rest():
    learn = opt_learner(partial(layer_decay, scales=(0.0, 1.0)), SGD)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit_one_cycle(1, 0.1)
    moved = [not torch.equal(p, q) for p, q in zip(before, learn.model.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    assert learn.groups.in_force("lr")[0] == 0.0


# Groups that come later ---------------------------------------------------------------------


def gradual(event, epoch, factor=1.0):
    """Return a learner of the head, and a callback that gives the body to its optimizer."""
    toy = toy_learner()
    toy.model[0].requires_grad_(False)
    opt = SGD(toy.model[2].parameters(), lr=0.01)
    batches = [*toy.dls.valid]
    learn = Learner((batches, None), toy.model, mse_loss, opt=opt, device="cpu", seed=0)
    learn.cbs = toy.cbs
    done = []

    def thaw(learn):
        if learn.epoch == epoch and not done:
            done.append(learn.epoch)
            learn.model[0].requires_grad_(True)
            lr = factor * opt.param_groups[0]["lr"]
            opt.add_param_group({"params": [*learn.model[0].parameters()], "lr": lr})

    return learn, Callback(**{event: thaw})


@pytest.mark.parametrize("event", ["before_epoch", "before_train", "before_batch", "after_step"])
def test_a_group_that_is_added_in_a_fit_is_stepped_and_its_gradients_dropped(event):
    learn, thaw = gradual(event, 1)
    learn.fit(3, 0.01, cbs=[thaw])
    plain = toy_learner().model
    plain[0].requires_grad_(False)
    opt = SGD(plain[2].parameters(), lr=0.01)
    for epoch in range(3):
        for i, (xb, yb) in enumerate(learn.dls.train):
            if (epoch, i) == (1, 1 if event == "after_step" else 0):
                plain[0].requires_grad_(True)
                opt.add_param_group({"params": [*plain[0].parameters()], "lr": 0.01})
            opt.zero_grad()
            mse_loss(plain(xb), yb).backward()
            opt.step()
    for ours, theirs in zip(learn.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize("event", ["before_epoch", "after_step"])
def test_its_rate_is_scheduled_in_the_ratio_in_which_it_was_added(event, caplog):
    learn, thaw = gradual(event, 1, factor=0.1)
    seen = []
    watch = Callback(after_step=lambda learn: seen.append(learn.opt.param_groups[-1]["lr"]))
    learn.fit_one_cycle(2, 0.05, cbs=[watch, thaw])
    recorded = learn.recorder.history["lr"].values
    assert recorded == pytest.approx(one_cycle(0.05)(np.arange(16) / 15), rel=1e-12)
    late = 9 if event == "after_step" else 8
    assert seen[late:] == pytest.approx(0.1 * recorded[late:], rel=1e-9)
    assert [message for message in caplog.messages if "was added to the optimizer" in message]
    assert len(learn.groups) == 1


def test_clipping_sees_it_at_once():
    learn, thaw = gradual("before_epoch", 1)
    clip, norms = GradientClip(1e9), []

    def measure(learn):
        grads = [p.grad for p in learn.model.parameters() if p.grad is not None]
        norms.append((float(clip.norm), float(torch.cat([g.flatten() for g in grads]).norm())))

    learn.fit(2, 0.01, cbs=[clip, thaw, Callback(before_step=measure)])
    assert [ours for ours, _ in norms] == pytest.approx([theirs for _, theirs in norms], rel=1e-5)


def test_a_scheduler_of_torch_drives_it_in_that_ratio_too():
    learn, thaw = gradual("before_epoch", 1, factor=0.5)
    seen = []
    watch = Callback(after_step=lambda learn: seen.append(learn.opt.param_groups[-1]["lr"]))
    scheduler = TorchScheduler(lambda opt: StepLR(opt, 4, gamma=0.1))
    learn.fit(2, 0.08, cbs=[scheduler, thaw, watch])
    expected = [0.08 * 0.1 ** (i // 4) for i in range(16)]
    assert learn.recorder.history["lr"].values == pytest.approx(expected, rel=1e-9)
    assert seen[8:] == pytest.approx([0.5 * rate for rate in expected[8:]], rel=1e-9)


# Optimizers within optimizers ---------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    """Steps an inner optimizer whose groups it shares, dict by dict."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner

    def step(self, closure=None):
        self.inner.step()

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class SAM(torch.optim.Optimizer):
    """Shares the list of groups, and loads both."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        self.inner.step()

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.inner.param_groups = self.param_groups


@pytest.mark.parametrize("kind", [Lookahead, SAM])
def test_a_wrapper_and_what_it_wraps_keep_the_same_groups_after_a_load(kind, tmp_path):
    def make():
        toy = toy_learner()
        opt = kind(SGD(toy.model.parameters(), lr=0.1, momentum=0.9))
        learn = Learner(toy.dls, toy.model, mse_loss, opt=opt, device="cpu", seed=0)
        learn.cbs = toy.cbs
        return learn

    learn, other = make(), make()
    learn.fit(1, 0.03)
    learn.save(tmp_path / "a")
    groups = [*other.opt.param_groups]
    other.load(tmp_path / "a")
    opt = other.opt
    for own, inner, before in zip(opt.param_groups, opt.inner.param_groups, groups, strict=True):
        assert own is inner is before
        assert own["lr"] == 0.03
    other.groups.set("lr", 0.5)
    assert opt.inner.param_groups[0]["lr"] == 0.5


def test_what_does_not_decay_is_stepped_by_the_inner_optimizer_too():
    def make(params, lr):
        return Lookahead(SGD(params, lr=lr, weight_decay=0.1))

    learn = toy_learner(opt_func=make, lr=0.01)
    plain = toy_learner(opt_func=partial(SGD, weight_decay=0.1, fused=False), lr=0.01)
    assert len(learn.opt.param_groups) == len(learn.opt.inner.param_groups) == 2
    for one in (learn, plain):
        one.fit(1)
    for ours, theirs in zip(learn.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_a_state_that_is_shared_is_shared_after_a_load():
    p = nn.Parameter(torch.ones(2))
    inner = SGD([p], lr=0.1, momentum=0.9)
    wrapper = SAM(inner)
    wrapper.state = inner.state
    p.grad = torch.ones(2)
    inner.step()
    state = inner.state_dict()
    with same_groups(wrapper):
        inner.load_state_dict(state)
    assert wrapper.state is inner.state
    assert wrapper.param_groups is inner.param_groups
