import csv
import math

import pytest
import torch
from learner_state import LearnerState
from scripted import Scripted
from torch import nn

from onecycle import (
    CSVLogger,
    EarlyStopping,
    Learner,
    MeanMetric,
    Progress,
    ReduceLROnPlateau,
    SaveModel,
    SnapshotEnsemble,
    TensorLoader,
    accuracy,
)
from onecycle.callbacks.monitor import judged_by, recorded_names, shown_names
from onecycle.testing import toy_learner


def hinge(pred, target):
    return (1 - (2 * target - 1) * (pred[:, 1] - pred[:, 0])).relu().mean()


def classifier(*metrics, loss_func=nn.functional.cross_entropy):
    torch.manual_seed(0)
    x = torch.randn(48, 4)
    y = (x.sum(1) + 0.5 * torch.randn(48) > 0).long()
    loader = TensorLoader(x, y, batch_size=12)
    learn = Learner(
        (loader, loader), nn.Linear(4, 2), loss_func, metrics=metrics, device="cpu", seed=0
    )
    learn.cbs = [callback for callback in learn.cbs if not isinstance(callback, Progress)]
    return learn


def fitted(learn, callback):
    learn.fit(4, 0.1, cbs=[callback])


ASKERS = {
    "SaveModel": lambda learn, name, path, **mode: fitted(learn, SaveModel(path, name, **mode)),
    "EarlyStopping": lambda learn, name, path, **mode: fitted(learn, EarlyStopping(name, **mode)),
    "ReduceLROnPlateau": lambda learn, name, path, **mode: fitted(
        learn, ReduceLROnPlateau(name, **mode)
    ),
    "compare": lambda learn, name, path, **mode: learn.compare(
        1, 0.1, ["constant"], [0], metric=name, **mode
    ),
    "diagnose": lambda learn, name, path, **mode: learn.diagnose(
        0.1, 20, metric=name, lr_usual=0.01, wds=(), **mode
    ),
    "regularization_report": lambda learn, name, path, **mode: learn.regularization_report(
        0.1, wds=[0.0, 1.0], seeds=[0, 1], metric=name, **mode
    ),
}
EACH = pytest.mark.parametrize("ask", ASKERS.values(), ids=ASKERS)


@EACH
def test_an_unknown_direction_is_asked_for_before_anything_runs(ask, tmp_path):
    learn, trained = classifier(hinge), []
    learn.model.register_forward_hook(lambda model, *of: trained.append(model.training))
    weights = [parameter.clone() for parameter in learn.model.parameters()]
    with pytest.raises(ValueError, match=r'which way \'hinge\' is better .* mode="min"'):
        ask(learn, "hinge", tmp_path / "best.pt")
    assert True not in trained
    assert all(map(torch.equal, weights, learn.model.parameters()))
    assert not list(tmp_path.iterdir())
    for mode in ("min", "max"):
        ask(learn, "hinge", tmp_path / "best.pt", mode=mode)
    assert True in trained


@EACH
@pytest.mark.parametrize(
    "metric", [accuracy, MeanMetric(hinge, higher_is_better=False)], ids=["named", "said"]
)
def test_a_known_direction_is_not_asked_for(ask, metric, tmp_path):
    learn = classifier(metric)
    ask(learn, next(iter(recorded_names(learn)[2:])), tmp_path / "best.pt")


def test_the_ensemble_asks_before_it_predicts():
    learn, ensemble = classifier(), SnapshotEnsemble()
    learn.fit(1, 0.1, cbs=[ensemble])
    learn.model.register_forward_pre_hook(lambda *of: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="which way 'hinge' is better"):
        ensemble.evaluate(learn, metric=hinge)


class InTurn(MeanMetric):
    """Gives the next of some values each time; its copies share them."""

    def __init__(self, values):
        super().__init__(accuracy, name="x")
        self.values = iter(values)

    def __deepcopy__(self, memo):
        return self

    def compute(self):
        return next(self.values)


@pytest.mark.parametrize(("mode", "gain"), [("max", 0.8 - 0.9), ("min", 0.7 - 0.8)])
def test_the_ensemble_gains_over_the_best_member_that_is_a_number(mode, gain):
    learn, ensemble = classifier(), SnapshotEnsemble()
    learn.fit_sgdr(3, 1, 0.05, cbs=[ensemble])
    report = ensemble.evaluate(learn, metric=InTurn([math.nan, 0.7, 0.9, 0.8]), mode=mode)
    assert math.isnan(report.members[0])
    assert report.gain == pytest.approx(gain)


