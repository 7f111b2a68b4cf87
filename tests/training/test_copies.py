"""Learners and results can be copied and pickled; a copy trains to the same bits, and apart."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_callbacks import EXPORTED, FOR_IMAGES, maker
from image_learner import image_learner
from learner_state import LearnerState, trained
from seeded_learner import make_learner
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

import onecycle
from onecycle import Callback, Learner, TensorLoader, TerminateOnNonFinite
from onecycle.testing import toy_learner

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}
WAYS = pytest.mark.parametrize("way", COPIES)


def fitted(learn: Learner, seed: int = 1, **options: Any) -> dict[str, Any]:
    """Fit, and return the bits that the learner ends in."""
    torch.manual_seed(seed)
    learn.fit_one_cycle(1, 0.05, **options)
    return trained(learn)


class Scaled(nn.Module):
    """A loss with a parameter, which trains with the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pred: Tensor, yb: Tensor) -> Tensor:
        return mse_loss(self.scale * pred, yb)


def of_trained_loss() -> Learner:
    learn = make_learner(opt_func=AdamW)
    loss = Scaled()
    made = Learner(learn.dls, learn.model, loss, opt_func=AdamW, device="cpu", seed=99)
    made.cbs = [made.recorder]
    return made


LEARNERS = {
    "a loss that trains": of_trained_loss,
    "adamw": partial(make_learner, "DataLoader", opt_func=AdamW),
    "sgd": partial(make_learner, opt_func=partial(SGD, momentum=0.9), wd=0.1),
    "fast": partial(make_learner, opt_func=AdamW, fast_step=True),
    "two groups": partial(
        make_learner, splitter=lambda m: [m[:2].parameters(), m[2:].parameters()]
    ),
}


@WAYS
@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_copy_trains_to_the_same_bits_and_apart(kind: str, epochs: int, way: str) -> None:
    torch.manual_seed(0)
    learn = LEARNERS[kind]()
    if epochs:
        learn.fit(epochs)
    other = COPIES[way](learn)
    before = LearnerState(learn)
    found = fitted(other)
    torch.manual_seed(0)
    assert [path for path in before.changes(LearnerState(learn)) if path != "torch"] == []
    assert found == fitted(learn)
    assert fitted(learn) != found  # the control


@WAYS
def test_the_optimizer_of_a_copy_holds_the_parameters_of_the_copy(way: str) -> None:
    learn = make_learner()
    learn.fit(1)
    other = COPIES[way](learn)
    mine, theirs = ({id(p) for p in each.model.parameters()} for each in (learn, other))
    held = {id(p) for group in other.opt.param_groups for p in group["params"]}
    assert held == theirs == set(map(id, other.opt.state)) == set(map(id, other.stepper.params))
    assert not held & mine
    assert other.groups.opt is other.opt
    assert other.dl is other.dls.train


@WAYS
def test_the_loss_of_a_copy_trains_parameters_of_its_own(way: str) -> None:
    learn = of_trained_loss()
    other = COPIES[way](learn)
    other.fit(1)
    held = {id(p) for group in other.opt.param_groups for p in group["params"]}
    assert id(other.loss_func.scale) in held
    assert other.loss_func.scale != 1
    assert learn.loss_func.scale == 1


@WAYS
def test_norms_and_biases_of_a_copy_stay_without_weight_decay(way: str) -> None:
    other = COPIES[way](make_learner(wd=0.0))
    other.groups.set("weight_decay", 0.1)
    without = [group for group in other.opt.param_groups if group["weight_decay"] == 0]
    exempt = [p for name, p in other.model.named_parameters() if "bias" in name or name[0] == "1"]
    assert [set(map(id, group["params"])) for group in without] == [set(map(id, exempt))]


