"""`onecycle demo` does what its help says, and its errors are sentences."""

import csv
import re
import statistics
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
from matplotlib.image import imread

from onecycle.cli import main


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 0
    return capsys.readouterr().out


def accuracy_of(output: str) -> float:
    """Read the last line, as a person would."""
    last = output.strip().splitlines()[-1]
    found = re.fullmatch(r"Accuracy on 360 images it never trained on: (\d+\.\d\d) %", last)
    assert found is not None, last
    return float(found[1])


@pytest.mark.slow
def test_the_demo_prints_the_accuracy_last_and_writes_picture_and_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path, capsys, "--epochs", "2", "--lr-max", "0.01", "--seed", "3")

    assert accuracy_of(output) > 80
    assert "lr_max=0.01" in output
    height, width, _ = imread(tmp_path / "onecycle_demo.png").shape
    assert width > 2 * height > 800
    with (tmp_path / "onecycle_demo.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 23
    assert float(rows[-1]["lr"]) == 0.01 / 1e5
    assert f"{100 * float(rows[-1]['accuracy']):.2f}" == f"{accuracy_of(output):.2f}"


@pytest.mark.slow
def test_the_demo_says_what_the_range_test_suggests_and_trains_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path, capsys, "--epochs", "1")

    suggested = re.search(r"it suggests (\S+) \(knee", output)
    used = re.search(r"fit_one_cycle\(1, lr_max=(\S+)\)", output)
    assert suggested is not None
    assert used is not None
    assert float(suggested[1]) == pytest.approx(float(used[1]), rel=0.01)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_accuracy_and_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for name in ("a", "b"):
        run(tmp_path / name, capsys, "--epochs", "1", "--lr-max", "0.01", "--seed", "5")
        records.append((tmp_path / name / "onecycle_demo.csv").read_bytes())
    assert records[0] == records[1]


@pytest.mark.slow
def test_the_demo_reaches_98_5_percent_in_the_mean_of_five_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = [accuracy_of(run(tmp_path, capsys, "--seed", str(seed))) for seed in range(5)]
    assert statistics.mean(accuracies) >= 98.5, accuracies


def test_without_network_the_message_says_what_was_tried_and_where_files_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert main(["demo", "--data", "mnist", "--data-dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("onecycle: ")
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "train-images-idx3-ubyte" in message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "expected a whole number of at least 1; got '0'"),
        (["--lr-max", "-1"], "expected a number above 0; got '-1'"),
        (["--batch-size", "x"], "expected a whole number of at least 1; got 'x'"),
        (["--data", "cat"], "invalid choice: 'cat'"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["demo", *arguments])
    assert sentence in capsys.readouterr().err


def test_a_device_that_is_not_there_is_an_error_message_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--device", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
