import numpy as np
import pytest
import torch

from onecycle import Callback, CancelStep, UpdateRatios
from onecycle.testing import toy_learner


def halves(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def flat(parts):
    return [torch.cat([p.detach().flatten() for p in part]) for part in parts]


class ByHand(Callback):
    def __init__(self):
        self.found = []

    def before_batch(self, learn):
        self.before = flat(halves(learn.model))

    def after_step(self, learn):
        pairs = zip(self.before, flat(halves(learn.model)), strict=True)
        self.found.append([float((new - old).norm() / old.norm()) for old, new in pairs])


def test_ratios_are_the_size_of_the_change_over_that_of_the_weights_before_it():
    learn, by_hand = toy_learner(splitter=halves), ByHand()
    learn.fit(2, [0.05, 0.1], cbs=[by_hand, UpdateRatios(every=3)])
    series = learn.recorder.history["update_ratio"]
    assert series.updates.tolist() == [3, 6, 9, 12, 15]
    np.testing.assert_allclose(series.values, by_hand.found[2::3], rtol=1e-5)


def test_measuring_changes_no_bit():
    learn, plain = toy_learner(), toy_learner()
    learn.fit(2, cbs=[UpdateRatios(1)])
    plain.fit(2)
    assert all(map(torch.equal, learn.model.parameters(), plain.model.parameters()))


def test_a_frozen_group_has_none_and_a_skipped_update_is_not_recorded():
    def skip(learn):
        if learn.n_updates == 3 and not learn.n_skipped:
            raise CancelStep

    learn, ratios = toy_learner(splitter=halves), UpdateRatios(1)
    learn.freeze()
    learn.fit(1, cbs=[ratios, Callback(before_step=skip)])
    values = learn.recorder.history["update_ratio"].values
    assert values.shape == (7, 2)
    assert np.isnan(values[:, 0]).all()
    assert (values[:, 1] > 0).all()
    assert ratios._before == []


def test_picture_has_a_line_at_the_usual_ratio():
    learn, ratios = toy_learner(), UpdateRatios(2)
    learn.fit(1, cbs=[ratios])
    ax = ratios.plot()
    assert [line.get_label() for line in ax.lines] == ["update_ratio", "0.001"]
    assert ax.lines[0].get_xdata().tolist() == [2, 4, 6, 8]


def test_an_interval_that_is_no_count_is_refused():
    with pytest.raises(ValueError, match="every"):
        UpdateRatios(0)
