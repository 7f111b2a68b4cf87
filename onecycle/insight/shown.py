"""How a sample is shown: as an image, as a row of a table, or as a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onecycle import plots
from onecycle.arguments import check_callable
from onecycle.explanations import describe
from onecycle.insight.names import class_name, written
from onecycle.insight.samples import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Makes of an input what is shown: an image, a text, or a dict of the columns of a table.
Decode = Callable[[Any], Any]

#: Of so many columns of a table the first are shown.
_COLUMNS = 6


def draw_samples(
    samples: Sequence[Sample],
    *,
    dl: Any,
    classes: Sequence[str] | None,
    decode: Decode | None,
    ax: Axes | None,
) -> Axes:
    """Draw samples, each with its target and, where there is one, its prediction.

    Args:
        samples: One or more.
        dl: The loader that they come from, which may tell how its images were normalised.
        classes: What the classes are called.
        decode: Makes of an input what is shown.
        ax: Where to draw; a new figure if ``None``.

    Raises:
        TypeError: If inputs are nothing that can be shown as it is.
    """
    if not samples:
        raise ValueError("there is no sample to show: every batch was cancelled by a callback")
    if decode is not None:
        check_callable("decode", decode, "x")
    inputs = [sample.input if decode is None else decode(sample.input) for sample in samples]
    marked = [is_wrong(sample) for sample in samples]
    if all(map(_is_image, inputs)):
        images = _as_pictures(inputs, None if decode is not None else undo_of(dl))
        captions = [caption_of(sample, classes) for sample in samples]
        return plots.plot_images(images, captions, marked, ax=ax)
    columns = [_row(each, decoded=decode is not None) for each in inputs]
    outcomes = [_outcome(sample, classes) for sample in samples]
    rows = [row | outcome for row, outcome in zip(columns, outcomes, strict=True)]
    return plots.plot_table(rows, marked, marked_column="prediction", ax=ax)


def is_wrong(sample: Sample) -> bool:
    """Tell whether the class that is said is another than the right one; where that is clear."""
    is_clear = sample.counts and _says_a_class(sample)
    return is_clear and int(sample.pred.argmax()) != int(sample.target)


def _says_a_class(sample: Sample) -> bool:
    pred, target = sample.pred, sample.target
    has_scores = isinstance(pred, Tensor) and pred.ndim == 1 and len(pred) > 1
    is_index = isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point()
    return has_scores and is_index


def said_of(sample: Sample, classes: Sequence[str] | None) -> str:
    """Write what the model says of a sample: the class of the highest score, or the value."""
    if _says_a_class(sample):
        return class_name(int(sample.pred.argmax()), classes)
    return written(sample.pred, classes)


def caption_of(sample: Sample, classes: Sequence[str] | None) -> str:
    """Write what stands above an image."""
    right = written(sample.target, classes)
    if sample.pred is None:
        return right
    said = said_of(sample, classes)
    words = right if said == right else f"{said}, is {right}"
    return words if sample.loss is None else f"{words}\nloss {sample.loss:.3g}"


def _outcome(sample: Sample, classes: Sequence[str] | None) -> dict[str, str]:
    """Return the last columns of a table."""
    found = {"target": written(sample.target, classes)}
    if sample.pred is not None:
        found["prediction"] = said_of(sample, classes)
    if sample.loss is not None:
        found["loss"] = f"{sample.loss:.3g}"
    return found


# Images -----------------------------------------------------------------------------------


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in (1, 3))
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] in (1, 3)


def _as_pictures(
    images: Sequence[Any], undo: Callable[[Tensor], Tensor] | None
) -> list[NDArray[np.float64]]:
    """Return images as arrays of ``(height, width)`` or ``(height, width, 3)`` in [0, 1].

    Where it is not known how they were normalised and they are not in that range, the lowest of
    their values is black and the highest white.
    """
    arrays = []
    for image in images:
        if isinstance(image, Tensor):
            was_bytes = image.dtype is torch.uint8
            image = (image if undo is None or was_bytes else undo(image)).float()
            array = (image / 255 if was_bytes else image).permute(1, 2, 0).double().numpy()
        else:
            array = image / 255 if image.dtype == np.uint8 else image.astype(np.float64)
        arrays.append(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    finite = [array[np.isfinite(array)] for array in arrays]
    low = min((float(each.min()) for each in finite if each.size), default=0.0)
    high = max((float(each.max()) for each in finite if each.size), default=1.0)
    if undo is None and (low < 0 or high > 1):
        arrays = [(array - low) / ((high - low) or 1.0) for array in arrays]
    return [np.clip(np.nan_to_num(array), 0, 1) for array in arrays]


def undo_of(dl: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what takes the normalisation of a loader's images back to [0, 1], if that is known.

    It is known of a transform of the loader that has ``undo``, as those of `image_folder` and its
    like do, and of torchvision's ``Normalize`` at the end of a data set's transforms.

    Args:
        dl: The loader.
    """
    own: Any = getattr(dl, "transform", None)
    if callable(getattr(own, "undo", None)):
        return lambda image: own.undo(image)
    data = getattr(dl, "dataset", None)
    while data is not None and getattr(data, "transform", None) is None:
        data = getattr(data, "dataset", None)  # of a Subset
    last = getattr(data, "transform", None)
    while isinstance(steps := getattr(last, "transforms", None), Sequence) and steps:
        last = steps[-1]
    if type(last).__name__ != "Normalize":
        return None
    mean, std = (torch.tensor(getattr(last, name)).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda image: image * std + mean


# Rows -------------------------------------------------------------------------------------


def _row(value: Any, *, decoded: bool) -> dict[str, str]:
    """Return the columns of a sample that is no image."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, tuple | list):
        parts = {f"x{i}": part for i, part in enumerate(value)}
    elif isinstance(value, Tensor | np.ndarray) and value.ndim == 1 and len(value):
        if isinstance(value, Tensor) and not value.is_floating_point() and len(value) > _COLUMNS:
            return {"tokens": " ".join(map(str, value.tolist()))}
        parts = {f"x{i}": float(part) for i, part in enumerate(value.tolist())}
    elif isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        parts = {"x": float(value)}
    else:
        said = "decode returned" if decoded else "inputs are"
        raise TypeError(
            f"{said} {describe(value)}, which is no image of 1 or 3 channels, no row and no text: "
            "give decode=, which makes one of these of an input"
        )
    cells = {name: _cell(part) for name, part in parts.items()}
    if len(cells) <= _COLUMNS:
        return cells
    first = dict(list(cells.items())[: _COLUMNS - 1])
    return {**first, "...": f"{len(cells) - len(first)} more"}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.4g}"
    return written(value)
