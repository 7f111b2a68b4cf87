import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from graph_stand_in import seeded
from torch import Tensor, nn
from torch.optim import adam as adam_module
from torch.optim import sgd as sgd_module
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    Callback,
    CudaGraph,
    GradientAccumulation,
    GradientClip,
    Learner,
    MixedPrecision,
    Progress,
    Recorder,
    TensorLoader,
    TorchScheduler,
)
from onecycle.callbacks.one_cycle import OneCycleSchedule
from onecycle.optim.compiled import CompiledSteps
from onecycle.testing import toy_learner
from onecycle.training.summary import Layer, summarize


def learner(model: nn.Module, *x_shape: int, **options: Any) -> Learner:
    x = torch.ones(x_shape)
    loader = TensorLoader(x, torch.zeros(len(x), 1), batch_size=4)
    given: dict[str, Any] = {"loss_func": nn.functional.mse_loss, "device": "cpu", "seed": 0}
    return Learner((loader, None), model, **(given | options))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.ReLU(), nn.Dropout()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    )


# What it says --------------------------------------------------------------------------------


def test_layers_of_a_small_cnn_have_the_shapes_and_counts_computed_by_hand() -> None:
    assert summarize(learner(small_cnn(), 8, 3, 12, 10)).layers == (
        Layer("0", "Conv2d", "(4, 8, 6, 5)", 8 * 3 * 3 * 3 + 8, 224),
        Layer("1", "BatchNorm2d", "(4, 8, 6, 5)", 16, 16),
        Layer("2.0", "ReLU", "(4, 8, 6, 5)", 0, 0),
        Layer("2.1", "Dropout", "(4, 8, 6, 5)", 0, 0),
        Layer("3", "AdaptiveAvgPool2d", "(4, 8, 1, 1)", 0, 0),
        Layer("4", "Flatten", "(4, 8)", 0, 0),
        Layer("5", "Linear", "(4, 1)", 9, 9),
    )


def test_totals_are_those_computed_by_hand() -> None:
    model = small_cnn()
    model[5].requires_grad_(False)
    summary = summarize(learner(model, 8, 3, 12, 10))
    assert summary.n_parameters == 224 + 16 + 9
    assert summary.n_trainable == 224 + 16
    assert summary.n_buffers == 8 + 8 + 1  # mean, variance, batches tracked (an int64)
    assert summary.n_bytes == 4 * (249 + 16) + 8


def test_a_layer_is_trainable_in_part_if_some_of_its_parameters_are() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    model[2].requires_grad_(False)
    summary = summarize(learner(model, 4, 3))
    assert [layer.trainable for layer in summary.layers] == ["part", "", "no", "yes"]


def test_a_module_called_twice_is_shown_once() -> None:
    act = nn.ReLU()
    same = nn.Linear(3, 3)
    summary = summarize(learner(nn.Sequential(same, act, same, act, nn.Linear(3, 1)), 4, 3))
    assert [layer.name for layer in summary.layers] == ["0", "1", "4"]
    assert summary.n_parameters == 12 + 4


def test_a_parameter_that_two_layers_share_counts_once_in_the_totals() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    summary = summarize(learner(model, 4, 3))
    assert [layer.n_parameters for layer in summary.layers] == [9, 9]
    assert summary.n_parameters == 9
    assert "what layers share counts once" in str(summary)


def test_a_parameter_of_a_module_with_children_has_a_row() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))
            self.inner = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.scale * x)

    summary = summarize(learner(Scaled(), 4, 5))
    assert summary.layers == (
        Layer("", "Scaled", "(4, 1)", 5, 5),
        Layer("inner", "Linear", "(4, 1)", 6, 6),
    )
    assert "(model)" in str(summary)


class Point(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (lambda x: (x, [x[0], None]), "[(4, 3), [(3,), NoneType]]"),
        (lambda x: {"logits": x, "hidden": (x, x)}, "{logits: (4, 3), hidden: [(4, 3), (4, 3)]}"),
        (lambda x: Point(x, x[:, 0]), "[(4, 3), (4,)]"),
        (lambda x: x.sum(), "()"),
    ],
)
def test_nested_outputs_show_nested_shapes(output: Callable[[Tensor], Any], shown: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Any:
            return output(x * self.weight)

    assert summarize(learner(Model(), 8, 3)).layers[0].output == shown


def test_a_layer_that_is_not_called_has_no_shape() -> None:
    model = nn.MultiheadAttention(4, 2)  # calls its projection's function, not the module
    model.register_module("unused", nn.Linear(2, 2))

    class SelfAttention(Learner):
        def predict_batch(self, batch: Any) -> Any:
            return self.model(self.xb, self.xb, self.xb)[0]

    x = torch.ones(2, 3, 4)
    learn = SelfAttention((TensorLoader(x, x), None), model, nn.functional.mse_loss, device="cpu")
    rows = {layer.name: layer for layer in summarize(learn).layers}
    assert rows[""].output == "[(2, 3, 4), (3, 2, 2)]"
    assert rows["unused"].output == ""


def test_a_compiled_model_is_run_as_written_and_not_compiled() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph

    model = torch.compile(nn.Sequential(nn.Linear(3, 1)), backend=backend)
    summary = summarize(learner(model, 8, 3))
    assert [layer.output for layer in summary.layers] == ["(4, 1)"]
    assert compiled == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_has_counts_and_no_shapes() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 1)))
    summary = summarize(learner(model, 8, 3))
    assert [(layer.output, layer.n_parameters) for layer in summary.layers] == [("", 4)]


