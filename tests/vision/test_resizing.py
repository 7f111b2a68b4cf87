import pytest
import torch
from image_learner import image_learner
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
