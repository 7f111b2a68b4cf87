"""State of optimizers that wrap others, of further ones, and of modules that take shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW, Optimizer

from onecycle import Callback, CancelFit, Checkpoint, CheckpointError, Learner
from onecycle.checkpoints.opt_state import load_opt_state, opt_misfit, opt_state
from onecycle.testing import toy_learner


class SAM(Optimizer):
    """Wraps an optimizer whose state its own state_dict has not, as a widely copied one does."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.base = SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
        self.base.step()


class Lookahead(Optimizer):
    """Shares groups and state with the optimizer that it wraps, and keeps more in them."""

    def __init__(self, params, lr):
        self.base = AdamW(params, lr=lr, fused=True)
        self.defaults = self.base.defaults
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.clone())
                slow.lerp_(p, 0.5)
                p.copy_(slow)

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state):
        self.base.load_state_dict(state)


class Whole(Optimizer):
    """Has a state_dict of a form of its own, with that of the optimizer in it."""

    def __init__(self, params, lr):
        self.base = AdamW(params, lr=lr, fused=True)
        self.defaults, self.param_groups = self.base.defaults, self.base.param_groups
        self.state, self.n = {}, 0

    def step(self, closure=None):
        self.n += 1
        self.base.step()

    def state_dict(self):
        return {"base": self.base.state_dict(), "n": self.n}

    def load_state_dict(self, state):
        self.base.load_state_dict(state["base"])
        self.n = state["n"]


class Free(Optimizer):
    """Keeps its state by no parameter."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "seen": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        group = self.param_groups[0]
        group["seen"] = 0.9 * group["seen"] + float(sum(p.grad.sum() for p in group["params"]))
        self.state["all"] = {"n": self.state.get("all", {}).get("n", 0) + 1}
        for p in group["params"]:
            p.add_(p.grad * (1 + abs(group["seen"])), alpha=-group["lr"] / self.state["all"]["n"])


class Net(nn.ModuleDict):
    def forward(self, x):
        return self["b"](self["a"](x).relu()).sum(1, keepdim=True)


def learner(opt_func=AdamW, names="ab", width=4):
    torch.manual_seed(0)
    made = {"a": nn.Linear(4, width), "b": nn.Linear(width, 4)}
    model = Net({name: made[name] for name in names})
    learn = Learner(toy_learner().dls, model, mse_loss, opt_func, device="cpu", seed=0)
    learn.cbs = learn.cbs[:1]
    return learn


def weights(learn):
    return {name: value.tolist() for name, value in learn.model.state_dict().items()}


OPTIMIZERS = [SAM, Lookahead, Whole, Free]


@pytest.mark.parametrize("opt_func", OPTIMIZERS)
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_fit_goes_on_in_the_same_bits_or_is_refused(opt_func, names, tmp_path):
    whole, learn = learner(opt_func), learner(opt_func, names)
    whole.fit(2, 0.01)
    learner(opt_func).fit(2, 0.01, cbs=[Checkpoint(tmp_path, "5 updates")])
    if opt_func is Whole and names == "ba":
        with pytest.raises(CheckpointError, match="in another order"):
            learn.fit(2, 0.01, resume=tmp_path)
        return
    learn.fit(2, 0.01, resume=tmp_path)
    if opt_func is Free:  # sums in the order of the parameters
        for name, value in whole.model.state_dict().items():
            assert torch.allclose(learn.model.state_dict()[name], value)
    else:
        assert weights(learn) == weights(whole)


def test_what_is_wrapped_and_in_no_state_dict_would_change_the_fit(tmp_path):
    whole, learn = learner(SAM), learner(SAM)
    whole.fit(2, 0.01)
    first = learner(SAM)
    first.fit(1, 0.01)
    state = opt_state(first)
    assert state["inner"]["base"]["state"].keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}
    del state["inner"]
    load_opt_state(learn, state)
    assert not learn.opt.base.state


def spoil(found):
    """Make a momentum too small, wherever the state has it."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("exp_avg", "momentum_buffer") and value.shape == (4, 4):
                found[key] = torch.zeros(2, 2)
            else:
                spoil(value)


