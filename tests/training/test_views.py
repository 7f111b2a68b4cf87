import pytest
import torch
import torch.nn.functional as F
from image_learner import image_learner
from learner_state import LearnerState
from numbered_pixels import numbered_images, pixel_learner
from torch import Tensor, nn

from onecycle import (
    Callback,
    Cutout,
    Learner,
    MixedPrecision,
    RandomCrop,
    RandomFlip,
    TensorLoader,
)
from onecycle.testing import toy_learner
from onecycle.training.views import shifted
from onecycle.vision import Augmentation


def images_of(learn: Learner) -> Tensor:
    return learn.dls.valid.tensors[0]


def predictions(learn: Learner, x: Tensor) -> Tensor:
    """Predict in one batch, by torch alone."""
    with torch.no_grad():
        return learn.model.eval()(x)


def test_it_is_the_mean_over_the_views_and_beta_is_the_share_without_one() -> None:
    learn = image_learner()
    x = images_of(learn)
    turned, doubled = predictions(learn, x.flip(-2)), predictions(learn, 2 * x)
    views = [lambda xb: xb.flip(-2), lambda xb: 2 * xb]
    for beta in (0.0, 0.25, 1.0):
        found = learn.tta(transforms=views, beta=beta)
        expected = beta * predictions(learn, x) + (1 - beta) * (turned + doubled) / 2
        torch.testing.assert_close(found.preds, expected)
        assert torch.equal(found.targets, learn.dls.valid.tensors[1])
    assert torch.equal(learn.tta(transforms=views, beta=1.0).preds, learn.get_preds().preds)


def test_by_default_images_are_mirrored_and_shifted_by_a_pixel() -> None:
    learn = image_learner()
    x = images_of(learn)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    up_left, down_right = padded[..., 2:, 2:], padded[..., :-2, :-2]
    views = [x.flip(-1), up_left, up_left.flip(-1), down_right, down_right.flip(-1)]
    mean = torch.stack([predictions(learn, view) for view in views]).mean(0)
    expected = 0.25 * predictions(learn, x) + 0.75 * mean
    torch.testing.assert_close(learn.tta().preds, expected)


def test_a_shift_shows_the_reflection() -> None:
    x = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    assert shifted(x, 1, 0)[0, 0].tolist() == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert shifted(x, 0, -2)[0, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]


def test_the_learners_own_augmentations_draw_anew_each_time() -> None:
    drawn = []

    class Crop(RandomCrop):
        def transform(self, images: Tensor) -> Tensor:
            drawn.append(super().transform(images))
            return drawn[-1]

    learn = image_learner(cbs=[RandomFlip(), Crop(3)])
    learn.fit(1)
    drawn.clear()
    torch.manual_seed(4)
    found = learn.tta(n=3).preds
    passes = [torch.cat(drawn[i : i + 8]) for i in (0, 8, 16)]
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])
    mean = torch.stack([predictions(learn, x) for x in passes]).mean(0)
    expected = 0.25 * predictions(learn, images_of(learn)) + 0.75 * mean
    torch.testing.assert_close(found, expected)
    assert torch.equal(learn.tta(n=3).preds, found)  # nothing has drawn in between
    torch.rand(1)
    assert not torch.equal(learn.tta(n=3).preds, found)


def test_it_leaves_everything_as_it_was() -> None:
    learn = image_learner(cbs=[RandomFlip(), Callback(after_batch=lambda learn: None)])
    learn.model.append(nn.BatchNorm1d(3))
    learn.fit(1)
    learn.model[0].eval()  # one module alone
    before = LearnerState(learn)
    learn.tta()
    learn.tta(n=2)
    assert before.changes(LearnerState(learn)) == []
    with pytest.raises(ArithmeticError):
        learn.tta(transforms=[lambda xb: xb, fails])
    assert before.changes(LearnerState(learn)) == []
    learn.fit(1)
    assert before.changes(LearnerState(learn)) != []


def fails(xb: Tensor) -> Tensor:
    raise ArithmeticError


def test_in_the_middle_of_a_fit_it_disturbs_nothing() -> None:
    ends = []
    for cbs in ([], [Callback(after_step=lambda learn: learn.tta(n=2))]):
        torch.manual_seed(0)
        learn = image_learner(cbs=[RandomFlip()])
        learn.fit(2, cbs=cbs)
        ends.append([p.detach() for p in learn.model.parameters()])
    assert all(map(torch.equal, *ends))


def test_shuffled_loaders_and_any_model_serve() -> None:
    learn = toy_learner()  # a regression on a loader that is shuffled by the learner's seed
    found = learn.tta(learn.dls.train, transforms=[lambda xb: 3 * xb], beta=0.0)
    assert torch.equal(found.targets, learn.get_preds(learn.dls.train).targets)
    in_half = image_learner(cbs=[MixedPrecision("bf16")])
    assert in_half.tta().preds.dtype == torch.float32


# --- predictions that are maps ---------------------------------------------------------------


