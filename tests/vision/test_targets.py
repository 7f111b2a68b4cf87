"""What becomes of targets when images move: the same rules for all that moves them."""

from functools import partial

import pytest
import torch
from counters import per_step
from numbered_pixels import Seen, numbered_images, pixel_learner
from torch import Tensor, nn

from onecycle import (
    Callback,
    CutMix,
    Cutout,
    Learner,
    ProgressiveResizing,
    RandomCrop,
    RandomFlip,
    TensorLoader,
    linear,
)
from onecycle.vision import Augmentation

X = numbered_images(8)
MASK = X[:, 0].long() % 5
#: All that moves images, each moving every one of them.
MOVERS = {
    "flip": partial(RandomFlip, 1.0),
    "crop": partial(RandomCrop, 2),
    "cutmix": CutMix,
    "resizing": partial(ProgressiveResizing, linear(2, 6), multiple=1),
}
movers = pytest.mark.parametrize("make", MOVERS.values(), ids=MOVERS)


def fit(learn: Learner, *cbs: Callback, updates: int = 2) -> Seen:
    torch.manual_seed(0)
    seen = Seen()
    learn.fit(None, cbs=[*cbs, seen], max_updates=updates)
    return seen


# --- what stays ------------------------------------------------------------------------------

BOXES = torch.rand(8, 5, 4, generator=torch.Generator().manual_seed(0)) * 9
LABELS = {
    "classes": torch.arange(8),
    "a column of classes": torch.arange(8).view(8, 1),
    "one number": torch.linspace(-3, 3, 8),
    "soft labels": torch.randn(8, 4).softmax(1),
    "several labels": (torch.arange(32).view(8, 4) % 3 == 0).float(),
    "several labels, integers": torch.arange(32).view(8, 4) % 2,
    "several labels, bool": torch.arange(32).view(8, 4) % 3 == 0,
    "names": [f"{i}.png" for i in range(8)],
    "label and name": [torch.arange(8), list("abcdefgh")],
    "a dict": {"label": torch.arange(8), "none": None},
}


@movers
@pytest.mark.parametrize("target", LABELS.values(), ids=LABELS)
def test_labels_are_the_very_objects_that_the_loader_gave(make, target, caplog) -> None:
    batch = (X, target)
    seen = fit(pixel_learner([batch] * 2), make())
    assert seen.yb[0] is target
    assert seen.batch[0] is batch
    assert not torch.equal(seen.xb[0], X)
    assert caplog.records == []


@movers
def test_rows_of_integers_stay_and_it_is_said_once(make, caplog) -> None:
    tokens = torch.arange(96).view(8, 12)
    batches = [(X, tokens), (X[:4], tokens[:4])] * 2
    seen = fit(pixel_learner(batches), make(), updates=4)
    assert seen.yb[0] is tokens
    (record,) = caplog.records
    assert "leaves the target of (8, 12) int64 as it is, taken for labels: if it" in record.message
    caplog.clear()
    fit(pixel_learner(batches), make(target="keep"))
    assert caplog.records == []


# --- what moves ------------------------------------------------------------------------------


def test_parts_of_nested_targets_move_each_by_itself() -> None:
    label, names = torch.arange(8), tuple("abcdefgh")
    flipped = MASK.flip(-1)
    nested = {"masks": [MASK, MASK.float()], "label": (label, names)}
    seen = fit(pixel_learner([(X, nested)] * 2), RandomFlip(1.0))
    assert torch.equal(seen.yb[0]["masks"][0], flipped)
    assert torch.equal(seen.yb[0]["masks"][1], flipped.float())
    assert seen.yb[0]["label"] == (label, names)
    assert seen.yb[0]["label"][0] is label
    several = fit(pixel_learner([[X, label, MASK]] * 2, n_inp=1), RandomFlip(1.0))
    assert several.yb[0][0] is label
    assert torch.equal(several.yb[0][1], flipped)
    assert isinstance(several.batch[0], list)
    assert torch.equal(several.batch[0][2], flipped)


def test_who_takes_the_target_out_of_the_batch_finds_the_moved_one() -> None:
    class OwnLoss(Learner):
        def compute_loss(self, pred, batch):
            images, (mask, _) = batch
            assert images is self.xb
            return (pred[:, 0] % 5 - mask).abs().mean()

    batches = [(X, (MASK, torch.arange(8)))] * 3
    learn = pixel_learner(batches, kind=OwnLoss)
    learn.dls.valid = None
    fit(learn, RandomFlip(1.0), RandomCrop(2), updates=3)
    assert learn.recorder.history["train_loss"].values.tolist() == [0, 0, 0]
    assert batches[0][1][0] is MASK
    assert torch.equal(MASK, numbered_images(8)[:, 0].long() % 5)