@pytest.mark.parametrize("opt_func", [SAM, Lookahead, Whole])
def test_a_momentum_that_is_too_small_is_refused_wherever_it_is(opt_func):
    made, learn = learner(opt_func), learner(opt_func)
    made.fit(1, 0.01), learn.fit(1, 0.02)
    found = opt_state(made)
    spoil(found)
    before, rates = weights(learn), learn.groups.get("lr")
    moments = [dict(entry) for entry in learn.opt.base.state.values()]

    def load():
        misfit = opt_misfit(learn, found)
        if misfit is not None:
            raise ValueError(misfit)
        load_opt_state(learn, found)

    with pytest.raises(ValueError, match="does not fit the parameter"):
        load()
    assert (weights(learn), learn.groups.get("lr")) == (before, rates)
    for entry, expected in zip(learn.opt.base.state.values(), moments, strict=True):
        assert all(entry[key] is value for key, value in expected.items())


def test_an_optimizer_that_fails_while_it_loads_is_as_before(tmp_path):
    made, learn = learner(Whole), learner(Whole)
    made.fit(1, 0.01)
    made.save(tmp_path / "a")
    learn.fit(1, 0.02)
    before = weights(learn), learn.opt.n
    learn.opt.base.load_state_dict = lambda state: 1 / 0
    with pytest.raises(CheckpointError, match="ZeroDivisionError"):
        learn.load(tmp_path / "a")
    assert (weights(learn), learn.opt.n) == before


# What a subclass trains beside


class Gan(Learner):
    def compute_loss(self, pred, batch):
        fake, judge = self.model["a"](self.xb), self.critic
        self.opts["critic"].zero_grad()
        (judge(self.xb).square().mean() - judge(fake.detach()).mean()).backward()
        self.opts["critic"].step()
        self.scheduler.step()
        return judge(fake).square().mean()


