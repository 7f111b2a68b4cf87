"""The README's examples run, and print what it says they print."""

from pathlib import Path
from typing import Any

import matplotlib
import pytest
from page_examples import examples, run_all, words

from onecycle.testing import check_callback

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Run the examples; return what each should and did print, and the names they left."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    return run_all(README, tmp_path_factory.mktemp("readme"), names), names


@pytest.mark.slow
def test_the_examples_print_what_the_readme_says_up_to_rounding(ran) -> None:
    (first, second), names = ran
    assert words(first[1]) == words(first[0])
    assert second[1].splitlines()[-1] == second[0].strip() == "23"
    values = names["learn"].recorder.history["accuracy"].values
    assert values[4] == pytest.approx(0.9917, abs=0.01)
    check_callback(names["GradientNorm"])


def test_the_readme_is_short_and_so_are_its_examples() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150
    (first, _), (second, _) = examples(README)
    assert len(first.strip().splitlines()) <= 12
    body = second[second.index("class GradientNorm") : second.index("\n\nlearn.fit")]
    assert len(body.splitlines()) <= 6