@pytest.mark.parametrize(
    ("opt_func", "said"),
    [
        (torch.optim.AdamW, "AdamW (fused; cycles betas[0])"),
        (lambda p, lr: torch.optim.SGD(p, lr, 0.9), "SGD (not fused; cycles momentum)"),
        (lambda p, lr: torch.optim.SGD(p, lr), "SGD (not fused; momentum 0)"),
        (torch.optim.Adadelta, "Adadelta (not fused; no momentum to cycle)"),
    ],
)
def test_the_optimizer_is_described_by_what_it_can_cycle(opt_func: Any, said: str) -> None:
    assert summarize(toy_learner(opt_func=opt_func)).optimizer == said


def test_callbacks_are_listed_by_stage() -> None:
    cycle = OneCycleSchedule(0.1)
    learn = learner(nn.Linear(3, 1), 8, 3, cbs=[cycle, Callback(after_fit=print)])
    assert summarize(learn).callbacks == (
        ("PREPARE", ("OneCycleSchedule",)),
        ("RECORD", ("Recorder",)),
        ("REACT", ("Progress", "Callback")),
    )
    assert [type(cb) for cb in learn.cbs[:3]] == [Recorder, Progress, OneCycleSchedule]


def test_it_prints_as_an_aligned_table() -> None:
    lines = str(toy_learner().summary()).splitlines()
    assert lines[:4] == [
        "layer  type    output  parameters  trainable",
        "0      Linear  (8, 8)          40  yes",
        "1      ReLU    (8, 8)",
        "2      Linear  (8, 1)           9  yes",
    ]
    assert toy_learner().groups.table() in "\n".join(lines)


# What it leaves behind -----------------------------------------------------------------------


def state_of(learn: Learner, generator: torch.Generator) -> list[Any]:
    """Everything that a look at the model must not change, in a form that compares."""
    modules = list(learn.model.modules())
    return [
        [tensor.tolist() for tensor in learn.model.state_dict().values()],
        [parameter.grad is None for parameter in learn.model.parameters()],
        [(module.training, len(module._forward_hooks)) for module in modules],
        [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()],
        generator.get_state().tolist(),
        {name: value for name, value in vars(learn).items() if name != "model"},
        repr(learn.recorder.history),
    ]


