import math

import numpy as np
import pytest
import torch
from torch import nn

from onecycle import Callback, CancelStep, GradientAccumulation, GradientClip, GradientNorm
from onecycle.callbacks.gradient_norm import norm_of
from onecycle.testing import toy_learner


def halves(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def by_hand(found):
    """Return a callback that keeps the norms of both halves, from all numbers in one vector."""

    def look(learn):
        gradients = [torch.cat([p.grad.flatten() for p in part]) for part in halves(learn.model)]
        found.append([float(g.square().sum().sqrt()) for g in gradients])

    return Callback(before_step=look)


def recorded(learn):
    return learn.recorder.history["grad_norm"].values


def test_norms_are_those_of_all_gradients_of_a_group():
    learn, found = toy_learner(splitter=halves), []
    learn.fit(2, 0.1, cbs=[by_hand(found), GradientNorm(), GradientAccumulation(3)])
    np.testing.assert_allclose(recorded(learn), found, rtol=1e-6)
    assert learn.recorder.history["grad_norm"].updates.tolist() == [*range(1, 7)]


def test_norms_are_what_is_left_after_clipping():
    learn = toy_learner()
    learn.fit(1, 0.1, cbs=[GradientNorm(), GradientClip(0.25)])
    np.testing.assert_allclose(recorded(learn), 0.25, rtol=1e-5)


def test_a_frozen_group_has_none_and_a_skipped_update_is_not_recorded():
    def skip(learn):
        if learn.n_updates == 3 and not learn.n_skipped:
            raise CancelStep

    learn = toy_learner(splitter=halves)
    learn.freeze()
    learn.fit(1, cbs=[GradientNorm(), Callback(before_step=skip)])
    values = recorded(learn)
    assert values.shape == (7, 2)
    assert np.isnan(values[:, 0]).all()
    assert (values[:, 1] > 0).all()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11
def test_norms_of_mixed_kinds_are_taken_in_float32_or_better():
    big = torch.full((4,), 300.0, dtype=torch.float16)  # whose square float16 does not have
    # Which is 8 at one place.
    sparse = torch.sparse_coo_tensor([[1, 1]], [3.0, 5.0], (4,), check_invariants=True)
    assert norm_of([big]).item() == pytest.approx(600)
    assert norm_of([sparse]).item() == 8
    assert norm_of([torch.tensor([3 + 4j])]).item() == 5
    assert norm_of([torch.ones(3).double(), torch.ones(1)]).dtype == torch.float64
    assert math.isnan(norm_of([]))


def test_picture_has_a_line_for_each_group_and_needs_a_fit():
    norm = GradientNorm()
    with pytest.raises(ValueError, match="nothing was recorded: fit first"):
        norm.plot()
    learn = toy_learner(splitter=halves)
    learn.fit(1, cbs=[norm])
    ax = norm.plot()
    assert [line.get_label() for line in ax.lines] == ["group 0", "group 1"]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), recorded(learn)[:, 1])
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "norm of the gradients")


def test_a_parameter_that_joins_in_the_fit_is_counted():
    extra = nn.Parameter(torch.ones(2))

    def join(learn):
        if learn.n_updates == 0 and extra.grad is None:
            learn.opt.param_groups[0]["params"].append(extra)
            extra.grad = torch.full((2,), 1e6)

    learn = toy_learner()
    join_once = Callback(after_backward=join)
    learn.fit(1, cbs=[join_once, GradientNorm()], max_updates=1)
    assert recorded(learn)[0] == pytest.approx(1e6 * math.sqrt(2), rel=1e-6)
