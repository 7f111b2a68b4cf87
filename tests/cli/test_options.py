"""Every bad argument of `train`, `find` and `predict` is a sentence, before anything is written."""

import re
import sys
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest

from onecycle.cli import main, options
from onecycle.cli.options import Sizes
from onecycle.data import loaders
from onecycle.vision import cache


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of classes without images, in which nothing may be read or written."""
    for part in ("train", "valid"):
        (tmp_path / "data" / part / "cat").mkdir(parents=True)
    monkeypatch.setattr(cache, "open_cache", lambda *a: pytest.fail("an image was read"))
    monkeypatch.setattr(loaders, "TensorLoader", lambda *a: pytest.fail("a loader was made"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments, capsys):
    """Run a command that must fail; return what it says."""
    try:
        status = main(arguments)
    except SystemExit as error:  # of argparse
        status = error.code
    assert status == 2
    done = capsys.readouterr()
    assert done.out == ""
    return done.err


TRAIN = ["train", "data", "--arch", "resnet18", "--epochs", "1"]
BAD = [
    (["train", "data", "--epochs", "1"], "--arch"),
    (["train", "data", "--arch", "resnet18"], "--epochs"),
    ([*TRAIN, "--epochs", "0"], "expected a whole number of at least 1; got '0'"),
    ([*TRAIN, "--arch", "resnet1"], "there is no model 'resnet1': did you mean one of resnet"),
    ([*TRAIN, "--lr-max", "-1"], "expected a number above 0; got '-1'"),
    ([*TRAIN, "--lr-max", "nan"], "expected a number above 0; got 'nan'"),
    ([*TRAIN, "--wd", "-0.1"], "expected a number of at least 0; got '-0.1'"),
    ([*TRAIN, "--policy", "square"], "invalid choice: 'square'"),
    ([*TRAIN, "--precision", "fp8"], "invalid choice: 'fp8'"),
    ([*TRAIN, "--batch-size", "x"], "expected a whole number of at least 1; got 'x'"),
    ([*TRAIN, "--resize", "128@0,224@0"], "points that begin with @0 and grow"),
    ([*TRAIN, "--resize", "128@0.1,224@0.4"], "points that begin with @0 and grow"),
    ([*TRAIN, "--resize", "128,224@1"], "points that begin with @0 and grow"),
    ([*TRAIN, "--resize", "big"], "expected a side in pixels"),
    ([*TRAIN, "--resize", "30@0,64@0.5"], "sides that change must be multiples of 4"),
    ([*TRAIN, "--augment", "flip,spin"], "expected some of flip, crop"),
    ([*TRAIN, "--augment", "flip,flip"], "each once"),
    ([*TRAIN, "--tracker", "paper"], "expected some of csv, jsonl, tensorboard, wandb, mlflow"),
    ([*TRAIN, "--device", "nonsense"], "there is no device 'nonsense'"),
    ([*TRAIN, "--seed", "-1"], "expected a seed from 0"),
    ([*TRAIN, "--weights", "none.pt"], "there is no file of weights none.pt"),
    ([*TRAIN, "--checkpoint", "file"], "file is a file: expected a folder"),
    ([*TRAIN, "--checkpoint", "full"], "full is not empty, and holds no run"),
    (["train", "nowhere", *TRAIN[2:]], "there is no folder nowhere"),
    (["train", "data/train", *TRAIN[2:]], "has no folder train"),
    (["train", "MNIST", *TRAIN[2:], "--root", "file"], "--root file: file is a file"),
    (["train", "MNST", *TRAIN[2:]], "there is no folder MNST: give one with train/<class>/"),
    ([*TRAIN, "--cache", "file/below"], "file is a file"),
    ([*TRAIN, "--weights", "file"], "file cannot be read as weights"),
    (["find", "data", "--arch", "resnet18", "--plot", "test"], "that ends in one of"),
    (["find", "data", "--arch", "resnet18", "--plot", "file/a.png"], "file is a file"),
    (["find", "nowhere", "--arch", "resnet18"], "there is no folder nowhere"),
    (["predict", "nowhere", "file"], "there is no nowhere/model.onecycle"),
    (["predict", "nowhere"], "IMAGE"),
    (["fly"], "invalid choice: 'fly'"),
    ([], "COMMAND"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda each: str(each)[-40:])
def test_a_bad_argument_is_refused_with_a_sentence(arguments, sentence, tree, capsys):
    (tree / "file").write_text("text")
    (tree / "full").mkdir()
    (tree / "full" / "thesis").write_text("text")
    before = sorted(tree.rglob("*"))
    assert sentence in refused(arguments, capsys)
    assert sorted(tree.rglob("*")) == before


def test_processes_that_do_not_know_each_other_are_refused(tree, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one of 2 processes, and does not know the others" in refused(TRAIN, capsys)


@pytest.mark.parametrize("option", ["--cache", "--checkpoint"])
def test_a_folder_that_cannot_be_written_to_is_refused(option, tree, capsys, monkeypatch):
    monkeypatch.setattr(options.os, "access", lambda path, mode: path != tree / "locked")
    (tree / "locked").mkdir()
    arguments = [*TRAIN, option, str(tree / "locked" / "new")]
    assert "locked cannot be written to: name another folder" in refused(arguments, capsys)


def test_a_tracker_whose_package_is_missing_is_refused_with_the_command(tree, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = refused([*TRAIN, "--tracker", "csv,wandb"], capsys)
    assert "pip install 'onecycle[trackers]'" in said
    assert not (tree / "onecycle_run").exists()


def test_a_data_set_that_is_not_there_is_one_sentence_and_no_run(tree, capsys, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert main(["train", "mnist", *TRAIN[2:], "--root", "here"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("onecycle: MNIST is not complete in here, and could not be downloaded: ")
    assert "Put what torchvision.datasets.MNIST('here') reads there" in said
    assert not (tree / "onecycle_run").exists()


def test_a_folder_of_images_goes_before_the_data_set_of_its_name(tree):
    assert options.named("mnist") == options.named("MNIST") == "MNIST"
    (tree / "MNIST" / "raw").mkdir(parents=True)  # as torchvision leaves it
    assert options.named("MNIST") == "MNIST"
    (tree / "MNIST" / "train").mkdir()
    assert options.named("MNIST") is None


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert re.match(r"onecycle \S+.*, torch \d", capsys.readouterr().out)


def test_sides_hold_from_their_points_on():
    sizes = Sizes("128@0,160@0.25,224@0.4")
    assert sizes.largest == 224
    found = sizes.schedule(np.array([0.0, 0.24, 0.25, 0.39, 0.41, 1.0]))
    assert found.tolist() == [128, 128, 160, 160, 224, 224]
    assert Sizes("30").schedule is None