class Noisy(nn.Module):
    """Draws from every generator, and may fail."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        if self.fails:
            raise ValueError("the forward pass fails")
        return x + torch.randn_like(x)


def learner_with_state(*, fails: bool) -> tuple[Learner, torch.Generator]:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.ones(8, 3), torch.zeros(8, 1))
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    noisy = Noisy(fails=False)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), noisy, nn.Dropout(), nn.Linear(4, 1))
    learn = Learner((loader, None), model, nn.functional.mse_loss, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(1)
    noisy.fails = fails
    model[1].eval()  # a frozen layer, as a person sets it
    return learn, generator


def test_nothing_is_left_behind() -> None:
    learn, generator = learner_with_state(fails=False)
    before = state_of(learn, generator)
    summarize(learn)
    assert state_of(learn, generator) == before


def test_nothing_is_left_behind_when_the_model_fails() -> None:
    learn, generator = learner_with_state(fails=True)
    before = state_of(learn, generator)
    with pytest.raises(ValueError, match="the forward pass fails"):
        summarize(learn)
    assert state_of(learn, generator) == before


def test_the_check_of_what_is_left_behind_sees_a_forward_pass() -> None:
    learn, generator = learner_with_state(fails=False)
    before = state_of(learn, generator)
    learn.model(torch.ones(4, 3))
    assert state_of(learn, generator) != before


# Which step is taken ---------------------------------------------------------------------------

STEPS = {torch.optim.SGD: (sgd_module, "sgd"), torch.optim.AdamW: (adam_module, "adam")}


def hooked(learn: Learner) -> None:
    learn.opt.register_step_post_hook(lambda *_: None)


def scheduled(learn: Learner) -> None:
    StepLR(learn.opt, 100)  # by hand: it wraps the step


def compiled_loss(learn: Learner) -> None:
    learn.loss_func = torch.compile(nn.functional.mse_loss, backend="eager")


def compiled_layer(learn: Learner) -> None:
    learn.model[0].compile(backend="eager")


def compiled_in_the_fit(learn: Learner) -> None:
    learn.cbs.append(Callback(before_fit=lambda learn: compiled_layer(learn)))


def compiled_step(learn: Learner) -> None:
    learn.make_stepper = CompiledSteps(backend="eager")


def with_amsgrad(learn: Learner) -> None:
    learn.opt.param_groups[0]["amsgrad"] = True


def with_cbs(*make: Callable[[], Callback]) -> Callable[[Learner], None]:
    return lambda learn: learn.cbs.extend(each() for each in make)


OWN = "torch's own step"
HOOKS = f"{OWN}: the optimizer's step has hooks, or was wrapped or replaced"
SCALED = f"{OWN}: a gradient scaler decides whether it is made"
sgd = partial(torch.optim.SGD, momentum=0.9)
half, half_too = partial(MixedPrecision, "fp16"), partial(MixedPrecision, "bf16")
CASES: dict[str, tuple[dict[str, Any], Callable[[Learner], None], str]] = {
    "default": ({}, with_cbs(), "fast step"),
    "SGD": ({"opt_func": sgd}, with_cbs(), "fast step"),
    "fast_step=False": ({"fast_step": False}, with_cbs(), f"{OWN}: fast_step=False"),
    "fp16": ({}, with_cbs(half), SCALED),
    "fp16, not fast": ({"fast_step": False}, with_cbs(half), SCALED),
    "fp16 beside a scheduler of torch": (
        {},
        with_cbs(lambda: TorchScheduler(lambda opt: StepLR(opt, 2)), half),
        SCALED,
    ),
    "bf16": ({}, with_cbs(half_too), "fast step"),
    "accumulation": ({}, with_cbs(partial(GradientAccumulation, 2)), "fast step"),
    "clipping": ({}, with_cbs(partial(GradientClip, 0.1)), "fast step"),
    "a scheduler of torch": (
        {},
        with_cbs(lambda: TorchScheduler(lambda opt: StepLR(opt, 2))),
        "fast step",
    ),
    "a scheduler of torch by hand": ({}, scheduled, HOOKS),
    "a hook": ({}, hooked, HOOKS),
    "a hook, compiled step": ({}, lambda learn: (compiled_step(learn), hooked(learn)), HOOKS),
    "not fused": ({"opt_func": partial(sgd, fused=False)}, with_cbs(), f"{OWN}: SGD is not fused"),
    "amsgrad": ({}, with_amsgrad, f"{OWN}: AdamW has amsgrad=True"),
    "a compiled model": ({}, compiled_layer, f"{OWN}: the model is compiled"),
    "a model compiled in the fit": ({}, compiled_in_the_fit, "fast step"),
    "a compiled loss": ({}, compiled_loss, "fast step"),
    "a compiled step": ({"opt_func": sgd}, compiled_step, "compiled step"),
    "no graph here": ({}, with_cbs(partial(CudaGraph, step=True)), "fast step"),
}


def fit_watched(
    learn: Learner, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str], int]:
    """Fit for two epochs; return what the summary said, the stepper, and torch's own steps."""
    own: list[int] = []
    module, name = STEPS[type(learn.opt)]
    function = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        own.append(learn.n_updates)
        return function(*args, **kwargs)

    def look(learn: Learner) -> None:
        steppers.append(learn.stepper.describe())
        if learn.n_updates == 4:
            said.append(learn.summary().step)

    said, steppers = [learn.summary().step], []
    with monkeypatch.context() as patch:
        patch.setattr(module, name, counted)
        learn.fit(2, cbs=[Callback(before_step=look)])
    return said, steppers, sum(n >= 4 for n in own)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, when it compiles a loss
@pytest.mark.parametrize("case", CASES)
def test_the_step_that_is_announced_is_the_one_that_is_taken(case, monkeypatch, caplog) -> None:
    options, change, step = CASES[case]
    learn = toy_learner(6, **({"opt_func": torch.optim.AdamW, "check": False} | options))
    change(learn)
    said, steppers, n_own = fit_watched(learn, monkeypatch)
    assert [*said, *set(steppers[4:])] == [step] * 3
    made = (learn.n_updates - 4) * len(learn.opt.param_groups)
    assert n_own == (made if step.startswith(OWN) else 0)


@pytest.mark.parametrize(("step", "said"), [(True, "captured step"), (False, "fast step")])
def test_with_graphs_the_captured_step_is_announced_where_it_is_taken(
    step, said, stand_in, monkeypatch
) -> None:
    learn = seeded(toy_learner, n_batches=6, check=False, cbs=(CudaGraph(step=step),))
    summaries, steppers, n_own = fit_watched(learn, monkeypatch)
    assert [*summaries, *set(steppers[4:])] == [said] * 3
    assert n_own == 0
    assert stand_in.captures == 1 + step


def test_an_optimizer_that_is_not_known_is_named() -> None:
    learn = toy_learner(2, opt_func=torch.optim.Adamax)
    assert learn.summary().step == f"{OWN}: Adamax is not SGD, Adam or AdamW of torch"


def test_a_profiler_that_looks_on_is_said() -> None:
    learn = toy_learner(2)
    with torch.profiler.profile(acc_events=True):
        assert learn.summary().step.endswith("a profiler, anomaly mode or another mode looks on")
    assert learn.summary().step == "fast step"
