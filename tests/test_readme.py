"""The README's examples run, and print what it says they print."""

import os
import re
from pathlib import Path

import matplotlib
import pytest

from onecycle import CancelFit, Progress
from onecycle.testing import check_callback, toy_learner

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
#: A Python block, and the output that follows it, if any.
EXAMPLES = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:[.:]\d+)?(?:e[-+]\d+)?")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> list[tuple[str, str, dict[str, object]]]:
    """Run the examples one after the other; return what they should and did print."""
    import contextlib
    import io

    matplotlib.use("Agg")
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("readme"))
    names: dict[str, object] = {}
    results = []
    for code, expected in EXAMPLES:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        results.append((expected, printed.getvalue(), names))
    os.chdir(before)
    return results


@pytest.mark.slow
def test_the_examples_print_what_the_readme_says_up_to_rounding(ran) -> None:
    """Compare words exactly, and numbers loosely: another CPU rounds otherwise."""
    assert len(ran) == 7
    assert len(EXAMPLES[0][0].strip().splitlines()) <= 12
    for expected, printed, _ in ran[:5]:
        lines = [line for line in printed.splitlines() if not line.startswith("stop_reason")]
        if "accurate enough" in expected or expected.strip() == "23":
            assert lines[-1] == expected.strip()
            continue
        assert NUMBER.sub("#", "\n".join(lines)).split() == NUMBER.sub("#", expected).split()


@pytest.mark.slow
def test_the_example_reaches_the_accuracy_it_prints(ran) -> None:
    learn = ran[0][2]["learn"]
    values = learn.recorder.history["accuracy"].values
    assert values[4] == pytest.approx(0.9917, abs=0.01)


@pytest.mark.slow
def test_the_fit_of_the_readme_is_resumed_from_its_checkpoints_and_extended(ran) -> None:
    learn = ran[-1][2]["learn"]
    assert learn.n_updates == learn.n_updates_planned == 6 * 23
    lrs = learn.recorder.history["lr"].values
    assert lrs[-38] == lrs[-39] > lrs[-37]  # from the checkpoint after 100 updates
    assert lrs[-1] == 1e-3 / 1e5


@pytest.mark.slow
def test_the_callbacks_of_the_readme_keep_the_contract(ran) -> None:
    names = ran[-1][2]
    check_callback(names["GradientNorm"])
    assert issubclass(names["StopAt"], names["Callback"])
    assert issubclass(names["CancelFit"], CancelFit)


def test_the_callback_of_the_readme_has_six_lines() -> None:
    code = EXAMPLES[1][0]
    body = code[code.index("class GradientNorm") : code.index("\n\nlearn.fit")]
    assert len(body.splitlines()) <= 6


def test_the_loop_of_the_readme_is_the_one_that_is_drawn(capsys) -> None:
    learn = toy_learner()
    learn.cbs.append(Progress())
    learn.show_training_loop()
    assert capsys.readouterr().out.strip() in README
