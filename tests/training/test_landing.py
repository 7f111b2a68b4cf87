"""`land` after a fit is a fit of its own; within one it is asked for once."""

import numpy as np
import pytest
from grouped_learner import record
from landings import KilledError, N, half_cosine, kill, learner, when
from learner_state import trained

from onecycle import Callback, Checkpoint, LandOnInterrupt, ParamScheduler, linear


def test_after_an_interrupted_fit_it_is_a_fit_of_its_own():
    def interrupt(learn):
        raise KeyboardInterrupt

    learn = learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(4, [0.02, 0.1], cbs=[when("after_step", 11, interrupt)])
    rate, momentum = record(learn)[10], record(learn, "momentum")[10, 0]
    learn.land(8)
    assert (learn.n_updates, learn.total_updates) == (8, 19)
    for g in range(2):
        expected = half_cosine(rate[g], rate[g] / 1e5, 8)
        np.testing.assert_allclose(record(learn)[11:, g], expected, rtol=1e-12)
    expected = half_cosine(momentum, 0.95, 8)
    np.testing.assert_allclose(record(learn, "momentum")[11:, 0], expected, rtol=1e-12)
    assert learn.stop_reason == "landed in 8 updates, from update 12"
    assert record(learn, "valid_loss")[-1] == learn.validate()["valid_loss"]


def test_one_update_after_a_fit_has_the_present_rate_and_momentum():
    learn = learner()
    learn.fit_one_cycle(1, [0.02, 0.1])
    rate, momentum = record(learn)[-1], record(learn, "momentum")[-1]
    learn.groups.set("lr", (100 * rate).tolist())
    learn.land(1)
    assert (learn.n_updates, learn.total_updates) == (1, N + 1)
    assert record(learn)[N:].tolist() == [(100 * rate).tolist()]
    assert record(learn, "momentum")[N:].tolist() == [momentum.tolist()]
    assert learn.stop_reason == f"landed in 1 updates, from update {N + 1}"


def test_a_landing_replaces_the_schedules_of_the_learner():
    learn = learner(cbs=(ParamScheduler({"lr": linear(0.1, 0.2)}),))
    learn.fit(1)
    learn.land(3)
    np.testing.assert_allclose(record(learn)[N:, 0], half_cosine(0.2, 2e-6, 3), rtol=1e-12)


def test_called_when_the_fit_is_over_already_it_says_so(caplog):
    learn = learner()
    learn.fit(1, 0.1, cbs=[Callback(after_fit=lambda learn: learn.land(4))])
    assert learn.n_updates == N
    said = "land: the fit had no batch left to land with: call it after the fit"
    assert said in caplog.messages


@pytest.mark.parametrize("updates", [0, -1, 2.5, None])
def test_what_is_no_number_of_updates_is_refused(updates):
    with pytest.raises((TypeError, ValueError), match="updates must be"):
        learner().land(updates)
    with pytest.raises((TypeError, ValueError), match="updates must be"):
        LandOnInterrupt(updates)


def test_a_landing_within_a_fit_takes_no_callbacks():
    act = when("after_step", 1, lambda learn: learn.land(3, cbs=[]))
    with pytest.raises(ValueError, match="for a landing that is a fit of its own"):
        learner().fit(1, cbs=[act])


def test_a_range_test_cannot_land():
    act = Callback(after_step=lambda learn: learn.land(3))
    act.runs_in = frozenset(("range_test",))
    with pytest.raises(RuntimeError, match="a range_test is running"):
        learner(cbs=(act,)).lr_find(show_plot=False)


def test_a_landing_of_its_own_is_resumed_in_a_fresh_process(tmp_path):
    def interrupted():
        learn = learner()
        learn.fit_one_cycle(1, [0.02, 0.1])
        learn.groups.set("lr", [0.01, 0.05])
        return learn

    whole = interrupted()
    whole.land(15)
    learn = interrupted()
    with pytest.raises(KilledError):
        learn.land(15, cbs=[Checkpoint(tmp_path, "2 updates"), when("after_loss", 9, kill)])
    fresh = learner()
    fresh.land(15, resume=tmp_path)
    assert trained(fresh) == trained(whole)
