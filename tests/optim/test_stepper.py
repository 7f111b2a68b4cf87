import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.lr_scheduler import StepLR

from onecycle import Callback, CancelBatch, CancelFit, CancelStep, CancelTrain, Stage
from onecycle.optim.stepper import ScaledStepper, Stepper
from onecycle.testing import toy_learner

OPTIMIZERS = [
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
]


def make(name, **options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2, 5))]
    return getattr(torch.optim, name)(params, lr=0.1, **options)


def params(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def give_gradients(opt, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params(opt):
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in OPTIMIZERS]
    + [(name, {"fused": True}) for name in ("AdamW", "Adam", "SGD", "Adagrad")]
    + [("SGD", {"momentum": 0.9, "nesterov": True}), ("AdamW", {"amsgrad": True})]
    + [("AdamW", {"foreach": True}), ("AdamW", {"foreach": False})],
)
def test_the_unwrapped_step_equals_the_whole_one_to_the_bit(name, options):
    ours, theirs = make(name, **options), make(name, **options)
    stepper = Stepper(ours)
    for seed in range(3):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        assert stepper.step() is True
        theirs.step()
    for p, q in zip(params(ours), params(theirs), strict=True):
        assert torch.equal(p, q)
        for key, value in theirs.state[q].items():
            mine = ours.state[p][key]
            assert torch.equal(mine, value) if torch.is_tensor(value) else mine == value


def calls_torchs_wrapper(opt):
    """Tell whether a step goes through torch's own wrapper, by its profiler range."""
    with torch.profiler.profile(acc_events=True) as profile:
        give_gradients(opt, 0)
        Stepper(opt).step()
    return any("Optimizer.step" in event.key for event in profile.key_averages())


def test_the_wrapper_is_left_out_for_torchs_own_and_kept_for_others():
    class Mine(torch.optim.SGD):
        pass

    assert not calls_torchs_wrapper(make("SGD"))
    assert calls_torchs_wrapper(Mine([nn.Parameter(torch.zeros(2, 2))], lr=0.1))


def test_a_step_that_a_subclass_overrides_is_the_one_that_runs():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            self.calls = getattr(self, "calls", 0) + 1

    opt = Mine([nn.Parameter(torch.zeros(2))], lr=0.1)
    Stepper(opt).step()
    assert opt.calls == 1


def test_a_differentiable_optimizer_runs_its_whole_step():
    opt = make("SGD", differentiable=True)
    assert Stepper(opt)._bare_step is None


@pytest.mark.parametrize("when", ["before the fit", "in before_fit", "in the middle"])
@pytest.mark.parametrize("kind", ["pre", "post", "global pre", "global post"])
def test_step_hooks_are_called_whenever_they_were_registered(kind, when):
    learn, calls, handles = toy_learner(4), [], []

    def register(learn):
        add = {
            "pre": learn.opt.register_step_pre_hook,
            "post": learn.opt.register_step_post_hook,
            "global pre": torch_optimizer.register_optimizer_step_pre_hook,
            "global post": torch_optimizer.register_optimizer_step_post_hook,
        }[kind]
        handles.append(add(lambda opt, args, kwargs: calls.append(opt)))

    def in_the_middle(learn):
        if learn.iter == 2:
            register(learn)

    cbs = []
    if when == "before the fit":
        register(learn)
    elif when == "in before_fit":
        cbs = [Callback(before_fit=register)]
    else:
        cbs = [Callback(before_step=in_the_middle)]
    try:
        learn.fit(1, cbs=cbs)
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == (2 if when == "in the middle" else 4)
    learn.fit(1)  # the hook is gone
    assert len(calls) == (2 if when == "in the middle" else 4)


@pytest.mark.parametrize("when", ["before_fit", "before_epoch", None])
def test_a_step_that_a_scheduler_of_torch_wraps_is_still_called(when):
    class TorchSchedule(Callback):
        stage = Stage.PREPARE

        def make(self, learn):
            self.scheduler = StepLR(learn.opt, step_size=1, gamma=0.5)

        def after_step(self, learn):
            self.scheduler.step()  # warns where it has not seen a step of the optimizer

    learn, callback = toy_learner(3, lr=0.8), TorchSchedule()
    cbs = [callback]
    if when is None:
        callback.make(learn)
    else:
        cbs.append(Callback(**{when: callback.make}))
    learn.fit(1, cbs=cbs)
    assert learn.groups.get("lr") == [pytest.approx(0.1)]


def test_gradients_are_final_before_the_step_and_gone_after_it():
    learn, seen = toy_learner(2), []
    norm = lambda learn: [p.grad is not None for p in learn.stepper.params]  # noqa: E731
    learn.fit(
        1,
        cbs=[
            Callback(
                before_batch=lambda learn: seen.append(any(norm(learn))),
                before_step=lambda learn: seen.append(all(norm(learn))),
                after_step=lambda learn: seen.append(all(norm(learn))),
            )
        ],
    )
    assert seen[:6] == [False, True, True] * 2


def test_the_gradient_factor_is_applied_once():
    opt = make("SGD")
    stepper = Stepper(opt)
    give_gradients(opt, 0)
    raw = [p.grad.clone() for p in params(opt)]
    stepper.grad_factor = 0.5
    stepper.unscale()
    stepper.unscale()
    for p, gradient in zip(params(opt), raw, strict=True):
        torch.testing.assert_close(p.grad, gradient / 2)
    assert stepper.grad_factor == 1.0