def test_what_a_loss_says_of_itself_is_less_whatever_it_is_called(tmp_path):
    """The loss as a metric of another name keeps the epoch that the loss keeps."""
    kept = {}
    for name in ("valid_loss", "surprise"):
        learn = classifier(MeanMetric(nn.functional.cross_entropy, name="surprise"))
        learn.fit(6, 2.0, cbs=[SaveModel(tmp_path / f"{name}.pt", name)])
        kept[name] = learn.validate()["valid_loss"]
        losses = learn.recorder.history["valid_loss"].values
    assert kept["surprise"] == kept["valid_loss"] == pytest.approx(losses.min())
    assert losses.min() < losses.max()


# Several values


class TwoValues(Scripted):
    """Gives two numbers by name."""

    def compute(self):
        value = next(self._values)
        return {"f1": value, "gap": -value}


def two_values(*values):
    return toy_learner(n_batches=2, metrics=[TwoValues(values, "both")])


def test_values_of_a_metric_can_be_monitored_by_their_own_names_in_the_first_fit():
    learn = two_values(0, 3, 2, 9, 9, 9)  # one more for the look at what there is
    stop = EarlyStopping("f1")
    learn.fit(5, cbs=[stop])
    assert learn.recorder.history["f1"].values.tolist() == [0, 3, 2]
    assert learn.recorder.history["gap"].values.tolist() == [0, -3, -2]
    with pytest.raises(ValueError, match="which way 'gap' is better is not known"):
        two_values(1, 2, 3).fit(1, cbs=[EarlyStopping("gap")])
    with pytest.raises(ValueError, match="records train_loss, valid_loss, f1, gap"):
        two_values(1, 2, 3).fit(1, cbs=[EarlyStopping("f2", mode="max")])


def test_looking_at_the_names_changes_nothing():
    learn = two_values(1, 2, 3)
    learn.fit(1)
    learn = two_values(1, 2, 3)
    before = LearnerState(learn)
    assert recorded_names(learn) == ["train_loss", "valid_loss", "both"]
    assert shown_names(learn) == ["train_loss", "valid_loss", "f1", "gap"]
    assert judged_by(learn, None, "auto") == ("f1", "max")
    assert before.changes(LearnerState(learn)) == []


def test_nothing_is_drawn_of_a_loader_that_cannot_begin_again():
    learn = two_values(1, 2, 3)
    batches = list(learn.dls.valid)
    learn.dls.valid = iter(batches)
    assert shown_names(learn) == ["train_loss", "valid_loss", "both"]
    assert len(list(learn.dls.valid)) == len(batches)


def test_the_table_and_the_file_have_a_column_for_each_value(tmp_path, capsys):
    learn, path = two_values(1, 2, 3), tmp_path / "log.csv"
    learn.fit(2, cbs=[CSVLogger(path), Progress()])
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", "train_loss", "valid_loss", "f1", "gap", "seconds", "lr"]
    assert [row[3:5] for row in rows] == [["1.0", "-1.0"], ["2.0", "-2.0"]]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["epoch", "train_loss", "valid_loss", "f1", "gap", "time"] in lines
    assert lines[-1][3:5] == ["2.000000", "-2.000000"]
    again = two_values(7, 8, 9)
    again.fit(1, cbs=[CSVLogger(path, append=True)])
    assert path.read_text().splitlines()[3].split(",")[3:5] == ["7.0", "-7.0"]


def test_a_range_test_measures_each_value():
    class Two:
        name = "two"

        def reset(self):
            self.seen = []

        def update(self, pred, target):
            self.seen.append(pred.mean())

        def compute(self):
            return torch.stack([self.seen[0], -self.seen[0]])

    found = toy_learner(metrics=[Two()]).lr_find(num_it=20, show_plot=False, valid=True)
    assert list(found.metrics) == ["two_0", "two_1"]
    assert found.metrics["two_0"].tolist() == (-found.metrics["two_1"]).tolist()
    assert len(set(found.metrics["two_0"].tolist())) > 10


def test_a_collection_of_torchmetrics_is_monitored_by_its_members(tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics")
    kinds = torchmetrics.classification
    both = torchmetrics.MetricCollection(
        {"right": kinds.MulticlassAccuracy(2), "matrix_hinge": kinds.MulticlassHingeLoss(2)}
    )
    learn = classifier(both)
    learn.fit(4, 0.5, cbs=[SaveModel(tmp_path / "best.pt", "matrix_hinge")])
    history = learn.recorder.history
    assert {"right", "matrix_hinge"} <= history.keys()
    kept = learn.validate()["matrix_hinge"]
    assert kept == pytest.approx(history["matrix_hinge"].values.min())
    assert kept < history["matrix_hinge"].values.max()
