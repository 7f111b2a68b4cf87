"""`compile=`: what a schedule changes is in tensors, so that nothing is compiled for each value."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim import SGD, Adam, AdamW

from onecycle import Callback, Checkpoint, Learner
from onecycle.optim.compiled import CompiledStepper, CompiledSteps
from onecycle.testing import toy_learner

# torch 2.11's own, when it first looks for a compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")

KINDS = {"Adam": Adam, "AdamW": AdamW, "SGD": partial(SGD, momentum=0.9)}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def two_groups(model):
    return [model[0].parameters(), model[2].parameters()]


#: Everything but the machine code, which takes seconds: numbers that cannot become tensors fail.
COMPILED = {"backend": "aot_eager"}


def learner(name, compiled=None, **options):
    """Make a learner, whose step alone is compiled if it is told how."""
    learn = toy_learner(6, opt_func=KINDS[name], **options)
    if compiled is not None:
        learn.make_stepper = CompiledSteps(**compiled)
    return learn


def weights(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


@pytest.fixture
def no_recompile():
    """Have torch raise an error where it would compile anything a second time."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_a_schedule_that_changes_every_update_is_compiled_once(name, no_recompile):
    learn, plain = learner(name, COMPILED, splitter=two_groups), learner(name, splitter=two_groups)
    for each in (learn, plain):
        each.fit_one_cycle(2, [0.05, 0.1], moms=(0.95, 0.8, 0.9), wd=0.01)
    assert isinstance(learn.stepper, CompiledStepper)
    for ours, theirs in zip(weights(learn), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs)  # rounded at other places
    for series in ("lr", "momentum"):
        a, b = (each.recorder.history[series].values for each in (learn, plain))
        assert a.tolist() == b.tolist()


def test_python_numbers_would_be_compiled_anew(no_recompile):
    """The negative control: it is the tensors that save graphs."""
    step = torch.compile(lambda tensor, rate: tensor * rate, backend="eager")
    step(torch.ones(3), 0.1)
    with pytest.raises(torch._dynamo.exc.RecompileError):
        step(torch.ones(3), 0.05)


def test_the_compiled_function_runs():
    """The other negative control: without it the weights would not move."""
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    learn = learner("SGD", {"backend": backend})
    learn.fit(1)
    assert calls


