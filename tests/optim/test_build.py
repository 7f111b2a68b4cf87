import functools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW

from onecycle import Callback, Learner, ParamScheduler, Progress, linear
from onecycle.optim.build import build_optimizer, check_serves
from onecycle.testing import toy_learner

CAN_SERVE = {
    "Adadelta": 10.0,
    "Adafactor": 0.05,
    "Adagrad": 0.1,
    "Adam": 0.02,
    "AdamW": 0.02,
    "Adamax": 0.05,
    "ASGD": 0.05,
    "NAdam": 0.02,
    "RAdam": 0.05,
    "RMSprop": 0.01,
    "Rprop": 0.01,
    "SGD": 0.05,
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


class Embedded(nn.Module):
    def __init__(self, sparse=True):
        super().__init__()
        self.words = nn.Embedding(10, 1, sparse=sparse)

    def forward(self, x):
        return self.words(x).squeeze(1)


def quiet(dls, model, *args, **options):
    learn = Learner(dls, model, *args, device="cpu", seed=0, **options)
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def loss_falls(learn):
    before = learn.validate()["valid_loss"]
    learn.fit(1)
    assert learn.validate()["valid_loss"] < 0.9 * before


@pytest.mark.parametrize("name", CAN_SERVE)
def test_every_optimizer_that_can_serve_lowers_the_loss_in_one_epoch(name):
    loss_falls(toy_learner(16, opt_func=getattr(torch.optim, name), lr=CAN_SERVE[name]))


def test_muon_trains_matrices():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    batches = [(x[i : i + 8], x[i : i + 8] @ torch.ones(4, 2)) for i in range(0, 64, 8)]
    model = nn.Linear(4, 2, bias=False)
    loss_falls(quiet((batches, batches), model, F.mse_loss, torch.optim.Muon, lr=0.1))


def test_sparse_adam_trains_sparse_embeddings():
    batches = [(torch.tensor([0, 1, 2]), torch.ones(3)) for _ in range(20)]
    torch.manual_seed(0)
    loss_falls(quiet((batches, batches), Embedded(), F.mse_loss, torch.optim.SparseAdam, lr=0.1))


@pytest.mark.parametrize("wrap", [lambda kind: kind, partial], ids=["class", "partial"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.optim.LBFGS, "LBFGS needs a closure.*first-order optimizer such as AdamW"),
        (torch.optim.SparseAdam, "SparseAdam trains only.*'0.weight' has dense.*use AdamW"),
        (torch.optim.Muon, r"Muon trains only matrices; '0.bias' is none \(4 such"),
    ],
)
def test_an_optimizer_that_cannot_serve_is_refused_with_its_reason(wrap, kind, words):
    with pytest.raises(ValueError, match=words):
        build_optimizer(net(), wrap(kind), lr=0.1)


def test_an_existing_optimizer_that_needs_a_closure_is_refused():
    model = net()
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        check_serves(torch.optim.LBFGS(model.parameters()), model)


def test_an_optimizer_of_another_model_is_refused():
    foreign = SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"\(SGD\) holds none of the model's parameters"):
        toy_learner(opt=foreign)


def test_an_existing_optimizer_is_used_as_it_is():
    torch.manual_seed(0)
    model = net()
    opt = AdamW(model.parameters(), lr=0.007, weight_decay=0.3)
    before = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    learn = quiet(([(torch.randn(4, 4), torch.randn(4, 1))], None), model, F.mse_loss, opt=opt)
    assert learn.opt is opt
    assert len(opt.param_groups) == 1
    learn.fit(1)
    assert {k: v for k, v in opt.param_groups[0].items() if k != "params"} == before
    assert before["fused"] is None
    assert learn.recorder.history["lr"].values.tolist() == [0.007]


def test_an_optimizer_that_cannot_be_built_says_with_what_it_was_called():
    with pytest.raises(ValueError, match=r"SGD cannot be built.*Nesterov.*1 parameter group"):
        build_optimizer(net(), partial(SGD, nesterov=True), lr=0.1)


# Fused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AdamW, Adam, SGD, Adagrad])
def test_it_is_made_fused_by_default(kind):
    opt = build_optimizer(net(), kind, lr=0.1)
    assert all(group["fused"] is True for group in opt.param_groups)


