import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import onecycle
from onecycle.vision import cifar10, digits, image_folder, mnist

DATA = os.environ.get("ONECYCLE_DATA", "")
real_data = pytest.mark.skipif(not DATA, reason="set ONECYCLE_DATA to the folder of the data sets")


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.mark.slow
def test_importing_the_module_does_not_load_torchvision():
    code = "import sys, onecycle.vision; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- digits -----------------------------------------------------------------------------------


def test_digits_file_is_the_known_data_set():
    with np.load(Path(onecycle.__file__).parent / "assets" / "digits.npz") as data:
        images, labels = data["images"], data["labels"]
    assert (images.shape, images.dtype, images.max()) == ((1797, 8, 8), np.uint8, 16)
    # Class counts of the test part in UCI's optdigits.names, and its first row.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images[0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]


def test_digits_are_split_in_equal_shares_of_each_class():
    dls = digits()
    (x, y), (valid_x, valid_y) = dls.train.tensors, dls.valid.tensors
    assert (x.shape, valid_x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    share = valid_y.bincount() / (y.bincount() + valid_y.bincount())
    assert ((share - 0.2).abs() < 1 / 174).all()
    assert dls.train.shuffle
    assert not dls.valid.shuffle


def test_digits_are_normalised_by_the_training_pixels_and_complete():
    dls = digits()
    x, valid_x = dls.train.tensors[0], dls.valid.tensors[0]
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std().item() == pytest.approx(1, abs=1e-5)
    with np.load(Path(onecycle.__file__).parent / "assets" / "digits.npz") as data:
        raw = data["images"].reshape(-1, 64)
    step = torch.cat([x, valid_x]).unique().diff().min()  # one grey level
    ours = ((torch.cat([x, valid_x]) - x.min()) / step).round().int().view(-1, 64)
    assert sorted(ours.tolist()) == sorted(raw.tolist())


def test_digits_split_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = digits(), digits(batch_size=32), digits(seed=43)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.valid.tensors, again.valid.tensors))
    assert not torch.equal(first.valid.tensors[0], other.valid.tensors[0])


def test_data_are_put_on_the_device():
    dls = digits(device="meta")
    assert {t.device.type for t in (*dls.train.tensors, *dls.valid.tensors)} == {"meta"}


# --- downloaded sets --------------------------------------------------------------------------