@movers
@pytest.mark.parametrize("kind", ["one object", "equal values"])
def test_the_target_of_an_autoencoder_is_the_image_that_it_gets(make, kind) -> None:
    x = torch.randn(8, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    loader = TensorLoader(x, x, batch_size=8) if kind == "equal values" else [(x, x)]
    learn = pixel_learner(loader, nn.functional.mse_loss)
    seen = fit(learn, make(), updates=2)
    assert not torch.equal(seen.xb[0], x)
    assert torch.equal(seen.yb[0], seen.xb[0])
    assert learn.recorder.history["train_loss"].values.tolist() == [0, 0]


def test_all_that_moves_images_can_be_combined() -> None:
    x = torch.randn(8, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    seen = fit(pixel_learner([(x, x)] * 4), *(make() for make in MOVERS.values()), updates=4)
    assert {tuple(xb.shape[2:]) for xb in seen.xb} == {(2, 3), (3, 4), (5, 8), (6, 9)}
    assert all(map(torch.equal, seen.xb, seen.yb))


# --- what is refused ---------------------------------------------------------------------------

FLOW = torch.randn(8, 2, 6, 9)
UNKNOWN = {
    "boxes": (BOXES, r"target of \(8, 5, 4\) float32: it is no map .*boxes, key points"),
    "one box": (BOXES[:, 0], r"\(8, 4\) float32: it is no map"),
    "key points": (torch.rand(8, 17, 2), "boxes, key points"),
    "boxes of all samples in a row": (torch.rand(13, 6), r"\(13, 6\) float32"),
    "boxes in pixels, in a row": (torch.arange(78).view(13, 6), r"\(13, 6\) int64"),
    "detections": ([{"boxes": BOXES[0], "labels": torch.arange(5)}] * 8, "a list of|of list of"),
    "detections as a tuple": (({"boxes": BOXES[0]},) * 8, "list of"),
    "a coarser map": (MASK[:, ::2, ::3], r"no map of its images \(batch, ..., 6, 9\)"),
    "channels last": (torch.rand(8, 6, 9, 2), r"\(batch, ..., 6, 9\)"),
    "flow": (FLOW, "some below 0, may be directions"),
    "a mask in a row": (MASK.flatten(1) % 2, r"\(8, 54\) int64"),
    "a mask in a row, floats": (MASK.flatten(1) % 2.0, r"\(8, 54\) float32"),
    "images in a row": (X.flatten(1) > 3, r"\(8, 162\) bool"),
    "all masks in a row": (MASK.flatten() % 2, r"\(432,\) int64"),
    "mask and box": ((MASK, BOXES[:, 0]), r"\(8, 4\) float32"),
    "a class of one's own": (object(), "target of object"),
}


@movers
@pytest.mark.parametrize(("target", "says"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_certain_is_refused_before_the_first_update(make, target, says) -> None:
    learn, mover = pixel_learner([(X, target)] * 2), make()
    with pytest.raises(ValueError, match=says) as caught:
        fit(learn, mover)
    assert learn.n_updates == 0
    assert f"Give {type(mover).__name__} target=" in str(caught.value)
    assert 'target="keep"' in str(caught.value)


@movers
def test_a_list_of_one_mask_for_each_sample_is_no_batch_of_labels(make) -> None:
    """As many samples as rows: each mask could be a row of labels for each sample."""
    x = numbered_images(8, size=(8, 9))
    target = list(x[:, 0].long() % 2)
    with pytest.raises(ValueError, match=r"target of list of \(\(8, 9\) int64"):
        fit(pixel_learner([(x, target)] * 2), make())


@pytest.mark.parametrize("target", [t for t, _ in UNKNOWN.values()], ids=UNKNOWN)
def test_a_word_keeps_whatever_comes(target) -> None:
    seen = fit(pixel_learner([(X, target)] * 2), RandomFlip(1.0, target="keep"))
    if type(target) is tuple:  # one target that is a tuple reaches the loss as a list
        assert all(kept is part for kept, part in zip(seen.yb[0], target, strict=True))
    else:
        assert seen.yb[0] is target
    assert torch.equal(seen.xb[0], X.flip(-1))


def test_a_word_moves_what_may_be_directions() -> None:
    seen = fit(pixel_learner([(X, FLOW)] * 2), RandomFlip(1.0, target="map"))
    assert torch.equal(seen.yb[0], FLOW.flip(-1))


def test_a_word_keeps_what_only_happens_to_have_the_size() -> None:
    seen = fit(pixel_learner([(X, MASK)] * 2), RandomFlip(1.0, target="keep"))
    assert seen.yb[0] is MASK


def test_parts_have_words_of_their_own() -> None:
    parts = (MASK, FLOW, BOXES)
    seen = fit(
        pixel_learner([(X, *parts)] * 2, n_inp=1), RandomFlip(1.0, target=("auto", "map", "keep"))
    )
    assert torch.equal(seen.yb[0][0], MASK.flip(-1))
    assert torch.equal(seen.yb[0][1], FLOW.flip(-1))
    assert seen.yb[0][2] is BOXES
    named = {"mask": MASK, "boxes": BOXES}
    seen = fit(pixel_learner([(X, named)] * 2), RandomFlip(1.0, target={"boxes": "keep"}))
    assert torch.equal(seen.yb[0]["mask"], MASK.flip(-1))
    assert seen.yb[0]["boxes"] is BOXES


@pytest.mark.parametrize(
    ("target", "words", "says"),
    [
        (torch.arange(8), "map", r'has target="map", .* shape \(8, ..., 6, 9\); got \(8,\) int64'),
        (BOXES, "map", r"got \(8, 5, 4\) float32"),
        (MASK[:4], "map", r"shape \(8, ..., 6, 9\); got \(4, 6, 9\)"),
        (MASK, ("map",), r"target=\('map',\), which does not fit targets of \(8, 6, 9\) int64"),
        ((MASK, MASK), ("map",) * 3, "does not fit targets of list"),
        ((MASK, MASK), {"mask": "map"}, "does not fit targets of list"),
        ({"mask": MASK}, ("map",), "does not fit targets of dict"),
        ({"mask": MASK}, {"maks": "map"}, "does not fit targets of dict"),
    ],
)
def test_words_that_do_not_fit_the_targets_are_refused(target, words, says) -> None:
    with pytest.raises(ValueError, match=says):
        fit(pixel_learner([(X, target)] * 2), RandomFlip(target=words))


@pytest.mark.parametrize("make", MOVERS.values(), ids=MOVERS)
@pytest.mark.parametrize(
    ("words", "error"), [("mask", ValueError), (("map", "mask"), ValueError), (None, TypeError)]
)
def test_words_that_are_none_are_refused_at_once(make, words, error) -> None:
    with pytest.raises(error, match=r'"auto", "map" or "keep"|one of .*auto'):
        make(target=words)


# --- augmentations of one's own ----------------------------------------------------------------


class UpsideDown(Augmentation):
    def transform(self, images: Tensor) -> Tensor:
        self.turned = torch.rand(len(images), 1, 1, 1) < 0.5
        return self.transform_target(images)

    def transform_target(self, target: Tensor) -> Tensor:
        return torch.where(self.turned, target.flip(-2), target)


class Brighter(Augmentation):
    def transform(self, images: Tensor) -> Tensor:
        return images + 1


class Turned(RandomFlip):
    """Moves more than the targets of its base would."""

    def transform(self, images: Tensor) -> Tensor:
        return super().transform(images).flip(-2)


class Both(Turned):
    def transform_target(self, target: Tensor) -> Tensor:
        return super().transform_target(target).flip(-2)


@pytest.mark.parametrize("kind", [UpsideDown, Both])
def test_an_own_augmentation_moves_targets_by_a_method_of_its_own(kind) -> None:
    seen = fit(pixel_learner([(X, MASK)] * 2), kind())
    assert not torch.equal(seen.xb[0], X)
    assert torch.equal(seen.yb[0], seen.xb[0][:, 0].long() % 5)


@pytest.mark.parametrize("kind", [Brighter, Turned])
def test_an_own_augmentation_that_does_not_say_is_refused_for_maps_alone(kind) -> None:
    learn = pixel_learner([(X, MASK)] * 2)
    says = rf'{kind.__name__} defines .* it must define transform_target .* say target = "keep"'
    with pytest.raises(TypeError, match=says):
        fit(learn, kind())
    assert learn.n_updates == 0
    fit(pixel_learner([(X, torch.arange(8))] * 2), kind())


def test_an_own_augmentation_can_say_that_no_pixel_moves() -> None:
    brighter = Brighter()
    brighter.target = "keep"
    seen = fit(pixel_learner([(X, MASK)] * 2), brighter)
    assert seen.yb[0] is MASK
    assert torch.equal(seen.xb[0], X + 1)


def test_a_hole_leaves_the_target_as_it_is() -> None:
    seen = fit(pixel_learner([(X, (MASK, X, BOXES))] * 2), Cutout(4))
    assert seen.yb[0][0] is MASK
    assert seen.yb[0][1] is X
    assert not torch.equal(seen.xb[0], X)


# --- asked once --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [X * 1.5, torch.randn(8, 4).softmax(1), MASK])
def test_numbers_are_read_for_the_first_batch_of_a_kind_alone(target) -> None:
    def run(steps: int) -> None:
        learn = pixel_learner([(X, target)] * steps)
        learn.dls.valid = None
        fit(learn, RandomFlip(), RandomCrop(2), CutMix(), updates=steps)

    # CutMix draws its rectangle on the CPU, where it is needed: three numbers a batch.
    assert per_step(run, 5).reads == 3


def test_a_new_kind_of_batch_is_asked_anew() -> None:
    learn = pixel_learner([(X, MASK), (X, BOXES)])
    with pytest.raises(ValueError, match=r"target of \(8, 5, 4\)"):
        fit(learn, RandomFlip())
    assert learn.n_updates == 1
