"""`MixUp`, `CutMix` and `LabelSmoothing`: several losses mixed, so that any loss function works."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Beta

from onecycle.arguments import check_fraction, check_positive
from onecycle.core.callback import Callback, Stage
from onecycle.data.nested import leaves, map_tensors
from onecycle.explanations import describe
from onecycle.vision.targets import (
    Move,
    Plan,
    TargetPlans,
    Words,
    check_words,
    is_per_sample,
    move_targets,
    tensors_of,
)

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

LossFunction = Callable[..., Tensor]

#: What targets may hold that are paired. Texts and numbers are left, as no loss compares them.
_PAIRED = (Tensor, str, bytes, Number, type(None))


class _LossMixer(Callback):
    """Base of what computes the loss of a training batch as a mixture of several.

    The loss function is replaced while a training batch is in the model, and at no other time.
    """

    stage = Stage.PREPARE
    during = "train"
    _was_called = False

    def mix_losses(self, loss_func: LossFunction, pred: Any, *targets: Any) -> Tensor:
        """Return the mixture, of the losses that ``loss_func`` computes."""
        raise NotImplementedError

    def before_fit(self, learn: Loop) -> None:
        """Refuse a learner that has no loss function."""
        if learn.loss_func is None:
            raise ValueError(
                f"{type(self).__name__} mixes losses of the learner's loss_func, and there is "
                "none: give the Learner one, and let the model return its predictions"
            )

    def forward_context(self, learn: Loop) -> _ReplacedLoss:
        """Return what replaces the loss function of a training batch."""
        return _ReplacedLoss(learn, self._mixed_loss)

    def after_loss(self, learn: Loop) -> None:
        """Refuse a learner that computes its loss in another way."""
        if not self._was_called:
            raise ValueError(
                f"{type(self).__name__} mixes what learn.loss_func returns, and compute_loss of "
                f"this {type(learn).__name__} does not call it"
            )
        self._was_called = False

    def _mixed_loss(self, loss_func: LossFunction, pred: Any, *targets: Any) -> Tensor:
        self._was_called = True
        loss = self.mix_losses(loss_func, pred, *targets)
        if loss.ndim:
            raise ValueError(
                f"{type(self).__name__} mixes losses that are one number for the batch; got one "
                f'of shape {tuple(loss.shape)}: take its mean (reduction="mean")'
            )
        return loss


class _ReplacedLoss:
    """Put another loss function in force while a training batch is in the model."""

    def __init__(self, learn: Loop, mixed: LossFunction) -> None:
        self._learn, self._mixed = learn, mixed
        self._own: LossFunction | None = None

    def __enter__(self) -> None:
        self._own = self._learn.loss_func
        if self._learn.training:
            self._learn.loss_func = partial(self._mixed, self._own)

    def __exit__(self, *_: object) -> None:
        self._learn.loss_func = self._own


class _PairMixer(_LossMixer):
    """Base of what mixes each sample with another one of its batch."""

    def __init__(self, alpha: float) -> None:
        self.alpha = check_positive("alpha", alpha)
        self.lam = 1.0
        self._partners: Tensor | None = None

    def mix_inputs(self, xb: Tensor, other: Tensor) -> Tensor:
        """Return the mixture of two batches, by ``lam`` or by what comes nearest to it."""
        raise NotImplementedError

    def check_inputs(self, learn: Loop) -> Tensor:
        """Return the inputs, or refuse them."""
        raise NotImplementedError

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the strength."""
        return {"alpha": self.alpha}

    def before_fit(self, learn: Loop) -> None:
        """Refuse what cannot work, before anything runs."""
        super().before_fit(learn)
        for other in learn.cbs:
            if isinstance(other, _PairMixer) and other is not self:
                raise ValueError(
                    f"{type(self).__name__} and {type(other).__name__} would mix the same batch: "
                    "keep one of them in cbs"
                )

    def before_batch(self, learn: Loop) -> None:
        """Mix the inputs, each with those of its partner."""
        xb, name = self.check_inputs(learn), type(self).__name__
        if learn.yb is None:
            raise ValueError(f"{name} mixes the losses of two targets, and the batch has no target")
        _check_targets(name, len(xb), learn.yb)
        if self.alpha <= 0:  # where a schedule may end; all samples stay as they are
            self.lam, self._partners = 1.0, None
            return
        # Drawn on the CPU, as the limits of a slice must be known there; no device waits for it.
        self.lam = float(Beta(self.alpha, self.alpha, validate_args=False).sample())
        self._partners = torch.randperm(len(xb), device=xb.device)
        learn.xb = self.mix_inputs(xb, xb[self._partners])

    def mix_losses(self, loss_func: LossFunction, pred: Any, *targets: Any) -> Tensor:
        """Return the losses of both targets, each with the share of its input."""
        own = loss_func(pred, *targets)
        if self._partners is None:
            return own
        others = map_tensors(partial(self.partner_of, partners=self._partners), targets)
        return own * self.lam + loss_func(pred, *others) * (1 - self.lam)

    def partner_of(self, target: Tensor, *, partners: Tensor) -> Tensor:
        """Return what a target is compared with in the second loss."""
        return target[partners]

    def cleanup_fit(self, learn: Loop) -> None:
        """Let go of the last batch."""
        self.lam, self._partners = 1.0, None


