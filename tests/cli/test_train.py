"""`train` writes a folder with all of a run, goes on with one, and `predict` reads it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from onecycle import load_predictor
from onecycle.cli import main, models
from onecycle.cli.problem import Problem

pytestmark = pytest.mark.slow

TRAIN = ["--arch", "digits_cnn", "--resize", "8@0,16@0.5", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes that differ in their brightness."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, n in (("train", 40), ("valid", 10)):
        for name, base in (("dark", 0), ("light", 100)):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(base, base + 150, (16, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    arguments = ["train", str(data), *TRAIN, "--epochs", "3", "--augment", "flip,crop"]
    arguments += ["--tracker", "csv,jsonl"]
    assert main([*arguments, "--checkpoint", str(folder)]) == 0
    return folder, arguments


def test_the_folder_has_record_pictures_best_model_and_predictor(run):
    folder, _ = run
    assert {file.name for file in folder.iterdir()} == {
        *("best.pt", "checkpoints", "confusion.png", "epochs.csv", "lr_find.png"),
        *("model.onecycle", "record.csv", "record.png", "run.json", "updates.jsonl"),
    }
    with (folder / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    with (folder / "record.csv").open(newline="") as file:
        updates = list(csv.DictReader(file))
    found = json.loads((folder / "run.json").read_text())["lr_found"]
    assert len(updates) == 30
    assert max(float(row["lr"]) for row in updates) == pytest.approx(found, rel=0.02)
    height, width, _ = imread(folder / "record.png").shape
    assert width > 3 * height
    height, width, _ = imread(folder / "confusion.png").shape
    assert 500 < height < width
    lines = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "update" in line] == list(range(1, 31))
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]


def test_the_predictor_is_the_best_epoch(run, data):
    folder, _ = run
    predictor = load_predictor(folder / "model.onecycle")
    assert predictor.classes == ["dark", "light"]
    files = sorted((data / "valid").rglob("*.png"))
    found = predictor.predict_images(files)
    right = sum(next(iter(f)) == p.parent.name for f, p in zip(found, files, strict=True))
    with (folder / "epochs.csv").open(newline="") as file:
        best = max(float(row["accuracy"]) for row in csv.DictReader(file))
    assert right / len(files) == pytest.approx(best)
    assert best > 0.9


def test_predict_prints_the_likeliest_classes_of_each_image(run, data, capsys):
    image = data / "valid" / "light" / "0.png"
    assert main(["predict", str(run[0]), str(image), str(image), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"{image}: light \d+\.\d %", lines[0])


def test_a_run_that_has_ended_ends_again_in_the_same_model(run, capsys):
    folder, arguments = run
    before = load_predictor(folder / "model.onecycle")(torch.ones(2, 3, 16, 16))
    assert main([*arguments, "--checkpoint", str(folder)]) == 0
    assert "goes on with a run" in capsys.readouterr().out
    after = load_predictor(folder / "model.onecycle")(torch.ones(2, 3, 16, 16))
    assert torch.equal(before, after)


def test_another_run_in_the_same_folder_is_refused_by_what_differs(run, capsys):
    folder, arguments = run
    assert main([*arguments, "--checkpoint", str(folder), "--epochs", "4"]) == 2
    assert "holds another run: epochs was 3, and is 4 now" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(data, tmp_path, how):
    command = [sys.executable, "-m", "onecycle", "train", str(data), *TRAIN]
    command += ["--epochs", "8", "--lr-max", "0.01"]
    killed = [*command, "--checkpoint", str(tmp_path / "killed")]
    with subprocess.Popen(killed, stdout=subprocess.PIPE, cwd=os.getcwd()) as process:
        while not list((tmp_path / "killed").glob("checkpoints/*.pt")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(how)
        process.wait()
    assert process.returncode == (75 if how == signal.SIGTERM else -how)
    assert not (tmp_path / "killed" / "model.onecycle").exists()
    for name in ("killed", "whole"):
        again = [*command, "--checkpoint", str(tmp_path / name)]
        done = subprocess.run(again, check=True, capture_output=True, text=True, cwd=os.getcwd())
        assert ("goes on with a run" in done.stdout) == (name == "killed")
    x = torch.rand(4, 3, 16, 16)
    found = [load_predictor(tmp_path / n / "model.onecycle")(x) for n in ("killed", "whole")]
    assert torch.equal(*found)


#: Ten minutes go by with each look at the clock; at the sixth update the process is killed.
SLOW_AND_KILLED = """
import os, signal, sys
from onecycle.callbacks import checkpoint
from onecycle.cli import main

class Clock:
    looks = 0
    def monotonic():
        Clock.looks += 1
        if Clock.looks == 12:  # one before the fit, two of each update that is saved
            os.kill(os.getpid(), signal.SIGKILL)
        return 601.0 * Clock.looks

