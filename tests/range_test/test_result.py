"""What a range test found: in numbers, in words and drawn."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from scripted_loss import Scripted, scripted
from torch.optim import SGD

from onecycle import Learner, LRFindResult, OneCycleSchedule, minimum, slide, steep, valley
from onecycle.range_test.spreads import spread
from onecycle.testing import toy_learner

RULES = (valley, slide, minimum, steep)


def _rule(name: str, lr: float) -> Any:
    """Make a rule that says one rate, whatever it sees."""

    def rule(lrs: Any, losses: Any) -> float:
        return lr

    rule.__name__ = name
    return rule


@pytest.fixture(scope="module")
def found() -> tuple[Learner, LRFindResult]:
    """A range test with a clear valley."""
    learn = toy_learner(
        n_batches=100, batch_size=32, opt_func=partial(SGD, momentum=0.9), metrics=[]
    )
    return learn, learn.lr_find(1e-5, 10, 100, show_plot=False, suggest_funcs=RULES)


class TestResult:
    def test_has_a_suggestion_of_each_rule_among_the_rates(self, found: Any) -> None:
        _, result = found
        assert list(result.suggestions) == ["valley", "slide", "minimum", "steep"]
        assert result.suggestion == result.suggestions["valley"]
        for name in ("valley", "slide", "steep"):
            assert result.suggestions[name] in result.lrs
        assert result.suggestions["minimum"] * 10 in result.lrs

    def test_each_rule_is_that_function_of_the_trimmed_curve(self, found: Any) -> None:
        _, result = found
        kept = slice(10, -5)
        for rule in RULES:
            expected = rule(result.lrs[kept], result.smoothed[kept])
            assert result.suggestions[rule.__name__] == expected

    def test_has_a_pair_for_a_cycle(self, found: Any) -> None:
        _, result = found
        assert result.lrs[0] < result.lr_min < result.lr_max < result.lrs[-1]
        assert result.lr_min == result.lr_max / 10

    def test_a_fit_at_the_suggestion_learns_and_one_far_above_does_not(self, found: Any) -> None:
        _, result = found
        ends = []
        for lr in (result.suggestion, 5 * result.lrs[-1]):
            learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9), metrics=[])
            learn.fit(1, lr=lr)
            ends.append(learn.validate()["valid_loss"])
        assert ends[0] < 0.2
        assert not ends[1] < 1

    def test_prints_a_line_for_each_rule_with_its_spread(self, found: Any) -> None:
        _, result = found
        first, *rules, vote, cycle = repr(result).splitlines()
        assert first == f"range test of {len(result.lrs)} updates: {result.stop_reason}"
        assert [line.split()[0] for line in rules] == list(result.suggestions)
        low, high = result.spreads["valley"]
        assert f"valley   {result.suggestion:.2e}  ({low:.1e} to {high:.1e})" in rules
        assert vote.startswith(f"vote     {result.vote.lr:.2e}  (")
        assert cycle == f"cycle    {result.lr_min:.2e} to {result.lr_max:.2e}"

    def test_has_the_spread_of_each_rule_and_the_vote(self, found: Any) -> None:
        _, result = found
        expected = spread(
            result.lrs, result.losses, smoothed=result.smoothed, num_it=100, rules=RULES
        ).around(result.suggestions)
        assert result.spreads == expected.rules
        assert result.vote == expected.vote

    def test_resamples_once_and_only_when_it_is_asked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        monkeypatch.setattr(
            "onecycle.range_test.result.spread",
            lambda *args, **options: calls.append(1) or spread(*args, **options),
        )
        learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9), metrics=[])
        result = learn.lr_find(1e-5, show_plot=False)
        assert calls == []
        first = (repr(result), result.spreads, result.vote)
        assert (repr(result), result.spreads, result.vote) == first
        assert calls == [1]

    def test_of_one_rule_names_no_vote(self) -> None:
        learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9), metrics=[])
        result = learn.lr_find(1e-5, show_plot=False, suggest_funcs=[valley])
        assert "valley" in repr(result)
        assert "vote" not in repr(result)

    def test_without_a_valley_has_a_reason_and_no_numbers(self) -> None:
        result = scripted([2.0] * 100, 100, suggest_funcs=RULES)
        assert "never falls clearly" in str(result.reason)
        assert result.suggestions == dict.fromkeys(("valley", "slide", "minimum", "steep"))
        assert result.suggestion is result.lr_min is result.lr_max is result.vote is None
        assert result.spreads == result.suggestions
        assert len(repr(result).splitlines()) == 2
        assert "never falls clearly" in repr(result)

    def test_is_unsure_where_two_rules_differ_by_more_than_twenty_times(self, found: Any) -> None:
        _, result = found
        apart = replace(result, suggestions={"knee": 0.1, "valley": 0.004, "slide": None})
        assert apart.unsure == "unsure: knee says 1.0e-01, valley 4.0e-03, 25 times less"
        near = replace(result, suggestions={"knee": 0.1, "valley": 0.006})
        assert near.unsure is None
        assert replace(result, suggestions={"knee": None}).unsure is None

    def test_prints_that_it_is_unsure(self) -> None:
        result = toy_learner(100, 32).lr_find(show_plot=False)
        rules = tuple(_rule(name, lr) for name, lr in (("low", 1e-6), ("high", 1e-1)))
        apart = replace(result, suggestions={"low": 1e-6, "high": 1e-1}, rules=rules)
        assert "unsure: high says 1.0e-01, low 1.0e-06, 100000 times less" in repr(apart)

    @pytest.mark.parametrize("num_it", [2, 5, 14])
    def test_of_few_updates_says_so(self, num_it: int) -> None:
        result = toy_learner().lr_find(1e-5, 1e-3, num_it, show_plot=False)
        assert len(result.losses) == num_it
        assert result.suggestion is None
        assert "10 are needed" in str(result.reason)

    def test_without_rules_has_no_suggestion(self, found: Any) -> None:
        learn, _ = found
        result = learn.lr_find(1e-5, 10, 100, show_plot=False, suggest_funcs=())
        assert result.suggestion is None
        assert result.suggestions == result.spreads == {}
        assert result.vote is None
        assert result.lr_max is not None
        assert repr(result).splitlines()[1:] == [
            f"cycle  {result.lr_min:.2e} to {result.lr_max:.2e}"
        ]


class TestWhatIsAsked:
    @pytest.mark.parametrize("asked", [valley, "valley", [valley], ["valley"], (valley,)])
    def test_is_a_rule_or_several_by_function_or_name(self, asked: Any) -> None:
        learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9), metrics=[])
        result = learn.lr_find(1e-5, show_plot=False, suggest_funcs=asked)
        assert list(result.suggestions) == ["valley"]
        assert result.suggestion == result.valley

    def test_has_every_rule_by_its_name_whether_it_was_asked_or_not(self, found: Any) -> None:
        learn, result = found
        one = learn.lr_find(1e-5, 10, 100, show_plot=False, suggest_funcs=valley)
        for name, rate in result.suggestions.items():
            assert getattr(one, name) == getattr(result, name) == rate
        assert one.suggestion == one.valley != one.minimum

    def test_is_none_by_every_name_where_nothing_is_suggested(self) -> None:
        result = scripted([2.0] * 100, 100, suggest_funcs=RULES)
        assert result.valley is result.minimum is result.slide is result.steep is None

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ("vally", "must be one of .*'valley'.*got 'vally'"),
            (3, "a rule such as minimum, its name, or a list of them; got 3"),
            ([valley, 3], "must be a function .*; got 3"),
            ([valley, "valley"], "comes twice"),
        ],
    )
    def test_is_refused_before_the_test_where_it_is_no_rule(self, asked: Any, message: str) -> None:
        learn = toy_learner(loss_func=Scripted([]))  # the first batch would fail
        with pytest.raises((TypeError, ValueError), match=message):
            learn.lr_find(show_plot=False, suggest_funcs=asked)


@pytest.mark.parametrize(
    "train",
    [
        lambda learn, lr: learn.fit(1, lr),
        lambda learn, lr: learn.fit_one_cycle(1, lr),
        lambda learn, lr: learn.fit_one_cycle(1, slice(1e-4, lr)),
        lambda learn, lr: learn.fit_flat_cos(1, lr),
        lambda learn, lr: learn.fit_sgdr(1, 1, lr),
        lambda learn, lr: learn.fit_clr_beta(1, lr, (10, 10)),
        lambda learn, lr: learn.fine_tune(1, lr),
        lambda learn, lr: learn.fit(1, cbs=[OneCycleSchedule(lr)]),
        lambda learn, lr: learn.compare(1, lr, ["constant"], [0]),
        lambda learn, lr: learn.regularization_report(lr, wds=[0.0, 0.1], seeds=[0, 1]),
    ],
)
def test_nothing_trains_at_the_rate_of_a_test_that_found_nothing(train: Any) -> None:
    learn = toy_learner(splitter=lambda model: [model[0].parameters(), model[2].parameters()])
    found = learn.lr_find(1e-9, 1e-8, 20, show_plot=False)
    with pytest.raises((TypeError, ValueError), match="a range test that found nothing gives None"):
        train(learn, found.suggestion)
    assert learn.total_updates == 0


class TestText:
    def test_is_the_curve_above_the_lines(self, found: Any) -> None:
        _, result = found
        text = result.to_text()
        assert text.endswith("\n" + repr(result))
        drawn = text.removesuffix("\n" + repr(result)).splitlines()
        assert len(drawn) == 14
        assert max(map(len, drawn)) <= 72
        assert {"v", "m", "s", "|"} <= set(drawn[-1])

    def test_of_losses_that_are_not_finite_is_the_reason_alone(self) -> None:
        result = scripted([math.nan], 100)
        assert result.to_text() == repr(result)

    def test_needs_room(self, found: Any) -> None:
        with pytest.raises(ValueError, match="width must be at least 40"):
            found[1].to_text(width=20)


class TestPlot:
    def test_says_why_there_is_no_suggestion(self) -> None:
        flat = scripted([2.0] * 100, 100, suggest_funcs=RULES)
        nan = scripted([math.nan], 100)
        assert flat.plot().get_title("left").replace("\n", " ") == flat.reason
        (text,) = nan.plot().texts
        assert text.get_text().replace("\n", " ") == nan.reason

    def test_marks_every_suggestion_on_the_curve(self, found: Any) -> None:
        _, result = found
        ax = result.plot()
        labels = " ".join(ax.get_legend_handles_labels()[1])
        marked = [line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 1]
        assert marked == [*result.suggestions.values(), result.vote.lr]
        assert all(name in labels for name in result.suggestions)
        assert ax.get_xscale() == "log"

    def test_of_a_linear_test_has_a_linear_axis(self) -> None:
        result = toy_learner().lr_find(0.01, 0.1, 30, show_plot=False, linear=True)
        assert result.plot().get_xscale() == "linear"

    def test_is_drawn_where_it_is_told_and_by_the_recorder_too(self, found: Any) -> None:
        import matplotlib.pyplot as plt

        learn, result = found
        _, ax = plt.subplots()
        assert result.plot(ax=ax) is ax
        learn.recorder.lr_find_result = result
        other = learn.recorder.plot_lr_find()
        assert other is not ax
        assert len(other.get_lines()) == len(ax.get_lines())

    @pytest.mark.parametrize("show", [True, False])
    def test_is_shown_unless_told_otherwise(self, show: bool) -> None:
        import matplotlib.pyplot as plt

        toy_learner().lr_find(1e-5, 1e-3, 12, show_plot=show)
        assert bool(plt.get_fignums()) is show

    @pytest.mark.parametrize("losses", [[math.nan] * 9, [1.0, 2.0], [2.0] * 30])
    def test_is_drawn_whatever_was_found(self, losses: list[float]) -> None:
        ax = scripted(losses, len(losses)).plot()
        ax.figure.canvas.draw()
        assert ax.get_xlabel()

    def test_before_any_range_test_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"call learn\.lr_find\(\) first"):
            toy_learner().recorder.plot_lr_find()
