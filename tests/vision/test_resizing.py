import pytest
import torch
from image_learner import image_learner
from numbered_pixels import Seen, numbered_images, pixel_learner
from torch.nn.functional import interpolate

from onecycle import (
    Callback,
    GradientAccumulation,
    Learner,
    ProgressiveResizing,
    TensorLoader,
    constant,
    join,
    linear,
)


class Shapes(Callback):
    """Keeps the height and width of what the model is given."""

    def __init__(self) -> None:
        self.train, self.valid, self.xb = [], [], []

    def after_pred(self, learn: Learner) -> None:
        (self.train if learn.training else self.valid).append(tuple(learn.xb.shape[2:]))
        self.xb.append(learn.xb)


def test_sizes_follow_the_schedule_in_multiples_and_end_at_full_size() -> None:
    learn, shapes = image_learner(n=36, size=16), Shapes()
    learn.fit(1, cbs=[ProgressiveResizing(linear(8, 16)), shapes])
    # 8, 9, ..., 16 pixels, to the nearest multiple of 4; a half goes to the even one
    assert shapes.train == [(s, s) for s in (8, 8, 8, 12, 12, 12, 16, 16, 16)]
    assert set(shapes.valid) == {(16, 16)}


def test_sizes_can_grow_in_steps() -> None:
    learn, shapes = image_learner(), Shapes()
    sizes = join([(0.5, constant(4)), (0.5, constant(8))])
    learn.fit(2, cbs=[ProgressiveResizing(sizes), shapes])
    assert shapes.train == [(4, 4)] * 8 + [(8, 8)] * 8


def test_images_are_resized_with_antialiasing_and_at_full_size_not_at_all() -> None:
    learn, shapes = image_learner(), Shapes()
    learn.dls.train.shuffle = False
    images = learn.dls.train.tensors[0]
    learn.fit(1, cbs=[ProgressiveResizing(linear(4, 8)), shapes])
    small = interpolate(images[:4], (4, 4), mode="bilinear", antialias=True)
    assert torch.equal(shapes.xb[0], small)
    assert torch.equal(shapes.xb[7], images[28:])


def test_an_odd_full_size_is_kept_though_it_is_no_multiple() -> None:
    learn, shapes = image_learner(size=9), Shapes()
    learn.fit(1, cbs=[ProgressiveResizing(linear(4, 9)), shapes])
    assert shapes.train[0] == (4, 4)
    assert shapes.train[-1] == (8, 8)  # 9 pixels are nearer to 8 than to 12
    learn.fit(1, cbs=[ProgressiveResizing(linear(4, 9), multiple=1), shapes])
    assert shapes.train[-1] == (9, 9)


def test_the_longer_side_keeps_its_ratio() -> None:
    learn, shapes = image_learner(), Shapes()
    learn.dls.train = TensorLoader(torch.randn(8, 3, 32, 16), torch.zeros(8).long(), batch_size=4)
    learn.fit(1, cbs=[ProgressiveResizing(linear(8, 16)), shapes])
    assert shapes.train == [(16, 8), (32, 16)]


def test_the_cycle_does_not_notice() -> None:
    records = []
    for cbs in ([], [ProgressiveResizing(linear(4, 8))]):
        learn = image_learner()
        learn.fit_one_cycle(2, 0.1, cbs=[*cbs, GradientAccumulation(3)])
        records.append([learn.recorder.history[name].values for name in ("lr", "momentum")])
        assert learn.n_updates == learn.n_updates_planned == 6
    for without, with_it in zip(*records, strict=True):
        assert (without == with_it).all()


def test_range_tests_and_inference_see_full_size() -> None:
    learn, shapes = image_learner(), Shapes()
    shapes.runs_in = frozenset(("range_test", "inference"))
    with learn.added_cbs([ProgressiveResizing(linear(4, 8)), shapes]):
        learn.lr_find(num_it=12, show_plot=False)
        learn.validate()
    assert set(shapes.train + shapes.valid) == {(8, 8)}


# --- targets that are maps -------------------------------------------------------------------


def resized(x, target, sizes, n=8):
    """Return what the model and the loss get in a fit of growing sizes."""
    seen = Seen()
    learn = pixel_learner([(x, target)] * n)
    learn.fit(1, cbs=[ProgressiveResizing(sizes, multiple=1), seen])
    return seen


