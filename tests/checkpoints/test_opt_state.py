"""State by name: each parameter gets its own, whatever the order, or nothing is loaded."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adafactor, Adam, AdamW, NAdam, Optimizer, RMSprop

from onecycle import Checkpoint, CheckpointError, Learner, ParamScheduler, linear
from onecycle.checkpoints import fit_files, model_files, sealed
from onecycle.checkpoints.opt_names import parameter_names
from onecycle.checkpoints.opt_state import opt_misfit, opt_state
from onecycle.testing import toy_learner

SGDM = partial(SGD, momentum=0.9)


class Net(nn.ModuleDict):
    """Layers of one shape, called in the order of their names, whatever order they are made in."""

    def forward(self, x):
        for name in sorted(self):
            x = self[name](x)
        return x.sum(1, keepdim=True)


def learner(names="abc", *, sizes=None, loss_func=mse_loss, **options):
    torch.manual_seed(0)
    made = {name: nn.Linear(*(sizes or {}).get(name, (4, 4))) for name in "abc"}
    net = Net({name: made[name] for name in names})
    learn = Learner(toy_learner().dls, net, loss_func, device="cpu", seed=0, **options)
    learn.cbs = toy_learner().cbs[:1]
    return learn


def by_groups(*groups):
    return lambda net: [[p for name in names for p in net[name].parameters()] for names in groups]


def entries(learn):
    """Return the state of every parameter by name, found without the package."""
    return {
        name: {key: value.clone() for key, value in learn.opt.state[p].items()}
        for name, p in learn.model.named_parameters()
    }


def same(one, other):
    return (
        all(
            torch.equal(value, other[name][key])
            for name, entry in one.items()
            for key, value in entry.items()
        )
        and one.keys() == other.keys()
    )


# Each parameter its own


@pytest.mark.parametrize("opt_func", [AdamW, SGDM, RMSprop, NAdam, Adafactor])
@pytest.mark.parametrize("names", ["abc", "cba", "bca"])
def test_layers_in_another_order_get_their_own_state(opt_func, names, tmp_path):
    one, other = learner(opt_func=opt_func), learner(names, opt_func=opt_func)
    one.fit(1, 0.01)
    one.save(tmp_path / "a")
    other.load(tmp_path / "a")
    expected = entries(one)
    if opt_func is not RMSprop:
        assert not same(
            {"x": expected["a.weight"]}, {"x": expected["b.weight"]}
        )  # so that to swap them would be seen
    assert same(entries(other), expected)


@pytest.mark.parametrize("names", ["abc", "cab"])
def test_a_fit_goes_on_in_the_same_bits_with_layers_in_another_order(names, tmp_path):
    whole = learner()
    whole.fit(2, 0.01)
    learner().fit(2, 0.01, cbs=[Checkpoint(tmp_path, "3 updates")])
    learn = learner(names)
    learn.fit(2, 0.01, resume=tmp_path)
    assert learn.total_updates == 16
    for name, value in whole.model.state_dict().items():
        assert torch.equal(learn.model.state_dict()[name], value), name


def test_a_splitter_that_lists_its_groups_otherwise_gets_the_options_of_each(tmp_path):
    one = learner(opt_func=SGDM, splitter=by_groups("a", "bc"))
    one.fit(1, [0.01, 0.02])
    one.groups.set("momentum", [0.8, 0.7])
    one.save(tmp_path / "a")
    other = learner(opt_func=SGDM, splitter=by_groups("cb", "a"))
    other.load(tmp_path / "a")
    assert other.groups.get("lr") == [0.02, 0.01]
    assert other.groups.get("momentum") == [0.7, 0.8]
    assert same(entries(other), entries(one))


def test_groups_that_decay_has_divided_are_divided_here_too(tmp_path):
    schedule = ParamScheduler({"weight_decay": linear(0.1, 0.05)})
    one = learner(opt_func=SGDM, wd=0.0)
    one.fit(1, 0.01, cbs=[schedule])
    assert len(one.opt.param_groups) == 2
    one.save(tmp_path / "a")
    other = learner(opt_func=SGDM, wd=0.0)
    assert len(other.opt.param_groups) == 1
    other.load(tmp_path / "a")
    assert len(other.opt.param_groups) == 2
    assert other.groups.get("weight_decay") == [0.05]
    assert same(entries(other), entries(one))


def test_the_groups_of_a_refused_file_are_not_divided(tmp_path):
    one = learner(opt_func=SGDM, wd=0.0)
    one.fit(1, 0.01, cbs=[ParamScheduler({"weight_decay": linear(0.1, 0.05)})])
    found = opt_state(one)
    found["state"]["a.weight"]["momentum_buffer"] = torch.zeros(2)
    other = learner(opt_func=SGDM, wd=0.0)
    before = LearnerState(other)
    assert opt_misfit(other, found)
    assert before.changes(LearnerState(other)) == []


def test_shared_weights_have_one_name_whatever_the_order_of_layers():
    for names in ("abc", "cba"):
        learn = learner(names)
        learn.model["c"].weight = learn.model["a"].weight
        assert parameter_names(learn)[id(learn.model["c"].weight)] == "a.weight"


class Uncertainty(nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.log_var = nn.Parameter(torch.full((), start))

    def forward(self, pred, y):
        return (-self.log_var).exp() * mse_loss(pred, y) + self.log_var


def with_others(start=0.0):
    """Make a learner whose optimizer trains its loss function, and what no module holds."""
    learn, loss = learner(), Uncertainty(start)
    free = nn.Parameter(torch.full((2,), start))
    groups = [{"params": [*learn.model.parameters(), free]}, {"params": [*loss.parameters()]}]

    def compute(pred, y):
        return loss(pred, y) + free.square().sum() + free.sum()

    opt = Adam(groups, lr=0.01)
    made = Learner(learn.dls, learn.model, loss, opt=opt, device="cpu", seed=0)
    made.cbs = learn.cbs
    made.compute_loss = lambda pred, batch: compute(pred, made.yb)
    return made, loss, free


def test_what_is_trained_beside_the_model_has_a_name_and_comes_back(tmp_path):
    learn, loss, free = with_others()
    learn.fit(1, 0.01)
    names = parameter_names(learn)
    assert names[id(loss.log_var)] == "loss_func.log_var"
    assert names[id(free)] == "opt.0.0"
    learn.save(tmp_path / "a")
    other, loss2, free2 = with_others(9.0)
    other.load(tmp_path / "a")
    assert loss2.log_var.item() == loss.log_var.item() != 0
    assert free2.tolist() == free.tolist()
    assert torch.equal(other.opt.state[free2]["exp_avg"], learn.opt.state[free]["exp_avg"])


def test_a_fit_that_trains_more_than_the_model_is_resumed_in_the_same_bits(tmp_path):
    whole, loss, free = with_others()
    whole.fit(2, 0.01)
    first, _, _ = with_others()
    first.fit(2, 0.01, cbs=[Checkpoint(tmp_path, "5 updates")])
    learn, loss2, free2 = with_others()
    learn.fit(2, 0.01, resume=tmp_path)
    assert (loss2.log_var.item(), free2.tolist()) == (loss.log_var.item(), free.tolist())
    assert trained(learn) == trained(whole)


def test_two_parameters_of_one_name_are_refused():
    learn, _, _ = with_others()
    learn.model["loss_func"] = nn.Module()
    learn.model["loss_func"].log_var = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"would have the name 'loss_func\.log_var'"):
        opt_state(learn)


def test_state_that_is_missing_stays_missing(tmp_path):
    learn = learner(opt_func=SGDM)
    learn.model["b"].requires_grad_(False)
    learn.fit(1, 0.01)
    learn.save(tmp_path / "a")
    other = learner(opt_func=SGDM)
    other.load(tmp_path / "a")
    assert {name for name, entry in entries(other).items() if entry} == {
        *("a.weight", "a.bias", "c.weight", "c.bias")
    }


class Rich(Optimizer):
    """Keeps of each parameter what optimizers of third parties keep."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["blocks"] = [torch.eye(n) for n in p.shape]
                    state["text"] = "as it is"
                    state["codes"] = torch.zeros(p.shape, dtype=torch.uint8)
                    state["precise"] = torch.zeros(p.shape, dtype=torch.float64)
                    state["nested"] = {"n": 0, "mean": torch.zeros(1), "none": None}
                state["nested"]["n"] += 1
                state["codes"] += 3
                state["precise"] += 1 / 3
                for block in state["blocks"]:
                    block *= 1.5
                p.add_(p.grad, alpha=-group["lr"] * float(state["precise"].mean()))
        self.state["of all"] = {"calls": self.state.get("of all", {}).get("calls", 0) + 1}


def flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("names", ["abc", "cba"])
def test_state_of_any_form_comes_back_as_it_was(names, tmp_path):
    one, other = learner(opt_func=Rich), learner(names, opt_func=Rich)
    one.fit(1, 0.01)
    one.save(tmp_path / "a")
    other.load(tmp_path / "a")
    for name, p in one.model.named_parameters():
        loaded = other.opt.state[other.model.get_parameter(name)]
        assert flat(dict(loaded)) == flat(dict(one.opt.state[p]))
    assert other.opt.state["of all"] == {"calls": 8}
    assert other.opt.param_groups[0]["k"] == 8


class Wrapped(SGD):
    """Has a state_dict of a form of its own."""

    def state_dict(self):
        return {"inner": super().state_dict(), "slow": 3}

    def load_state_dict(self, state):
        super().load_state_dict(state["inner"])
        self.slow = state["slow"]


def test_a_state_of_its_own_form_is_taken_as_a_whole_or_not_at_all(tmp_path):
    opt_func = partial(Wrapped, momentum=0.9)
    one, other = learner(opt_func=opt_func), learner(opt_func=opt_func)
    one.fit(1, 0.01)
    one.save(tmp_path / "a")
    other.load(tmp_path / "a")
    assert other.opt.slow == 3
    assert same(entries(other), entries(one))
    turned = learner("cba", opt_func=opt_func)
    with pytest.raises(CheckpointError, match="in another order"):
        turned.load(tmp_path / "a")


