"""Whatever changes between two updates: the next one is that of the optimizer's own step."""

from functools import partial, wraps

import pytest
import torch
from stepped_pair import KINDS, Pair, give_gradients, params
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from onecycle import Callback
from onecycle.testing import toy_learner

SGDS = [kind for kind in KINDS if "Adam" not in kind]
ADAMS = [kind for kind in KINDS if "Adam" in kind]


def outcome(step):
    """Make a step; return what it raised, as text."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def tensors(opt):
    """List weights and state of an optimizer, in order."""
    states = [opt.state.get(p, {}) for p in params(opt)]
    return [*params(opt), *(value for state in states for value in state.values())]


class Watched(Pair):
    """Two optimizers, one of them stepped by the short way until something is changed."""

    def __init__(self, kind):
        super().__init__(kind)
        self.step()
        self.step()
        assert self.own_steps == (kind != "SGD without momentum")
        self.own_steps = 0

    def compare(self, alter=lambda opt: None):
        """Make a step with both, and compare what comes of it; return the error of both.

        How far a step came that failed is not compared: after it nobody can go on.
        """
        self.seed += 1
        self.both(lambda opt: give_gradients(opt, self.seed))
        self.both(alter)
        ours, theirs = outcome(self.stepper.step), outcome(self.theirs.step)
        assert ours == theirs
        if theirs is not None:
            return theirs
        for mine, other in zip(tensors(self.ours), tensors(self.theirs), strict=True):
            if not isinstance(other, Tensor):
                assert mine == other
            else:
                assert mine.dtype == other.dtype
                assert torch.equal(mine, other)
        return None


@pytest.fixture
def watched():
    made = []

    def make(kind):
        made.append(Watched(kind))
        return made[-1]

    yield make
    for pair in made:
        pair.patch.undo()


def in_group(**options):
    """Return what sets options of the first group."""
    return lambda opt: opt.param_groups[0].update(options)


OPTIONS = {
    "fused=False": {"fused": False},
    "fused=None": {"fused": None},
    "foreach": {"foreach": True},
    "foreach, not fused": {"foreach": True, "fused": False},
    "maximize": {"maximize": True},
    "not maximize": {"maximize": False},
    "weight decay": {"weight_decay": 0.3},
    "no weight decay": {"weight_decay": 0.0},
    "differentiable": {"differentiable": True},
    "an int for a rate": {"lr": 1},
    "a rate that is a tensor": {"lr": torch.tensor(0.3)},
    "a rate that is a tensor of float64": {"lr": torch.tensor(0.3, dtype=torch.float64)},
    "decay that is a tensor": {"weight_decay": torch.tensor(0.3)},
}
OF_SGD = {
    "momentum": {"momentum": 0.5},
    "no momentum": {"momentum": 0.0},
    "an int for no momentum": {"momentum": 0},
    "nesterov": {"nesterov": True},
    "dampening": {"dampening": 0.3},
    "no dampening": {"dampening": 0.0},
    "dampening without momentum": {"dampening": 0.3, "momentum": 0.0},
    "momentum that is a tensor": {"momentum": torch.tensor(0.5)},
}
OF_ADAM = {
    "amsgrad": {"amsgrad": True},
    "capturable": {"capturable": True},
    "betas": {"betas": (0.5, 0.6)},
    "betas that are tensors": {"betas": (torch.tensor(0.5), torch.tensor(0.6))},
    "eps": {"eps": 0.1},
    "decoupled decay": {"decoupled_weight_decay": True, "weight_decay": 0.3},
    "coupled decay": {"decoupled_weight_decay": False, "weight_decay": 0.3},
}
CASES = [
    *((kind, name, change) for kind in SGDS for name, change in (OPTIONS | OF_SGD).items()),
    *((kind, name, change) for kind in ADAMS for name, change in (OPTIONS | OF_ADAM).items()),
]


@pytest.mark.parametrize(
    ("kind", "change"), [case[::2] for case in CASES], ids=[f"{k}: {n}" for k, n, _ in CASES]
)
def test_an_option_that_is_set_and_put_back_acts_at_once(kind, change, watched):
    pair = watched(kind)
    before = [dict(opt.param_groups[0]) for opt in (pair.ours, pair.theirs)]
    pair.both(in_group(**change))
    if pair.compare() or pair.compare():
        return
    for opt, options in zip((pair.ours, pair.theirs), before, strict=True):
        opt.param_groups[0].update(options)
    assert [pair.compare(), pair.compare()] == [None, None]


def replace_data(opt):
    p = params(opt)[0]
    p.data = torch.full_like(p, 2.0).t().contiguous().t()


def cast_first(opt):
    p = params(opt)[0]
    p.data, p.grad = p.data.double(), None
    p.grad = torch.ones_like(p)


def cast_with_state(opt):
    cast_first(opt)
    state = opt.state.get(params(opt)[0], {})
    state.update({k: v.double() for k, v in state.items() if k != "step"})


def cast_state(opt):
    for state in opt.state.values():
        state.update({k: v.bfloat16() for k, v in state.items() if k != "step"})


def new_state(opt):
    for p, state in opt.state.items():
        opt.state[p] = {k: v * 2 for k, v in state.items()}


def no_buffers(opt):
    for state in opt.state.values():
        state.update({k: None for k in state if k == "momentum_buffer"})


def swap_member(opt):
    """Put another parameter in the place of one, in the same list."""
    opt.param_groups[0]["params"][1] = nn.Parameter(torch.ones(5))


def sparse_gradient(opt):
    params(opt)[0].grad = torch.ones(3, 4).to_sparse()


class Marked(Tensor):
    """A gradient that says what is done with it."""


CHANGES = {
    "data replaced": replace_data,
    "data cast": cast_first,
    "data and state cast": cast_with_state,
    "state cast": cast_state,
    "states replaced": new_state,
    "states emptied": lambda opt: [state.clear() for state in opt.state.values()],
    "buffers of None": no_buffers,
    "all state dropped": lambda opt: opt.state.clear(),
    "a state dropped": lambda opt: opt.state.pop(params(opt)[1], None),
    "a state dropped and put back": lambda opt: opt.state.update(
        {p: dict(opt.state.pop(p)) for p in [params(opt)[1]] if p in opt.state}
    ),
    "a member appended": lambda opt: opt.param_groups[0]["params"].append(
        nn.Parameter(torch.ones(2))
    ),
    "a member replaced": swap_member,
    "a member dropped": lambda opt: opt.param_groups[0]["params"].pop(),
    "a group dropped": lambda opt: opt.param_groups.pop(),
    "groups turned round": lambda opt: opt.param_groups.reverse(),
    "groups copied": lambda opt: opt.param_groups.__setitem__(
        slice(None), [dict(group) for group in opt.param_groups]
    ),
    "frozen": lambda opt: params(opt)[0].requires_grad_(False),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["SGD", "SGD without momentum", "AdamW"])
def test_what_is_changed_in_weights_states_and_groups_acts_at_once(kind, name, watched):
    pair = watched(kind)
    pair.both(CHANGES[name])
    if pair.compare() is None:
        pair.compare()


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_change_that_nobody_looked_for_would_be_noticed(kind, watched, monkeypatch):
    """The negative control: with the lists made once and never looked at again."""
    pair = watched(kind)
    monkeypatch.setattr(
        pair.stepper,
        "_gradients",
        lambda: [[p.grad for p in group.params] for group in pair.stepper.groups],
    )
    pair.both(new_state)
    with pytest.raises(AssertionError):
        pair.compare()


@pytest.mark.parametrize("kind", SGDS + ADAMS)
def test_gradients_that_become_sparse_are_refused_as_by_torch(kind, watched):
    assert "sparse" in watched(kind).compare(sparse_gradient).lower()


def mark_gradient(opt):
    p = params(opt)[0]
    p.grad = p.grad.as_subclass(Marked)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_gradients_that_become_a_subclass_are_left_to_torch(kind, watched):
    pair = watched(kind)
    pair.compare(mark_gradient)
    assert pair.own_steps == 1
    pair.compare()
    assert pair.own_steps == 1


@pytest.mark.parametrize(("name", "value"), [("grad_scale", 4.0), ("found_inf", 1.0)])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_what_a_gradient_scaler_tells_the_optimizer_is_heard(kind, name, value, watched):
    pair = watched(kind)
    pair.both(lambda opt: setattr(opt, name, torch.tensor(value)))
    pair.compare()
    pair.both(lambda opt: delattr(opt, name))
    pair.compare()
    assert pair.own_steps == 1


# Who replaces what torch has ------------------------------------------------------------------


def noting(step, calls):
    def patched(self, *args, **kwargs):
        calls.append(self)
        return step(self, *args, **kwargs)

    return patched


def wrapping(step, calls):
    """A patch that looks like what it wraps, as decorators do."""
    return wraps(step)(noting(step, calls))


@pytest.mark.parametrize("patch", [noting, wrapping])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_step_that_is_replaced_in_the_class_is_called(patch, fast, when, monkeypatch):
    learn, calls = toy_learner(4, opt_func=SGD, fast_step=fast, check=False), []

    def replace(learn):
        if learn.n_updates == 2 or when == "before":
            monkeypatch.setattr(SGD, "step", patch(SGD.step, calls))

    learn.fit(1, cbs=[Callback(**{"after_step" if when == "meanwhile" else "before_fit": replace})])
    assert calls == [learn.opt] * (2 if when == "meanwhile" else 4)
    calls.clear()
    learn.fit(1)  # whose stepper is made of the class as it is
    assert calls == [learn.opt] * 4
    expected = "hooks, or was wrapped or replaced" if fast else "fast_step=False"
    assert expected in learn.stepper.describe()
    monkeypatch.undo()
    learn.fit(1)
    assert len(calls) == 4


@pytest.mark.parametrize("owner", [Tensor, torch.autograd], ids=["Tensor", "torch.autograd"])
def test_a_backward_that_is_replaced_is_called(owner, monkeypatch):
    learn, calls = toy_learner(4, check=False), []

    def replace(learn):
        if learn.n_updates == 2:
            monkeypatch.setattr(owner, "backward", wrapping(owner.backward, calls))

    learn.fit(1, cbs=[Callback(after_step=replace)])
    assert len(calls) == 2


def test_a_hook_of_all_optimizers_is_called_from_when_it_is_there(watched):
    pair, calls = watched("SGD"), []
    hook = register_optimizer_step_pre_hook(lambda opt, *_: calls.append(opt))
    try:
        pair.compare()
    finally:
        hook.remove()
    assert calls == [pair.ours, pair.theirs]
    pair.compare()
    assert pair.own_steps == 1


# In a fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opt_func", "change"),
    [
        (partial(SGD, momentum=0.9), {"fused": False}),
        (partial(SGD, momentum=0.9), {"momentum": 0.0}),
        (SGD, {"momentum": 0.9}),
        (partial(SGD, momentum=0.9, weight_decay=0.1), {"weight_decay": 0.0, "nesterov": True}),
        (Adam, {"fused": False, "foreach": True}),
        (Adam, {"amsgrad": True}),
    ],
)
def test_an_option_that_a_callback_sets_acts_as_in_the_ordinary_step(opt_func, change):
    found = []
    for fast in (False, True):
        learn = toy_learner(6, opt_func=opt_func, lr=0.1, fast_step=fast, check=False)

        def set_option(learn):
            if learn.n_updates == 3:
                for group in learn.opt.param_groups:
                    group.update(change)

        raised = outcome(partial(learn.fit, 1, cbs=[Callback(after_step=set_option)]))
        found.append([raised, learn.n_updates, *map(Tensor.tolist, learn.model.parameters())])
    assert found[0] == found[1]


def test_parameters_of_a_subclass_are_left_to_torch_for_the_whole_fit():
    class Own(nn.Parameter):
        pass

    learn = toy_learner(4, check=False)
    learn.model[0].weight = Own(learn.model[0].weight.detach())
    other = type(learn)(learn.dls, learn.model, learn.loss_func, SGD, lr=0.1, device="cpu", seed=0)
    said = "torch's own step: a parameter is a Own, no plain tensor"
    with other.no_bar():
        other.fit(1)
    assert other.stepper.describe() == other.summary().step == said
