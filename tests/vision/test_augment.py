from collections.abc import Callable

import pytest
import torch
from image_learner import image_learner
from learner_state import trained
from numbered_pixels import Seen as SeenPixels
from numbered_pixels import at_pixels, numbered_images, pixel_learner
from torch import Tensor

from onecycle import (
    Callback,
    ChannelsLast,
    Checkpoint,
    CutMix,
    Cutout,
    MixUp,
    ProgressiveResizing,
    RandomCrop,
    RandomFlip,
    linear,
)
from onecycle.vision import Augmentation

ALL = [RandomFlip(0.3), RandomCrop(2), Cutout(3), Cutout(4)]
IDS = ["flip", "crop", "cutout-odd", "cutout-even"]


def images(dtype: torch.dtype = torch.float32, n: int = 64) -> Tensor:
    """Make images of which no two pixels are alike, as far as the dtype allows."""
    return (torch.arange(n * 3 * 6 * 9).view(n, 3, 6, 9) % 251 + 1).to(dtype)


# --- the same as a slow loop over samples, given the same draws -------------------------------


def slow_flip(x: Tensor) -> Tensor:
    draws = torch.rand(len(x)).tolist()
    each = zip(x.tolist(), draws, strict=True)
    flip = [[[row[::-1] if u < 0.3 else row for row in c] for c in image] for image, u in each]
    return torch.tensor(flip, dtype=x.dtype)


def slow_crop(x: Tensor) -> Tensor:
    down, right = torch.randint(-2, 3, (2, len(x), 1)).squeeze(2).tolist()
    padded = torch.nn.functional.pad(x.double(), (2, 2, 2, 2), mode="reflect").to(x.dtype)
    _, _, h, w = x.shape
    pieces = [
        padded[i, :, 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]
        for i, (dy, dx) in enumerate(zip(down, right, strict=True))
    ]
    return torch.stack(pieces)


def slow_cutout(size: int) -> Callable[[Tensor], Tensor]:
    def cut(x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows, columns = torch.randint(h, (n, 1)).tolist(), torch.randint(w, (n, 1)).tolist()
        x = x.clone()
        for i, (row,), (column,) in zip(range(n), rows, columns, strict=True):
            top, left = row - size // 2, column - size // 2
            x[i, :, max(top, 0) : top + size, max(left, 0) : left + size] = 0
        return x

    return cut


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
@pytest.mark.parametrize(
    ("augmentation", "slow"),
    list(zip(ALL, [slow_flip, slow_crop, slow_cutout(3), slow_cutout(4)], strict=True)),
    ids=IDS,
)
def test_a_batch_is_changed_as_a_loop_over_its_samples_would(augmentation, slow, dtype) -> None:
    x = images(dtype)
    torch.manual_seed(1)
    fast = augmentation.transform(x)
    torch.manual_seed(1)
    expected = slow(x)
    assert fast.dtype == dtype
    assert torch.equal(fast, expected)
    assert not torch.equal(fast, x)


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_another_memory_layout_gives_the_same_images(augmentation) -> None:
    x = images()
    torch.manual_seed(1)
    expected = augmentation.transform(x)
    torch.manual_seed(1)
    assert torch.equal(
        augmentation.transform(x.to(memory_format=torch.channels_last).requires_grad_()), expected
    )


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_nothing_is_read_back_from_the_device(augmentation) -> None:
    """On the meta device there are no values: whatever waited for one would fail."""
    x = images().to("meta")
    assert augmentation.transform(x).shape == x.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.sum().item()


# --- how often -------------------------------------------------------------------------------


def test_the_share_of_mirrored_images_is_p() -> None:
    torch.manual_seed(0)
    x = torch.arange(2.0).view(1, 1, 1, 2).expand(20_000, 1, 1, 2)
    share = RandomFlip(0.3).transform(x)[:, 0, 0, 0].mean()
    assert float(share) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert torch.equal(RandomFlip(0.0).transform(x), x)
    assert torch.equal(RandomFlip(1.0).transform(x), x.flip(-1))


def test_every_shift_of_a_crop_is_as_likely() -> None:
    torch.manual_seed(0)
    places = torch.arange(25.0).view(1, 1, 5, 5).expand(25_000, 1, 5, 5)
    middle = RandomCrop(2).transform(places)[:, 0, 2, 2].long()
    counts = torch.bincount(middle, minlength=25)
    assert len(counts) == 25
    assert (counts - 1000).abs().max() < 4 * 1000**0.5


def test_every_pixel_is_as_likely_the_middle_of_a_hole() -> None:
    torch.manual_seed(0)
    holes = Cutout(1).transform(torch.ones(25_000, 1, 5, 5)) == 0
    counts = holes.sum((0, 1)).flatten()
    assert int(counts.sum()) == 25_000
    assert (counts - 1000).abs().max() < 4 * 1000**0.5


def test_a_hole_may_reach_over_the_edge() -> None:
    torch.manual_seed(0)
    sizes = (Cutout(4).transform(torch.ones(1000, 1, 8, 8)) == 0).sum((1, 2, 3))
    assert set(sizes.tolist()) == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}


