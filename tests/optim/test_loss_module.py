"""Losses that are modules: trained, saved, and in the mode of the pass, as in a loop by hand."""

import functools
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW

from onecycle import EMA, CheckpointError, Learner, SaveModel
from onecycle.arguments import Default
from onecycle.optim.loss_module import loss_module, own_parameters
from onecycle.testing import toy_learner


class Uncertainty(nn.Module):
    """A mean squared error with a variance that is learned; counts its calls in training."""

    def __init__(self):
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pred, y):
        if self.training:
            self.calls += 1
        return (-self.log_var).exp() * (pred - y).square().mean() + self.log_var


class Dropping(nn.Dropout):
    def forward(self, pred, y):
        return mse_loss(super().forward(pred), y)


def learner(loss, model=None, **options):
    toy = toy_learner()
    batches = [*toy.dls.valid]
    given = {"opt_func": functools.partial(SGD, fused=False), "lr": 0.05, "seed": 0}
    learn = Learner((batches, batches), model or toy.model, loss, device="cpu", **(given | options))
    learn.cbs = toy.cbs
    return learn


def by_hand(epochs, make_opt):
    """Train as `learner` does; return the model, the loss and the validation loss of each epoch."""
    toy, loss, valid = toy_learner(), Uncertainty(), []
    model, batches = toy.model, [*toy.dls.valid]
    opt = make_opt(model, loss)
    for _ in range(epochs):
        model.train(), loss.train()
        for xb, yb in batches:
            opt.zero_grad()
            loss(model(xb), yb).backward()
            opt.step()
        model.eval(), loss.eval()
        with torch.no_grad():
            valid.append(sum(loss(model(xb), yb).item() for xb, yb in batches) / len(batches))
    return model, loss, valid


def one_group(model, loss):
    return SGD([*model.parameters(), *loss.parameters()], lr=0.05)


WAYS = {
    "module": lambda loss: loss,
    "method": lambda loss: loss.forward,
    "partial": functools.partial,
    "partial of a method": lambda loss: functools.partial(loss.forward),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_its_parameters_train_as_in_a_loop_by_hand(way):
    model, expected, valid = by_hand(2, one_group)
    loss = Uncertainty()
    learn = learner(way(loss))
    learn.fit(2)
    assert all(map(torch.equal, learn.model.parameters(), model.parameters()))
    assert torch.equal(loss.log_var, expected.log_var)
    assert loss.log_var.item() != 0
    assert loss.calls.item() == expected.calls.item() == 16  # of 32: validation counts none
    assert learn.recorder.history["valid_loss"].values.tolist() == pytest.approx(valid, rel=1e-6)
    assert loss.log_var.grad is None
    assert loss.training


def test_they_are_in_the_last_group_at_its_rate_and_the_log_says_so(caplog):
    caplog.set_level("INFO")

    def make(model, loss):
        body, head = model[0].parameters(), [*model[2].parameters(), *loss.parameters()]
        return SGD([{"params": body, "lr": 0.01}, {"params": head, "lr": 0.1}])

    _, expected, _ = by_hand(1, make)
    loss = Uncertainty()
    learn = learner(loss, splitter=lambda m: [m[0].parameters(), m[2].parameters()])
    said = "the loss function's parameters train in group 1: ['loss_func.log_var']"
    assert caplog.messages == [said]
    learn.fit(1, [0.01, 0.1])
    assert torch.equal(loss.log_var, expected.log_var)
    assert caplog.messages == [said]
    learn.freeze()
    assert loss.log_var.requires_grad


def test_its_biases_and_norms_do_not_decay():
    loss = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1))
    learn = learner(loss, opt_func=AdamW, wd=0.1)
    decayed, spared = learn.opt.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in loss.parameters()} - {id(p) for p in decayed["params"]} == {
        id(p) for p in (loss[0].bias, *loss[1].parameters())
    }


def test_an_optimizer_that_lacks_them_is_warned_of(caplog):
    toy, loss = toy_learner(), Uncertainty()
    learn = learner(loss, toy.model, opt=SGD(toy.model.parameters(), lr=0.1), lr=Default.OWN)
    learn.fit(1)
    assert caplog.messages == [
        "the optimizer does not hold 'loss_func.log_var', which will not train: give opt= an "
        "optimizer that holds the loss function's parameters too, or freeze them"
    ]
    assert loss.log_var.item() == 0


def test_what_it_shares_with_the_model_is_held_once():
    class Tied(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight, self.scale = weight, nn.Parameter(torch.ones(()))

        def forward(self, pred, y):
            return self.scale * mse_loss(pred, y) + self.weight.square().mean()

    model = toy_learner().model
    loss = Tied(model[2].weight)
    assert [*own_parameters(model, loss)] == ["loss_func.scale"]
    learn = learner(loss, model)
    assert len(learn.opt.param_groups[0]["params"]) == 5


def test_a_loss_that_is_part_of_the_model_is_the_models():
    class Own(nn.Sequential):
        def loss(self, pred, y):
            return mse_loss(pred, y)

    model = Own(nn.Linear(2, 2), Dropping())
    for loss in (model[1], model.loss, model[1].forward, functools.partial(model[1])):
        assert loss_module(model, loss) is None
    assert loss_module(model, mse_loss) is loss_module(model, None) is None


def test_a_part_of_it_that_is_in_evaluation_mode_stays_there():
    class Perceptual(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.BatchNorm1d(1).requires_grad_(False).eval()
            self.seen = []

        def forward(self, pred, y):
            self.seen.append((self.training, self.features.training))
            return mse_loss(self.features(pred), y)

    loss = Perceptual()
    learn = learner(loss)
    learn.fit(1)
    assert loss.seen == [(True, False)] * 8 + [(False, False)] * 8
    assert (loss.training, loss.features.training) == (True, False)
    assert loss.features.num_batches_tracked == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda learn: learn.validate(),
        lambda learn: learn.get_preds(),
        lambda learn: learn.lr_find(1e-5, 1e-2, 10, show_plot=False, valid=True),
    ],
    ids=["validate", "get_preds", "lr_find"],
)
def test_everything_else_leaves_it_as_it_was(call):
    loss = Uncertainty()
    learn = learner(loss)
    learn.fit(1)
    before = deepcopy(loss.state_dict())
    call(learn)
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    assert loss.training
    assert loss.log_var.grad is None


