"""The rules that a person asks for, by function or by name."""

from collections.abc import Sequence

from onecycle.arguments import check_callable, check_one_of, shown
from onecycle.range_test.knee import knee
from onecycle.range_test.rules import Rule, minimum, slide, steep, valley

#: The rules that have a name of their own.
NAMED: dict[str, Rule] = {rule.__name__: rule for rule in (knee, minimum, valley, slide, steep)}

#: One rule or several, each a function or the name of one.
Asked = Rule | str | Sequence[Rule | str]


def as_rules(asked: Asked) -> tuple[Rule, ...]:
    """Return as functions what was asked for.

    Args:
        asked: A function ``(lrs, smoothed losses) -> rate``, a name in `NAMED`, or a list of them.

    Raises:
        TypeError: If something is neither.
        ValueError: If there is no rule of a name, or two have the same.

    Example:
        >>> [rule.__name__ for rule in as_rules(["valley", minimum])]
        ['valley', 'minimum']
        >>> as_rules("valley") == as_rules(valley)
        True
    """
    several = [asked] if isinstance(asked, str) or callable(asked) else asked
    if not isinstance(several, list | tuple | range):
        raise TypeError(
            f"suggest_funcs must be a rule such as minimum, its name, or a list of them; "
            f"got {shown(asked)}"
        )
    rules = tuple(map(_as_rule, several))
    names = [getattr(rule, "__name__", repr(rule)) for rule in rules]
    if len(set(names)) < len(names):
        raise ValueError(f"a rule comes twice, and would be one: {names}")
    return rules


def _as_rule(rule: Rule | str) -> Rule:
    if isinstance(rule, str):
        check_one_of("a rule", rule, tuple(NAMED))
        return NAMED[rule]
    if isinstance(rule, type) or not callable(rule):
        raise TypeError(
            f"a rule must be a function (lrs, losses) -> rate, or one of {tuple(NAMED)}; "
            f"got {shown(rule)}"
        )
    check_callable("a rule", rule, "lrs", "losses")
    return rule
