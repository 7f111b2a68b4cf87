from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    AttributeScheduler,
    Callback,
    CancelStep,
    ScheduleConflictError,
    TensorLoader,
    linear,
    one_cycle,
)
from onecycle.testing import toy_learner


def watch(learn, schedule, **options):
    """Fit with a weight that is scheduled, and return its value at every training batch."""
    loss, seen = SimpleNamespace(weight=7.0), []
    look = Callback(after_loss=lambda learn: seen.append(loss.weight) if learn.training else None)
    learn.fit(2, cbs=[*options.pop("cbs", []), look, AttributeScheduler(loss, "weight", schedule)])
    return seen, loss


def test_each_batch_sees_the_value_of_its_update_and_the_last_one_stays():
    seen, loss = watch(toy_learner(5), one_cycle(0.3))
    assert seen == one_cycle(0.3)(np.arange(10) / 9).tolist()
    assert loss.weight == 0.3 / 1e5


def test_a_skipped_update_does_not_advance_it():
    def skip(learn):
        if learn.epoch == 0 and learn.iter == 1:
            raise CancelStep

    seen, _ = watch(toy_learner(3), linear(0, 5), cbs=[Callback(before_step=skip)])
    assert seen == pytest.approx([0, 1, 1, 2, 3, 4])


def test_a_dropout_really_drops_what_it_is_told():
    learn, dropout, shares = toy_learner(2, 512), nn.Dropout(0.0), []
    learn.model.insert(0, dropout)
    dropout.register_forward_hook(
        lambda module, args, out: shares.append(float((out == 0).float().mean()))
    )
    learn.dls.valid = None
    learn.fit(1, cbs=[AttributeScheduler(dropout, "p", linear(0.8, 0.0))])
    assert shares[0] == pytest.approx(0.8, abs=0.05)
    assert shares[1] == 0.0


def test_a_tensor_is_filled_in_place():
    module = nn.Module()
    module.register_buffer("weight", torch.ones(2))
    weight = module.weight
    toy_learner(3).fit(1, cbs=[AttributeScheduler(module, "weight", linear(1.0, 0.25))])
    assert module.weight is weight
    assert weight.tolist() == [0.25, 0.25]


def test_two_of_one_attribute_conflict_and_two_of_different_ones_do_not():
    loss = SimpleNamespace(a=1.0, b=1.0)
    first, second, third = (AttributeScheduler(loss, n, linear(0, 1)) for n in "aba")
    toy_learner(3).fit(1, cbs=[first, second])
    with pytest.raises(ScheduleConflictError, match="drive 'a' of the same SimpleNamespace"):
        toy_learner(3).fit(1, cbs=[first, third])


def test_it_takes_no_part_in_a_range_test():
    loss = SimpleNamespace(weight=7.0)
    learn = toy_learner(cbs=(AttributeScheduler(loss, "weight", linear(0, 1)),))
    learn.lr_find(num_it=12, show_plot=False)
    assert loss.weight == 7.0


@pytest.mark.parametrize(
    ("obj", "name", "schedule", "error", "words"),
    [
        (nn.Dropout(), "pp", linear(0, 1), ValueError, "Dropout has no attribute 'pp': did you me"),
        (nn.Dropout(), "p", 0.5, TypeError, "must be a Schedule, such as"),
        (nn.Dropout(), "inplace", linear(0, 1), TypeError, "must be a number or a tensor of fl"),
        (nn.Dropout(), "forward", linear(0, 1), TypeError, "Dropout.forward must be a number"),
    ],
)
def test_what_cannot_be_driven_is_refused_where_it_is_written(obj, name, schedule, error, words):
    with pytest.raises(error, match=words):
        AttributeScheduler(obj, name, schedule)


@pytest.mark.parametrize(
    "kind", ["TensorLoader", "DataLoader", "BatchSampler"], ids=lambda kind: kind
)
def test_a_batch_size_is_refused_before_there_is_a_fit(kind):
    data = TensorDataset(torch.zeros(8, 4), torch.zeros(8, 1))
    loader = DataLoader(data, batch_size=2)
    owners = [TensorLoader(*data.tensors, batch_size=2), loader, loader.batch_sampler]
    owner = next(each for each in owners if type(each).__name__ == kind)
    with pytest.raises(ValueError, match=r"the length of the fit .* Train in several fits"):
        AttributeScheduler(owner, "batch_size", linear(2, 4))
    assert owner.batch_size == 2