class MixUp(_PairMixer):
    """Train on mixtures of two samples: the mean of both inputs, and of the losses of both targets.

    For each batch one weight ``lam`` is drawn from Beta(alpha, alpha), and every sample gets
    another one of its batch as a partner. The model sees ``lam * x + (1 - lam) * x_partner``, and
    the loss is ``lam * loss(pred, y) + (1 - lam) * loss(pred, y_partner)``, which for
    cross-entropy is the loss of the mixed targets, and can be had of any loss function and any
    targets. ``learn.yb`` stays true, the training loss is that of the mixtures, and validation is
    as without it.

    Args:
        alpha: The strength, above 0: 0.2 to 0.4 mixes most batches a little, 1 draws ``lam``
            uniformly. A schedule may drive it, also to 0, which mixes nothing; put the
            `AttributeScheduler` before this callback.

    Attributes:
        lam: The weight of the batch at hand.

    Raises:
        TypeError, ValueError: For an ``alpha`` that is none; with `CutMix`; in the fit, for inputs
            that are no float tensor, batches without targets, or a loss that is no single number.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, section 2.

    Example:
        >>> from onecycle import MixUp
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(cbs=(MixUp(0.4),))
        >>> learn.fit(1)
    """

    def __init__(self, alpha: float = 0.4) -> None:
        super().__init__(alpha)

    def check_inputs(self, learn: Loop) -> Tensor:
        """Return the inputs, or refuse what has no mean."""
        xb = learn.xb
        if not isinstance(xb, Tensor):
            raise TypeError(
                f"MixUp mixes one tensor of inputs in learn.xb; got a {type(xb).__name__}: mix "
                "such batches in the loader"
            )
        if not xb.is_floating_point():
            raise TypeError(
                f"MixUp takes means of inputs, which must be floats; got {xb.dtype}: normalise "
                "images in the loader; token ids have no mean"
            )
        return xb

    def mix_inputs(self, xb: Tensor, other: Tensor) -> Tensor:
        """Return the weighted mean."""
        return torch.lerp(other, xb, self.lam)


