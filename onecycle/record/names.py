"""What a series is called: a metric on another validation set, or on the training pass."""

from __future__ import annotations

from collections.abc import Iterable


def name_on(name: str, valid_set: str) -> str:
    """Return what a loss or metric on a validation set is recorded as.

    Args:
        name: ``"valid_loss"``, or the name of a metric.
        valid_set: The name of the set; ``""`` for the main one.

    Example:
        >>> name_on("accuracy", ""), name_on("accuracy", "noisy")
        ('accuracy', 'accuracy/noisy')
    """
    return f"{name}/{valid_set}" if valid_set else name


def name_in_training(name: str) -> str:
    """Return what a metric of the training pass is recorded as.

    Example:
        >>> name_in_training("accuracy")
        'train_accuracy'
    """
    return f"train_{name}"


def series_of(
    metrics: Iterable[str], valid_sets: Iterable[str], *, in_training: bool = False
) -> dict[str, str]:
    """Return what an epoch of a fit records, by name what it is a series of.

    Args:
        metrics: The names of the metrics' values.
        valid_sets: The names of the validation sets.
        in_training: Whether the metrics are computed on the training pass too.

    Returns:
        By recorded name the plain name of the loss or metric, in the order of a table.

    Raises:
        ValueError: If two would have one name.

    Example:
        >>> list(series_of(["accuracy"], ["", "noisy"]).items())[2:4]
        [('accuracy', 'accuracy'), ('valid_loss/noisy', 'valid_loss')]
    """
    values = list(metrics)
    found = [("train_loss", "train_loss")]
    found += [(name_in_training(name), name) for name in values if in_training]
    for valid_set in valid_sets:
        found += [(name_on(name, valid_set), name) for name in ("valid_loss", *values)]
    names = [name for name, _ in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"two series would be called {twice[0]!r}: rename the metric, for a function with "
            "MeanMetric(func, name=...), or the validation set"
        )
    return dict(found)
