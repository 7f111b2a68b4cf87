from functools import partial

import pytest
import torch
import torch.nn.functional as F
from batch_kinds import Pair
from image_learner import image_learner
from numbered_pixels import Seen as SeenPixels
from numbered_pixels import at_pixels, numbered_images, pixel_learner
from torch import Tensor, nn
from torch.distributions import Beta

from onecycle import (
    AttributeScheduler,
    Callback,
    CutMix,
    GradientAccumulation,
    LabelSmoothing,
    Learner,
    MixUp,
    linear,
)
from onecycle.testing import toy_learner


class Seen(Callback):
    """Keeps each training batch as the model and the loss saw it."""

    during = "train"

    def __init__(self) -> None:
        self.xb, self.yb, self.pred, self.loss = [], [], [], []

    def after_loss(self, learn: Learner) -> None:
        for name in vars(self):
            getattr(self, name).append(getattr(learn, name).detach().clone())


def draws(alpha: float, n: int) -> tuple[float, Tensor]:
    """Draw what `MixUp` draws for a batch."""
    return float(Beta(alpha, alpha).sample()), torch.randperm(n)


# --- MixUp -----------------------------------------------------------------------------------


def test_mixup_trains_as_a_loop_written_by_hand() -> None:
    """Under accumulation: the mean over both batches of their mixed losses."""
    x, y = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    by_hand = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    by_hand.load_state_dict(model.state_dict())
    learn = Learner((batches, None), model, F.cross_entropy, torch.optim.SGD, device="cpu")
    torch.manual_seed(5)
    with learn.no_bar():
        learn.fit(1, lr=0.5, cbs=[MixUp(0.7), GradientAccumulation(2)])

    torch.manual_seed(5)
    losses = []
    for xb, yb in batches:
        lam, order = draws(0.7, 4)
        pred = by_hand(lam * xb + (1 - lam) * xb[order])
        losses.append(
            lam * F.cross_entropy(pred, yb) + (1 - lam) * F.cross_entropy(pred, yb[order])
        )
    (sum(losses) / 2).backward()
    with torch.no_grad():
        by_hand[1].weight -= 0.5 * by_hand[1].weight.grad
        by_hand[1].bias -= 0.5 * by_hand[1].bias.grad
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())
    recorded = learn.recorder.history["train_loss"].values
    assert recorded == pytest.approx([float(sum(losses).detach()) / 2])


def test_for_cross_entropy_the_loss_is_that_of_mixed_targets() -> None:
    learn, seen = image_learner(), Seen()
    torch.manual_seed(3)
    learn.fit(1, cbs=[MixUp(1.0), seen])
    torch.manual_seed(3)
    for yb, pred, loss in zip(seen.yb, seen.pred, seen.loss, strict=True):
        lam, order = draws(1.0, 4)
        one_hot = F.one_hot(yb, 3).float()
        expected = F.cross_entropy(pred, lam * one_hot + (1 - lam) * one_hot[order])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


class Huber(nn.Module):
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(pred, target)


@pytest.mark.parametrize("loss_func", [F.mse_loss, Huber()])
def test_any_loss_and_any_targets_can_be_mixed(loss_func) -> None:
    learn, seen = toy_learner(loss_func=loss_func), Seen()
    torch.manual_seed(3)
    learn.fit(1, cbs=[MixUp(0.4), seen])
    torch.manual_seed(3)
    for yb, pred, loss in zip(seen.yb, seen.pred, seen.loss, strict=True):
        lam, order = draws(0.4, 8)
        expected = lam * loss_func(pred, yb) + (1 - lam) * loss_func(pred, yb[order])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_several_targets_go_with_their_samples() -> None:
    x, y = torch.randn(8, 2), torch.arange(8.0).view(8, 1)
    pairs = []

    def loss_func(pred: Tensor, a: Tensor, b: Tensor) -> Tensor:
        pairs.append((a, b))
        return F.mse_loss(pred, a)

    learn = Learner(([(x, y, 3 * y)], None), nn.Linear(2, 1), loss_func, n_inp=1, device="cpu")
    seen = []
    torch.manual_seed(0)
    with learn.no_bar():
        learn.fit(1, cbs=[MixUp(1.0), Callback(after_loss=lambda learn: seen.append(learn.yb))])
    torch.manual_seed(0)
    _, order = draws(1.0, 8)
    assert [torch.equal(b, 3 * a) for a, b in pairs] == [True, True]
    assert torch.equal(pairs[0][0], y)
    assert torch.equal(pairs[1][0], y[order])
    assert torch.equal(seen[0][0], y)  # what others see is what the loader gave


