"""Pictures of samples: images with captions, rows of a table, a confusion matrix."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onecycle.plots.style import BLACK, BLUE, ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: From image to image, and the height of a line of text, in units of the side of an image.
_PITCH, _LINE = 1.06, 0.14
#: So many characters stand over one image.
_OVER_IMAGE = 18
#: The longest line of a cell of a table, in characters, and its lines.
_WIDEST, _LINES = 60, 4
#: A longer name of a class is cut.
_LONGEST = 24
#: Cells of more classes than this are too small for a number, and of more for every name.
_NUMBERED, _ALL_NAMED = 20, 40


def plot_images(
    images: Sequence[NDArray[np.float64]],
    captions: Sequence[str],
    marked: Sequence[bool] = (),
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw images side by side, each under its caption.

    Args:
        images: Values in [0, 1], of shape ``(height, width)`` or ``(height, width, 3)``.
        captions: One for each, of one line or more.
        marked: Which of them are wrong: theirs are bold, and framed.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_images([np.zeros((8, 8)), np.ones((8, 8))], ["a cat", "a dog"])
        >>> [text.get_text() for text in ax.texts], len(ax.images)
        (['a cat', 'a dog'], 2)
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    wrapped = [_caption(caption) for caption in captions]
    pitch = _PITCH + _LINE * max(caption.count("\n") + 1 for caption in wrapped)
    ax = new_axes(1.45 * columns, 1.45 * rows * pitch / _PITCH) if ax is None else ax
    for i, (image, caption) in enumerate(zip(images, wrapped, strict=True)):
        place = _PITCH * (i % columns), -pitch * (i // columns)
        _draw_image(ax, image, caption, place, is_wrong=bool(marked) and marked[i])
    ax.set(
        xlim=(-0.03, _PITCH * columns - 0.03),
        ylim=(-pitch * (rows - 1) - 0.03, pitch),
        aspect="equal",
    )
    ax.set_axis_off()
    return ax


def _draw_image(
    ax: "Axes",
    image: NDArray[np.float64],
    caption: str,
    place: tuple[float, float],
    *,
    is_wrong: bool,
) -> None:
    """Draw an image into a square of side 1, in the middle of its lower edge."""
    from matplotlib.patches import Rectangle

    height, width = (side / max(image.shape[:2]) for side in image.shape[:2])
    left, bottom = place[0] + (1 - width) / 2, place[1]
    ax.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(left, left + width, bottom, bottom + height),
        interpolation="nearest" if max(image.shape[:2]) <= 64 else "antialiased",
    )
    if is_wrong:
        frame = Rectangle((left, bottom), width, height, fill=False, ec=ORANGE, linewidth=1.8)
        ax.add_patch(frame)
    ax.text(
        place[0] + 0.5,
        bottom + height + 0.02,
        caption,
        ha="center",
        va="bottom",
        fontsize=8,
        color=ORANGE if is_wrong else BLACK,
        fontweight="bold" if is_wrong else "normal",
    )


def _caption(text: str) -> str:
    """Wrap a caption, at a comma first."""
    lines = []
    for line in _plain(text).split("\n"):
        parts = line.split(", ") if len(line) > _OVER_IMAGE else [line]
        parts = [f"{part}," for part in parts[:-1]] + parts[-1:]
        lines += [each for part in parts for each in textwrap.wrap(part, _OVER_IMAGE)]
    return "\n".join(lines)


def plot_table(
    rows: Sequence[Mapping[str, str]],
    marked: Sequence[bool] = (),
    *,
    marked_column: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw rows of text under the names of their columns.

    Args:
        rows: By column the text; long ones are wrapped, and very long ones cut.
        marked: Which rows are wrong: theirs is bold in ``marked_column``.
        marked_column: Where.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_table([{"text": "how good", "target": "yes"}])
        >>> [text.get_text() for text in ax.texts]
        ['text', 'target', 'how good', 'yes']
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_wrapped(row.get(name, "")) for name in names] for row in rows]
    widths = [
        max([len(name), *(len(line) for row in cells for line in row[j])])
        for j, name in enumerate(names)
    ]
    lefts = np.cumsum([0, *(width + 3 for width in widths)])
    heights = [max(map(len, row)) for row in cells]
    tops = 1.8 + np.cumsum([0, *(height + 0.5 for height in heights)])
    total = float(lefts[-1])
    ax = new_axes(max(3.0, 0.074 * total), 0.16 * float(tops[-1]) + 0.1) if ax is None else ax
    style: dict[str, Any] = {"va": "top", "family": "monospace", "fontsize": 8}
    for j, name in enumerate(names):
        ax.text(lefts[j], 0.2, _plain(name), color=BLUE, fontweight="bold", **style)
    ax.plot([0, total], [1.5, 1.5], color=BLACK, linewidth=0.6)
    for i, row in enumerate(cells):
        for j, lines in enumerate(row):
            is_wrong = bool(marked) and marked[i] and names[j] == marked_column
            ax.text(
                lefts[j],
                tops[i],
                "\n".join(lines),
                color=ORANGE if is_wrong else BLACK,
                fontweight="bold" if is_wrong else "normal",
                **style,
            )
    ax.set(xlim=(0, total), ylim=(float(tops[-1]), 0))
    ax.set_axis_off()
    return ax


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(_plain(text), _WIDEST) or [""]
    if len(lines) <= _LINES:
        return lines
    return [*lines[: _LINES - 1], f"{lines[_LINES - 1][: _WIDEST - 4]} ..."]


def _plain(text: str) -> str:
    """Keep a dollar sign from beginning a formula, and write out what no font can draw."""
    drawable = text.encode("utf-8", "backslashreplace").decode()  # parts of names of files may not
    return drawable.replace("$", r"\$")


def plot_confusion(
    counts: ArrayLike,
    classes: Sequence[str],
    *,
    normalize: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a confusion matrix, coloured by the share of each actual class.

    Args:
        counts: How many of the class of the row were predicted to be of that of the column, shape
            ``(classes, classes)``.
        classes: What they are called.
        normalize: Write shares into the cells instead of counts.
        ax: Where to draw; a new figure if ``None``.

    Returns:
        The axes.

    Example:
        >>> ax = plot_confusion([[5, 0], [2, 3]], ["cat", "dog"])
        >>> [text.get_text() for text in ax.texts]
        ['5', '0', '2', '3']
    """
    from matplotlib.colors import PowerNorm

    array = np.asarray(counts, dtype=np.float64)
    n = len(array)
    totals = array.sum(axis=1, keepdims=True)
    shares = np.divide(array, totals, out=np.zeros_like(array), where=totals > 0)
    side = min(10.0, max(3.6, 1.8 + 0.42 * n))
    ax = new_axes(side * 1.15, side, layout="compressed") if ax is None else ax
    # The root lets a few mistakes among many be seen.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    image = ax.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest")
    if n <= _NUMBERED:
        for i, j in np.ndindex(n, n):
            said = f"{shares[i, j]:.2f}" if normalize and array[i, j] else f"{int(array[i, j])}"
            color = "white" if shares[i, j] > 0.3 else BLACK if array[i, j] else "#AAAAAA"
            ax.text(j, i, said, ha="center", va="center", fontsize=8, color=color)
    ticks = list(range(0, n, max(1, math.ceil(n / _ALL_NAMED))))
    names = [" ".join(classes[i].split()) for i in ticks]
    labels = [
        _plain(each if len(each) <= _LONGEST else f"{each[: _LONGEST - 1]}…") for each in names
    ]
    turned = max(map(len, labels), default=0) > 2
    ax.set_xticks(ticks, labels, rotation=90 if turned else 0, fontsize=8)
    ax.set_yticks(ticks, labels, fontsize=8)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set(xlabel="predicted", ylabel="actual")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
    bar.set_label("share of the actual class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return ax
