"""The figures of the notebooks can be drawn anew, and show what they say."""

import runpy
from pathlib import Path

import pytest

FIGURES = Path(__file__).parent / "figures"


@pytest.mark.slow
def test_the_figure_of_the_policies_shows_every_policy_and_is_small(tmp_path):
    module = runpy.run_path(str(FIGURES / "policies.py"))
    module["draw"](tmp_path / "policies.png")
    size = (tmp_path / "policies.png").stat().st_size
    assert 20_000 < size < 150_000
    for rate, momentum in module["POLICIES"].values():
        assert 0.0 <= min(rate([0, 0.5, 1])) <= rate(0.1) <= 1.0
        assert momentum is None or 0.7 < momentum(0.5) < 1.0