def test_mnist_without_network_says_what_was_tried_and_where_to_put_the_files(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        mnist(tmp_path)
    assert str(error.value) == (
        f"MNIST is not complete in {tmp_path}/MNIST/raw, and could not be downloaded from "
        f"{' or '.join(torchvision.datasets.MNIST.mirrors)}: <urlopen error no route to host>\n"
        "To add it by hand, put train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        f"t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, unpacked, into {tmp_path}/MNIST/raw"
    )
    assert isinstance(error.value.__cause__, RuntimeError)


def test_cifar10_without_network_says_what_was_tried_and_where_to_put_it(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        cifar10(tmp_path)
    assert str(error.value) == (
        f"CIFAR-10 is not complete in {tmp_path}, and could not be downloaded from "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz: "
        "<urlopen error no route to host>\n"
        "To add it by hand, put the folder cifar-10-batches-py out of cifar-10-python.tar.gz "
        f"into {tmp_path}"
    )
    assert isinstance(error.value.__cause__, urllib.error.URLError)


@pytest.mark.parametrize("load", [mnist, cifar10])
def test_without_download_nothing_is_tried(tmp_path, monkeypatch, load):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("network used"))
    with pytest.raises(FileNotFoundError, match="and download=False: Dataset not found"):
        load(tmp_path, download=False)


def write_idx(path, array):
    """Write the format of the MNIST files: type code and rank, sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim])
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + sizes + array.tobytes())


def test_mnist_put_there_by_hand_is_read_without_network(tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("t10k", 3)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8))
    dls = mnist(tmp_path, batch_size=2)
    assert (len(dls.train), len(dls.valid), dls.train.shuffle) == (3, 2, True)
    assert dls.train.tensors[0].dtype == torch.uint8
    x, y = next(iter(dls.valid))
    assert y.tolist() == [0, 1]
    expected = (dls.valid.tensors[0][:2] / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(x, expected)


def test_cifar10_from_torchvision_has_channels_first_and_is_normalised(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            n = 4 if train else 2
            self.data = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), np.uint8)
            self.targets = list(range(n))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    dls = cifar10(tmp_path)
    x, y = next(iter(dls.valid))
    assert y.tolist() == [0, 1]
    pixels = Fake(None, False, False).data / 255
    expected = (pixels - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


# --- image folders ----------------------------------------------------------------------------


def write_tree(root, parts, side=32, classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    written = {}
    for part in parts:
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
                written.setdefault(part, []).append((pixels, label))
    return written


@pytest.mark.parametrize("valid", ["valid", "test"])
def test_image_folder_reads_pixels_and_labels_of_both_parts(tmp_path, valid):
    written = write_tree(tmp_path, ("train", valid))
    dls = image_folder(tmp_path, size=32, batch_size=3)
    for loader, part in ((dls.train, "train"), (dls.valid, valid)):
        pixels = np.stack([image for image, _ in written[part]]).transpose(0, 3, 1, 2)
        assert loader.tensors[0].numpy().tolist() == pixels.tolist()
        assert loader.tensors[1].tolist() == [label for _, label in written[part]]
    assert len(dls.train) == 2


def test_names_of_the_folders_are_the_classes_in_the_order_of_the_labels(tmp_path):
    write_tree(tmp_path, ("train", "valid"))
    folders = sorted(folder.name for folder in (tmp_path / "train").iterdir())
    assert image_folder(tmp_path, size=8).classes == folders
    assert image_folder(tmp_path, size=8, device="meta").classes == folders
    assert digits().classes == [str(i) for i in range(10)]


def test_image_folder_normalises_by_the_training_pixels_of_each_channel(tmp_path):
    write_tree(tmp_path, ("train", "valid"))
    x = torch.cat([x for x, _ in image_folder(tmp_path, size=32).train])
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)


def test_image_folder_resizes_the_shorter_side_and_keeps_the_middle_square(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    for part in ("train", "valid"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(wide).resize((64, 32), Image.Resampling.NEAREST).save(
            tmp_path / part / "a" / "wide.png"
        )
    dls = image_folder(tmp_path, size=16)
    assert dls.train.tensors[0].shape == (1, 3, 16, 16)
    assert (dls.train.tensors[0][..., 2:-2] == 255).all()


def test_image_folder_refuses_a_tree_that_is_not_complete(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*train; expected images in"):
        image_folder(tmp_path, size=32)
    write_tree(tmp_path, ("train",))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*valid; expected images in"):
        image_folder(tmp_path, size=32)
    (tmp_path / "valid" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/valid: .*no valid file"):
        image_folder(tmp_path, size=32)


def test_image_folder_refuses_different_classes_in_training_and_validation(tmp_path):
    write_tree(tmp_path, ("train",))
    write_tree(tmp_path, ("valid",), classes=("cat", "fox"))
    with pytest.raises(ValueError, match=r"same classes in train and valid; .*\['dog', 'fox'\]"):
        image_folder(tmp_path, size=32)


def test_cifar10_reads_a_tree_of_images_where_there_is_one(tmp_path, no_network):
    written = write_tree(tmp_path / "cifar10", ("train", "test"))
    dls = cifar10(tmp_path)
    x, _ = next(iter(dls.valid))
    expected = (written["test"][0][0] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(x[0].numpy(), expected.transpose(2, 0, 1), rtol=1e-4, atol=1e-5)


# --- real data --------------------------------------------------------------------------------


@pytest.mark.data
@real_data
def test_real_mnist_is_complete_and_normalised():
    dls = mnist(DATA, download=False)
    assert [t.shape for t in dls.train.tensors] == [(60000, 1, 28, 28), (60000,)]
    assert [t.shape for t in dls.valid.tensors] == [(10000, 1, 28, 28), (10000,)]
    std, mean = torch.std_mean(torch.cat([x for x, _ in dls.train]))
    assert mean.item() == pytest.approx(0, abs=1e-3)
    assert std.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.data
@pytest.mark.slow
@real_data
def test_real_cifar10_is_complete_and_normalised():
    dls = cifar10(DATA, download=False)
    assert dls.train.tensors[0].shape == (50000, 3, 32, 32)
    assert dls.valid.tensors[1].bincount().tolist() == [1000] * 10
    std, mean = torch.std_mean(torch.cat([x for x, _ in dls.train]), dim=(0, 2, 3))
    assert mean.abs().max() < 5e-3
    assert (std - 1).abs().max() < 2e-2
