import os

import numpy as np
import pytest
import torch
from image_learner import image_learner
from torch import nn

from onecycle import DataLoaders, Learner, TensorLoader
from onecycle.insight.confusion import ConfusionMatrix


def test_counts_are_those_of_a_loop_by_hand():
    learn = image_learner()
    learn.fit(2, 0.01)
    preds, targets = learn.get_preds()
    expected = np.zeros((3, 3), np.int64)
    for scores, target in zip(preds, targets, strict=True):
        expected[int(target), int(scores.argmax())] += 1
    found = learn.confusion_matrix()
    assert found.counts.tolist() == expected.tolist()
    assert found.accuracy == pytest.approx(np.trace(expected) / 32)
    assert found.classes == ["0", "1", "2"]


def test_names_are_those_of_the_loaders_and_too_many_are_refused():
    learn = image_learner()
    learn.dls.classes = ["cat", "dog", "cow"]
    assert learn.confusion_matrix().classes == ["cat", "dog", "cow"]
    learn.dls.classes = list("abcd")
    with pytest.raises(ValueError, match="says 3 classes, and the loaders name 4"):
        learn.confusion_matrix()


def test_one_score_needs_a_threshold():
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    loader = TensorLoader(x, torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    loss = nn.functional.binary_cross_entropy_with_logits
    learn = Learner(DataLoaders(loader, loader), model, loss, device="cpu")
    assert learn.confusion_matrix(threshold=0).counts.tolist() == [[1, 0], [1, 2]]
    assert learn.confusion_matrix(threshold=1.5).counts.tolist() == [[1, 0], [2, 1]]
    with pytest.raises(ValueError, match="give threshold="):
        learn.confusion_matrix()


def test_most_confused_come_in_order_and_rare_ones_can_be_left_out():
    counts = np.array([[9, 1, 0], [4, 8, 4], [0, 2, 7]])
    confusion = ConfusionMatrix(counts, ["a", "b", "c"])
    assert confusion.most_confused() == [
        ("b", "a", 4),
        ("b", "c", 4),
        ("c", "b", 2),
        ("a", "b", 1),
    ]
    assert confusion.most_confused(2, least=2) == [("b", "a", 4), ("b", "c", 4)]
    assert confusion.most_confused(least=5) == []


def test_a_large_matrix_is_printed_as_its_most_confused_pairs():
    counts = np.diag([5] * 20)
    counts[3, 4] = 7
    shown = repr(ConfusionMatrix(counts, [str(i) for i in range(20)]))
    assert shown.split("\n") == [
        "3 taken for 4: 7",
        "accuracy 0.9346 of 107 targets; rows are actual, columns predicted",
    ]


def test_picture_has_counts_or_shares_and_both_axes_are_named():
    confusion = ConfusionMatrix(np.array([[3, 1], [0, 0]]), ["cat", "dog"])
    ax = confusion.plot()
    assert [text.get_text() for text in ax.texts] == ["3", "1", "0", "0"]
    assert [text.get_text() for text in confusion.plot(normalize=True).texts] == [
        *("0.75", "0.25", "0", "0"),
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "actual")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 0]])


def test_names_of_any_folders_can_be_drawn_and_long_ones_are_cut():
    names = ["$x$", "$\\frac", "two\nlines", "x" * 200, os.fsdecode(b"bad\xff")]
    ax = ConfusionMatrix(np.eye(5, dtype=np.int64), names).plot()
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [r"\$x\$", r"\$\frac", "two lines", "x" * 23 + "…", r"bad\udcff"]


@pytest.mark.parametrize("ignored", [0, 255, -100])
def test_pixels_of_the_index_that_the_loss_ignores_are_not_counted(ignored):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 2, 4, 4, generator=rng), torch.randint(3, (5, 4, 4), generator=rng)
    y[:, 0] = ignored
    loader = TensorLoader(x, y, batch_size=2)
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    learn = Learner((loader, loader), nn.Conv2d(2, 3, 1), loss, device="cpu", seed=0)
    with torch.no_grad():
        said = learn.model(x).argmax(1)
    by_hand = np.zeros((3, 3), np.int64)
    for right, found in zip(y.flatten().tolist(), said.flatten().tolist(), strict=True):
        if right != ignored:
            by_hand[right, found] += 1
    assert np.array_equal(learn.confusion_matrix().counts, by_hand)