class CutMix(_PairMixer):
    """Train on images with a rectangle of another image, and the losses of both targets.

    For each batch ``lam`` is drawn from Beta(alpha, alpha), and every image gets another one of
    its batch as a partner. A rectangle of ``1 - lam`` of the area, the same for the whole batch,
    is replaced by the partner's. The losses are mixed as by `MixUp`, by the shares of the area:
    ``lam`` is corrected where the rectangle reaches over the edge.

    Targets that are maps of the images' pixels (masks, depths) are not mixed: the same rectangle
    of the partner's map is pasted, ``learn.yb`` has it, and there is one loss.

    Args:
        alpha: The strength, above 0; 1 draws ``lam`` uniformly. It can be scheduled as that of
            `MixUp`.
        target: What becomes of targets: see `Augmentation`. Losses of those that stay as they
            are, are mixed.

    Attributes:
        lam: The share of its own area that each image keeps, in the batch at hand.

    Raises:
        TypeError, ValueError: For an ``alpha`` that is none; with `MixUp`; in the fit, for batches
            that are no images or have no targets, targets of which it is not certain what becomes
            of them, or a loss that is no single number.

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", arXiv:1905.04899, section 3.1.

    Example:
        >>> from onecycle import CutMix
        >>> CutMix().alpha
        1.0
    """

    def __init__(self, alpha: float = 1.0, *, target: Words = "auto") -> None:
        super().__init__(alpha)
        check_words(target)
        self.target, self._plans = target, TargetPlans(type(self).__name__)
        self._plan: Plan = ()
        self._rectangle = slice(0), slice(0)
        # Where some targets are pasted and others' losses are mixed: which are which.
        self._pasted: list[Tensor] = []
        self._mixed: list[Tensor] = []

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the strength, and what becomes of targets."""
        return {**super().plan(learn), "target": self.target}

    def check_inputs(self, learn: Loop) -> Tensor:
        """Return the images, or refuse what has no area, or no part in it."""
        self._plan = self._plans.plan(learn.xb, learn.yb, self.target)
        images: Tensor = learn.xb
        return images

    def before_batch(self, learn: Loop) -> None:
        """Mix the images, each with that of its partner, and paste the targets that are maps."""
        super().before_batch(learn)
        if self._plan and self._partners is not None:
            self._paste_targets(learn, self._partners)

    def mix_inputs(self, xb: Tensor, other: Tensor) -> Tensor:
        """Return the images, each with the rectangle of its partner."""
        height, width = xb.shape[2:]
        rows, columns = (_cut(side, (1 - self.lam) ** 0.5) for side in (height, width))
        self._rectangle = rows, columns
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        self.lam = 1 - cut / (height * width)
        return self._paste(xb, other)

    def partner_of(self, target: Tensor, *, partners: Tensor) -> Tensor:
        """Return the partners' labels, and maps as they are: they have the partners' part."""
        if not self._pasted:
            return target[partners]
        if any(target is each for each in self._pasted):
            return target
        if any(target is each for each in self._mixed):
            return target[partners]
        raise ValueError(
            "CutMix has pasted some of the targets and mixes the losses of others, and the loss "
            f"function got {describe(target)}, which is none of them: call it with the parts of "
            "learn.yb themselves, and put CutMix behind all that moves images"
        )

    def cleanup_fit(self, learn: Loop) -> None:
        """Let go of the last batch."""
        super().cleanup_fit(learn)
        self._pasted, self._mixed = [], []

    def _paste_targets(self, learn: Loop, partners: Tensor) -> None:
        def pasted(target: Tensor, _: Move) -> Tensor:
            return self._paste(target, target[partners])

        move_targets(learn, self._plan, pasted)
        if "stay" not in self._plan:
            self._partners = None  # no loss is left to be mixed
            return
        parts = list(zip(tensors_of(learn.yb), self._plan, strict=True))
        self._pasted = [part for part, move in parts if move != "stay"]
        self._mixed = [part for part, move in parts if move == "stay"]

    def _paste(self, maps: Tensor, other: Tensor) -> Tensor:
        rows, columns = self._rectangle
        mixed = maps.clone()
        mixed[:, :, rows, columns] = other[:, :, rows, columns]
        return mixed


class LabelSmoothing(_LossMixer):
    """Mix the loss of each label with the mean of the losses of all classes.

    The loss is ``(1 - eps) * loss(pred, y)`` plus ``eps`` times the mean of ``loss(pred, k)`` over
    the classes k. For cross-entropy without class weights that is ``label_smoothing=`` of torch,
    which costs less. This is for any other loss of class labels, for an ``eps`` that a schedule
    drives, and for a validation loss that is not smoothed. It calls the loss function once more
    for each class. Labels of no class, such as the ``ignore_index`` of a segmentation, stay what
    they are.

    Args:
        eps: The share of the mean over all classes, in [0, 1].

    Raises:
        TypeError, ValueError: For an ``eps`` that is no fraction; in the fit, where predictions
            are no scores of shape ``(batch, classes, ...)`` or targets no class labels, or where
            the loss ignores one of the classes.

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
        arXiv:1512.00567, section 7.

    Example:
        >>> from onecycle import LabelSmoothing
        >>> LabelSmoothing().eps
        0.1
    """

    def __init__(self, eps: float = 0.1) -> None:
        self.eps = check_fraction("eps", eps)
        self._ignored: int | None = None

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the share of the mean over all classes."""
        return {"eps": self.eps}

    def before_fit(self, learn: Loop) -> None:
        """Refuse a learner that has no loss function, and see what that ignores."""
        super().before_fit(learn)
        named = getattr(learn.loss_func, "keywords", {})  # of a partial
        self._ignored = named.get("ignore_index", getattr(learn.loss_func, "ignore_index", None))

    def mix_losses(self, loss_func: LossFunction, pred: Any, *targets: Any) -> Tensor:
        """Return the smoothed loss."""
        labels = _check_labels(pred, targets)
        own = loss_func(pred, labels)
        if self.eps == 0:
            return own
        classes: int = pred.shape[1]
        if self._ignored is not None and 0 <= self._ignored < classes:
            raise ValueError(
                f"the loss has ignore_index={self._ignored}, which is one of the {classes} "
                "classes, so that LabelSmoothing cannot have its loss: give what is ignored "
                "another label, such as -100"
            )
        # A label of no class is that of a sample or pixel to be ignored, for every class.
        ignored = (labels < 0) | (labels >= classes)
        each = [loss_func(pred, torch.where(ignored, labels, k)) for k in range(classes)]
        return own * (1 - self.eps) + torch.stack(each).mean() * self.eps