@pytest.mark.parametrize(
    "target",
    [
        torch.randint(-100, 9, (4, 9, 14)),
        torch.rand(4, 9, 14) < 0.5,
        (torch.rand(4, 1, 9, 14) < 0.5).float(),
        torch.randint(-1, 2, (4, 3, 9, 14)).float().abs(),
        torch.rand(4, 9, 14),
        torch.rand(4, 5, 9, 14),
    ],
    ids=["labels", "bool", "mask", "whole numbers", "depth", "heat maps"],
)
def test_a_small_pixel_of_a_map_has_the_value_in_its_middle(target) -> None:
    seen = resized(torch.rand(4, 3, 9, 14), target, linear(2, 9))
    assert {tuple(yb.shape[-2:]) for yb in seen.yb} == {
        (s, round(14 * s / 9)) for s in range(2, 10)
    }
    for xb, yb in zip(seen.xb, seen.yb, strict=True):
        height, width = xb.shape[2:]
        rows = [int((i + 0.5) * 9 / height + 1e-9) for i in range(height)]
        columns = [int((j + 0.5) * 14 / width + 1e-9) for j in range(width)]
        expected = torch.stack(
            [torch.stack([target[..., i, j] for j in columns], -1) for i in rows], -2
        )
        assert torch.equal(yb, expected)
        maps = target.double().view(4, -1, 9, 14)
        by_torch = interpolate(maps, (height, width), mode="nearest-exact").to(target.dtype)
        assert torch.equal(yb, by_torch.view(yb.shape))


def test_a_target_that_is_an_image_is_resized_as_the_images_are() -> None:
    clean = torch.rand(4, 1, 9, 14)
    for x in (torch.rand(4, 1, 9, 14), clean):
        seen = resized(x, clean, linear(2, 9))
        for xb, yb in zip(seen.xb, seen.yb, strict=True):
            size = tuple(xb.shape[2:])
            small = interpolate(clean, size, mode="bilinear", antialias=True)
            assert torch.equal(yb, small if size != (9, 14) else clean)


def test_a_label_fits_its_pixel_at_every_size() -> None:
    """Blocks of three pixels: at a third of the size there is one small pixel for each."""
    labels = torch.randint(0, 4, (4, 3, 5))
    target = labels.repeat_interleave(3, 1).repeat_interleave(3, 2)
    x = target.unsqueeze(1).float()
    seen = resized(x, target, constant(3), n=1)
    assert torch.equal(seen.yb[0], labels)
    assert torch.equal(resized(x, target, constant(9), n=1).yb[0], target)


def test_validation_has_maps_as_they_are() -> None:
    target, found = torch.randint(0, 4, (8, 6, 9)), []
    learn = pixel_learner([(numbered_images(8), target)] * 4)
    valid = Callback(after_pred=lambda learn: found.append(learn.yb))
    valid.during = "valid"
    learn.fit(1, cbs=[ProgressiveResizing(linear(2, 6), multiple=1), valid])
    assert all(yb is target for yb in found)
    assert len(found) == 4


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "sizes", "error", "says"),
    [
        (torch.zeros(4, 3, 8, 8), linear(4, 12), ValueError, "12 pixels, and the images have 8x8"),
        (torch.zeros(4, 3, 8, 8).byte(), linear(4, 8), TypeError, "got torch.uint8: normalise"),
        (torch.zeros(4, 8), linear(4, 8), ValueError, r"channels, height, width\); got \(4, 8\)"),
    ],
)
def test_what_cannot_be_resized_is_refused_before_the_first_update(x, sizes, error, says) -> None:
    learn = image_learner()
    learn.dls.train = [(x, torch.zeros(4).long())] * 2
    with pytest.raises(error, match=says):
        learn.fit(1, cbs=[ProgressiveResizing(sizes)])
    assert learn.n_updates == 0


def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match=r"such as linear\(16, 32\); got \[16, 32\]"):
        ProgressiveResizing([16, 32])
    with pytest.raises(ValueError, match="smallest size is 2 pixels, less than multiple=4"):
        ProgressiveResizing(linear(2, 8))
    with pytest.raises(ValueError, match="multiple must be at least 1"):
        ProgressiveResizing(linear(4, 8), multiple=0)


def test_a_fit_of_unknown_length_is_refused() -> None:
    learn = image_learner()
    batches = list(learn.dls.train)

    class NoLength:
        def __iter__(self):
            return iter(batches)

    learn.dls.train = NoLength()
    with pytest.raises(ValueError, match="give steps_per_epoch= or max_updates="):
        learn.fit(1, cbs=[ProgressiveResizing(linear(4, 8))])
