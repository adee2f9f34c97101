"""Look at every image once: can it be decoded, how large is it, which picture is it, how does it look when small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stages.cli import progress
from stages.memory import give_back_freed_memory
from stages.on_disk import Rows, taken
from stages.samples.decoding import MODES, BadImage, decode, pixel_hash
from stages.samples.duplicates import LOOKS, appearance
from stages.samples.thumbnails import new_thumbnails, thumbnail
from stages.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from stages.sources._raw import Images

ROWS_BETWEEN = 2**13
"""Rows after which freed memory is given back: of small images 2 MiB, and too seldom to take time."""


@dataclass(frozen=True)
class Checked:
    """What images are when they are decoded, upright. In columns: an object for each of a million is much memory.

    size : (images, 2) width and height; mode : (images,) as index into MODES
    pixel_hash : (images, 32) as bytes; appearance : (images, LOOKS) see duplicates.py
    brightness : (images,) mean grey, 0 to 255
    wrong : why an image cannot be decoded, by its row; the columns hold zeros there
    """

    size: NDArray[np.int32]
    mode: NDArray[np.uint8]
    pixel_hash: NDArray[np.uint8]
    appearance: NDArray[np.uint8]
    brightness: NDArray[np.float64]
    wrong: dict[int, str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.mode)

    def take(self, rows: NDArray[np.int64], folder: Path) -> Checked:
        """Return what some images are, which can be decoded; in files of their own in a folder's file system."""
        columns = {field: taken(getattr(self, field), rows, folder) for field in ROW.fields or ()}
        return Checked(**columns, wrong={})

    @cached_property
    def picture(self) -> NDArray[np.int64]:
        """(images,) a number for each picture: the same where the pixels are; one that cannot be decoded has none."""
        words = self.pixel_hash.view(">u8")  # (images, 4)
        order = np.lexsort(words.T[::-1])
        new = np.ones(len(order), np.bool_)
        for start in range(1, len(order), ROWS_BETWEEN):
            those = words[order[start - 1 : start + ROWS_BETWEEN]]
            new[start : start + ROWS_BETWEEN] = (those[1:] != those[:-1]).any(axis=1)
        picture = np.empty(len(order), np.int64)
        picture[order] = np.cumsum(new) - 1
        return picture


ROW = np.dtype(
    [
        ("size", np.int32, 2),
        ("mode", np.uint8),
        ("pixel_hash", np.uint8, 32),
        ("appearance", np.uint8, LOOKS),
        ("brightness", np.float64),
    ]
)
"""The columns of `Checked`."""


def brightness(image: Image.Image) -> float:
    """Return the mean grey of a decoded image, 0 to 255."""
    counts = np.array((image if image.mode == "L" else image.convert("L")).histogram())
    return float(counts @ np.arange(256) / counts.sum())


def check_images(images: Images, thumbnails: Path) -> Checked:
    """Decode every image, several at a time and none kept, say what each is, and write the small pictures of them.

    What is said of them lies on disk, beside those.
    """

    def check(read: Callable[[], bytes]) -> tuple[NDArray[np.void], bytes] | str:
        try:
            image = decode(read())
        except BadImage as error:
            return str(error)
        pixels = np.frombuffer(bytes.fromhex(pixel_hash(image)), np.uint8)
        row = (image.size, MODES.index(image.mode), pixels, appearance(image), brightness(image))
        return np.array(row, ROW), thumbnail(image)

    count = len(images)
    columns = {field: Rows(thumbnails.parent, ROW[field].base, ROW[field].shape) for field in ROW.fields or ()}
    wrong = {}
    found = progress(in_threads(check, images.readers(range(count))), total=count, unit="image")
    some = np.zeros(min(ROWS_BETWEEN, count), ROW)
    with new_thumbnails(thumbnails) as add:
        for row, (name, seen) in enumerate(zip(images.table["sample"], found, strict=True)):
            at = row % ROWS_BETWEEN
            if isinstance(seen, str):
                wrong[row] = seen
            else:
                some[at], jpeg = seen
                add(name.as_py(), jpeg)
            if at == ROWS_BETWEEN - 1 or row == count - 1:
                for field, column in columns.items():
                    column.append(some[field][: at + 1])
                some[:] = 0
                give_back_freed_memory()
    return Checked(**{field: column.array() for field, column in columns.items()}, wrong=wrong)