def test_the_weight_follows_the_beta_distribution() -> None:
    learn, mixup, lams = toy_learner(), MixUp(0.5), []
    torch.manual_seed(0)
    for _ in range(5000):
        learn.xb, learn.yb = torch.zeros(1, 1), torch.zeros(1)
        mixup.before_batch(learn)
        lams.append(mixup.lam)
    lams = torch.tensor(lams)
    assert float(lams.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(lams.var()) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), rel=0.05)


def test_targets_stay_true_and_validation_is_as_without_it() -> None:
    learn, seen, losses = image_learner(), Seen(), []

    class ValidLoss(Callback):
        during = "valid"

        def after_loss(self, learn: Learner) -> None:
            losses.append((learn.loss, F.cross_entropy(learn.pred, learn.yb), learn.loss_func))

    learn.dls.train.shuffle = False
    learn.fit(1, cbs=[MixUp(1.0), seen, ValidLoss()])
    assert torch.equal(torch.cat(seen.yb), learn.dls.train.tensors[1])
    assert len(losses) == 8
    for loss, expected, loss_func in losses:
        assert torch.equal(loss, expected)
        assert loss_func is F.cross_entropy
    with learn.added_cbs([MixUp(1.0)]):
        with_mixup = learn.validate()
    assert with_mixup == learn.validate()


def test_the_strength_can_be_scheduled_down_to_none() -> None:
    learn, mixup, seen = image_learner(), MixUp(0.8), Seen()
    alphas, lams = [], []
    look = Callback(after_loss=lambda learn: (alphas.append(mixup.alpha), lams.append(mixup.lam)))
    look.during = "train"
    learn.dls.train.shuffle = False
    schedule = AttributeScheduler(mixup, "alpha", linear(0.8, 0.0))
    learn.fit(1, cbs=[schedule, mixup, seen, look])
    assert alphas == pytest.approx([0.8 * (1 - u / 7) for u in range(8)])
    assert lams[-1] == 1.0 != lams[0]
    images, labels = learn.dls.train.tensors
    assert torch.equal(seen.xb[-1], images[-4:])
    assert not torch.equal(seen.xb[0], images[:4])
    assert torch.equal(seen.loss[-1], F.cross_entropy(seen.pred[-1], labels[-4:]))


class Fails(Callback):
    def __init__(self, event: str) -> None:
        super().__init__(**{event: self.fail})

    def fail(self, learn: Learner) -> None:
        raise ArithmeticError


@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_batch"])
def test_the_learner_has_its_own_loss_back_after_an_error(event: str) -> None:
    learn = image_learner()
    with pytest.raises(ArithmeticError):
        learn.fit(1, cbs=[MixUp(), LabelSmoothing(), Fails(event)])
    assert learn.loss_func is F.cross_entropy


# --- CutMix ----------------------------------------------------------------------------------


