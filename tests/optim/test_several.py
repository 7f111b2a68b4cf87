"""Several optimizers in one fit: what each does is what it does alone, on parameters of its own."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus
from torch.optim import SGD, AdamW, Muon, RMSprop

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    Learner,
    TensorLoader,
    muon_groups,
)
from onecycle.optim.several import Optimizers

BOTH: Any = {"matrices": Muon, "rest": AdamW}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
    return nn.Sequential(*layers)


def data() -> TensorLoader:
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(48, 4, generator=rng)
    return TensorLoader(x, x.sum(1, keepdim=True).sin(), batch_size=8)


def learner(**options: Any) -> Learner:
    given = {"opt_func": BOTH, "splitter": muon_groups, "lr": [0.02, 0.005]} | options
    learn = Learner((data(), None), network(), mse_loss, device="cpu", seed=0, **given)
    learn.cbs = learn.cbs[:1]  # the recorder alone
    return learn


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_hand(rates: dict[str, Any], moms: Any = None) -> list[Tensor]:
    """Step Muon and a fused AdamW one after another, with the rates of a record."""
    model = network()
    groups = muon_groups(model)
    muon = Muon(groups["matrices"], lr=1.0)
    matrices = [p for p in groups["rest"] if p.ndim == 2]
    biases = [p for p in groups["rest"] if p.ndim == 1]
    adam = AdamW([{"params": matrices}, {"params": biases, "weight_decay": 0.0}], fused=True)
    for i, (x, y) in enumerate([*data()] * 2):
        muon.param_groups[0]["lr"] = rates["lr"][i, 0]
        for group in adam.param_groups:
            group["lr"] = rates["lr"][i, 1]
            group["betas"] = (rates["momentum"][i, 1], 0.999)
        muon.param_groups[0]["momentum"] = rates["momentum"][i, 0]
        mse_loss(model(x), y).backward()
        for opt in (muon, adam):
            opt.step()
            opt.zero_grad()
    return weights(model)


def test_one_cycle_of_muon_and_adamw_is_that_of_both_stepped_by_hand() -> None:
    learn = learner()
    learn.fit_one_cycle(2, [0.02, 0.005])
    record = {name: learn.recorder.history[name].values for name in ("lr", "momentum")}
    assert record["lr"][-1] == pytest.approx([0.02 / 1e5, 0.005 / 1e5])
    assert equal(weights(learn.model), by_hand(record))


def test_a_list_of_optimizers_is_stepped_as_each_alone() -> None:
    model = network()
    body, head = [*model[:4].parameters()], [*model[4].parameters()]
    learn = Learner(
        (data(), None),
        model,
        mse_loss,
        opt=[SGD(body, lr=0.1, momentum=0.9), RMSprop(head, lr=0.01)],
        device="cpu",
        seed=0,
    )
    with learn.no_bar():
        learn.fit(2)
    expected = network()
    opts = [
        SGD(expected[:4].parameters(), lr=0.1, momentum=0.9),
        RMSprop(expected[4].parameters(), lr=0.01),
    ]
    for x, y in [*data()] * 2:
        mse_loss(expected(x), y).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
    assert learn.lr == [0.1, 0.01]
    assert equal(weights(learn.model), weights(expected))


def test_weights_of_norms_and_biases_are_separated_within_their_own_optimizer() -> None:
    learn = learner(wd=0.1)
    owners = [(g["optimizer"], g["weight_decay"]) for g in learn.opt.param_groups]
    assert owners == [("matrices", 0.1), ("rest", 0.1), ("rest", 0.0)]
    assert [len(opt.param_groups) for opt in learn.opt.members.values()] == [1, 2]
    assert learn.opt.param_groups[2].keys() - learn.opt.param_groups[1].keys() == {"no_decay"}
    assert len(learn.groups) == 2
    before = weights(learn.model)
    learn.fit(1)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(learn.model), strict=True))


def test_an_interrupted_fit_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = learner()
    whole.fit_one_cycle(2, [0.02, 0.005])

    def stop(learn: Any) -> None:
        if learn.n_updates == 7:
            raise CancelFit("here")

    cut = learner()
    cbs = [Checkpoint(tmp_path, every="1 update"), Callback(after_step=stop)]
    cut.fit_one_cycle(2, [0.02, 0.005], cbs=cbs)
    resumed = learner()
    resumed.fit_one_cycle(2, [0.02, 0.005], resume=tmp_path)
    assert equal(weights(resumed.model), weights(whole.model))
    apart = learner(opt_func={"matrices": SGD, "rest": AdamW})
    with pytest.raises(ValueError, match="was Muon and AdamW and is SGD and AdamW"):
        apart.fit_one_cycle(2, [0.02, 0.005], moms=False, resume=tmp_path)


def test_what_save_writes_goes_on_as_the_learner_that_saved(tmp_path: Path) -> None:
    learn, other = learner(), learner()
    learn.fit(1)
    learn.save(tmp_path / "both.pt")
    other.load(tmp_path / "both.pt")
    learn.fit(1)
    other.total_epochs = 1
    other.fit(1)
    assert equal(weights(other.model), weights(learn.model))


@pytest.mark.parametrize("way", [deepcopy, lambda learn: pickle.loads(pickle.dumps(learn))])
def test_a_copy_trains_to_the_same_bits_and_apart(way: Any) -> None:
    learn = learner()
    learn.fit(1)
    other, before = way(learn), weights(learn.model)
    other.fit(1)
    assert equal(weights(learn.model), before)
    assert not equal(weights(other.model), before)
    learn.fit(1)
    assert equal(weights(learn.model), weights(other.model))
    assert all(each.state is other.opt.state for each in other.opt.members.values())


def test_a_range_test_leaves_both_as_they_were() -> None:
    learn = learner()
    learn.fit(1)
    before = LearnerState(learn)
    found = learn.lr_find(num_it=20, show_plot=False)
    assert before.changes(LearnerState(learn)) == []
    assert len(found.lrs) > 10


def test_a_batch_that_reaches_one_of_them_leaves_the_other_alone() -> None:
    model = nn.ModuleDict({"makes": nn.Linear(2, 2), "judges": nn.Linear(2, 1)})

    class Gan(Learner):
        """Odd batches train what judges, even ones what makes."""

        def predict_batch(self, batch: Any) -> Tensor:
            return model["makes"](batch[0])

        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            judged = self.iter % 2 == 1
            model["judges"].requires_grad_(judged)
            if judged:
                real, fake = model["judges"](batch[0]), model["judges"](pred.detach())
                return (softplus(-real) + softplus(fake)).mean()
            return softplus(-model["judges"](pred)).mean()

    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    opts = [torch.optim.Adam(part.parameters(), lr=0.01) for part in model.values()]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learn = Gan((TensorLoader(x, batch_size=8), None), model, opt=opts, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(2)
    losses = learn.recorder.history["train_loss"].values.tolist()
    model.load_state_dict(start)
    expected = []
    opts = [torch.optim.Adam(part.parameters(), lr=0.01) for part in model.values()]
    for i, (xb,) in enumerate([*TensorLoader(x, batch_size=8)] * 2):
        makes, judges = model["makes"](xb), model["judges"]
        judges.requires_grad_(bool(i % 2))
        if i % 2:
            loss = (softplus(-judges(xb)) + softplus(judges(makes.detach()))).mean()
        else:
            loss = softplus(-judges(makes)).mean()
        opts[i % 2].zero_grad()
        loss.backward()
        opts[i % 2].step()
        expected.append(loss.item())
    assert losses == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"splitter": None}, ValueError, "splitter= that returns a dict.*got no splitter"),
        ({"opt_func": {"matrices": Muon, "others": AdamW}}, ValueError, "matrices', 'others"),
        ({"opt_func": {"matrices": AdamW, "rest": Muon}}, ValueError, "Muon trains only matrices"),
        (
            {"opt_func": {"matrices": Muon, "rest": AdamW(network().parameters())}},
            TypeError,
            "opt=",
        ),
        ({"opt": [], "splitter": None}, ValueError, "at least one optimizer"),
        ({"opt": [Muon], "splitter": None}, TypeError, "must be an optimizer; got a type"),
    ],
)
def test_what_cannot_be_combined_is_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        learner(**options)


def test_one_parameter_has_one_optimizer() -> None:
    model = network()
    twice = [SGD(model.parameters(), lr=0.1), AdamW(model[0].parameters())]
    with pytest.raises(ValueError, match="more than one parameter group"):
        learner(opt=twice, splitter=None)


def test_a_group_that_is_added_says_whose_it_is() -> None:
    one, two, late = (nn.Parameter(torch.ones(1)) for _ in range(3))
    opt = Optimizers({"a": SGD([one], lr=0.1), "b": SGD([two], lr=0.1)})
    with pytest.raises(ValueError, match="one of 'a', 'b'"):
        opt.add_param_group({"params": [late], "lr": 0.5})
    opt.add_param_group({"params": [late], "lr": 0.5, "optimizer": "b"})
    late.grad = torch.ones(1)
    opt.step()
    assert late.item() == 0.5
    assert [len(each.param_groups) for each in opt.members.values()] == [1, 2]


def test_muon_gets_the_hidden_matrices_alone() -> None:
    tied = nn.Linear(4, 9, bias=False)
    embedding = nn.Embedding(9, 4)
    model = nn.Sequential(embedding, nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), tied)
    hidden = [model[1].weight, model[2].weight]
    assert list(map(id, muon_groups(model)["matrices"])) == list(map(id, hidden))
    tied.weight = embedding.weight
    assert list(map(id, muon_groups(model)["matrices"])) == list(map(id, hidden))
    with pytest.raises(ValueError, match="nothing is for Muon"):
        muon_groups(nn.Linear(4, 4))