# --- in a fit --------------------------------------------------------------------------------


class Seen(Callback):
    """Keeps what the model is given."""

    def __init__(self) -> None:
        self.train, self.valid = [], []

    def after_pred(self, learn) -> None:
        (self.train if learn.training else self.valid).append(learn.xb.clone())


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_only_training_batches_change_and_the_data_set_never(augmentation) -> None:
    learn, seen = image_learner(), Seen()
    data = learn.dls.train.tensors[0].clone()
    learn.dls.train.shuffle = False  # batches are then views of the data
    torch.manual_seed(0)
    learn.fit(1, cbs=[augmentation, seen])
    assert not torch.equal(torch.cat(seen.train), data)
    assert torch.equal(torch.cat(seen.valid), data)
    assert torch.equal(learn.dls.train.tensors[0], data)


def test_batches_are_changed_in_range_tests_but_not_in_inference() -> None:
    learn, calls = image_learner(), []

    class Counted(Augmentation):
        def transform(self, images):
            calls.append(len(images))
            return images

    with learn.added_cbs([Counted()]):
        learn.validate()
        learn.get_preds()
        assert calls == []
        learn.lr_find(num_it=5, show_plot=False)
    assert calls == [4] * 5


class KilledError(Exception):
    pass


def kill_at_5(learn) -> None:
    if learn.n_updates == 5:
        raise KilledError


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_a_resumed_fit_ends_in_the_same_bits(mixer, tmp_path) -> None:
    def fit(learn, *more, **options) -> None:
        cbs = [RandomFlip(), RandomCrop(2), Cutout(3), ProgressiveResizing(linear(4, 8)), mixer()]
        cbs.append(ChannelsLast())
        learn.fit_one_cycle(2, 0.05, cbs=[*cbs, *more], **options)

    torch.manual_seed(0)
    undisturbed = image_learner()
    fit(undisturbed)
    expected = trained(undisturbed)
    torch.manual_seed(0)
    checkpoint = Checkpoint(tmp_path, every="2 updates")
    with pytest.raises(KilledError):
        fit(image_learner(), checkpoint, Callback(after_batch=kill_at_5))
    torch.manual_seed(99)
    resumed = image_learner()
    fit(resumed, resume=tmp_path)
    assert trained(resumed) == expected
    other = image_learner()
    torch.manual_seed(99)
    fit(other)
    assert trained(other) != expected


# --- targets that are maps -------------------------------------------------------------------