def test_cutmix_pastes_as_a_loop_over_pixels_would_and_weighs_by_area() -> None:
    learn, cutmix = image_learner(batch_size=16), CutMix()
    batch = torch.arange(16 * 3 * 6 * 9.0).view(16, 3, 6, 9)
    for seed in range(20):
        learn.xb, learn.yb = batch, torch.arange(16)
        torch.manual_seed(seed)
        cutmix.before_batch(learn)
        torch.manual_seed(seed)
        lam, order = draws(1.0, 16)
        half = [int(side * (1 - lam) ** 0.5) // 2 for side in (6, 9)]
        middle = [int(torch.randint(side, ())) for side in (6, 9)]
        expected = batch.clone()
        for row in range(6):
            for column in range(9):
                away = row - middle[0], column - middle[1]
                if all(-h <= a < h for a, h in zip(away, half, strict=True)):
                    expected[:, :, row, column] = batch[order][:, :, row, column]
        assert torch.equal(learn.xb, expected)
        moved = order != torch.arange(16)
        own = (learn.xb == batch)[moved].float().mean()
        assert cutmix.lam == pytest.approx(float(own))
        loss = cutmix.mix_losses(lambda pred, y: y.float().mean() + y[0], None, learn.yb)
        assert float(loss) == pytest.approx(7.5 + (1 - cutmix.lam) * int(order[0]), rel=1e-5)


def test_cutmix_leaves_the_data_set_alone() -> None:
    learn = image_learner()
    data = learn.dls.train.tensors[0].clone()
    learn.dls.train.shuffle = False
    learn.fit(1, cbs=[CutMix()])
    assert torch.equal(learn.dls.train.tensors[0], data)


@pytest.mark.parametrize(
    "mask",
    [torch.randint(-100, 9, (8, 6, 9)), torch.rand(8, 1, 6, 9), torch.rand(8, 5, 6, 9) < 0.5],
    ids=["labels", "depth", "masks"],
)
def test_cutmix_pastes_maps_as_it_pastes_images_and_has_one_loss(mask: Tensor) -> None:
    losses, before = [], mask.clone()

    def loss_func(pred: Tensor, target: Tensor) -> Tensor:
        loss = pred.mean() + target.double().mean()
        losses.append(float(loss.detach()))
        return loss

    learn, seen = pixel_learner([(numbered_images(8), mask)] * 6, loss_func), SeenPixels()
    learn.dls.valid = None
    torch.manual_seed(0)
    learn.fit(1, cbs=[CutMix(), seen])
    for xb, yb in zip(seen.xb, seen.yb, strict=True):
        assert yb.dtype == mask.dtype
        assert torch.equal(yb, at_pixels(mask, xb))
    assert any(not torch.equal(yb, mask) for yb in seen.yb)
    assert torch.equal(mask, before)
    recorded = learn.recorder.history["train_loss"].values
    assert recorded == pytest.approx(losses)


def test_cutmix_pastes_maps_and_mixes_the_losses_of_labels() -> None:
    x, mask, label = numbered_images(8), torch.randint(0, 9, (8, 6, 9)), torch.arange(8.0) ** 2
    calls, seen, cutmix, lams = [], SeenPixels(), CutMix(), []

    def loss_func(pred: Tensor, targets: dict[str, Tensor]) -> Tensor:
        calls.append(targets)
        return pred.mean() + targets["mask"].double().mean() + targets["label"][0]

    learn = pixel_learner([(x, {"mask": mask, "label": label})] * 6, loss_func)
    learn.dls.valid = None
    torch.manual_seed(0)
    note = Callback(after_pred=lambda learn: lams.append((cutmix.lam, cutmix._partners)))
    learn.fit(1, cbs=[cutmix, seen, note])
    losses = learn.recorder.history["train_loss"].values
    for i, (lam, order) in enumerate(lams):
        pasted = at_pixels(mask, seen.xb[i])
        assert torch.equal(seen.yb[i]["mask"], pasted)
        assert torch.equal(seen.yb[i]["label"], label)
        own, other = calls[2 * i], calls[2 * i + 1]
        assert torch.equal(own["mask"], pasted)
        assert torch.equal(other["mask"], pasted)
        assert torch.equal(other["label"], label[order])
        of_images = float(seen.xb[i].mean() + pasted.double().mean())
        mixed = lam * float(label[0]) + (1 - lam) * float(label[order[0]])
        assert losses[i] == pytest.approx(of_images + mixed, rel=1e-5)


def test_cutmix_refuses_a_loss_of_targets_that_it_does_not_know() -> None:
    x, mask, label = numbered_images(8), torch.randint(0, 9, (8, 6, 9)), torch.arange(8)

    def loss_func(pred: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        return pred.mean()

    class Derived(Learner):
        def compute_loss(self, pred, batch):
            return self.loss_func(pred, batch[1].float(), batch[2])

    learn = pixel_learner([(x, mask, label)] * 2, loss_func, Derived, n_inp=1)
    with pytest.raises(
        ValueError, match=r"got \(8, 6, 9\) float32, which is none of them: call it"
    ):
        learn.fit(1, cbs=[CutMix()])
    assert learn.n_updates == 0


def test_cutmix_told_to_keep_a_map_mixes_its_losses_by_area() -> None:
    x, mask = numbered_images(8), torch.rand(8, 6, 9)
    cutmix, lams, seen = CutMix(target="keep"), [], SeenPixels()
    learn = pixel_learner([(x, mask)] * 4, lambda pred, y: pred.mean() + y[0].mean())
    learn.dls.valid = None
    torch.manual_seed(0)
    note = Callback(after_pred=lambda learn: lams.append((cutmix.lam, cutmix._partners)))
    learn.fit(1, cbs=[cutmix, seen, note])
    losses = learn.recorder.history["train_loss"].values
    for loss, xb, (lam, order) in zip(losses, seen.xb, lams, strict=True):
        mixed = lam * mask[0].mean() + (1 - lam) * mask[order[0]].mean()
        assert loss == pytest.approx(float(xb.mean() + mixed), rel=1e-5)


def test_mixup_mixes_the_losses_of_maps() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 3, 6, 9), torch.randint(0, 3, (4, 6, 9))
    mask[:, 0] = 255
    loss_func = nn.CrossEntropyLoss(ignore_index=255)
    learn, seen = pixel_learner([(x, mask)] * 3, loss_func), Seen()
    learn.dls.valid = None
    torch.manual_seed(3)
    learn.fit(1, cbs=[MixUp(1.0), seen])
    torch.manual_seed(3)
    for loss in seen.loss:
        lam, order = draws(1.0, 4)
        mixed = lam * x + (1 - lam) * x[order]
        expected = lam * loss_func(mixed, mask) + (1 - lam) * loss_func(mixed, mask[order])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


# --- LabelSmoothing --------------------------------------------------------------------------


def train_losses(learn: Learner, *cbs: Callback) -> Tensor:
    """Return the losses of a fit that changes nothing."""
    seen = Seen()
    learn.fit(1, lr=0.0, cbs=[*cbs, seen])
    return torch.stack(seen.loss)


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_for_cross_entropy_it_is_the_label_smoothing_of_torch(eps: float) -> None:
    found = train_losses(image_learner(), LabelSmoothing(eps))
    smoothed = image_learner(loss_func=nn.CrossEntropyLoss(label_smoothing=eps))
    torch.testing.assert_close(found, train_losses(smoothed))
    if eps == 0:
        assert torch.equal(found, train_losses(image_learner()))


def test_ignored_pixels_of_a_segmentation_stay_ignored() -> None:
    torch.manual_seed(0)
    pred, labels = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    labels[0, :2] = -100
    found = LabelSmoothing(0.2).mix_losses(F.cross_entropy, pred, labels)
    torch.testing.assert_close(found, F.cross_entropy(pred, labels, label_smoothing=0.2))


@pytest.mark.parametrize("ignored", [255, 5, -1, -100])
def test_the_label_that_the_loss_ignores_is_no_class(ignored: int) -> None:
    torch.manual_seed(0)
    pred, labels = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    labels[0, :2] = ignored
    loss_func = nn.CrossEntropyLoss(ignore_index=ignored)
    found = LabelSmoothing(0.2).mix_losses(loss_func, pred, labels)
    smoothed = nn.CrossEntropyLoss(ignore_index=ignored, label_smoothing=0.2)
    torch.testing.assert_close(found, smoothed(pred, labels))


@pytest.mark.parametrize(
    "loss_func",
    [nn.CrossEntropyLoss(ignore_index=2), partial(F.cross_entropy, ignore_index=2)],
)
def test_a_loss_that_ignores_a_class_cannot_be_smoothed(loss_func) -> None:
    learn = image_learner(loss_func=loss_func)
    with pytest.raises(ValueError, match="ignore_index=2, which is one of the 3 classes"):
        learn.fit(1, cbs=[LabelSmoothing()])
    assert learn.n_updates == 0
    learn.fit(1, cbs=[LabelSmoothing(0.0)])


def test_with_mixup_it_is_the_mixture_of_smoothed_losses() -> None:
    for order in (1, -1):
        torch.manual_seed(2)
        found = train_losses(image_learner(), *[MixUp(), LabelSmoothing(0.3)][::order])
        torch.manual_seed(2)
        smoothed = image_learner(loss_func=nn.CrossEntropyLoss(label_smoothing=0.3))
        torch.testing.assert_close(found, train_losses(smoothed, MixUp()))


def test_any_loss_of_class_labels_can_be_smoothed() -> None:
    torch.manual_seed(0)
    pred, labels = torch.randn(6, 4), torch.randint(4, (6,))
    found = LabelSmoothing(0.2).mix_losses(F.multi_margin_loss, pred, labels)
    every = [float(F.multi_margin_loss(pred, torch.full((6,), k))) for k in range(4)]
    expected = 0.8 * float(F.multi_margin_loss(pred, labels)) + 0.2 * sum(every) / 4
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_not_smoothed() -> None:
    with_it, without = image_learner(), image_learner()
    with_it.fit(1, lr=0.0, cbs=[LabelSmoothing(0.5)])
    without.fit(1, lr=0.0)
    valid, train = (
        [learn.recorder.history[name].values.tolist() for learn in (with_it, without)]
        for name in ("valid_loss", "train_loss")
    )
    assert valid[0] == valid[1]
    assert train[0] != train[1]


# --- refused ---------------------------------------------------------------------------------


class OwnLoss(Learner):
    def compute_loss(self, pred, batch):
        return pred.square().mean()


def learner_of(batch, loss_func=F.mse_loss, kind=Learner) -> Learner:
    learn = kind(([batch], None), nn.Linear(2, 2), loss_func, device="cpu")
    learn.cbs = learn.cbs[:1]
    return learn


X, Y = torch.randn(4, 2), torch.randn(4, 2)


@pytest.mark.parametrize(
    ("learn", "cbs", "error", "says"),
    [
        (learner_of((X, Y)), [MixUp(), CutMix()], ValueError, "would mix the same batch: keep one"),
        (learner_of((X.long(), Y)), [MixUp()], TypeError, "floats; got torch.int64: normalise"),
        (learner_of({"input": X}), [MixUp()], TypeError, "got a dict: mix such batches in the"),
        (learner_of((X, X, Y)), [MixUp()], TypeError, "got a tuple"),
        (learner_of((X,)), [MixUp()], ValueError, "the batch has no target"),
        (learner_of((X, Y[:3])), [MixUp()], ValueError, r"shape \(4, ...\); got \(3, 2\)"),
        (
            learner_of((X, [{"boxes": Y}] * 4)),
            [MixUp()],
            ValueError,
            "pairs the rows of tensors; got targets of list of",
        ),
        (
            learner_of((X, Pair(X, Y))),
            [MixUp()],
            ValueError,
            "pairs the rows of tensors; got targets of Pair",
        ),
        (learner_of((X, Y)), [CutMix()], ValueError, r"channels, height, width\); got \(4, 2\)"),
        (learner_of((X, Y), None), [MixUp()], ValueError, "there is none: give the Learner one"),
        (learner_of((X, Y), kind=OwnLoss), [MixUp()], ValueError, "of this OwnLoss does not call"),
        (
            learner_of((X, Y), nn.MSELoss(reduction="none")),
            [MixUp()],
            ValueError,
            r'one of shape \(4, 2\): take its mean \(reduction="mean"\)',
        ),
        (learner_of((X, Y)), [LabelSmoothing()], TypeError, "int64, as targets; got torch.float32"),
    ],
)
def test_what_cannot_be_mixed_is_refused(learn, cbs, error, says) -> None:
    with pytest.raises(error, match=says):
        learn.fit(1, cbs=cbs)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_a_strength_that_is_none_is_refused(kind, alpha) -> None:
    with pytest.raises(ValueError, match="alpha must be"):
        kind(alpha)


def test_scores_of_one_class_cannot_be_smoothed() -> None:
    with pytest.raises(ValueError, match=r"two classes or more; got \(4, 1\)"):
        LabelSmoothing().mix_losses(F.cross_entropy, torch.zeros(4, 1), torch.zeros(4).long())
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        LabelSmoothing(10)
