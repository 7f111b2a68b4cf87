from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState
from torch import nn
from torch.optim import SGD, Rprop

from onecycle import BatchSizeSchedule, Callback, Learner, RegularizationReport
from onecycle.testing import toy_learner

momentum_sgd = partial(SGD, momentum=0.9)


def make(**options: Any) -> Learner:
    learn = toy_learner(opt_func=momentum_sgd, **options)
    torch.manual_seed(0)
    learn.model[1] = nn.Sequential(nn.ReLU(), nn.Dropout(0.1))
    return learn


def new_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def report(learn: Learner, **options: Any) -> RegularizationReport:
    return learn.regularization_report(0.05, **({"seeds": [0, 1]} | options))


class TestAReport:
    @pytest.mark.parametrize(
        ("kind", "settings", "set_up"),
        [
            ("wds", [0.0, 0.5], lambda learn, wd: learn.groups.set("weight_decay", wd)),
            ("dropouts", [0.0, 0.5], lambda learn, p: setattr(learn.model[1][1], "p", p)),
            ("batch_sizes", [4, 16], lambda learn, n: setattr(learn.dls.train, "batch_size", n)),
        ],
    )
    def test_is_of_fits_of_a_learner_with_each_setting_and_seed(
        self, kind: str, settings: list[Any], set_up: Any
    ) -> None:
        found = report(make(), **{kind: settings})
        (runs,) = found.results.values()
        assert list(runs) == settings
        for setting in settings:
            for i, seed in enumerate([0, 1]):
                alone = make(seed=seed)
                set_up(alone, setting)
                torch.manual_seed(seed)
                alone.fit_one_cycle(1, 0.05)
                assert runs[setting][i] == alone.recorder.history["valid_loss"].values[-1]
        assert len({float(value) for values in runs.values() for value in values}) == 4

    def test_starts_from_the_weights_that_init_makes_where_it_is_given(self) -> None:
        learn = toy_learner(opt_func=momentum_sgd)
        same = report(learn, wds=[0.0, 0.1]).results["weight_decay"]
        new = report(learn, wds=[0.0, 0.1], init=new_model).results["weight_decay"]
        assert not np.array_equal(same[0.0], new[0.0])

    def test_varies_one_thing_at_a_time(self) -> None:
        alone = report(make(), dropouts=[0.0, 0.5]).results["dropout"]
        both = report(make(), wds=[0.0, 0.5], dropouts=[0.0, 0.5]).results
        assert list(both) == ["weight_decay", "dropout"]
        assert {p: values.tolist() for p, values in both["dropout"].items()} == {
            p: values.tolist() for p, values in alone.items()
        }

    def test_leaves_nothing_behind(self) -> None:
        learn = make()
        learn.fit(1)
        before = LearnerState(learn)
        report(learn, wds=[0.0, 0.5], dropouts=[0.0, 0.5], batch_sizes=[4, 16], metric="mse")
        assert before.changes(LearnerState(learn)) == []

    def test_leaves_nothing_behind_after_an_error(self) -> None:
        learn = make()
        before = LearnerState(learn)

        def fail(learn: Learner) -> None:
            if learn.training and learn.n_updates == 3:
                raise KeyboardInterrupt

        with learn.added_cbs([Callback(after_loss=fail)]), pytest.raises(KeyboardInterrupt):
            report(learn, dropouts=[0.0, 0.5])
        assert before.changes(LearnerState(learn)) == []


def made(metric: str = "accuracy", **runs: list[float]) -> RegularizationReport:
    """Return a report of dropouts 0, 0.1, ... with these ends."""
    ends = {i / 10: np.array(values) for i, values in enumerate(runs.values())}
    return RegularizationReport({"dropout": ends}, metric, less_is_better=metric == "valid_loss")