# What does not fit


def entry(key="exp_avg", **put):
    """Return what puts a value into the state of one parameter."""

    def spoil(found):
        found["state"]["b.weight"] |= put or {key: torch.zeros(2, 2)}

    return spoil


def tensor(*shape, **options):
    return torch.zeros(shape, **options)


def change(path, value):
    """Return what puts a value somewhere in the state; ``None`` takes it out."""

    def spoil(found):
        *before, last = path
        for key in before:
            found = found[key]
        if value is None:
            del found[last]
        else:
            found[last] = value

    return spoil


FAULTS = {
    "smaller": entry(exp_avg=tensor(2, 2)),
    "larger": entry(exp_avg_sq=tensor(4, 400)),
    "flat": entry(exp_avg=tensor(16)),
    "transposed kind of shape": entry(exp_avg=tensor(4, 4, 1)),
    "one number": entry(exp_avg=tensor()),
    "nothing": entry(exp_avg=tensor(0)),
    "integers": entry(exp_avg=tensor(4, 4, dtype=torch.int64)),
    "booleans": entry(exp_avg=tensor(4, 4, dtype=torch.bool)),
    "complex": entry(exp_avg=tensor(4, 4, dtype=torch.complex64)),
    "meta": entry(exp_avg=tensor(4, 4, device="meta")),
    "a list": entry(exp_avg=[0.0] * 16),
    "text": entry(exp_avg="0.0"),
    "a number": entry(exp_avg=0.0),
    "amsgrad of another shape": entry(max_exp_avg_sq=tensor(1)),
    "no step": entry(step=tensor(0)),
    "steps": entry(step=tensor(4, 4)),
    "step is nan": entry(step=torch.tensor(float("nan"))),
    "step is negative": entry(step=-1),
    "step is text": entry(step="8"),
    "step is complex": entry(step=torch.tensor(1j)),
    "no dict": change(("state", "b.weight"), torch.zeros(4, 4)),
    "unknown name": change(("state", "d.weight"), {"step": 1}),
    "a position": change(("state", 0), {"step": 1}),
    "another class": change(("class",), "SGD"),
    "class is no text": change(("class",), 3),
    "no class": change(("class",), None),
    "no groups": change(("groups",), []),
    "groups no list": change(("groups",), {}),
    "group no dict": change(("groups", 0), 5),
    "no names": change(("groups", 0, "names"), None),
    "names no text": change(("groups", 0, "names"), [1, 2, 3, 4, 5, 6]),
    "names twice": change(("groups", 0, "names"), ["a.weight"] * 3),
    "a name less": change(("groups", 0, "names"), ["a.weight"]),
    "no options": change(("groups", 0, "options"), None),
    "options no dict": change(("groups", 0, "options"), [0.1]),
    "no params": change(("params",), None),
    "a parameter less": change(("params", "b.weight"), None),
    "a parameter more": change(("params", "d.weight"), [[4, 4], "float32"]),
    "other shape of a parameter": change(("params", "b.weight"), [[4, 5], "float32"]),
    "other kind of a parameter": change(("params", "b.weight"), [[4, 4], "int64"]),
    "no dtype of a parameter": change(("params", "b.weight"), [[4, 4], "zeros"]),
    "a parameter of text": change(("params", "b.weight"), "float32"),
    "no state": change(("state",), None),
    "state a list": change(("state",), []),
    "rest a list": change(("rest",), []),
    "no values": change(("values",), None),
}