def gan():
    torch.manual_seed(0)
    model = Net({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    learn = Gan((toy_learner().dls.train, None), model, opt_func=Adam, device="cpu", seed=0)
    learn.cbs, learn.critic = learn.cbs[:1], nn.Linear(4, 1)
    learn.opts = {"critic": Adam(learn.critic.parameters(), 1e-2)}
    learn.scheduler = torch.optim.lr_scheduler.ExponentialLR(learn.opts["critic"], 0.9)
    return learn


def test_optimizers_modules_and_schedulers_in_fields_are_resumed(tmp_path):
    whole, learn = gan(), gan()
    whole.fit(2, 0.01)
    gan().fit(2, 0.01, cbs=[Checkpoint(tmp_path, "5 updates")])
    learn.fit(2, 0.01, resume=tmp_path)
    assert weights(learn) == weights(whole)
    assert learn.critic.weight.tolist() == whole.critic.weight.tolist()
    assert learn.scheduler.state_dict() == whole.scheduler.state_dict()


def test_a_field_that_is_gone_or_another_is_refused(tmp_path):
    gan().fit(1, 0.01, cbs=[Checkpoint(tmp_path)])
    learn = gan()
    learn.critic = nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match=r"holds another learn\.critic"):
        learn.fit(1, 0.01, resume=tmp_path)
    learn = gan()
    del learn.scheduler
    with pytest.raises(CheckpointError, match=r"has the state of learn\.scheduler, which is not"):
        learn.fit(1, 0.01, resume=tmp_path)


# Buffers that take shape, and what nobody saves


class Queue(nn.Linear):
    def __init__(self, length=9):
        super().__init__(4, 1)
        self.length, self.n_calls = length, 0
        self.register_buffer("seen", torch.zeros(0, 4))
        self.register_buffer("first", None)
        self.register_buffer("size", torch.zeros(length), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen = torch.cat([self.seen, x[:2]])[-self.length :]
            self.first = x[0] if self.first is None else self.first
            self.size = torch.zeros(len(self.seen))
        return super().forward(x)


def queue(length=9):
    torch.manual_seed(0)
    toy = toy_learner()
    learn = Learner(toy.dls, Queue(length), mse_loss, device="cpu", seed=0)
    learn.cbs = learn.cbs[:1]
    return learn


def test_buffers_that_grow_are_saved_loaded_and_resumed(tmp_path):
    whole, learn = queue(), queue()
    whole.fit(2, 0.01)
    queue().fit(2, 0.01, cbs=[Checkpoint(tmp_path / "fit", "3 updates")])
    learn.fit(2, 0.01, resume=tmp_path / "fit")
    assert weights(learn) == weights(whole)
    assert learn.model.size.shape == whole.model.size.shape
    whole.save(tmp_path / "a")
    other = queue()
    other.load(tmp_path / "a")
    assert weights(other) == weights(whole)


def test_a_buffer_that_another_model_has_in_another_size_is_refused(tmp_path):
    made = queue()
    made.model.register_buffer("grid", torch.zeros(5))
    made = Learner(made.dls, made.model, mse_loss, device="cpu", seed=0)
    made.save(tmp_path / "a")
    other = queue()
    other.model.register_buffer("grid", torch.zeros(6))
    other = Learner(other.dls, other.model, mse_loss, device="cpu", seed=0)
    with pytest.raises(CheckpointError, match=r"of another shape \['grid'\]"):
        other.load(tmp_path / "a")


class Counts(nn.Linear):
    def forward(self, x):
        self.n_calls += 1
        return super().forward(x)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_number_that_the_model_counts_goes_on_where_it_was(keeps, tmp_path, caplog):
    class Keeps(Counts):
        def get_extra_state(self):
            return self.n_calls

        def set_extra_state(self, state):
            self.n_calls = state

    def counted(*cbs, resume=None):
        torch.manual_seed(0)
        model = (Keeps if keeps else Counts)(4, 1)
        model.n_calls = 0
        learn = Learner(toy_learner().dls, model, mse_loss, device="cpu", seed=0, check=False)
        with learn.no_bar():
            learn.fit(2, 0.01, cbs=cbs, resume=resume)
        return model.n_calls

    def stop(learn):
        if learn.n_updates == 3:
            raise CancelFit("here")

    counted(Checkpoint(tmp_path, "2 updates"), Callback(after_step=stop))
    assert "no checkpoint holds it" not in caplog.text
    assert counted(resume=tmp_path) == counted() > 4


def test_an_optimizer_in_a_callback_is_named_at_the_first_checkpoint(tmp_path, caplog):
    class Judge(Callback):
        def __init__(self):
            self.opt = SGD([nn.Parameter(torch.zeros(1))], 0.1)

    learn = learner()
    learn.fit(1, 0.01, cbs=[Judge(), Checkpoint(tmp_path)])
    assert "training changes Judge.opt, and no checkpoint holds it" in caplog.text


# Wrapped modules


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.module = inner

    def forward(self, x):
        return self.module(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("wrap", [Wrapper, torch.compile])
@pytest.mark.parametrize("back", [False, True])
def test_a_wrapped_model_takes_the_file_of_a_bare_one_and_back(wrap, back, tmp_path):
    def make(wrapped):
        learn = learner()
        model = wrap(learn.model) if wrapped else learn.model
        return Learner(learn.dls, model, mse_loss, device="cpu", seed=0)

    made = learner()
    with made.no_bar():
        made.fit(1, 0.01)
    source = make(back)
    source.model.load_state_dict(
        dict(zip(source.model.state_dict(), made.model.state_dict().values(), strict=True))
    )
    source.opt.load_state_dict(made.opt.state_dict())
    source.save(tmp_path / "a")
    other = make(not back)
    other.load(tmp_path / "a")
    for left, right in zip(other.model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(left, right)
        assert torch.equal(other.opt.state[left]["exp_avg"], made.opt.state[right]["exp_avg"])


class Opaque(SGD):
    def state_dict(self):
        return {"what": object()}


def test_a_model_is_saved_without_an_optimizer_that_no_file_can_hold(tmp_path, caplog):
    made, learn = learner(Opaque), learner(Opaque)
    made.fit(1, 0.01)
    made.save(tmp_path / "a")
    assert "holds the model without the optimizer: the state of the optimizer" in caplog.text
    learn.load(tmp_path / "a", with_opt=False)
    assert weights(learn) == weights(made)
    with pytest.raises(CheckpointError, match=r"left out of the file.*with_opt=False"):
        learn.load(tmp_path / "a")
