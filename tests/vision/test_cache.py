"""A cache of images gives the batches of `image_folder`, and decodes what has changed anew."""

import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from onecycle import Learner, RandomFlip
from onecycle.data.passes import start_pass
from onecycle.vision import cache, image_folder
from onecycle.vision.cache import list_images
from onecycle.vision.datasets import image_steps

SIZE = 8


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for part, n in (("train", 5), ("valid", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                write(tmp_path / part / name / f"{i}.png", 10 * label + i)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """Return what lists the files that were decoded since it was last asked."""
    found, whole = [], cache._Files.__getitem__

    def decode(self, i):
        found.append(str(self._files[i]))
        return whole(self, i)

    monkeypatch.setattr(cache._Files, "__getitem__", decode)

    def since():
        names = ["/".join(name.split("/")[-3:]) for name in found]
        found.clear()
        return names

    return since


def opened(root, **options):
    return image_folder(root, SIZE, batch_size=4, cache=True, **options)


def same_batches(one, other):
    for name in ("train", "valid"):
        pairs = [start_pass(getattr(dls, name), seed=3, epoch=1) for dls in (one, other)]
        for (x, y), (x2, y2) in zip(*pairs, strict=True):
            if not (torch.equal(x, x2) and torch.equal(y, y2) and x.stride() == x2.stride()):
                return False
    return one.classes == other.classes and image_steps(one) == image_steps(other)


def test_the_batches_are_those_without_a_cache_to_the_bit(root):
    plain = image_folder(root, SIZE, batch_size=4)
    assert same_batches(opened(root), plain)
    assert same_batches(opened(root), plain)
    write(root / "train" / "cat" / "0.png", 99)  # the control
    assert not same_batches(image_folder(root, SIZE, batch_size=4), plain)


def test_a_second_run_decodes_nothing(root, decoded):
    opened(root)
    assert len(decoded()) == 16
    opened(root)
    assert decoded() == []
    image_folder(root, 2 * SIZE, cache=True)  # another size is another cache
    assert len(decoded()) == 16


def test_what_was_changed_added_or_removed_is_decoded_again_and_nothing_else(root, decoded, said):
    opened(root)
    decoded()
    write(root / "train" / "dog" / "1.png", 50)
    write(root / "train" / "cat" / "00.png", 51)
    (root / "valid" / "cat" / "2.png").unlink()
    os.utime(root / "valid" / "dog" / "0.png", ns=(1, 1))
    dls = opened(root)
    assert decoded() == ["train/cat/00.png", "train/dog/1.png", "valid/dog/0.png"]
    assert same_batches(dls, image_folder(root, SIZE, batch_size=4))
    assert "3 of 16 images are new or changed" in said()[-1]
    opened(root)
    assert decoded() == []


def test_a_class_that_is_renamed_or_added_is_heeded(root):
    opened(root)
    for part in ("train", "valid"):
        (root / part / "cat").rename(root / part / "zebra")
    dls = opened(root)
    assert dls.classes == ["dog", "zebra"]
    assert same_batches(dls, image_folder(root, SIZE, batch_size=4))


def cut(data, manifest):
    data.write_bytes(data.read_bytes()[:-1])


def flip(data, manifest):
    content = bytearray(data.read_bytes())
    content[700] ^= 4
    data.write_bytes(content)


def edit(data, manifest):
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b'"bytes": [', b'"bytes": [1', 1))


def another_version(data, manifest):
    known = json.loads(manifest.read_bytes().rpartition(b"\n")[0])
    body = json.dumps(known | {"format": 0}).encode()
    manifest.write_bytes(b"%b\n%08x" % (body, zlib.crc32(body)))


