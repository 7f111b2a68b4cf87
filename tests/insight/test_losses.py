import math

import pytest
import torch
from image_learner import image_learner
from torch import nn

from onecycle import Learner, TensorLoader
from onecycle.insight.samples import predicted_samples
from onecycle.insight.shown import is_wrong
from onecycle.testing import toy_learner


@pytest.mark.parametrize("k", [1, 5, 100])
def test_top_losses_are_those_of_all_samples_sorted(k):
    learn = image_learner()
    learn.fit(1)
    worst = learn.top_losses(k)
    losses = learn.get_preds(with_loss=True).losses
    order = losses.argsort(descending=True, stable=True)[:k]
    assert [sample.index for sample in worst] == order.tolist()
    assert [sample.loss for sample in worst] == losses[order].tolist()
    x, y = learn.dls.valid.tensors
    assert all(torch.equal(sample.input, x[sample.index]) for sample in worst)
    assert [int(sample.target) for sample in worst] == y[order].tolist()


def test_of_equal_losses_the_first_come_first_and_nan_comes_before_all():
    learn = toy_learner(n_batches=2, batch_size=4)
    for parameter in learn.model.parameters():
        torch.nn.init.zeros_(parameter)
    learn.dls.valid.tensors[1].fill_(2.0)
    assert [sample.index for sample in learn.top_losses(3)] == [0, 1, 2]
    learn.dls.valid.tensors[1][5] = math.nan
    assert [sample.index for sample in learn.top_losses(3)] == [5, 0, 1]


def test_table_and_picture_say_target_prediction_and_loss():
    learn = toy_learner()
    worst = learn.top_losses(2)
    assert repr(worst).split("\n")[0].split() == ["index", "loss", "target", "prediction"]
    assert repr(worst).split("\n")[1].split()[:2] == [str(worst[0].index), f"{worst[0].loss:.4g}"]
    assert [text.get_text() for text in worst.plot().texts][4:7] == ["target", "prediction", "loss"]
    images = image_learner().top_losses(1)
    assert images.plot().texts[0].get_text().endswith(f"\nloss {images[0].loss:.3g}")


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(ignore_index=2), nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.0]))],
)
def test_a_sample_of_which_the_loss_counts_nothing_is_left_out_and_not_framed(loss):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, 4, 4, generator=rng), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    loader = TensorLoader(x, y, batch_size=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    learn = Learner((loader, loader), model, loss, device="cpu", seed=0)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(learn.model(x), y, reduction="none")
    order = [i for i in losses.argsort(descending=True).tolist() if y[i] != 2]
    worst = learn.top_losses(7)
    assert [sample.index for sample in worst] == order
    assert [sample.loss for sample in worst] == pytest.approx(losses[order].tolist())
    shown = predicted_samples(learn, loader, 7)
    wrong = (learn.get_preds().preds.argmax(1) != y) & (y != 2)
    assert [is_wrong(sample) for sample in shown] == wrong.tolist()
    assert wrong.any()
