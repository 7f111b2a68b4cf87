"""What is done to an image file, whatever its kind: by hand, cached or not, and in prediction."""

import numpy as np
import pytest
import torch
from PIL import Image

from onecycle.vision import image_folder
from onecycle.vision.steps import ImageSteps

SIZE = 6
PLAIN = ImageSteps(SIZE, (0.0,) * 3, (1.0,) * 3)


def pixels(*shape, high=256, kind=np.uint8):
    return np.random.default_rng(0).integers(0, high, (SIZE, SIZE, *shape), kind)


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def turned(degrees):
    exif = Image.Exif()
    exif[0x0112] = {90: 6, 180: 3, 270: 8}[degrees]
    return {"exif": exif}


RGB, GREY, WIDE = pixels(3), pixels(), pixels(high=2**16, kind=np.uint16)
PALETTE = Image.fromarray(RGB).convert("P")
FROM_PALETTE = np.asarray(PALETTE.convert("RGB"))
CMYK = Image.fromarray(pixels(4), "CMYK")
#: By the name of a file what is saved to it, how, and the pixels that a person sees.
KINDS = {
    "rgb.png": (Image.fromarray(RGB), {}, RGB),
    "grey.png": (Image.fromarray(GREY), {}, three(GREY)),
    "alpha.png": (Image.fromarray(pixels(4)), {}, pixels(4)[..., :3]),
    "grey_alpha.png": (Image.fromarray(pixels(2), "LA"), {}, three(pixels(2)[..., 0])),
    "bits.png": (Image.fromarray(GREY > 99), {}, three(np.where(GREY > 99, 255, 0))),
    "palette.png": (PALETTE, {}, FROM_PALETTE),
    "one_clear.png": (PALETTE, {"transparency": 3}, FROM_PALETTE),
    "half_clear.png": (PALETTE, {"transparency": bytes(range(256))}, FROM_PALETTE),
    "cmyk.tif": (CMYK, {}, np.asarray(CMYK.convert("RGB"))),
    "wide.png": (Image.fromarray(WIDE), {}, three(WIDE // 256)),
    "wide.tif": (Image.fromarray(WIDE), {}, three(WIDE // 256)),
    "upside_down.png": (Image.fromarray(RGB), turned(180), RGB[::-1, ::-1]),
    "left.png": (Image.fromarray(RGB), turned(90), np.rot90(RGB, -1)),
    "right.png": (Image.fromarray(RGB), turned(270), np.rot90(RGB)),
    "wide_left.png": (Image.fromarray(WIDE), turned(90), three(np.rot90(WIDE // 256, -1))),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_image_of_any_kind_has_the_pixels_that_a_person_sees(name, tmp_path):
    image, options, seen = KINDS[name]
    image.save(tmp_path / name, **options)
    expected = torch.tensor(seen.astype(np.uint8).transpose(2, 0, 1).copy())
    assert torch.equal(PLAIN.pixels(tmp_path / name), expected)
    with Image.open(tmp_path / name) as opened:  # as a person who predicts may hand it over
        assert torch.equal(PLAIN.pixels(opened), expected)


def tree(root):
    for part in ("train", "valid"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for name, (image, options, _) in KINDS.items():
                image.save(root / part / label / name, **options)
    return root


def test_a_folder_of_all_kinds_has_the_same_pixels_with_a_cache_and_without(tmp_path):
    root = tree(tmp_path)
    decoded, cached = image_folder(root, SIZE), image_folder(root, SIZE, cache=True)
    for one, other in ((decoded.train, cached.train), (decoded.valid, cached.valid)):
        assert torch.equal(one.tensors[0], other.tensors[0])
        assert torch.equal(one.tensors[1], other.tensors[1])
    first = sorted(KINDS)[0]
    assert torch.equal(decoded.train.tensors[0][0], PLAIN.pixels(root / "train" / "a" / first))


def damaged(file):
    return {
        "cut.png": file[: len(file) // 2],
        "empty.png": b"",
        "text.jpg": b"text",
        "torn.png": file[:50] + bytes(20) + file[70:],
    }


@pytest.mark.parametrize("name", [*damaged(b""), "floats.tif", "ints.tif"])
def test_what_cannot_be_read_is_named_with_a_cache_and_without_and_in_prediction(name, tmp_path):
    root = tree(tmp_path)
    bad = root / "train" / "b" / name
    if name == "floats.tif":
        Image.fromarray(np.float32(RGB[..., 0])).save(bad)
    elif name == "ints.tif":
        Image.fromarray(np.int32(WIDE)).save(bad)
    else:
        bad.write_bytes(damaged((root / "train" / "a" / "rgb.png").read_bytes())[name])
    for read in (
        lambda: image_folder(root, SIZE),
        lambda: image_folder(root, SIZE, cache=True),
        lambda: PLAIN.pixels(bad),
    ):
        with pytest.raises(ValueError, match=f"b/{name} holds no image that can be read"):
            read()