MAPS = {
    "labels": torch.randint(-100, 9, (8, 6, 9)),
    "labels, uint8": torch.randint(0, 255, (8, 6, 9)).byte(),
    "a mask, bool": torch.rand(8, 6, 9) < 0.5,
    "a mask with a channel": (torch.rand(8, 1, 6, 9) < 0.5).float(),
    "a depth": torch.randn(8, 6, 9),
    "heat maps": torch.rand(8, 17, 6, 9),
    "a picture": torch.rand(8, 3, 6, 9),
    "masks of objects": torch.rand(8, 4, 1, 6, 9) < 0.5,
}


@pytest.mark.parametrize("augmentation", ALL[:2], ids=IDS[:2])
@pytest.mark.parametrize("target", MAPS.values(), ids=MAPS)
def test_every_pixel_takes_its_part_of_a_map_along(augmentation, target) -> None:
    x, before, seen = numbered_images(8), target.clone(), SeenPixels()
    learn = pixel_learner([(x, target)] * 5)
    torch.manual_seed(0)
    learn.fit(1, cbs=[augmentation, seen])
    for xb, yb in zip(seen.xb, seen.yb, strict=True):
        assert not torch.equal(xb, x)
        assert yb.dtype == target.dtype
        assert torch.equal(yb, at_pixels(target, xb))
    assert torch.equal(target, before)
    assert torch.equal(x, numbered_images(8))


@pytest.mark.parametrize("augmentation", ALL[:2], ids=IDS[:2])
def test_images_with_a_map_are_moved_as_those_without(augmentation) -> None:
    x, found = numbered_images(8), []
    for target in (torch.arange(8), MAPS["labels"]):
        seen = SeenPixels()
        torch.manual_seed(0)
        pixel_learner([(x, target)] * 3).fit(1, cbs=[augmentation, seen])
        found.append(torch.stack(seen.xb))
    assert torch.equal(*found)


@pytest.mark.parametrize("augmentation", ALL[:2], ids=IDS[:2])
def test_what_was_moved_is_turned_back_and_0_where_it_was_out_of_view(augmentation) -> None:
    x = numbered_images(50) + 1
    torch.manual_seed(0)
    moved = augmentation.transform(x)
    back = augmentation.transform_back(moved)
    assert torch.equal(augmentation.transform_back(torch.ones_like(x)), (back == x).float())
    for i in range(50):
        shown = torch.isin(x[i, 0], moved[i, 0])
        assert torch.equal(back[i, 0] == x[i, 0], shown)
        assert not back[i, 0][~shown].any()
    assert not torch.equal(moved, x)


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ALL[:3], ids=IDS[:3])
@pytest.mark.parametrize(
    ("batch", "error", "says"),
    [
        ((torch.zeros(2, 8, 8), torch.zeros(2)), ValueError, r"got \(2, 8, 8\): reshape them"),
        (((torch.zeros(2, 3, 8, 8),) * 2, torch.zeros(2)), TypeError, "a tuple: transform"),
        ({"images": torch.zeros(2, 3, 8, 8)}, TypeError, "a dict: transform such batches"),
    ],
)
def test_a_batch_that_is_no_images_is_refused(augmentation, batch, error, says) -> None:
    learn = image_learner()
    learn.dls.train = [batch]
    with pytest.raises(error, match=says):
        learn.fit(1, cbs=[augmentation])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: RandomFlip(50), ValueError, "did you mean 0.5"),
        (lambda: RandomFlip("often"), TypeError, "p must be a number"),
        (lambda: RandomCrop(0), ValueError, "padding must be at least 1"),
        (lambda: RandomCrop(1.5), TypeError, "padding must be an integer"),
        (lambda: Cutout(0), ValueError, "size must be at least 1"),
        (lambda: RandomCrop(6).transform(images()), ValueError, "images of 6x9: .* at most 5"),
        (lambda: Cutout(7).transform(images()), ValueError, "images of 6x9: .* at most 6"),
        (lambda: Augmentation().transform(images()), NotImplementedError, "define transform"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_change(make, error, says) -> None:
    with pytest.raises(error, match=says):
        make()