def test_a_parameter_without_gradient_is_no_obstacle():
    opt = make("AdamW")
    stepper = Stepper(opt)
    params(opt)[0].grad = torch.ones(3, 4)
    stepper.grad_factor = 0.5
    stepper.unscale()
    stepper.step()
    assert params(opt)[1].grad is None
    stepper.zero_grad()
    assert params(opt)[0].grad is None


def test_no_gradient_at_all_is_no_obstacle():
    stepper = Stepper(make("AdamW"))
    stepper.grad_factor = 0.5
    stepper.unscale()
    assert stepper.step()


# With a gradient scaler -------------------------------------------------------------------


def scaled(name="SGD", scale=1024.0, **options):
    opt = make(name, **options)
    return opt, ScaledStepper(opt, torch.amp.GradScaler("cpu", init_scale=scale))


def loss_of(opt, factor=1.0):
    return sum((p * factor).sum() for p in params(opt))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_update_equals_a_plain_one_to_the_bit(fused):
    opt, stepper = scaled("AdamW", fused=fused)
    plain = make("AdamW", fused=fused)
    for _ in range(3):
        stepper.backward(loss_of(opt))
        stepper.unscale()
        assert stepper.step() is True
        stepper.zero_grad()
        loss_of(plain).backward()
        plain.step()
        plain.zero_grad()
    for p, q in zip(params(opt), params(plain), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_update_with_infinite_gradients_is_not_made(fused, bad):
    opt, stepper = scaled(fused=fused)
    before = [p.detach().clone() for p in params(opt)]
    made = []
    for factor in (bad, 1.0, bad, bad, 1.0):
        stepper.backward(loss_of(opt, factor))
        stepper.unscale()
        made.append(stepper.step())
        stepper.zero_grad()
    assert made == [False, True, False, False, True]
    assert stepper.scaler.get_scale() == 1024.0 / 8
    for p, start in zip(params(opt), before, strict=True):
        torch.testing.assert_close(p, start - 0.2)


def test_a_growing_scale_is_no_skip():
    opt = make("SGD")
    stepper = ScaledStepper(opt, torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1))
    for _ in range(4):
        stepper.backward(loss_of(opt))
        stepper.unscale()
        assert stepper.step()
        stepper.zero_grad()
    assert stepper.scaler.get_scale() == 32.0


class Fp16(Callback):
    """A gradient scaler that lives longer than a fit."""

    stage = Stage.PREPARE

    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def before_fit(self, learn):
        learn.stepper = ScaledStepper(learn.opt, self.scaler)


@pytest.mark.parametrize("what", [CancelStep, CancelBatch, CancelTrain, CancelFit, KeyError])
def test_a_scaler_survives_whatever_is_raised_in_before_step(what):
    def leave(learn):
        if learn.epoch == 0 and learn.iter == 1:
            raise what("here")

    learn = toy_learner(3, cbs=(Fp16(),))
    try:
        learn.fit(2, cbs=[Callback(before_step=leave)])
    except KeyError:
        assert what is KeyError
    learn.fit(1)
    expected = {CancelStep: 5, CancelBatch: 5, CancelTrain: 4, CancelFit: 1, KeyError: 1}[what]
    assert learn.total_updates == expected + 3


def test_an_update_that_the_scaler_refuses_is_skipped_counted_and_waited_for(caplog):
    def spoil(learn):
        if learn.iter == 1:
            learn.loss_grad = learn.loss_grad * float("inf")

    learn, told = toy_learner(4, cbs=(Fp16(),)), []
    spoiler = Callback(
        before_backward=spoil, after_cancel_step=lambda learn: told.append(learn.iter)
    )
    learn.fit_one_cycle(1, 0.01, cbs=[spoiler])
    full = toy_learner(4)
    full.fit_one_cycle(1, 0.01)
    assert told == [1]
    assert (learn.n_updates, learn.n_skipped) == (3, 1)
    rates = learn.recorder.history["lr"].values.tolist()
    assert rates == full.recorder.history["lr"].values.tolist()[:3]
    assert "3 of 4 planned updates were made, 1 skipped" in caplog.text


class SignStepper(Stepper):
    def step(self):
        for p in self.params:
            if p.grad is not None:
                p.grad.sign_()
        return super().step()


class Signs(Callback):
    stage = Stage.PREPARE

    def before_fit(self, learn):
        learn.stepper = SignStepper(learn.opt)


def test_a_callback_has_the_updates_of_a_fit_made_by_a_stepper_of_its_own():
    learn = toy_learner(n_batches=4, opt_func=torch.optim.SGD)
    weights = [p.detach().clone().requires_grad_() for p in learn.model.parameters()]
    before = [p.detach().clone() for p in weights]
    batches = []
    keep = Callback(before_batch=lambda learn: batches.append(learn.batch), during="train")
    learn.fit(2, lr=0.01, cbs=[Signs(), keep])
    model = toy_learner().model
    for x, y in batches:
        out = torch.func.functional_call(
            model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x,)
        )
        nn.functional.mse_loss(out, y).backward()
        with torch.no_grad():
            for p in weights:
                p -= 0.01 * p.grad.sign()
                p.grad = None
    for p, by_hand, start in zip(learn.model.parameters(), weights, before, strict=True):
        assert torch.allclose(p, by_hand, atol=1e-6)
        assert not torch.equal(p, start)
    own = type(learn.make_stepper(learn.opt))
    learn.lr_find(num_it=5, show_plot=False)
    learn.fit(1, max_updates=1)
    assert type(learn.stepper) is own  # the next fit has the learner's
