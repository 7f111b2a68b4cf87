"""Which way a metric is better: what it says itself, else what its name is known for, or nothing.

A metric says it by an attribute ``higher_is_better``, as those of torchmetrics do; a function may
have one too. A name is taken apart into words, so that "loss" is not found in "lossless": the last
words must be known ones, and no word before them may turn the meaning round.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

#: Whether less or more of something is better.
Direction = Literal["min", "max"]

_LESS = """
    loss, losses, error, errors, error rate, err, mistakes, cross entropy, nll, bce, kl, kl div,
    kl divergence, binary cross entropy with logits, negative log likelihood, perplexity, ppl,
    bits per byte, bpb, bits per character, bpc, bits per dim, bpd, mse, rmse, nrmse, msle, rmsle,
    mae, medae, mape, smape, wmape, mase, mean absolute deviation, wer, cer, mer, eer, ter, ece,
    brier, brier score, false positive rate, fpr, false negative rate, fnr, miss rate,
    hamming distance, edit distance, levenshtein distance, hausdorff distance, hd95,
    chamfer distance, wasserstein distance, frechet inception distance, fid, kid, fvd, lpips
"""
_MORE = """
    accuracy, acc, precision, average precision, map, mAP, ap, recall, sensitivity, specificity,
    true positive rate, tpr, true negative rate, tnr, f1, f1 score, fbeta, f beta, fbeta score,
    f beta score, dice, dice score, dice coefficient, iou, IoU, iou score, miou, mIoU, giou, GIoU,
    jaccard, jaccard index, jaccard score, panoptic quality, auc, auc score, roc auc,
    roc auc score, pr auc, auroc, auprc, mcc, matthews corrcoef, kappa, cohen kappa, r2, r2 score,
    explained variance, concordance index, log likelihood, elbo, exact match, bleu, bleu score,
    rouge, rougeL, meteor, chrf, ndcg, mrr, mean reciprocal rank, hit rate, psnr, ssim, snr, sdr,
    pesq, stoi, inception score, reward
"""

#: Words before a known one that turn it round, or make something else of it.
_TURNING = """
    neg, negative, negated, minus, inverse, inverted, inv, reciprocal, reverse, reversed,
    complement, anti, no, non, not, without, free, less, fewer, reduction, reduced, decrease,
    decreased, drop, dropped, gain, gained, improvement, improved, increase, increased, saved,
    avoided, delta, change, diff, difference, false, wrong, missed
"""

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def _words(name: str) -> tuple[str, ...]:
    """Take a name apart: at case, underscores, digits and whatever else is no letter."""
    return tuple(word.lower() for word in _WORD.findall(name))


def _phrases(listed: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_words(phrase) for phrase in listed.split(","))


_KNOWN: dict[tuple[str, ...], Direction] = {
    **dict.fromkeys(_phrases(_LESS), "min"),
    **dict.fromkeys(_phrases(_MORE), "max"),
}
_TURNS = _phrases(_TURNING)


def named_direction(name: str) -> Direction | None:
    """Return which way is better by a name; ``None`` where it is not known.

    Args:
        name: Words in any spelling: ``"val_loss"``, ``"MeanAbsoluteError"``, ``"top-5-accuracy"``.
            A number or a place at the end, as in ``"recall@5"``, tells nothing.

    Example:
        >>> named_direction("MeanAbsoluteError"), named_direction("lossless_accuracy")
        ('min', 'max')
        >>> [named_direction(name) for name in ("score", "neg_mse", "1 - error", "top_k")]
        [None, None, None, None]
    """
    words = _words(name)
    if not name[:1].isalpha() or re.search(r"[+*=<>()]| - ", name):  # a formula, or none at all
        return None
    while words:
        for length in range(len(words), 0, -1):
            before, last = words[:-length], words[-length:]
            if last in _KNOWN:
                return None if _turned(before, _KNOWN[last]) else _KNOWN[last]
        if not (words[-1].isdigit() or words[-1] in ("at", "k")):
            return None
        words = words[:-1]
    return None


def _turned(before: tuple[str, ...], direction: Direction) -> bool:
    """Tell whether words before a known one leave its direction in doubt, as in "loss_auc"."""
    of_errors = direction == "max" and any(_KNOWN.get((word,)) == "min" for word in before)
    return of_errors or any((word,) in _TURNS for word in before)


def stated_direction(metric: Any) -> Direction | None:
    """Return which way is better by what a metric, or the function in a partial one, says itself.

    Args:
        metric: Anything that may have ``higher_is_better``.

    Example:
        >>> def distance(pred, target): ...
        >>> distance.higher_is_better = False
        >>> stated_direction(functools.partial(distance)), stated_direction(len)
        ('min', None)
    """
    while True:
        higher = getattr(metric, "higher_is_better", None)
        if isinstance(higher, bool | np.bool_):
            return "max" if higher else "min"
        if not isinstance(metric, functools.partial):
            return None
        metric = metric.func


def agreed(directions: Iterable[Direction | None]) -> Direction | None:
    """Return the one direction that all of them say who say any; ``None`` where two differ."""
    said = {direction for direction in directions if direction is not None}
    return said.pop() if len(said) == 1 else None
