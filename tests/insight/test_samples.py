import pytest
import torch
from torch import nn

from onecycle import Learner
from onecycle.insight.samples import classes_in, predicted_samples
from onecycle.testing import toy_learner


def test_predicted_samples_are_the_first_of_the_loader_with_what_the_model_says():
    learn = toy_learner(n_batches=4)
    samples = predicted_samples(learn, learn.dls.valid, 11)
    preds, targets = learn.get_preds()
    assert [sample.index for sample in samples] == [*range(11)]
    for sample in samples:
        assert torch.equal(sample.input, learn.dls.valid.tensors[0][sample.index])
        assert torch.equal(sample.target, targets[sample.index])
        torch.testing.assert_close(sample.pred, preds[sample.index])


def test_of_a_dict_the_labels_and_the_logits_are_taken():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, ids, labels=None):
            logits = self.layer(ids)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    batch = {"ids": torch.ones(4, 2), "labels": torch.tensor([0, 1, 2, 1]), "key": list("abcd")}
    learn = Learner(([batch], [batch]), Model(), device="cpu", seed=0)
    samples = predicted_samples(learn, [batch], 4)
    assert [int(sample.target) for sample in samples] == [0, 1, 2, 1]
    assert all(sample.pred.shape == (3,) for sample in samples)
    assert samples[2].input["ids"].tolist() == [1, 1]


def test_classes_are_counted_as_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    said, right, n = classes_in(scores, torch.tensor([1, -100, 0]), None)
    assert (said.tolist(), right.tolist(), n) == ([1, 1], [1, 0], 2)
    said, right, n = classes_in(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.0, 0.0]), 0.0)
    assert (said.tolist(), right.tolist(), n) == ([0, 1], [0, 0], 2)


def test_classes_of_pixels_are_all_counted():
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.ones(2, 4, 5, dtype=torch.long)
    said, right, n = classes_in(scores, targets, None)
    assert said.tolist() == scores.argmax(1).flatten().tolist()
    assert (len(right), n) == (40, 3)


@pytest.mark.parametrize(
    ("scores", "targets", "threshold", "words"),
    [
        (torch.zeros(3, 1), torch.zeros(3).long(), None, "give threshold="),
        (torch.zeros(3), torch.zeros(3).long(), None, "give threshold="),
        (torch.zeros(3, 2), torch.zeros(4).long(), None, r"\(4,\) int64"),
        (torch.zeros(3, 2), torch.zeros(3), None, "class indices"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), None, "is class 2, and there are 2"),
        (torch.zeros(3, 2), torch.zeros(3).long(), 0.0, "one score for each target"),
        (torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), None, "predicts NaN"),
        ("abc", torch.tensor([0]), None, "got str"),
        (torch.zeros(2, 1), torch.tensor([0.9, 0.1]), 0.0, "each target is 0 or 1"),
        (torch.zeros(2, 1), torch.tensor([-1.0, 1.0]), 0.0, "from -1 to 1"),
    ],
)
def test_what_says_no_class_is_refused(scores, targets, threshold, words):
    with pytest.raises((ValueError, TypeError), match=words):
        classes_in(scores, targets, threshold)
