import pytest
import torch
import torch.nn.functional as F
from image_learner import image_learner
from learner_state import LearnerState
from torch import Tensor, nn

from onecycle import Callback, Learner, MixedPrecision, RandomCrop, RandomFlip, TensorLoader
from onecycle.testing import toy_learner
from onecycle.training.views import shifted


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
