"""Metrics of the training pass, and what they hold in the middle of it."""

import math

import pytest
import torch
from torch import nn

from onecycle import Callback, Checkpoint, EarlyStopping, Recorder, Validate, mse
from onecycle.checkpoints import fit_files
from onecycle.record.metric_state import load_metrics, metrics_state
from onecycle.record.metrics import MetricSet, accuracy
from onecycle.testing import toy_learner


class Worst:
    """Remembers the largest error: a metric with a state of its own."""

    name = "worst"
    higher_is_better = False

    def reset(self):
        self.errors = []

    def update(self, pred, target):
        self.errors.append((pred - target).abs().max())

    def compute(self):
        return max(self.errors)


class InAModule(nn.Module):
    """A metric whose state is not seen."""

    name = "hidden"

    def reset(self):
        self.total = torch.zeros(())

    def update(self, pred, target):
        self.total = self.total + pred.sum()

    def compute(self):
        return self.total


def recorded(learn, name):
    return learn.recorder.history[name].values.tolist()


def learner(*metrics):
    return toy_learner(n_batches=5, cbs=(Recorder(train_metrics=True),), metrics=[mse, *metrics])


def test_they_are_those_of_the_predictions_that_training_makes():
    learn, forward, by_hand = learner(Worst()), [], [[], []]
    learn.model.register_forward_hook(lambda *_: forward.append(learn.training))

    def look(learn):
        if learn.training:
            error = (learn.pred - learn.yb).detach()
            by_hand[learn.epoch].append((error.square().mean().item(), error.abs().max().item()))

    learn.fit(2, 0.05, cbs=[Callback(after_batch=look), Validate("2 updates")])
    for name, value in (
        ("train_mse", [sum(m for m, _ in each) / 5 for each in by_hand]),
        ("train_worst", [max(w for _, w in each) for each in by_hand]),
    ):
        assert recorded(learn, name) == pytest.approx(value)
        assert learn.recorder.history[name].updates.tolist() == [5, 10]
    assert sum(forward) == 10  # no forward pass more


def test_without_them_nothing_more_is_recorded_and_the_bits_are_the_same():
    learn, plain = learner(), toy_learner(n_batches=5)
    learn.fit(2)
    plain.fit(2)
    assert learn.recorder.history.keys() - plain.recorder.history.keys() == {"train_mse"}
    assert all(map(torch.equal, learn.model.parameters(), plain.model.parameters()))


def test_they_are_monitored_by_their_name():
    learn = learner()
    learn.fit(9, lr=0.0, cbs=[EarlyStopping("train_mse", min_delta=1e-3)])
    assert len(recorded(learn, "train_mse")) == 2


def test_a_name_that_is_taken_is_refused():
    def loss(pred, target):
        return (pred - target).mean()

    with pytest.raises(ValueError, match="two series would be called 'train_loss'"):
        learner(loss).fit(1)


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [(), (Worst,)])
def test_they_are_resumed_in_the_same_bits(metrics, tmp_path):
    def run(**options):
        learn = learner(*(metric() for metric in metrics))
        learn.fit_one_cycle(2, 0.1, **options)
        return [
            recorded(learn, name) for name in learn.recorder.history if name.startswith("train_")
        ]

    expected = run(cbs=[Checkpoint(tmp_path, "1 update", keep=99)])
    assert len(expected) == 2 + len(metrics)
    for file in fit_files.find(tmp_path):
        assert run(resume=file) == expected, file.name


def test_one_whose_state_is_not_seen_is_left_out_for_the_epoch_and_said_before(tmp_path, caplog):
    learn = learner(InAModule())
    learn.fit(2, cbs=[Checkpoint(tmp_path, "3 updates")])
    assert "no checkpoint within an epoch can hold what hidden has seen" in caplog.text
    again = learner(InAModule())
    again.fit(2, resume=fit_files.find(tmp_path)[-1])
    assert recorded(learn, "train_mse") == recorded(again, "train_mse")
    assert recorded(learn, "train_hidden")[1:] == recorded(again, "train_hidden")


def test_a_state_goes_on_where_it_was_and_not_from_the_beginning():
    def add(metrics, seed):
        generator = torch.Generator().manual_seed(seed)
        pred, target = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
        metrics.update(pred, target, pred.mean(), 8, torch.tensor(float(seed)))

    whole, half, other = (MetricSet([accuracy]) for _ in range(3))
    for seed in (1, 2):
        add(whole, seed)
    add(half, 1)
    state, untold = metrics_state(half)
    add(half, 3)  # what goes on does not change a state that was taken
    load_metrics(other, state, torch.device("cpu"))
    add(other, 2)
    assert untold == []
    assert other.compute() == whole.compute() != half.compute()
    assert math.isfinite(other.compute()["accuracy"])


class Others:
    """Stands in for two processes: gives what both have."""

    world = 2

    def __init__(self, rank, states):
        self.rank, self.states = rank, states

    def gather(self, value):
        self.states[self.rank] = value
        return list(self.states)

    def sums(self, values):
        return values


def halves():
    """Return the metrics of two processes that have seen a part each, and what both have."""
    pred, target = torch.eye(3), torch.tensor([0, 1, 1])
    states, parts = [None, None], []
    for rank, rows in enumerate([slice(0, 2), slice(2, 3)]):
        part = MetricSet([accuracy, Worst()], Others(rank, states))
        part.begin(torch.device("cpu"))
        part.metrics["accuracy"].update(pred[rows], target[rows])
        part._loss.add(torch.tensor(float(rank)), 2 - rank)
        part.metrics["worst"].errors = [torch.tensor(1.5)]  # the same in both: it sees all
        parts.append(part)
    metrics_state(parts[0]), metrics_state(parts[1])
    return metrics_state(parts[0])[0]


def test_another_number_of_processes_has_together_what_these_had():
    state, found = halves(), []
    for rank in range(3):
        processes = Others(rank, [])
        processes.world = 3
        metrics = MetricSet([accuracy, Worst()], processes)
        load_metrics(metrics, state, torch.device("cpu"))
        found.append(metrics.sums())
        assert metrics.metrics["worst"].errors == [torch.tensor(1.5)]
    assert found[0][:4] == [1.0, 3.0, 2.0, 3.0]
    assert found[1][:4] == found[2][:4] == [0.0] * 4
    alone = MetricSet([accuracy, Worst()])
    load_metrics(alone, state, torch.device("cpu"))
    assert alone.compute() == {"valid_loss": 1 / 3, "accuracy": 2 / 3, "worst": 1.5}


def test_as_many_processes_have_each_what_they_had():
    state = halves()
    for rank, right in enumerate([[0.0, 2.0, 2.0, 2.0], [1.0, 1.0, 0.0, 1.0]]):
        metrics = MetricSet([accuracy, Worst()], Others(rank, []))
        load_metrics(metrics, state, torch.device("cpu"))
        assert metrics.sums()[:4] == right