checkpoint.time = Clock
main(sys.argv[1:])
"""


def test_a_run_that_was_killed_in_a_long_first_epoch_goes_on_within_it(data, tmp_path):
    command = ["train", str(data), *TRAIN, "--epochs", "1", "--lr-max", "0.01"]
    command += ["--tracker", "csv,jsonl"]
    slow = [sys.executable, "-c", SLOW_AND_KILLED, *command, "--checkpoint", str(tmp_path / "a")]
    assert subprocess.run(slow, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / "a" / "checkpoints" / "checkpoint-000004.pt").exists()
    assert not (tmp_path / "a" / "best.pt").exists()
    for name in "ab":
        done = [sys.executable, "-m", "onecycle", *command, "--checkpoint", str(tmp_path / name)]
        said = subprocess.run(done, check=True, capture_output=True, text=True)
        assert ("epoch 0, after 5 updates" in said.stderr) == (name == "a")
    x = torch.rand(4, 3, 16, 16)
    found = [load_predictor(tmp_path / n / "model.onecycle")(x) for n in "ab"]
    assert torch.equal(*found)
    a, b = ((tmp_path / n / "updates.jsonl").read_text().splitlines()[1:-1] for n in "ab")
    assert a == b
    assert len(a) == 10


def test_find_draws_the_range_test_in_the_terminal_and_to_a_picture(data, tmp_path, capsys):
    picture = tmp_path / "find.png"
    assert main(["find", str(data), *TRAIN, "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "range test of" in shown
    assert shown.count("*") > 40
    assert imread(picture).shape[1] > 600


def test_weights_of_a_file_are_taken_but_for_layers_of_another_shape(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    other = models.make("digits_cnn", 5)
    torch.save(other.state_dict(), path)
    model = models.make("digits_cnn", 2)
    assert models.load_weights(model, path) == ["12.weight", "12.bias"]
    assert torch.equal(model[0].weight, other[0].weight)
    with pytest.raises(Problem, match="holds the weights of another model"):
        models.load_weights(models.make("resnet9", 2), path)
    path.write_text("text")
    with pytest.raises(Problem, match="cannot be read as weights"):
        models.load_weights(model, path)


@pytest.mark.parametrize("arch", ["resnet18", "googlenet", "resnet56"])
def test_a_model_by_name_has_as_many_classes_as_there_are(arch):
    model = models.make(arch, 3).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_two_processes_train_one_model_whose_first_one_writes(data, run, tmp_path):
    command = ["train", str(data), *TRAIN, "--epochs", "2", "--tracker", "csv,jsonl"]
    command += ["--batch-size", "4", "--cache", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "onecycle"]
    two = [*launcher, *command, "--checkpoint", str(tmp_path / "two")]
    for word in ("a new run", "goes on with a run"):
        done = subprocess.run(two, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count(f"onecycle train: {word}") == 1
        assert done.stdout.count("The best epoch") == 1
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert names == {file.name for file in run[0].iterdir()}
    lines = (tmp_path / "two" / "updates.jsonl").read_text().splitlines()
    updates = [line["update"] for line in map(json.loads, lines) if "update" in line]
    assert updates == list(range(1, 21))  # of 80 images, 4 for each of them
    predictor = load_predictor(tmp_path / "two" / "model.onecycle")
    (found,) = predictor.predict_images([data / "valid" / "dark" / "0.png"])
    assert next(iter(found)) == "dark"


@pytest.mark.data
@pytest.mark.skipif("ONECYCLE_DATA" not in os.environ, reason="needs ONECYCLE_DATA")
def test_real_images_find_train_killed_gone_on_with_and_predict(tmp_path, capsys):
    for part, n in (("train", 200), ("test", 50)):
        for folder in (Path(os.environ["ONECYCLE_DATA"]) / "cifar10" / part).iterdir():
            (tmp_path / "data" / part / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:n]:
                with Image.open(file) as image:
                    image.save(tmp_path / "data" / part / folder.name / f"{file.stem}.png")
    common = [str(tmp_path / "data"), "--arch", "digits_cnn", "--resize", "32"]
    common += ["--batch-size", "16", "--device", "cpu"]
    assert main(["find", *common]) == 0
    found = float(re.search(r"(?:knee|mini_cycles) +(\d\S+)", capsys.readouterr().out)[1])
    assert 1e-4 < found < 1
    train = ["train", *common, "--epochs", "1", "--lr-max", str(found)]
    train += ["--checkpoint", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, "-m", "onecycle", *train]) as process:
        while not list((tmp_path / "run").glob("checkpoints/*.pt")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    assert main(train) == 0
    said = capsys.readouterr().out
    assert "goes on with a run" in said
    assert float(re.search(r"accuracy (\S+) %", said)[1]) > 20
    image = next((tmp_path / "data" / "test" / "ship").iterdir())
    assert main(["predict", str(tmp_path / "run"), str(image), "--top", "10"]) == 0
    shares = re.findall(r"(\w+) (\d+\.\d) %", capsys.readouterr().out)
    assert len(shares) == 10
    assert sum(float(share) for _, share in shares) == pytest.approx(100, abs=0.6)