@WAYS
def test_norms_that_were_frozen_stay_frozen_in_a_copy(way: str) -> None:
    learn = make_learner(splitter=lambda m: [m[:2].parameters(), m[2:].parameters()])
    learn.freeze_to(1, train_bn=False)
    other = COPIES[way](learn)
    assert [id(norm) for norm in other.frozen_norms] == [id(other.model[1])]
    running = other.model[1].running_mean.clone()
    other.fit(1)
    assert torch.equal(other.model[1].running_mean, running)


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_a_learner_with_any_callback_can_be_copied_after_a_fit(
    kind: type[Callback], tmp_path: Path
) -> None:
    if kind is onecycle.LRFinder:
        pytest.skip("takes part in range tests only")
    # Python does not pickle the functions that these two are given.
    by_function = kind in (onecycle.PlannedScheduler, onecycle.TorchScheduler)
    way = "deepcopy" if by_function else "pickle"
    make = image_learner if kind in FOR_IMAGES else toy_learner
    learn = make(cbs=(maker(kind, tmp_path)(),))
    learn.fit(1)
    other = COPIES[way](learn)
    ends = []
    for each in (other, learn):
        torch.manual_seed(1)
        each.fit(1)
        ends.append(trained(each))
    assert ends[0] == ends[1]


@WAYS
def test_worker_processes_stay_with_the_original(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    loader = DataLoader(
        TensorDataset(x, x.sum(1, keepdim=True)), 4, num_workers=1, persistent_workers=True
    )
    learn = Learner((loader, loader), nn.Linear(3, 1), mse_loss, device="cpu", seed=0)
    learn.cbs = [learn.recorder]
    learn.fit(1)
    workers = loader._iterator
    other = COPIES[way](learn)
    assert loader._iterator is workers is not None
    assert other.dls.train._iterator is None
    assert other.dls.valid is other.dls.train
    assert fitted(other) == fitted(learn)


def test_a_learner_is_not_copied_while_it_fits() -> None:
    with pytest.raises(RuntimeError, match="cannot be copied while a fit is running"):
        toy_learner().fit(1, cbs=[Callback(after_epoch=deepcopy)])


def test_a_shallow_copy_shares_the_model() -> None:
    learn = toy_learner()
    other = copy(learn)
    other.fit(1)
    assert other.model is learn.model
    assert other.validate() == learn.validate()
    assert learn.total_updates == 0


def test_a_copy_of_a_compiled_learner_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def fake(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", fake)
    learn = toy_learner(compile="max-autotune")
    n = len(compiled)
    other = deepcopy(learn)
    assert other.model._compiled_call_impl is not None
    assert compiled[:n] == compiled[n:] == [{"mode": "max-autotune"}] * n


def results() -> dict[str, Any]:
    learn = toy_learner()
    x = torch.linspace(-1, 1, 16)[:, None]
    loader = TensorLoader(x, x, batch_size=4)
    broken = Learner((loader, None), nn.Linear(1, 1), mse_loss, device="cpu", seed=0)
    broken.cbs = [broken.recorder]
    stop = TerminateOnNonFinite()
    broken.fit(20, lr=1e30, cbs=[stop])
    return {
        "Predictions": learn.get_preds(with_loss=True, with_inputs=True),
        "LRFindResult": learn.lr_find(show_plot=False),
        "RangeTests": learn.lr_find(show_plot=False, wds=[0.0, 0.1]),
        "Comparison": learn.compare(1, 0.1, ["constant", "one_cycle"], seeds=[0, 1]),
        "Diagnosis": learn.diagnose(0.1, 40, lr_usual=0.01, wds=[0.0]),
        "RegularizationReport": learn.regularization_report(0.1, wds=[0.0, 1.0], seeds=[0, 1]),
        "Summary": learn.summary(),
        "PostMortem": stop.post_mortem,
    }


@pytest.mark.parametrize("way", COPIES)
def test_results_can_be_copied_and_say_the_same(way: str) -> None:
    for name, result in results().items():
        other = COPIES[way](result)
        assert type(other).__name__ == type(result).__name__ == name
        assert other is not result
        assert repr(other) == repr(result)
        if hasattr(result, "suggestion"):
            assert other.suggestion == result.suggestion
            assert other.losses.tolist() == result.losses.tolist()
            assert other.spreads == result.spreads
