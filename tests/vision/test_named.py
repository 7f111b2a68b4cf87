"""Data sets of torchvision by name: all of them are asked for as they take it."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from onecycle.vision.datasets import image_steps
from onecycle.vision.named import NAMED, named_images


@pytest.mark.parametrize("name", NAMED)
def test_torchvision_has_the_set_and_its_parts_and_misses_nothing_but_files(name, tmp_path):
    known, kind = NAMED[name], getattr(datasets, name)
    assert known.train != known.valid
    for part in (known.train, known.valid):
        inspect.signature(kind).bind("root", download=True, **part)
        with pytest.raises(
            (RuntimeError, OSError), match=r"(?i)not found|download|no such"
        ):  # not a ValueError
            kind(tmp_path, download=False, **part)


@pytest.fixture
def made(monkeypatch):
    """Put a small set in the place of one of torchvision."""

    def make(name, classes=None, n=7):
        class Small:
            def __init__(self, root, download, **part):
                assert download
                assert root == Path("here")
                self.seed = next(iter(part.values())) in (True, "train", "trainval")
                if classes is not None:
                    self.classes = classes

            def __len__(self):
                return n

            def __getitem__(self, i):
                if i >= n:
                    raise IndexError
                pixels = np.random.default_rng([self.seed, i]).integers(0, 256, (9, 9), np.uint8)
                return Image.fromarray(pixels), np.int64(i % 3)

        monkeypatch.setattr(datasets, name, Small)
        return Small

    return make


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "Flowers102"])
def test_images_are_three_channels_of_both_parts_with_labels_and_names(name, made):
    part = made(name, ["no", "yes", "maybe"])
    dls = named_images(name, Path("here"), 9, 4)
    assert dls.classes == ["no", "yes", "maybe"]
    for loader, keywords in ((dls.train, NAMED[name].train), (dls.valid, NAMED[name].valid)):
        data = part(Path("here"), True, **keywords)
        images, labels = loader.tensors
        assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
        for i, image in enumerate(images):
            grey = torch.tensor(np.asarray(data[i][0]))
            assert torch.equal(image, grey.expand(3, 9, 9))
    pixels = dls.train.tensors[0].double()
    assert image_steps(dls).mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (None, ["0", "1", "2"]),
        (["two", "names"], ["0", "1", "2"]),  # not those of the labels
        ([("tench", "Tinca"), ("cat",), ("dog",)], ["tench", "cat", "dog"]),  # as Imagenette has it
    ],
)
def test_classes_without_names_of_their_own_are_numbers(classes, names, made):
    made("SVHN", classes)
    assert named_images("SVHN", Path("here"), 8, 4).classes == names


def test_a_set_that_needs_another_package_says_which(monkeypatch):
    def needs(*_, **__):
        raise ModuleNotFoundError("No module named 'scipy'")

    monkeypatch.setattr(datasets, "SVHN", needs)
    with pytest.raises(ImportError, match=r"SVHN needs a package beside torchvision: .*scipy"):
        named_images("SVHN", Path("here"), 8, 4)
