"""A loss that is no mean over samples is told before the first update, whatever it is made of."""

import logging
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle import Learner, MeanMetric, accuracy, token_weight, top_k_accuracy

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
VALUES = X.sum(1, keepdim=True)


def said(caplog: pytest.LogCaptureFixture, loss: Any, y: Any, out: int, **options: Any) -> str:
    torch.manual_seed(0)
    kind = options.pop("kind", Learner)
    learn = kind(([(X, y)], None), nn.Linear(5, out), loss, device="cpu", seed=0, **options)
    with caplog.at_level(logging.WARNING, "onecycle"), learn.no_bar():
        learn.fit(1, 0.01)
    return "\n".join(message for message in caplog.messages if message.startswith("check: "))


def summed(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().sum()


def halved(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().sum() / 2


def mean(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().mean()


def by_class(pred: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(pred, target, torch.tensor([1.0, 5.0, 20.0]))


def without_zero(pred: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(pred, target, ignore_index=0)


def dropped(pred: Tensor, target: Tensor) -> Tensor:
    return F.dropout(pred - target).square().mean()


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return summed(pred, target)


UNEVEN = torch.tensor([0, 0, 0, 0, 0, 1, 2, 1, 2, 1, 1, 2])


@pytest.mark.parametrize("loss", [summed, halved, Summed()])
def test_a_sum_is_told_by_its_growth(caplog: pytest.LogCaptureFixture, loss: Any) -> None:
    assert "grows with the batch, as a sum" in said(caplog, loss, VALUES, 1)


@pytest.mark.parametrize("loss", [by_class, without_zero])
def test_a_mean_over_something_else_is_told(caplog: pytest.LogCaptureFixture, loss: Any) -> None:
    assert "is not the mean of the losses of its halves" in said(caplog, loss, UNEVEN, 3)


def test_ignored_targets_of_a_loss_of_ones_own_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Own(Learner):
        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            return F.cross_entropy(pred, batch[1])

    y = torch.where(LABELS == 1, -100, LABELS)
    assert "some targets are -100" in said(caplog, None, y, 3, kind=Own)
    caplog.clear()
    assert said(caplog, None, y, 3, kind=Own, loss_weight=token_weight()) == ""


@pytest.mark.parametrize(
    ("loss", "y", "out"),
    [
        (mean, VALUES, 1),
        (nn.MSELoss(), VALUES, 1),
        (nn.CrossEntropyLoss(), LABELS, 3),
        (dropped, VALUES, 1),  # drawn at random: nothing can be told
        pytest.param(
            *(nn.MSELoss(), torch.full((12, 1), -100), 1),
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.11"), reason="its MSELoss takes no integers"
            ),
        ),
    ],
)
def test_means_over_samples_are_not_told(
    caplog: pytest.LogCaptureFixture, loss: Any, y: Tensor, out: int
) -> None:
    assert said(caplog, loss, y, out) == ""


def test_what_the_loss_keeps_is_as_after_one_call(caplog: pytest.LogCaptureFixture) -> None:
    loss, calls = Summed(), count(1)
    said(caplog, loss, VALUES, 1)
    assert float(loss.calls) == 1

    def counted(pred: Tensor, target: Tensor) -> Tensor:
        next(calls)
        return mean(pred, target)

    said(caplog, counted, VALUES, 1)
    assert next(calls) == 2


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(5, 4, batch_first=batch_first), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0])


class TimeFirst(Learner):
    def batch_size(self, batch: Any) -> int:
        return int(batch[1].size(1))


@pytest.mark.parametrize(
    ("batch_first", "kind", "is_told"),
    [(False, Learner, True), (True, Learner, False), (False, TimeFirst, False)],
)
def test_time_that_may_come_first_is_told_unless_the_samples_are_counted(
    caplog: pytest.LogCaptureFixture, batch_first: bool, kind: type[Learner], is_told: bool
) -> None:
    x = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    batches = [(x, x[..., :1])]
    learn = kind((batches, None), Recurrent(batch_first), F.mse_loss, device="cpu", seed=0)
    with caplog.at_level(logging.WARNING, "onecycle"), learn.no_bar():
        learn.fit(1)
    assert ("'cells' takes sequences with time first" in caplog.text) is is_told


def f1(pred: Tensor, target: Tensor) -> Tensor:
    named, right = pred.argmax(1) == 1, target == 1
    return 2 * (named & right).sum() / (named.sum() + right.sum()).clamp(min=1)


def n_right(pred: Tensor, target: Tensor) -> Tensor:
    return (pred.argmax(1) == target).sum()


def share_and_root(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    right = (pred.argmax(1) == target).float()
    return {"share": right.mean(), "root": pred.square().mean().sqrt()}


def share(pred: Tensor, target: Tensor) -> float:
    return (pred.argmax(1) == target).float().mean().item()


def noisy(pred: Tensor, target: Tensor) -> Tensor:
    return F.dropout(pred).mean()


def said_of(metric: Any, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    """Fit with a metric; return what is said, and check that it is said rightly."""
    torch.manual_seed(0)
    loader, model = [(X, LABELS)], nn.Linear(5, 3)
    valid = None if options.pop("without", False) else loader
    learn = Learner((loader, valid), model, F.cross_entropy, device="cpu", metrics=[metric])
    with caplog.at_level(logging.WARNING, "onecycle"), learn.no_bar():
        learn.fit(1, 0.01)
    return "\n".join(each for each in caplog.messages if each.startswith("check: the metric"))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (f1, "the metric f1 of the first batch is not the mean"),
        (share_and_root, "the metric share_and_root of the first batch is not the mean"),
        (n_right, "the metric n_right grows with the batch"),
    ],
)
def test_a_metric_that_is_no_mean_over_samples_is_told(
    metric: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    halves = [(X[:6], LABELS[:6]), (X[6:], LABELS[6:])]
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    learn = Learner((halves, halves), model, F.cross_entropy, device="cpu", metrics=[metric])
    with torch.no_grad():
        by_hand = metric(model(X), LABELS)
    value = list(by_hand.values())[-1] if isinstance(by_hand, dict) else by_hand
    assert abs(list(learn.validate().values())[-1] - float(value)) > 1e-4  # it is wrong indeed
    assert words in said_of(metric, caplog)


@pytest.mark.parametrize(
    "metric",
    [
        share,
        accuracy,
        lambda pred, target: (pred[:, 0] - target).abs().mean(),
        noisy,
        MeanMetric(f1, weighted_by="loss"),
    ],
)
def test_nothing_is_told_of_other_metrics(metric: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert said_of(metric, caplog) == ""


def test_a_metric_that_nothing_is_measured_with_is_not_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert said_of(f1, caplog, without=True) == ""


@pytest.mark.parametrize("ignored", [-100, 255])
@pytest.mark.parametrize("metric", [accuracy, top_k_accuracy(2)])
def test_a_metric_of_ours_that_counts_ignored_targets_as_wrong_is_told(
    ignored: int, metric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    y = torch.where(LABELS == 1, ignored, LABELS)
    torch.manual_seed(0)
    loss, model = nn.CrossEntropyLoss(ignore_index=ignored), nn.Linear(5, 3)
    learn = Learner(([(X, y)], [(X, y)]), model, loss, device="cpu", metrics=[metric])
    valid = y != ignored
    by_hand = float(metric(model(X)[valid], y[valid]))
    assert list(learn.validate().values())[-1] == pytest.approx(by_hand * 8 / 12)  # wrong indeed
    with caplog.at_level(logging.WARNING, "onecycle"), learn.no_bar():
        learn.fit(1)
    assert f"some targets are {ignored}, which {metric.__name__} count as any other" in caplog.text
