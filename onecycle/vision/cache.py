"""`ImageCache`: image files decoded once into one file that is read as memory.

The file has the pixels of every image, one after the other. A manifest beside it says which image
file each of them came from, with its size and time, and what the pixels add up to. The manifest is
written last: without one, or with one that does not fit, the images are decoded again.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onecycle.files import atomic_write
from onecycle.vision.steps import ImageSteps, channel_counts

log = logging.getLogger("onecycle")

#: The version of the manifest, and of how images are decoded.
_FORMAT = 2
#: Images with a checksum of their own.
_BLOCK = 256
#: Bytes that are read to find damage when a cache is opened; of a larger one, blocks all over it.
_CHECKED = 256 * 2**20
#: Fewer images are decoded by the process itself: others take longer to start.
_FEW = 512

#: Of each file its path in the folder, its bytes and its time: another one is decoded again. Three
#: lists, since the garbage collector goes through whatever a million small ones are.
Sources = dict[str, list[Any]]


@dataclass(frozen=True)
class ImageCache:
    """The images of two parts of a folder, mapped into memory.

    Attributes:
        images: uint8, of shape ``(samples, 3, size, size)`` each, to train on and to validate;
            memory of the file that cannot be written to.
        counts: How often each value comes in each channel of the training pixels, (3, 256).
    """

    images: tuple[Tensor, Tensor]
    counts: Tensor


def open_cache(folder: Path, cache: Path, parts: Sequence[Sequence[str]], size: int) -> ImageCache:
    """Open the cache of a folder; decode what is not in it, or is another file now.

    Args:
        folder: Where the images are.
        cache: Where the cache is, or will be.
        parts: The image files to train on, and to validate, by their paths in ``folder``.
        size: Side of the images, in pixels.

    Raises:
        ValueError: If a file holds no image that can be read.
        OSError: If a file cannot be read, or the cache not be written.
    """
    sources = _sources(str(folder), [file for part in parts for file in part])
    data, manifest = cache / f"images-{size}.bin", cache / f"images-{size}.json"
    n_train, shape = len(parts[0]), (len(sources["names"]), 3, size, size)
    known = _read_manifest(manifest, data, shape[1:])
    if known is None or known["sources"] != sources:
        old = {} if known is None else {s: i for i, s in enumerate(_each(known["sources"]))}
        rows = [old.get(source) for source in _each(sources)]
        if known is not None:
            log.warning(
                "%s: %s of %s images are new or changed, and are decoded again",
                data,
                f"{rows.count(None):,}",
                f"{len(rows):,}",
            )
        known = _write(folder, data, manifest, sources, rows, n_train, size)
    whole = _mapped(data, shape)
    return ImageCache((whole[:n_train], whole[n_train:]), torch.tensor(known["counts"]))


def _sources(folder: str, files: list[str]) -> Sources:
    found: Sources = {"names": files, "bytes": [], "times": []}
    for file in files:
        told = os.stat(f"{folder}{os.sep}{file}")
        found["bytes"].append(told.st_size)
        found["times"].append(told.st_mtime_ns)
    return found


def _each(sources: Sources) -> Iterator[tuple[Any, ...]]:
    return zip(sources["names"], sources["bytes"], sources["times"], strict=True)


def _mapped(data: Path, shape: tuple[int, ...]) -> Tensor:
    pixels = np.memmap(data, np.uint8, mode="r").reshape(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)  # nobody writes to it: a batch is always a copy


# Reading ------------------------------------------------------------------------------------


def _read_manifest(manifest: Path, data: Path, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Return a manifest that fits its file, or say what is wrong and return nothing."""
    if not manifest.exists():
        return None
    try:
        body, _, checksum = manifest.read_bytes().rpartition(b"\n")
        if checksum != b"%08x" % zlib.crc32(body):
            raise ValueError("its manifest is damaged")
        known: dict[str, Any] = json.loads(body)
        if known["format"] != _FORMAT:
            raise ValueError("it is of another version")
        _check(known, data, int(np.prod(shape)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used, and is made anew: %s", data, error)
        return None
    return known


def _check(known: dict[str, Any], data: Path, image: int) -> None:
    n, sums = len(known["sources"]["names"]), known["sums"]
    if data.stat().st_size != image * n:
        raise ValueError(f"it has {data.stat().st_size} bytes, not {image * n}")
    step = max(1, image * n // _CHECKED)
    with data.open("rb") as file:
        for i in range(0, len(sums), step):
            file.seek(i * _BLOCK * image)
            if zlib.crc32(file.read(_BLOCK * image)) != sums[i]:
                raise ValueError(f"the images from {i * _BLOCK} on are not what was written")


# Writing ------------------------------------------------------------------------------------


def _write(
    folder: Path,
    data: Path,
    manifest: Path,
    sources: Sources,
    rows: Sequence[int | None],
    n_train: int,
    size: int,
) -> dict[str, Any]:
    """Write a cache: images that are in the old one are taken from there."""
    known: dict[str, Any] = {"format": _FORMAT, "sources": sources}
    counts, sums = torch.zeros(3, 256, dtype=torch.int64), _Sums()
    wanted = [
        folder / name for name, row in zip(sources["names"], rows, strict=True) if row is None
    ]
    decoded = _decoded(wanted, size)
    with atomic_write(data) as temporary, temporary.open("wb") as file:
        for first, images in _in_order(rows, decoded, data, size):
            file.write(sums.add(images.numpy().tobytes(), 3 * size * size))
            if first < n_train:
                counts += channel_counts(images[: n_train - first])
        manifest.unlink(missing_ok=True)  # it would not fit the new file
    known |= {"sums": sums.close(), "counts": counts.tolist()}
    body = json.dumps(known).encode()
    with atomic_write(manifest) as temporary:
        temporary.write_bytes(b"%b\n%08x" % (body, zlib.crc32(body)))
    return known


class _Sums:
    """The checksum of each block of images."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._rest = b""

    def add(self, content: bytes, image: int) -> bytes:
        """Count bytes in, and return them."""
        self._rest += content
        while len(self._rest) >= _BLOCK * image:
            self._sums.append(zlib.crc32(self._rest[: _BLOCK * image]))
            self._rest = self._rest[_BLOCK * image :]
        return content

    def close(self) -> list[int]:
        """Return the sums, that of the last block with them."""
        return [*self._sums, zlib.crc32(self._rest)] if self._rest else self._sums


def _in_order(
    rows: Sequence[int | None], decoded: Iterator[Tensor], data: Path, size: int
) -> Iterator[tuple[int, Tensor]]:
    """Give the images in their order, a few at a time, with the number of the first."""
    old = _mapped(data, (-1, 3, size, size)) if any(row is not None for row in rows) else None
    waiting, done = torch.empty(0, 3, size, size, dtype=torch.uint8), 0
    for is_new, run in groupby(rows, lambda row: row is None):
        kept = list(run)
        for begin in range(0, len(kept), _BLOCK):
            few = kept[begin : begin + _BLOCK]
            if old is not None and not is_new:
                images = old[torch.tensor(few)]
            else:
                while len(waiting) < len(few):
                    waiting = torch.cat([waiting, next(decoded)])
                images, waiting = waiting[: len(few)], waiting[len(few) :]
            yield done, images
            done += len(few)


def _decoded(files: Sequence[Path], size: int) -> Iterator[Tensor]:
    """Decode files by as many processes as there are processors, and show a bar."""
    workers = min(os.cpu_count() or 1, 16) if len(files) >= _FEW else 0
    loader: Iterable[Tensor] = DataLoader(
        _Files(files, size),
        batch_size=_BLOCK // 2,
        num_workers=workers,
        collate_fn=partial(torch.stack, dim=0),
        generator=torch.Generator(),  # the seed of workers comes from it, not from the global one
    )
    if not files:
        return iter(())
    return iter(_with_bar(loader, len(files)))


def _with_bar(batches: Iterable[Tensor], n: int) -> Iterable[Tensor]:
    with suppress(ValueError):  # a closed file
        if n >= _FEW and sys.stdout is not None and sys.stdout.isatty():
            from fastprogress.fastprogress import progress_bar

            shown: Iterable[Tensor] = progress_bar(batches, total=-(-n // (_BLOCK // 2)))
            return shown
    return batches


class _Files(Dataset[Tensor]):
    """Image files, decoded when they are asked for."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self._files, self._steps = files, ImageSteps(size, (0.0,) * 3, (1.0,) * 3)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Tensor:
        return self._steps.pixels(self._files[i])


# Folders ------------------------------------------------------------------------------------


def list_images(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """List the image files of a folder of classes, in the order of torchvision's ``ImageFolder``.

    Args:
        folder: Has a folder for each class.

    Returns:
        The files by their paths in the folder above, the class of each, and the names of the
        classes. A class without images is among the names.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    files: list[str] = []
    above = len(str(folder.parent / "x")) - 1
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            f"{root}{os.sep}{file}"[above:]
            for root, _, names in sorted(os.walk(folder / name, followlinks=True))
            for file in sorted(names)
            if file.lower().endswith(IMG_EXTENSIONS)
        ]
        files += found
        labels += [label] * len(found)
    return files, labels, classes