def _check_targets(who: str, n: int, targets: Any) -> None:
    """Refuse targets of which a sample has no row of its own."""

    def check(target: Tensor) -> Tensor:
        if not target.ndim or len(target) != n:
            raise ValueError(
                f"{who} pairs the {n} samples of a batch with one another: expected targets of "
                f"shape ({n}, ...); got {tuple(target.shape)}"
            )
        return target

    parts = () if isinstance(targets, Tensor) else leaves(targets)
    if is_per_sample(targets) or not all(isinstance(part, _PAIRED) for part in parts):
        raise ValueError(
            f"{who} pairs the rows of tensors; got targets of {describe(targets)}: mix such "
            "batches in the loader"
        )
    map_tensors(check, targets)


def _check_labels(pred: Any, targets: tuple[Any, ...]) -> Tensor:
    """Return the labels of what is a classification, or refuse it."""
    if not isinstance(pred, Tensor) or pred.ndim < 2 or pred.shape[1] < 2:
        came = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(
            "LabelSmoothing expects predictions of shape (batch, classes, ...) with two classes or "
            f"more; got {came}"
        )
    labels = targets[0] if len(targets) == 1 else None
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else f"{len(targets)} targets"
        raise TypeError(
            f"LabelSmoothing expects one tensor of class labels, int64, as targets; got {kind}: "
            "smooth targets of another kind in the loader"
        )
    return labels


def _cut(side: int, ratio: float) -> slice:
    """Draw where a cut of a share of a side is; its middle is anywhere, its ends are clipped."""
    half = int(side * ratio) // 2
    middle = int(torch.randint(side, ()))
    return slice(max(0, middle - half), min(side, middle + half))
