"""Nonsense for any parameter of any public name is refused clearly, at once, and leaves nothing.

`tests/benchmarks/refusals.py` prints what becomes of each.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.configuration
import nonsense
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nonsense import VALUES, Outcome, Subject, calls, is_nonsense, outcome, subjects

hypothesis.configuration.set_hypothesis_home_dir(tempfile.mkdtemp())

#: Counts that are valid are left small: a fit of a million epochs takes its time.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=3),
    st.integers(min_value=2**63),
    st.floats(max_value=3, allow_infinity=True),
    st.floats(min_value=2**63, allow_infinity=True),
    st.just(float("nan")),
    st.complex_numbers(),
    st.binary(max_size=8),
    st.text(st.characters(exclude_characters="/.{}", exclude_categories=("Cs",)), max_size=8),
)
ANY = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(SCALARS, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
    st.sampled_from(sorted(VALUES)).map(lambda label: VALUES[label]()),
)
PLACES = st.deferred(
    lambda: st.sampled_from([(each, name) for each in subjects() for name in each.parameters])
)
CHECKED = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything that is written be seen: in the folder that is current."""
    subjects()
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def of_value(place: tuple[Any, str], value: Any) -> Outcome:
    subject, parameter = place
    if not is_nonsense(subject, parameter, value):
        return Outcome(subject.name, parameter, repr(value), "ok")
    return outcome(subject, parameter, repr(value), value)


@settings(CHECKED, max_examples=125)
@given(PLACES, ANY)
def test_any_nonsense_is_refused_with_its_name_and_value_and_nothing_is_written(
    place: tuple[Any, str], value: Any
) -> None:
    found = of_value(place, value)
    assert found.verdict == "ok", str(found)


@pytest.mark.slow
@settings(CHECKED, max_examples=5000)
@given(PLACES, ANY)
def test_five_thousand_of_them_are(place: tuple[Any, str], value: Any) -> None:
    found = of_value(place, value)
    assert found.verdict == "ok", str(found)


@pytest.mark.slow
def test_every_kind_of_nonsense_at_every_place_is() -> None:
    found = [outcome(who, name, label, VALUES[label]()) for who, name, label in calls()]
    assert len(found) > 15_000
    assert [str(each) for each in found if each.verdict != "ok"] == []


def taken(n: int) -> None:
    """Take anything."""


def failing(n: int) -> None:
    n.bit_length()  # of a line that checks nothing


def silent(n: int) -> None:
    raise ValueError("something is wrong")


def writing(n: int) -> None:
    Path("file").write_text("half")
    raise TypeError(f"n must be an integer; got {n!r}")


def hanging(n: int) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("careless", "verdict"),
    [
        (taken, "taken without a word"),
        (failing, "another kind of error"),
        (silent, "names no argument or no value"),
        (writing, "wrote ['file']"),
        (hanging, "too slow"),
    ],
)
def test_what_is_unclear_is_found(
    careless: Callable[[int], None], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonsense, "LIMIT", 0.05)
    subject = Subject("careless", careless, {}, inspect.signature(careless).parameters)
    assert outcome(subject, "n", "text", "abc").verdict == verdict