DAMAGE = {
    "cut": cut,
    "a flipped bit": flip,
    "an edited manifest": edit,
    "half a manifest": lambda data, manifest: manifest.write_bytes(manifest.read_bytes()[:99]),
    "an empty manifest": lambda data, manifest: manifest.write_bytes(b""),
    "another version": another_version,
    "no data": lambda data, manifest: data.unlink(),
    "no manifest": lambda data, manifest: manifest.unlink(),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_half_written_cache_is_noticed_and_made_anew(root, decoded, said, harm):
    opened(root)
    decoded()
    harm(*(root / ".onecycle" / f"images-{SIZE}.{end}" for end in ("bin", "json")))
    dls = opened(root)
    assert len(decoded()) == 16
    assert same_batches(dls, image_folder(root, SIZE, batch_size=4))
    if harm is not DAMAGE["no manifest"]:
        assert "cannot be used, and is made anew" in said()[-1]
    opened(root)
    assert decoded() == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk full")])
def test_what_was_interrupted_leaves_no_cache_that_is_taken_for_whole(
    root, decoded, monkeypatch, stop
):
    opened(root)
    shutil.copytree(root / ".onecycle", root / "before")
    for i in range(5):
        write(root / "train" / "cat" / f"{i}.png", 70 + i)
    decoded()
    with monkeypatch.context() as patched:

        def fail(*args):
            raise stop

        patched.setattr(cache, "channel_counts", fail)
        with pytest.raises((KeyboardInterrupt, OSError)):
            opened(root)
    assert sorted(p.name for p in (root / ".onecycle").iterdir()) == [
        f"images-{SIZE}.bin",
        f"images-{SIZE}.json",
    ]
    decoded()
    assert same_batches(opened(root), image_folder(root, SIZE, batch_size=4))


def test_images_of_a_new_file_without_its_manifest_are_not_taken(root, decoded, monkeypatch):
    opened(root)
    write(root / "train" / "cat" / "0.png", 70)
    whole, calls = cache.atomic_write, []

    def dies_at_the_manifest(path):
        calls.append(path)
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(cache, "atomic_write", dies_at_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            opened(root)
    decoded()
    opened(root)
    assert len(decoded()) == 16


def test_a_file_that_is_no_image_is_named(root):
    (root / "train" / "cat" / "7.png").write_text("text")
    with pytest.raises(ValueError, match=r"train/cat/7\.png holds no image"):
        opened(root)


def test_a_tree_that_is_not_complete_is_refused_as_without_a_cache(root, tmp_path):
    (root / "train" / "fox").mkdir()
    for options in ({}, {"cache": True}):
        with pytest.raises(FileNotFoundError, match="fox"):
            image_folder(root, SIZE, **options)
    write(root / "train" / "fox" / "1.png", 1)
    for options in ({}, {"cache": True}):
        with pytest.raises(ValueError, match="same classes in train and valid"):
            image_folder(root, SIZE, **options)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            image_folder(root / "nothing", SIZE, **options)
    assert not (root / ".onecycle").exists()


def test_files_are_listed_in_the_order_of_torchvision(root):
    for name in ("b.JPG", "a/z.png", "a/B.png", "c.txt", "Z.jpeg", "_.webp"):
        write(root / "train" / "dog" / "x.png", 1)
        target = root / "train" / "dog" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(root / "train" / "dog" / "x.png", target)
    files, labels, classes = list_images(root / "train")
    known = ImageFolder(root / "train")
    assert [(str(root / file), label) for file, label in zip(files, labels, strict=True)] == [
        (str(file), label) for file, label in known.samples
    ]
    assert classes == known.classes


def test_the_cache_may_lie_elsewhere_and_a_read_only_folder_stays_untouched(root, tmp_path):
    dls = image_folder(root, SIZE, batch_size=4, cache=tmp_path / "elsewhere")
    assert not (root / ".onecycle").exists()
    assert same_batches(dls, image_folder(root, SIZE, batch_size=4))


def test_a_fit_with_augmentation_ends_in_the_same_bits(root):
    def fitted(dls):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, 2))
        loss = torch.nn.functional.cross_entropy
        learn = Learner(dls, model, loss, device="cpu", seed=1, cbs=[RandomFlip()])
        with learn.no_bar():
            learn.fit(2, 0.1)
        return model[1].weight.tolist()

    assert fitted(opened(root)) == fitted(image_folder(root, SIZE, batch_size=4))


def test_images_are_mapped_not_read(root):
    opened(root)
    tensor = opened(root).train.tensors[0]
    name = f"images-{SIZE}.bin"
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(name)]
    assert any(int(a, 16) <= tensor.data_ptr() < int(b, 16) for a, b in spans)


def test_a_batch_is_put_on_the_device_as_bytes(root):
    dls = opened(root, device="meta")
    x, y = next(iter(dls.train))
    assert (x.device.type, y.device.type, x.dtype) == ("meta", "meta", torch.float32)


@pytest.mark.slow
def test_many_images_are_decoded_by_several_processes(root, monkeypatch):
    monkeypatch.setattr(cache, "_FEW", 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    dls = opened(root)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_batches(dls, image_folder(root, SIZE, batch_size=4))