def test_dropout_in_it_is_off_in_validation_and_on_in_training():
    learn = learner(Dropping(0.5))
    expected = learner(mse_loss).validate()
    assert learn.validate() == learn.validate() == expected
    torch.manual_seed(0)
    learn.fit(1)
    plain = learner(mse_loss)
    plain.fit(1)
    losses = [one.recorder.history["train_loss"].values[0] for one in (learn, plain)]
    assert losses[0] != losses[1]


def test_saving_and_loading_brings_it_back(tmp_path):
    learn = learner(Uncertainty())
    learn.fit(1)
    learn.save(tmp_path / "a")
    other = learner(Uncertainty())
    other.load(tmp_path / "a")
    assert torch.equal(other.loss_func.log_var, learn.loss_func.log_var)
    assert other.loss_func.calls.item() == 8
    for one in (learn, other):
        one.fit(1)
    assert torch.equal(other.loss_func.log_var, learn.loss_func.log_var)


def test_the_best_model_comes_back_with_its_loss(tmp_path):
    learn, seen = learner(Uncertainty()), []
    learn.fit(1, lr=0.02)
    best = learn.loss_func.log_var.item()

    class Watch(SaveModel):
        def after_epoch(self, learn):
            super().after_epoch(learn)
            seen.append(learn.loss_func.log_var.item())
            if learn.epoch == 0:
                learn.groups.set("lr", 3.0)  # the second epoch is worse

    learn.fit(2, lr=0.02, cbs=[Watch(tmp_path / "best", restore_best=True)])
    assert len({best, *seen}) == 3
    assert learn.loss_func.log_var.item() == seen[0]


def test_another_loss_is_refused_or_left_out_in_words(tmp_path, caplog):
    learn = learner(Uncertainty())
    learn.fit(1)
    learn.save(tmp_path / "a")
    other = learner(mse_loss, opt_func=AdamW)
    before = [p.clone() for p in other.model.parameters()]
    with pytest.raises(CheckpointError, match=r"another loss function: .*'log_var'"):
        other.load(tmp_path / "a")
    assert all(map(torch.equal, before, other.model.parameters()))
    other.load(tmp_path / "a", with_opt=False)
    assert all(map(torch.equal, other.model.parameters(), learn.model.parameters()))
    assert "holds another loss function, which is left out" in caplog.text


def test_arguments_of_torchs_losses_are_no_state(tmp_path):
    class Weighted(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.own = nn.BCEWithLogitsLoss(torch.tensor([weight]))

        def forward(self, pred, y):
            return self.own(pred, (y > 0).float())

    learn = learner(Weighted(2.0))
    learn.save(tmp_path / "a")
    other = learner(Weighted(3.0))
    other.load(tmp_path / "a")
    assert other.loss_func.own.weight.item() == 3.0


def test_an_average_of_the_weights_is_of_the_model_alone():
    _, expected, _ = by_hand(2, one_group)
    learn = learner(Uncertainty())
    learn.fit(2, cbs=[EMA(0.9)])
    assert torch.equal(learn.loss_func.log_var, expected.log_var)


class Hiding:
    def __init__(self, criterion):
        self.criterion = criterion

    def __call__(self, pred, y):
        return self.criterion(pred, y)

    def compute(self, pred, y):
        return self.criterion(pred, y)


def in_a_closure(criterion):
    def loss(pred, y):
        return criterion(pred, y)

    return loss


def with_argument(pred: Tensor, y: Tensor, criterion: nn.Module) -> Tensor:
    return criterion(pred, y)


HIDING = {
    "object": Hiding,
    "method of an object": lambda criterion: Hiding(criterion).compute,
    "closure": in_a_closure,
    "argument": lambda criterion: functools.partial(with_argument, criterion=criterion),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_a_module_that_is_hidden_in_a_loss_is_told(hide, caplog):
    learner(hide(Uncertainty()))
    assert "the loss function uses 'criterion' (Uncertainty), which nobody sees" in caplog.text
    caplog.clear()
    learner(hide(Dropping()))
    assert "(Dropping)" in caplog.text
    caplog.clear()
    for nothing_to_lose in (nn.MSELoss(), Uncertainty().requires_grad_(False).eval()):
        learner(hide(nothing_to_lose))
    assert caplog.messages == []


def test_a_loss_that_closes_over_the_model_hides_nothing(caplog):
    toy = toy_learner()
    model = toy.model
    Learner(toy.dls, model, lambda pred, y: mse_loss(pred, y) + model[0].bias.sum(), device="cpu")
    assert caplog.messages == []