VARIANTS = {
    "SGD without momentum": SGD,
    "SGD with everything": partial(
        SGD, momentum=0.8, dampening=0.1, weight_decay=0.1, maximize=True
    ),
    "Nesterov": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": partial(Adam, weight_decay=0.1),
    "AdamW": AdamW,
    "Adam, maximized": partial(Adam, maximize=True),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_function_that_is_compiled_is_the_optimizers(name, fused, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda update: update)
    start, steps = torch.randn(2, 5, dtype=torch.float64), 6
    gradients = torch.randn(steps, 2, 5, dtype=torch.float64)
    made = []
    for compiled in (False, True):
        groups = [{"params": [nn.Parameter(part.clone())]} for part in start]
        opt = VARIANTS[name](groups, lr=0.1, fused=fused)
        stepper = CompiledSteps()(opt)
        for i, given in enumerate(gradients):
            for group, gradient in zip(opt.param_groups, given, strict=True):
                group["lr"] = 0.1 / (i + 1)
                group["params"][0].grad = gradient.clone()
            stepper.step() if compiled else opt.step()
        made.append([p.detach() for group in opt.param_groups for p in group["params"]])
        made.append([v for state in opt.state.values() for v in state.values()])
    weights, state, compiled_weights, compiled_state = made
    assert len(state) == len(compiled_state)
    for a, b in zip([*weights, *state], [*compiled_weights, *compiled_state], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_many_learners_are_each_compiled(no_recompile):
    """torch counts recompilations of one piece of code, and stops at eight."""
    for _ in range(10):
        learner("SGD", COMPILED).fit(1)


@pytest.mark.slow
def test_range_test_validation_and_a_second_fit_need_no_further_graph(no_recompile):
    learn = learner("Adam", COMPILED)
    before = weights(learn)
    learn.lr_find(num_it=6, show_plot=False)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learn), strict=True))
    assert learn.opt.state_dict()["state"] == {}
    learn.fit_one_cycle(1, 0.1)
    learn.validate()
    learn.fit(1)
    plain = learner("Adam")
    plain.fit_one_cycle(1, 0.1)
    plain.fit(1)
    for ours, theirs in zip(weights(learn), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_a_range_test_within_a_fit_changes_nothing():
    fits = []
    for at in (None, 3):
        learn = learner("Adam", COMPILED)
        find = Callback(
            after_step=lambda learn, at=at: (
                learn.lr_find(num_it=3, show_plot=False) if learn.n_updates == at else None
            )
        )
        learn.fit_one_cycle(1, 0.1, cbs=[find])
        fits.append(weights(learn))
    assert all(torch.equal(a, b) for a, b in zip(*fits, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("saved_by", ["compiled", "plain"])
def test_a_state_that_is_loaded_goes_on(tmp_path, saved_by):
    first = learner("Adam", COMPILED if saved_by == "compiled" else None)
    first.fit_one_cycle(1, 0.1)
    first.save(tmp_path / "model")
    learn, plain = learner("Adam", COMPILED), learner("Adam")
    learn.fit(1)
    for each in (learn, plain):
        each.load(tmp_path / "model")
        each.total_epochs = 1
        each.fit_one_cycle(1, 0.05)
    for ours, theirs in zip(weights(learn), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_a_fit_that_was_interrupted_goes_on_to_the_same_bits(tmp_path):
    def stop(learn):
        if learn.n_updates == 4:
            raise KeyboardInterrupt

    whole, stopped, resumed = (learner("Adam", COMPILED) for _ in range(3))
    whole.fit_one_cycle(1, 0.1)
    checkpoint = Checkpoint(tmp_path, "3 updates")
    with pytest.raises(KeyboardInterrupt):
        stopped.fit_one_cycle(1, 0.1, cbs=[checkpoint, Callback(after_batch=stop)])
    resumed.fit_one_cycle(1, 0.1, cbs=[Checkpoint(tmp_path / "new", "3 updates")], resume=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_step_hooks_are_called():
    learn, calls = learner("Adam", COMPILED), []
    learn.opt.register_step_post_hook(lambda *args: calls.append(1))
    learn.fit(1)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("make_opt", "why"),
    [
        (torch.optim.RMSprop, "RMSprop is not SGD, Adam or AdamW"),
        (partial(AdamW, amsgrad=True), "amsgrad"),
    ],
)
def test_the_step_of_other_optimizers_is_left_as_it_is(make_opt, why, monkeypatch):
    p = nn.Parameter(torch.ones(2))
    opt = make_opt([p], lr=0.1)
    assert why in CompiledStepper.why_not(opt)
    monkeypatch.setattr(torch, "compile", lambda update: None)  # nobody can call it
    stepper = CompiledSteps()(opt)
    for _ in range(3):
        p.grad = torch.ones(2)
        stepper.step()


# What a learner makes of compile= -----------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Compile with a counting backend instead of the real one."""
    counter = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=counter))
    return counter


def test_a_learner_compiles_model_and_step_and_keeps_the_names_of_the_state(counted):
    learn = toy_learner(3, opt_func=AdamW, compile=True)
    plain = toy_learner(3, opt_func=AdamW)
    for each in (learn, plain):
        each.fit_one_cycle(1, 0.1)
    assert counted.frame_count == 3  # the model to train, to validate, and the step
    state = learn.model.state_dict()
    assert list(state) == list(plain.model.state_dict())
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(state[name], value)
    assert learn.validate()["mse"] == pytest.approx(plain.validate()["mse"], rel=1e-4)


def test_a_last_batch_of_another_size_costs_one_more_graph(counted):
    x = torch.randn(20, 4)
    batches = [(part, part.sum(1, keepdim=True)) for part in x.split(8)]  # 8, 8 and 4
    learn = toy_learner(compile=True)
    learn.dls.train, learn.dls.valid = batches, None
    learn.fit(3)
    assert counted.frame_count == 3  # the model for 8, for any size, and the step


def test_an_optimizer_whose_step_is_not_compiled_is_named(counted, caplog):
    toy_learner(compile=True, opt_func=torch.optim.RMSprop)
    assert caplog.messages == [
        "compile: the model is compiled, the step is not: "
        "RMSprop is not SGD, Adam or AdamW of torch"
    ]


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_model_that_is_compiled_already_is_refused(how):
    model = nn.Linear(2, 1)
    if how == "in place":
        model.compile()
    else:
        model = torch.compile(model)
    with pytest.raises(ValueError, match="compiled already"):
        Learner(([1], None), model, nn.functional.mse_loss, compile=True)


def test_a_platform_without_a_compiler_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch._dynamo.eval_frame, "is_dynamo_supported", lambda: False)
    with pytest.raises(RuntimeError, match="does not support this platform"):
        toy_learner(compile=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compile": "faster"}, ValueError, "one of .*reduce-overhead"),
        ({"compile": 3}, TypeError, "got 3"),
    ],
)
def test_what_cannot_be_compiled_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        toy_learner(**options)