@pytest.mark.parametrize("option", [{"fused": False}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("kind", [AdamW, Adam, SGD])
def test_it_is_not_made_fused_where_a_choice_was_made(kind, option):
    opt = build_optimizer(net(), partial(kind, **option), lr=0.1)
    for group in opt.param_groups:
        assert not group["fused"]
        assert {key: group[key] for key in option} == option


def test_it_is_not_made_fused_where_it_must_be_differentiable():
    opt = build_optimizer(net(), partial(Adam, differentiable=True), lr=0.1)
    assert not opt.param_groups[0]["fused"]


def test_a_class_without_a_fused_form_is_left_alone():
    opt = build_optimizer(net(), Adadelta, lr=0.1)
    assert "fused" not in opt.defaults


def test_sparse_and_complex_parameters_are_not_fused():
    complex_model = nn.Module()
    complex_model.w = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    for model in (Embedded(sparse=True), complex_model):
        opt = build_optimizer(model, SGD, lr=0.1)
        assert not opt.param_groups[0]["fused"]
    opt = build_optimizer(Embedded(sparse=False), SGD, lr=0.1)
    assert opt.param_groups[0]["fused"]


def test_a_model_with_sparse_gradients_trains_with_sgd():
    batches = [(torch.tensor([0, 1, 2]), torch.ones(3)) for _ in range(40)]
    loss_falls(quiet((batches, batches), Embedded(), F.mse_loss, SGD, lr=0.5))


@pytest.mark.parametrize("kind", [AdamW, Adam, partial(SGD, momentum=0.9)])
def test_fused_agrees_with_plain_to_rounding(kind):
    fused, plain = (
        toy_learner(8, opt_func=opt_func, lr=0.01)
        for opt_func in (kind, partial(kind, foreach=False))
    )
    for learn in (fused, plain):
        learn.fit_one_cycle(2, 0.02)
    for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# Weight decay -----------------------------------------------------------------------------


class MyScaleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.scale


def decayed(learn, **fit):
    """Train without gradients: what changes has decayed."""
    learn.loss_func = lambda pred, yb: 0.0 * pred.sum()
    for p in learn.model.parameters():
        p.data.fill_(1.0)
    learn.fit(1, lr=0.5, **fit)
    return {name for name, p in learn.model.named_parameters() if not (p == 1).all()}


def small(opt_func=SGD, model=None, **options):
    batches = [(torch.randn(4, 4), torch.randn(4, 1))]
    return quiet((batches, None), model or net(), F.mse_loss, opt_func, **options)


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({"wd": 0.1}, {}),
        ({"wd": 0.1, "opt_func": AdamW}, {}),
        ({"opt_func": AdamW}, {}),  # its own decay is 0.01
        ({"opt_func": partial(AdamW, weight_decay=0.2)}, {}),
        ({"opt_func": partial(SGD, weight_decay=0.2)}, {}),
        ({}, {"wd": 0.1}),  # without decay until now
        ({"wd": 0.2}, {"wd": 0.1}),
        ({}, {"cbs": [ParamScheduler({"weight_decay": linear(0.1, 0.1)})]}),
    ],
)
def test_norms_and_biases_never_decay_unless_asked(options, fit):
    assert decayed(small(**options), **fit) == {"0.weight", "2.weight"}


@pytest.mark.parametrize(
    ("options", "fit"),
    [({"wd": 0.1}, {}), ({"opt_func": AdamW}, {}), ({}, {"wd": 0.1})],
)
def test_norms_and_biases_decay_where_asked(options, fit):
    learn = small(wd_bn_bias=True, **options)
    assert decayed(learn, **fit) == {name for name, _ in learn.model.named_parameters()}


def test_the_optimizers_of_a_person_decay_as_they_were_made():
    model = net()
    opt = SGD(model.parameters(), lr=0.1)
    learn = quiet(([(torch.randn(4, 4), torch.randn(4, 1))], None), model, F.mse_loss, opt=opt)
    assert decayed(learn, wd=0.1) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), MyScaleNorm()],
)
def test_every_kind_of_norm_is_known(norm):
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 1, bias=False))
    assert decayed(small(model=model, wd=0.1)) == {"0.weight", "2.weight"}


def test_one_decay_less_update_is_that_of_the_formula():
    learn = small(wd=0.1)
    decayed(learn)
    assert learn.model[0].weight[0, 0].item() == pytest.approx(1 - 0.5 * 0.1)


