import sys
from types import SimpleNamespace

import pytest
from trial import Trial

from onecycle import Checkpoint, OptunaPruning
from onecycle.testing import toy_learner


class PrunedError(Exception):
    pass


def accuracy(pred, y):
    return (pred - y).abs().lt(0.5).float().mean()


@pytest.fixture(autouse=True)
def optuna(monkeypatch):
    """Stand in for the package: the real one is asked in tests/integration/test_optuna.py."""
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(TrialPruned=PrunedError))


def test_each_epoch_is_reported_and_a_trial_that_is_given_up_ends_the_fit():
    learn, trial = toy_learner(n_batches=3), Trial(lasts=2)
    with pytest.raises(PrunedError, match="gave the trial up after epoch 2, valid_loss"):
        learn.fit(5, cbs=[OptunaPruning(trial)])
    values = learn.recorder.history["valid_loss"].values.tolist()
    assert trial.told == list(zip(values, (1, 2), strict=True))
    assert learn.total_epochs == 2 or len(values) == 2


def test_a_resumed_fit_goes_on_in_the_steps_of_the_trial(tmp_path):
    whole, halves = Trial(), Trial(lasts=2)
    toy_learner(n_batches=3).fit(4, cbs=[OptunaPruning(whole)])

    def fit(**options):
        both = [OptunaPruning(halves), Checkpoint(tmp_path)]
        toy_learner(n_batches=3).fit(4, cbs=both, **options)

    with pytest.raises(PrunedError):
        fit()
    fit(resume=tmp_path)
    assert {step: value for value, step in halves.told} == {
        step: value for value, step in whole.told
    }


def test_range_tests_and_studies_report_nothing():
    learn, trial = toy_learner(n_batches=3), Trial()
    learn.cbs.append(OptunaPruning(trial))
    learn.lr_find(num_it=10, show_plot=False)
    learn.compare(1, 0.1, policies=["one_cycle"], seeds=[0])
    assert trial.told == []


@pytest.mark.parametrize(
    ("monitor", "directions", "words"),
    [
        ("valid_loss", ["MAXIMIZE"], "less valid_loss is better, and the study looks for more"),
        ("accuracy", ["MINIMIZE"], "more accuracy is better, and the study looks for less"),
        ("valid_loss", ["MINIMIZE", "MINIMIZE"], "its study has 2"),
        ("recall", ["MAXIMIZE"], "cannot be monitored: this fit records"),
    ],
)
def test_what_a_study_would_misread_is_refused_before_the_first_batch(monitor, directions, words):
    learn, trial = toy_learner(metrics=[accuracy]), Trial(None, *directions)
    with pytest.raises(ValueError, match=words):
        learn.fit(1, cbs=[OptunaPruning(trial, monitor)])
    assert learn.total_updates == 0


def test_what_is_no_trial_or_without_optuna_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="must be a trial of Optuna"):
        OptunaPruning("valid_loss")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'onecycle\[optuna\]'"):
        OptunaPruning(Trial())
