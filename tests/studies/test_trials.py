import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState
from seeded_learner import make_learner, make_model, record
from torch import nn
from torch.optim import SGD, AdamW

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Learner,
    Progress,
    SaveModel,
)
from onecycle.studies.trials import run_trials
from onecycle.testing import toy_learner

OPTIMIZERS = {"SGD": partial(SGD, momentum=0.9), "AdamW": AdamW}


def one_cycle(learn: Learner) -> None:
    learn.fit_one_cycle(2, 0.05)


@pytest.mark.parametrize("kind", ["TensorLoader", "DataLoader"])
@pytest.mark.parametrize("opt_func", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestATrial:
    def test_with_init_is_the_fit_of_a_new_learner_with_that_seed(
        self, opt_func: Any, kind: str
    ) -> None:
        learn = make_learner(kind, opt_func=opt_func)
        learn.fit(1)  # what it has learnt before plays no part
        trials = run_trials(learn, one_cycle, [3, 0], init=make_model)
        assert list(trials) == [3, 0]
        for seed, history in trials.items():
            torch.manual_seed(seed)
            alone = make_learner(kind, seed, opt_func=opt_func)
            one_cycle(alone)
            assert record(history) == record(alone.recorder.history)
        assert record(trials[3]) != record(trials[0])

    def test_without_init_goes_on_from_weights_and_optimizer_state(
        self, opt_func: Any, kind: str
    ) -> None:
        def trained(seed: int) -> Learner:
            torch.manual_seed(1)
            learn = make_learner(kind, seed, opt_func=opt_func)
            learn.seed = 99
            learn.fit(1)
            return learn

        trials = run_trials(trained(99), one_cycle, [3, 0])
        for seed, history in trials.items():
            alone = trained(99)
            alone.seed = seed
            alone.total_updates = alone.total_epochs = 0
            torch.manual_seed(seed)
            before = len(alone.recorder.history["train_loss"])
            one_cycle(alone)
            losses = alone.recorder.history["train_loss"].values[before:]
            assert history["train_loss"].values.tolist() == losses.tolist()
        assert record(trials[3]) != record(trials[0])


class TestNothingIsLeft:
    @pytest.mark.parametrize("init", [None, make_model])
    def test_behind_in_the_learner_and_the_generators(self, init: Any) -> None:
        learn = make_learner("DataLoader", cbs=(EarlyStopping(),))
        learn.fit(1)
        before = LearnerState(learn)
        run_trials(learn, lambda learn: learn.fit(2, 0.1, wd=0.3), [0, 1], init=init)
        assert before.changes(LearnerState(learn)) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_behind_when_a_fit_fails(self, error: type[BaseException]) -> None:
        def fail(learn: Learner) -> None:
            learn.fit(1, 0.1)
            learn.groups.set("weight_decay", 0.5)
            raise error

        learn = make_learner()
        learn.fit(1)
        before = LearnerState(learn)
        with pytest.raises(error):
            run_trials(learn, fail, [0], init=make_model)
        assert before.changes(LearnerState(learn)) == []

    def test_to_the_next_trial(self) -> None:
        learn = make_learner(opt_func=OPTIMIZERS["SGD"])
        after_another = run_trials(learn, one_cycle, [0, 1])[1]
        assert record(after_another) == record(run_trials(learn, one_cycle, [1])[1])

    def test_in_the_user_s_files_or_on_the_screen(self, tmp_path: Any, capsys: Any) -> None:
        files = [CSVLogger(tmp_path / "a.csv"), SaveModel(tmp_path / "best.pt")]
        learn = make_learner(cbs=[*files, Checkpoint(tmp_path / "all", "1 epoch")])
        learn.cbs.append(Progress())
        with learn.no_bar():
            run_trials(learn, one_cycle, [0])
        assert list(tmp_path.iterdir()) == []
        assert capsys.readouterr().out == ""
        learn.fit(1)  # the control: a fit does write
        assert len(list(tmp_path.iterdir())) == 3
        assert capsys.readouterr().out != ""


def test_a_trial_that_is_done_is_told_where_epochs_would_be(capsys: Any) -> None:
    learn = make_learner()
    learn.cbs.append(Progress())
    trials = run_trials(learn, one_cycle, [0, 7], label="one_cycle")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, (seed, history) in zip(lines, trials.items(), strict=True):
        names = list(learn.validate())
        ends = ", ".join(f"{name} {history[name].values[-1]:.6f}" for name in names)
        assert line.startswith(f"one_cycle, seed {seed}: {ends}, 0:0")
    learn.dls.valid = None
    run_trials(learn, one_cycle, [0])
    assert capsys.readouterr().out.startswith("trial, seed 0: 0:0")


def test_callbacks_of_the_learner_take_part() -> None:
    def stop(learn: Any) -> None:
        if learn.n_updates == 3:
            raise CancelFit("three are enough")

    learn = make_learner(cbs=(Callback(after_step=stop),))
    assert len(run_trials(learn, one_cycle, [0])[0]["train_loss"]) == 3


def test_a_seed_governs_all_three_generators() -> None:
    def drawn(learn: Learner) -> None:
        seen.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        learn.fit(1)

    seen: list[tuple[float, float, float]] = []
    learn = toy_learner()
    for _ in range(2):
        run_trials(learn, drawn, [4, 2**40])
    assert seen[:2] == seen[2:]
    assert all(a != b for a, b in zip(seen[0], seen[1], strict=True))


def test_without_init_dropout_and_shuffling_the_seeds_agree() -> None:
    learn = toy_learner(n_batches=4)
    learn.dls.train = list(learn.dls.train)
    a, b = run_trials(learn, one_cycle, [0, 1]).values()
    assert record(a) == record(b)


def test_trials_within_a_fit_are_refused_and_the_fit_goes_on_as_if_nothing_had_been() -> None:
    def nested(learn: Any) -> None:
        if learn.n_updates == 3:
            with pytest.raises(RuntimeError, match="a fit is running"):
                run_trials(learn, one_cycle, [0], init=make_model)
            refused.append(learn.n_updates)

    refused: list[int] = []
    records = []
    for cbs in ([], [Callback(after_step=nested)]):
        torch.manual_seed(0)
        learn = make_learner(opt_func=OPTIMIZERS["SGD"])
        learn.fit_one_cycle(2, 0.05, cbs=cbs)
        records.append(record(learn.recorder.history))
    assert refused == [3]
    assert records[0] == records[1]


class TestRefused:
    @pytest.mark.parametrize(
        ("seeds", "error", "message"),
        [
            (3, TypeError, "seeds must be a list of whole numbers, such as range"),
            ("12", TypeError, "seeds must be a list of whole numbers"),
            ([0.5], TypeError, "a seed must be an integer; got 0.5"),
            ([0, -1], ValueError, "a seed must be at least 0; got -1"),
            ([], ValueError, "one or more seeds, all different"),
            ([1, 2, 1], ValueError, "one or more seeds, all different"),
        ],
    )
    def test_are_seeds_that_are_none(self, seeds: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            run_trials(toy_learner(), one_cycle, seeds)

    @pytest.mark.parametrize(
        ("init", "error", "message"),
        [
            (make_model(), TypeError, "init must make a torch.nn.Module when it is called"),
            (lambda: 3, TypeError, "init must make a torch.nn.Module when it is called"),
            (7, TypeError, "got 7"),
            (lambda: nn.Linear(3, 1), ValueError, "a model like the learner's.*Missing key"),
        ],
    )
    def test_is_an_init_that_makes_no_such_model(
        self, init: Callable[[], Any], error: Any, message: str
    ) -> None:
        learn = make_learner()
        before = LearnerState(learn)
        with pytest.raises(error, match=f"(?s){message}"):
            run_trials(learn, one_cycle, [0], init=init)
        assert before.changes(LearnerState(learn)) == []