@pytest.fixture(scope="module")
def good():
    learn = learner()
    learn.fit(1, 0.01)
    return opt_state(learn)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_in_a_line_and_nothing_changes(
    fault, good, tmp_path, monkeypatch
):
    found = deepcopy(good)
    assert opt_misfit(learner(), found) is None  # the control
    FAULTS[fault](found)
    made, refusing = learner(), learner()
    monkeypatch.setattr(model_files, "opt_state", lambda learn: found)
    made.save(tmp_path / "a")
    before = LearnerState(refusing)
    with pytest.raises(CheckpointError, match="the optimizer's state does not fit AdamW") as error:
        refusing.load(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert before.changes(LearnerState(refusing)) == []


def test_a_sparse_momentum_does_not_fit(good):
    found = deepcopy(good)
    found["state"]["b.weight"]["exp_avg"] = torch.zeros(4, 4).to_sparse()
    assert opt_misfit(learner(), found) == "'exp_avg' of 'b.weight' does not fit the parameter"


def test_a_checkpoint_of_another_state_is_refused_before_anything_is_loaded(
    good, tmp_path, monkeypatch
):
    found = deepcopy(good)
    FAULTS["smaller"](found)
    monkeypatch.setattr(fit_files, "opt_state", lambda learn: found)
    learner().fit(1, 0.01, cbs=[Checkpoint(tmp_path)])
    learn = learner()
    weights = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(CheckpointError, match=r"'exp_avg' of 'b\.weight' does not fit"):
        learn.fit(1, 0.01, resume=tmp_path)
    assert all(map(torch.equal, weights, learn.model.parameters()))
    assert not learn.opt.state


def wider():
    learn = learner()
    net = Net({**learn.model, "d": nn.Linear(4, 4)})
    return Learner(learn.dls, net, mse_loss, device="cpu", seed=0)


OTHERS = {
    "another width": lambda: learner(sizes={"b": (4, 5), "c": (5, 4)}),
    "a layer more": wider,
    "a layer less": lambda: learner("ab"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_architecture_is_a_checkpoint_error_of_both_kinds_of_files(other, tmp_path):
    made = learner()
    made.fit(1, 0.01, cbs=[Checkpoint(tmp_path)])
    made.save(tmp_path / "a")
    for call in (
        lambda learn: learn.load(tmp_path / "a"),
        lambda learn: learn.fit(1, 0.01, resume=tmp_path),
    ):
        learn = OTHERS[other]()
        weights = [p.clone() for p in learn.model.parameters()]
        with pytest.raises(CheckpointError, match="holds another model"):
            call(learn)
        assert all(map(torch.equal, weights, learn.model.parameters()))
        assert not learn.opt.state


def test_a_lazy_layer_takes_its_shape_from_the_checkpoint(tmp_path):
    def fit(seed=0, **options):
        toy, model = toy_learner(), nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(1))
        learn = Learner(toy.dls, model, mse_loss, device="cpu", seed=0, check=False)
        torch.manual_seed(seed)  # its weights are drawn at the first batch
        with learn.no_bar():
            learn.fit(1, 0.01, **options)
        return learn.model.state_dict()

    whole = fit(cbs=[Checkpoint(tmp_path, "3 updates")])
    resumed = fit(seed=1, resume=tmp_path)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize("kind", ["model", "fit"])
def test_a_reader_passes_over_what_is_extra(kind, tmp_path, monkeypatch):
    """So that a later version can say more without another format."""
    made, learn = learner(), learner()
    if kind == "fit":
        capture = fit_files.capture
        monkeypatch.setattr(
            fit_files, "capture", lambda *args: capture(*args) | {"extra": {"later": [1]}}
        )
        made.fit(1, 0.01, cbs=[Checkpoint(tmp_path)])
        learn.fit(1, 0.01, resume=tmp_path)
    else:
        made.fit(1, 0.01)
        saved = sealed.write_archive
        monkeypatch.setattr(
            sealed,
            "write_archive",
            lambda state, file: saved(state | {"extra": {"later": [1]}}, file),
        )
        made.save(tmp_path / "a")
        learn.load(tmp_path / "a")
    assert same(entries(learn), entries(made))