def test_decay_groups_are_no_groups_of_the_record():
    learn = toy_learner(
        4,
        wd=0.1,
        opt_func=partial(SGD, momentum=0.9),
        splitter=lambda model: [model[0].parameters(), model[2].parameters()],
    )
    assert len(learn.opt.param_groups) == 4
    assert len(learn.groups) == 2
    learn.fit_one_cycle(1, [0.1, 0.2])
    assert learn.recorder.history["lr"].values.shape == (4, 2)
    assert [group["lr"] for group in learn.opt.param_groups] == [1e-6, 2e-6, 1e-6, 2e-6]


def test_a_group_of_norms_and_biases_alone_is_not_split_and_does_not_decay():
    learn = small(
        wd=0.1,
        splitter=lambda m: [[m[0].bias, *m[1].parameters()], [m[0].weight, *m[2].parameters()]],
    )
    assert len(learn.groups) == 2
    assert learn.groups.get("weight_decay") == [0.0, 0.1]
    assert decayed(learn) == {"0.weight", "2.weight"}


def test_an_optimizer_without_weight_decay_refuses_one():
    with pytest.raises(ValueError, match=r"Rprop cannot be built.*weight_decay"):
        build_optimizer(net(), torch.optim.Rprop, lr=0.1, wd=0.1)
    learn = toy_learner(2, opt_func=torch.optim.Rprop)
    with pytest.raises(ValueError, match="Rprop has no hyperparameter 'weight_decay'"):
        learn.fit(1, wd=0.1)


# The splitter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splitter", "words"),
    [
        (
            lambda m: [m[0].parameters()],
            "leaves out 4 parameter.*would never train: 1.weight, 1.bias",
        ),
        (lambda m: [m.parameters(), []], r"none empty; got \[6, 0\]"),
        (lambda m: [], "none empty"),
        (lambda m: [m.parameters(), m[0].parameters()], "more than one parameter group"),
    ],
)
def test_a_splitter_that_is_wrong_is_refused(splitter, words):
    with pytest.raises(ValueError, match=words):
        build_optimizer(net(), SGD, lr=0.1, splitter=splitter)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"\(ReLU\) has no parameters to train"):
        build_optimizer(nn.ReLU(), SGD, lr=0.1)


def test_a_function_may_build_the_optimizer():
    def mine(params, lr):
        return SGD(params, lr=lr, momentum=0.5)

    opt = build_optimizer(net(), mine, lr=0.3)
    assert (opt.defaults["lr"], opt.defaults["momentum"]) == (0.3, 0.5)
    assert len(opt.param_groups) == 1


def test_frozen_parameters_stay_in_their_groups_and_do_not_move():
    learn = toy_learner(4, lr=0.1)
    learn.model[0].requires_grad_(False)
    before = learn.model[0].weight.clone()
    last = learn.model[2].weight.clone()
    learn.fit(1)
    assert torch.equal(learn.model[0].weight, before)
    assert not torch.equal(learn.model[2].weight, last)


def test_a_partial_of_a_partial_is_understood():
    opt_func = functools.partial(functools.partial(SGD, momentum=0.9), nesterov=True)
    opt = build_optimizer(net(), opt_func, lr=0.1)
    assert opt.defaults["nesterov"]
    assert opt.defaults["fused"]


def test_every_callback_sees_one_optimizer_over_a_learners_life():
    learn, seen = toy_learner(2), set()
    opt = learn.opt
    for _ in range(2):
        learn.fit(1, cbs=[Callback(before_fit=lambda learn: seen.add(id(learn.opt)))])
    assert seen == {id(opt)}


@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.9), AdamW, Adagrad])
@pytest.mark.parametrize("change", ["moved between fits", "loaded from another layout"])
def test_a_model_in_another_memory_layout_goes_on_with_its_own_state(opt_func, change, tmp_path):
    """A fused kernel pairs weight and state in the order of memory; the plain step does not."""
    x, y = torch.randn(16, 3, 6, 6), torch.randn(16, 2)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)]
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        learn = quiet((batches, None), model, F.mse_loss, partial(opt_func, fused=fused), lr=0.01)
        learn.fit(1)
        learn.save(tmp_path / "contiguous.pt")
        model.to(memory_format=torch.channels_last)
        if change == "loaded from another layout":
            learn.load(tmp_path / "contiguous.pt")
        learn.fit(2)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
