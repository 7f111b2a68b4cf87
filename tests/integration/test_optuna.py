"""A study of Optuna prunes what it is told; it comes with `pip install -e '.[optuna]'`."""

import pytest

from onecycle import OptunaPruning
from onecycle.testing import toy_learner


@pytest.mark.slow
def test_a_study_prunes_the_trial_that_is_worse():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    learners = []

    def objective(trial):
        learners.append(toy_learner(n_batches=3))
        rate = trial.suggest_float("lr", 0.0, 1.0)
        learners[-1].fit(4, rate, cbs=[OptunaPruning(trial)])
        return learners[-1].validate()["valid_loss"]

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for rate in (0.1, 1e-9):
        study.enqueue_trial({"lr": rate})
    study.optimize(objective, n_trials=2)
    states = optuna.trial.TrialState
    assert [trial.state for trial in study.trials] == [states.COMPLETE, states.PRUNED]
    for trial, learn in zip(study.trials, learners, strict=True):
        values = learn.recorder.history["valid_loss"].values.tolist()
        assert trial.intermediate_values == dict(enumerate(values, 1))
    assert len(study.trials[1].intermediate_values) == 1