def dense_learner(model: nn.Module, targets: Tensor | None = None, **options) -> Learner:
    """Make a learner of maps of 6x9 pixels, of two batches."""
    x = torch.randn(8, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (8, 6, 9)) if targets is None else targets
    loader = TensorLoader(x, y, batch_size=5)
    return Learner((loader, loader), model, F.cross_entropy, device="cpu", seed=0, **options)


def conv(stride: int = 1, out: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, out, 3, stride, padding=1)


def test_maps_are_turned_back_and_each_pixel_is_the_mean_of_the_views_that_show_it() -> None:
    learn = dense_learner(conv())
    x = images_of(learn)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    total, count = torch.zeros(8, 4, 6, 9), torch.zeros(6, 9)
    for by, flip in [(0, True), (-1, False), (-1, True), (1, False), (1, True)]:
        view = padded[..., 1 - by : 7 - by, 1 - by : 10 - by]
        pred = predictions(learn, view.flip(-1) if flip else view)
        for row in range(6):
            for column in range(9):
                down, right = row + by, column + by  # where the view shows it
                if 0 <= down < 6 and 0 <= right < 9:
                    place = 8 - right if flip else right
                    total[:, :, row, column] += pred[:, :, down, place]
                    count[row, column] += 1
    assert (count.min(), count.max()) == (1, 5)  # corners are shown by few
    expected = 0.25 * predictions(learn, x) + 0.75 * total / count
    torch.testing.assert_close(learn.tta().preds, expected)


def test_a_model_that_reads_each_pixel_is_right_on_every_view() -> None:
    x = numbered_images(8)
    cbs = [RandomFlip(), RandomCrop(3), RandomFlip(), Cutout(2)]
    for y in (x[:, 0].long(), None):
        batches = [(x[:5], y[:5]), (x[5:], y[5:])] if y is not None else [(x[:5],), (x[5:],)]
        learn = pixel_learner(batches, cbs=cbs[:3])
        for options in ({}, {"n": 1}, {"n": 5}, {"beta": 0.0}, {"n": 1, "beta": 0.0}):
            torch.testing.assert_close(learn.tta(**options).preds, x)
    with_hole = pixel_learner([(x, x[:, 0].long())], cbs=cbs)
    found = with_hole.tta(n=1, beta=0.0).preds
    same = (found == x)[:, 0]
    assert not found[:, 0][~same].any()
    assert 0 < (~same).float().mean() <= 4 / 54 + 1e-6
    untold = pixel_learner([(x, x[:, 0].long())])
    not_back = untold.tta(transforms=[(lambda xb: xb.flip(-1), lambda pred: pred)])
    assert not torch.equal(not_back.preds, x)  # the check can fail


@pytest.mark.parametrize("shape", [(6, 9), (1, 6, 9), (4, 6, 9), (2, 3, 6, 9)])
def test_maps_of_any_shape_are_turned_back(shape) -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return (
                (x[:, :1] * self.scale).view(-1, *(1,) * (len(shape) - 2), 6, 9).expand(-1, *shape)
            )

    x = numbered_images(8)
    loader = [(x, x[:, 0].long())]
    learn = Learner((loader, loader), Shaped(), F.mse_loss, device="cpu", cbs=[RandomCrop(2)])
    for found in (learn.tta(), learn.tta(n=2)):
        torch.testing.assert_close(
            found.preds, x[:, 0].view(8, *(1,) * (len(shape) - 2), 6, 9).expand(8, *shape)
        )


def test_a_coarser_map_is_mirrored_back_and_the_shifts_are_left_out(caplog) -> None:
    learn = dense_learner(conv(stride=3), cbs=[RandomFlip(1.0)])
    x = images_of(learn)
    mirrored = predictions(learn, x.flip(-1)).flip(-1)
    expected = 0.25 * predictions(learn, x) + 0.75 * mirrored
    torch.testing.assert_close(learn.tta().preds, expected)
    (record,) = [r for r in caplog.records if "tta" in r.message]
    assert "shifts by a pixel cannot be turned back" in record.message
    torch.testing.assert_close(learn.tta(n=2).preds, expected)


def test_one_number_a_channel_is_no_map(caplog) -> None:
    learn = image_learner()
    as_pixel = image_learner()
    as_pixel.model.append(nn.Unflatten(1, (3, 1, 1)))
    torch.testing.assert_close(as_pixel.tta().preds.flatten(1), learn.tta().preds)
    assert not [r for r in caplog.records if "tta" in r.message]


def test_a_pair_turns_the_predictions_of_its_view_back() -> None:
    learn = dense_learner(conv())
    x = images_of(learn)
    pairs = [(lambda xb: xb.flip(-2), lambda pred: pred.flip(-2)), (torch.neg, lambda pred: pred)]
    found = learn.tta(transforms=pairs, beta=0.0).preds
    turned = predictions(learn, x.flip(-2)).flip(-2)
    torch.testing.assert_close(found, (turned + predictions(learn, -x)) / 2)


def boxes_learner(targets: Tensor, shape: tuple[int, ...] = (4,)) -> Learner:
    """Make a learner whose predictions have that shape, for images of 8x8 pixels."""
    learn = image_learner()
    learn.model.append(nn.Linear(3, torch.Size(shape).numel()))
    learn.model.append(nn.Unflatten(1, shape))
    learn.dls.valid = TensorLoader(images_of(learn), targets, batch_size=8)
    return learn


