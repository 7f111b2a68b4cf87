"""The direct call of the fused kernels: the same bits as the optimizer's own step."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from stepped_pair import KINDS, Pair, make, params
from torch import nn
from torch.optim import SGD, AdamW
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from onecycle import Callback
from onecycle.optim import fast as fast_step
from onecycle.optim.fast import FastStepper
from onecycle.optim.stepper import Stepper
from onecycle.testing import toy_learner


@pytest.fixture
def pair_of(request):
    made = []

    def make_pair(kind, **options):
        made.append(Pair(kind, **options))
        return made[-1]

    yield make_pair
    for pair in made:
        pair.patch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_state_are_those_of_the_own_step_to_the_bit(kind, pair_of):
    pair = pair_of(kind)
    for i in range(5):
        values = {"lr": 0.1 / (i + 1), "weight_decay": 0.01 * i}
        pair.both(lambda opt, values=values: opt.param_groups[0].update(values))
        pair.step()
    assert pair.own_steps == (kind != "SGD without momentum")  # the first makes the state


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_loaded_state_is_the_one_that_goes_on(kind, pair_of):
    pair = pair_of(kind)
    pair.step()
    saved = deepcopy(pair.ours.state_dict())
    pair.step()
    pair.both(lambda opt: opt.load_state_dict(deepcopy(saved)))
    pair.step()
    pair.step()
    assert pair.own_steps == 1


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_tensors_that_are_replaced_in_the_state_are_the_ones_that_go_on(kind, pair_of):
    pair = pair_of(kind)
    pair.step()
    name = "momentum_buffer" if kind == "SGD" else "exp_avg"

    def replace(opt):
        opt.state[params(opt)[0]][name] = torch.full((3, 4), 2.0)

    pair.both(replace)
    pair.step()
    pair.both(lambda opt: opt.state.clear())
    pair.step()
    pair.step()
    assert pair.own_steps == 2


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_parameters_without_a_gradient_rest_and_come_back(kind, pair_of):
    pair = pair_of(kind)
    for without in [(), (1,), (1,), (2,), (), ()] if kind == "AdamW" else [(), (1,), (1,), ()]:
        pair.step(without)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_group_that_is_added_or_split_is_stepped(kind, pair_of):
    pair = pair_of(kind)
    pair.step()

    def add(opt):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(4))]})

    def split(opt):
        group = opt.param_groups[0]
        first, second = group["params"]
        group["params"] = [first]
        opt.add_param_group({**group, "params": [second]})

    for change in (add, split):
        pair.both(change)
        pair.step()
        pair.step()


def test_momentum_that_is_switched_off_and_on_is_the_optimizers(pair_of):
    pair = pair_of("SGD")
    for momentum in (0.9, 0.9, 0.0, 0.0, 0.5, 0.5):
        pair.both(lambda opt, m=momentum: [g.update(momentum=m) for g in opt.param_groups])
        pair.step()


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_step_hooks_are_called_while_they_are_there(kind, pair_of):
    pair, calls = pair_of(kind), []
    pair.step()
    pair.step()
    hook = pair.ours.register_step_post_hook(lambda *args: calls.append(1))
    pair.step()
    pair.step()
    hook.remove()
    pair.step()
    assert (calls, pair.own_steps) == ([1, 1], 3)


class Mine(SGD):
    pass


@pytest.mark.parametrize(
    ("make_opt", "why"),
    [
        (partial(torch.optim.Adamax, lr=0.1), "Adamax is not SGD, Adam or AdamW"),
        (partial(Mine, lr=0.1, fused=True), "Mine is not SGD, Adam or AdamW"),
        (partial(SGD, lr=0.1), "SGD is not fused"),
        (partial(AdamW, lr=0.1, amsgrad=True, fused=True), "amsgrad"),
        (partial(SGD, lr=torch.tensor(0.1), fused=True), "tensor"),
    ],
)
def test_where_it_cannot_be_the_own_step_is_made_and_said(make_opt, why):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    ours, theirs = make_opt([p]), make_opt([q])
    stepper = FastStepper(ours)
    assert why in stepper.reason
    for _ in range(3):
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        stepper.step()
        theirs.step()
    assert torch.equal(p, q)


def test_several_dtypes_in_a_group_are_left_to_the_own_step():
    both = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    assert "dtypes" in FastStepper.why_not(SGD(both, lr=0.1, fused=True))


def test_a_kernel_with_other_arguments_is_not_called(monkeypatch):
    assert FastStepper.why_not(make("SGD")) is None
    monkeypatch.setitem(fast_step._ARGUMENTS, "_fused_sgd_", "self grads")
    assert "another _fused_sgd_" in FastStepper.why_not(make("SGD"))


class Scaled(torch.Tensor):
    """A loss whose class says how it is differentiated."""

    def backward(self, **options):
        (self.as_subclass(torch.Tensor) * 3).backward(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_backward_to_the_bit_and_add_up(dtype):
    torch.manual_seed(0)
    weights = torch.randn(4, 3, dtype=dtype)
    ours, theirs = (weights.clone().requires_grad_() for _ in range(2))
    stepper = FastStepper(SGD([ours], lr=0.1, fused=True))
    for scale in (0.3, 0.7):
        stepper.backward((ours.exp() * scale).sum())
        (theirs.exp() * scale).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_losses_of_other_dtypes_may_follow_each_other():
    p = nn.Parameter(torch.ones(2))
    stepper = FastStepper(SGD([p], lr=0.1, fused=True))
    stepper.backward(p.sum())
    stepper.backward(p.double().sum())
    assert p.grad.tolist() == [2, 2]


def test_a_hook_that_changes_the_gradient_of_the_loss_in_place_changes_that_one_alone():
    p = nn.Parameter(torch.ones(2))
    stepper = FastStepper(SGD([p], lr=0.1, fused=True))
    loss = p.sum()
    loss.register_hook(lambda gradient: gradient.mul_(5))
    stepper.backward(loss)
    assert p.grad.tolist() == [5, 5]
    p.grad = None
    stepper.backward(p.sum())
    assert p.grad.tolist() == [1, 1]


def test_a_loss_of_another_class_is_differentiated_by_its_own_backward():
    p = nn.Parameter(torch.ones(2))
    FastStepper(SGD([p], lr=0.1, fused=True)).backward(p.sum().as_subclass(Scaled))
    assert p.grad.tolist() == [3, 3]


def test_an_engine_that_is_called_otherwise_is_not_called(monkeypatch):
    class Engine:
        def run_backward(self, tensors, *, gradients):
            raise AssertionError("called")

    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", Engine())
    fast_step._engine.cache_clear()
    p = nn.Parameter(torch.ones(2))
    try:
        stepper = FastStepper(SGD([p], lr=0.1, fused=True))
    finally:
        fast_step._engine.cache_clear()
    monkeypatch.undo()
    stepper.backward(p.sum())
    assert p.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p: p.detach().sum(), "does not require grad"),
        (lambda p: p * 1, "one number and has shape"),
        (lambda p: (p * 1j).sum(), "must be real"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_explained_as_without(loss, message):
    p = nn.Parameter(torch.ones(2))
    opt = SGD([p], lr=0.1, fused=True)
    told = []
    for stepper in (Stepper(opt), FastStepper(opt)):
        with pytest.raises(RuntimeError) as caught:
            stepper.backward(loss(p))
        told.append([str(caught.value), *caught.value.__notes__])
    assert told[0] == told[1]
    assert message in "\n".join(told[0])


@pytest.mark.parametrize("opt_func", [KINDS["SGD"], AdamW])
def test_a_fit_is_the_same_to_the_bit(opt_func):
    fits = []
    for fast in (False, True):
        learn = toy_learner(8, opt_func=opt_func, fast_step=fast)
        learn.fit_one_cycle(2, 0.1, wd=0.01)
        learn.lr_find(num_it=10, show_plot=False)  # clears the state that it has made
        learn.fit(1)
        fits.append([*learn.model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*fits, strict=True))
    assert type(learn.stepper) is FastStepper


def test_a_range_test_in_the_middle_of_a_fit_leaves_the_fast_step_right():
    fits = []
    for fast in (False, True):
        find = Callback(
            after_step=lambda learn: (
                learn.lr_find(num_it=5, show_plot=False) if learn.n_updates in (1, 3) else None
            )
        )
        learn = toy_learner(8, opt_func=AdamW, fast_step=fast)
        learn.fit(1, cbs=[find])
        fits.append([*learn.model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*fits, strict=True))


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, "fast step"),
        ({"fast_step": False}, "torch's own step: fast_step=False"),
        (
            {"opt_func": torch.optim.Adamax},
            "torch's own step: Adamax is not SGD, Adam or AdamW of torch",
        ),
        ({"opt_func": partial(SGD, fused=False)}, "torch's own step: SGD is not fused"),
    ],
)
def test_the_fast_step_is_the_default_and_the_summary_says_which_is_taken(options, step, caplog):
    learn = toy_learner(2, **options)
    learn.fit(1)
    assert learn.summary().step == step
    assert (type(learn.stepper) is FastStepper) == ("fast_step" not in options)
    assert caplog.messages == []


def test_a_model_that_its_owner_compiled_gets_torchs_own_step():
    learn = toy_learner(2)
    learn.model[0].compile(backend="eager")
    assert learn.summary().step == "torch's own step: the model is compiled"


# Who looks on sees what the ordinary step shows ------------------------------------------------


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Profile(profile):
    @property
    def seen(self):
        kept = ("Optimizer", "aten::_fused", "aten::linear", "Backward", "backward")
        return [event.name for event in self.events() if event.name.startswith(kept)]


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("watch", [Functions, Operators, Profile])
@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.9), AdamW])
def test_a_mode_or_a_profiler_that_comes_in_the_fit_sees_the_ordinary_step(watch, opt_func):
    seen = []
    for fast in (False, True):
        watcher = watch()

        def on(learn, watcher=watcher):
            if learn.n_updates == 3:
                watcher.__enter__()

        def off(learn, watcher=watcher):
            if learn.n_updates == 5:
                watcher.__exit__(None, None, None)

        learn = toy_learner(8, opt_func=opt_func, fast_step=fast, check=False)
        learn.dls.valid = None
        learn.fit(1, cbs=[Callback(before_batch=on, after_batch=off)])
        seen.append(watcher.seen)
    assert len(seen[0]) > 4
    assert seen[0] == seen[1]


def test_in_anomaly_mode_a_nan_in_the_backward_pass_is_an_error_as_ever():
    class Root(nn.Module):
        def forward(self, pred, yb):
            return (pred * 0).sqrt().sum() * 0 + (0 * pred).sqrt().mul(pred).sum()

    learn = toy_learner(2, loss_func=Root(), check=False)
    with pytest.warns(UserWarning, match="Error detected in"):  # noqa: SIM117
        with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="nan"):
            learn.fit(1)


@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.9), AdamW])
def test_hooks_of_parameters_modules_and_optimizer_are_called_as_often(opt_func):
    def count(fast):
        calls = []
        learn = toy_learner(4, opt_func=opt_func, fast_step=fast, check=False)
        first = learn.model[0]
        first.weight.register_hook(lambda gradient: calls.append("gradient"))
        first.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
        learn.model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
        learn.opt.register_step_pre_hook(lambda *_: calls.append("before step"))
        step = learn.opt.step
        learn.opt.step = lambda *args: calls.append("step") or step(*args)
        learn.fit(1)
        return calls, [p.detach().clone() for p in learn.model.parameters()]

    (ordinary, theirs), (fast, ours) = count(False), count(True)
    assert len(set(ordinary)) == 5
    assert ordinary == fast
    assert all(map(torch.equal, ours, theirs))


def test_a_subclass_that_overrides_step_is_stepped_by_it():
    class Mine(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(p.grad, alpha=group["lr"])

    learn = toy_learner(1, opt_func=Mine, lr=0.5, check=False)
    before = [p.detach().clone() for p in learn.model.parameters()]
    gradients = []
    keep = Callback(
        before_step=lambda learn: gradients.extend(p.grad.clone() for p in learn.model.parameters())
    )
    learn.fit(1, cbs=[keep])
    for p, old, gradient in zip(learn.model.parameters(), before, gradients, strict=True):
        assert torch.equal(p, old - 0.5 * gradient)