class TestTheRecommendation:
    def test_is_the_best_where_the_others_are_worse_beyond_the_spread(self) -> None:
        # The second leads by 0.1, 0.1 and 0.16: 0.12, with a standard error of 0.02.
        found = made(a=[0.7, 0.8, 0.7], b=[0.8, 0.9, 0.86])
        assert found.preferred("dropout") == [0.1]
        assert found.recommendation("dropout") == "dropout: 0.1 is best"

    def test_is_less_of_a_loss(self) -> None:
        found = made("valid_loss", a=[0.7, 0.8, 0.7], b=[0.8, 0.9, 0.86])
        assert found.recommendation("dropout") == "dropout: 0 is best"

    def test_says_so_where_there_is_no_difference_beyond_the_spread(self) -> None:
        # A lead of -0.1, 0.1 and 0.3: 0.1, with a standard error of 0.115.
        found = made(a=[0.8, 0.7, 0.5], b=[0.7, 0.8, 0.8])
        assert found.preferred("dropout") == [0.1, 0.0]
        assert found.recommendation("dropout") == "dropout: no difference beyond the spread"

    def test_compares_seed_by_seed(self) -> None:
        # Seeds differ far more than the settings, which differ by about 0.01 under each.
        found = made(a=[0.1, 0.5, 0.9], b=[0.11, 0.511, 0.912])
        assert found.preferred("dropout") == [0.1]

    def test_names_those_that_are_no_worse_than_the_best(self) -> None:
        found = made(a=[0.5, 0.5, 0.5], b=[0.9, 0.8, 0.9], c=[0.8, 0.9, 0.9])
        said = "dropout: 0.1 is best (0.2 no worse beyond the spread)"
        assert found.recommendation("dropout") == said

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_is_never_a_setting_that_diverged_with_one_seed(self, bad: float) -> None:
        assert made("valid_loss", a=[0.1, 0.1, bad], b=[2.0, 2.1, 2.2]).preferred("dropout") == [
            0.1
        ]
        none = made("valid_loss", a=[0.1, 0.1, bad], b=[2.0, bad, 2.2])
        assert none.preferred("dropout") == []
        assert "lower lr_max" in none.recommendation("dropout")

    def test_is_printed_below_mean_and_spread_of_each_setting(self) -> None:
        header, first, second, said, seeds = repr(
            made(a=[0.7, 0.8, 0.7], b=[0.8, 0.9, 0.86])
        ).splitlines()
        assert header.split() == ["dropout", "mean", "accuracy", "spread"]
        assert first.split() == ["0", "0.7333", "0.058"]
        assert second.split() == ["0.1", "0.8533", "0.05"]
        assert said == "dropout: 0.1 is best"
        assert seeds == "spread: the standard deviation over 3 seeds"

    def test_finds_that_much_too_large_a_decay_is_worse(self) -> None:
        found = toy_learner(32).regularization_report(0.05, wds=[0.0, 5.0], seeds=range(3))
        assert found.preferred("weight_decay") == [0.0]


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "nothing to vary: give wds, dropouts or batch_sizes"),
            ({"wds": [0.1]}, "a list of 2 or more values of weight_decay"),
            ({"wds": [0.1, 0.1]}, "comes twice"),
            ({"wds": [0.1, -0.1]}, "must be finite and not negative"),
            ({"dropouts": [0.1, 1.5]}, "a dropout is a fraction between 0 and 1"),
            ({"batch_sizes": [4, 0]}, "batch_size must be at least 1"),
            ({"wds": [0.0, 0.1], "seeds": [3]}, "the spread needs 2 seeds or more"),
            ({"wds": [0.0, 0.1], "metric": "accuracy"}, "must be one of valid_loss, mse"),
            ({"wds": [0.0, 0.1], "n_epoch": 0}, "n_epoch"),
        ],
    )
    def test_is_what_cannot_be_before_the_first_fit(self, options: Any, message: str) -> None:
        seen: list[Any] = []
        learn = make(cbs=(Callback(before_fit=seen.append),))
        with pytest.raises(ValueError, match=message):
            report(learn, **options)
        assert seen == []

    def test_is_dropout_for_a_model_that_has_none(self) -> None:
        with pytest.raises(ValueError, match=r"the model has no nn\.Dropout: add one"):
            report(toy_learner(), dropouts=[0.0, 0.5])

    def test_is_a_loader_whose_batch_size_cannot_change(self) -> None:
        learn = toy_learner()
        learn.dls.train = list(learn.dls.train)
        with pytest.raises(TypeError, match="cannot change the batch size of a list"):
            report(learn, batch_sizes=[4, 8])

    def test_is_batch_sizes_where_a_schedule_says_them(self) -> None:
        learn = make(cbs=(BatchSizeSchedule({0: 16}),))
        with pytest.raises(ValueError, match="where BatchSizeSchedule says how large batches are"):
            report(learn, batch_sizes=[4, 8])
        with learn.removed_cbs(BatchSizeSchedule):
            assert list(report(learn, batch_sizes=[4, 8]).results["batch_size"]) == [4, 8]

    def test_is_a_learner_without_validation(self) -> None:
        learn = toy_learner()
        learn.dls.valid = None
        with pytest.raises(ValueError, match="no validation loader: give it DataLoaders"):
            report(learn, wds=[0.0, 0.1])

    def test_is_weight_decay_where_the_optimizer_has_none(self) -> None:
        with pytest.raises(ValueError, match="Rprop has no hyperparameter 'weight_decay'"):
            report(toy_learner(opt_func=Rprop), wds=[0.0, 0.1])