def in_a_row(model: nn.Module, start: int) -> Learner:
    """Make a learner whose predictions are maps with all pixels in a row."""
    return dense_learner(nn.Sequential(model, nn.Flatten(start)), torch.arange(8))


class Brighter(Augmentation):
    def transform(self, images: Tensor) -> Tensor:
        return images + 1


PAIRS = r"give transforms as pairs \(view, back\)"


@pytest.mark.parametrize(
    ("learn", "options", "error", "says"),
    [
        (dense_learner(conv()), {"transforms": [abs]}, ValueError, PAIRS),
        (dense_learner(conv(3)), {"transforms": [abs, (abs, abs)]}, ValueError, PAIRS),
        (boxes_learner(torch.rand(32, 4)), {}, ValueError, r"targets of \(32, 4\).*boxes"),
        (boxes_learner(torch.rand(32, 4)), {"transforms": [abs]}, ValueError, "boxes"),
        (boxes_learner(torch.arange(128).view(32, 4)), {}, ValueError, "targets of .* int64"),
        (boxes_learner(torch.arange(32), (5, 4)), {}, ValueError, r"predictions of \(32, 5, 4\)"),
        (boxes_learner(torch.rand(32, 5, 4), (5, 4)), {}, ValueError, r"of \(32, 5, 4\)"),
        (in_a_row(conv(), 1), {}, ValueError, r"predictions of \(8, 216\)"),
        (in_a_row(conv(out=1), 1), {}, ValueError, r"predictions of \(8, 54\)"),
        (in_a_row(conv(), 0), {}, ValueError, r"predictions of \(1728,\)"),
        (dense_learner(conv(out=2), torch.randn(8, 2, 6, 9)), {}, ValueError, "direction"),
        (dense_learner(conv(3), cbs=[RandomCrop(2)]), {"n": 2}, ValueError, "cannot turn back"),
        (
            dense_learner(conv(), cbs=[Brighter()]),
            {"n": 2},
            TypeError,
            r"tta\(n=...\) of predictions that are maps it must define transform_back",
        ),
    ],
)
def test_predictions_that_cannot_be_turned_back_are_refused(learn, options, error, says) -> None:
    with pytest.raises(error, match=says):
        learn.tta(**options)


def test_pairs_serve_whatever_the_predictions_are() -> None:
    learn = boxes_learner(torch.rand(32, 5, 4), (5, 4))
    found = learn.tta(transforms=[(lambda xb: xb.flip(-1), lambda pred: 8 - pred)], beta=0.0)
    mirrored = 8 - predictions(learn, images_of(learn).flip(-1))
    torch.testing.assert_close(found.preds, mirrored)


def test_what_leaves_every_pixel_in_its_place_needs_no_way_back() -> None:
    brighter = Brighter()
    brighter.target = "keep"
    learn = dense_learner(conv(), cbs=[brighter])
    expected = predictions(learn, images_of(learn) + 1)
    torch.testing.assert_close(learn.tta(n=2, beta=0.0).preds, expected)


# --- refused ---------------------------------------------------------------------------------


class ShufflesByItself:
    """Draws its order from torch's own generator, which views draw from too."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __iter__(self):
        order = torch.randperm(len(self.tensors[0]))
        yield tuple(tensor[order] for tensor in self.tensors)


def image_tuple() -> Learner:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.scale, x

    loader = TensorLoader(torch.zeros(4, 3, 2, 2), torch.zeros(4), batch_size=2)
    return Learner((loader, loader), Two(), device="cpu")


def own_order() -> Learner:
    learn = image_learner()
    learn.dls.valid = ShufflesByItself(*learn.dls.train.tensors)
    return learn


@pytest.mark.parametrize(
    ("learn", "options", "error", "says"),
    [
        (image_learner(), {"n": 2}, ValueError, r"none: make the Learner with cbs=\[RandomFlip"),
        (image_learner(cbs=[RandomFlip()]), {"n": 0}, ValueError, "n must be at least 1"),
        (image_learner(), {"n": 2, "transforms": [abs]}, ValueError, "not both"),
        (image_learner(), {"transforms": []}, ValueError, "functions of a batch"),
        (
            image_learner(),
            {"transforms": [3]},
            ValueError,
            "functions of a batch",
        ),
        (image_learner(), {"beta": 25}, ValueError, "did you mean 0.25"),
        (
            image_learner(),
            {"transforms": [lambda xb: xb[1:]]},
            ValueError,
            r"\(32, 3\), .*\(24, 3\)",
        ),
        (toy_learner(), {}, ValueError, r"tta\(\) without transforms expects images"),
        (image_tuple(), {}, TypeError, "one tensor of floats; got tuple"),
        (own_order(), {}, ValueError, "pass one that does not shuffle"),
    ],
)
def test_what_has_no_mean_over_views_is_refused(learn, options, error, says) -> None:
    with pytest.raises(error, match=says):
        learn.tta(**options)
