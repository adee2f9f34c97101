"""Look at every image once: can it be decoded, how large is it, which picture is it, how does it look when small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.cli import progress
from stages.memory import give_back_freed_memory
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

    def take(self, rows: NDArray[np.int64]) -> Checked:
        """Return what some images are, which can be decoded."""
        looks = self.appearance[rows], self.brightness[rows]
        return Checked(self.size[rows], self.mode[rows], self.pixel_hash[rows], *looks, wrong={})

    @cached_property
    def picture(self) -> NDArray[np.int64]:
        """(images,) a number for each picture: the same where the pixels are; one that cannot be decoded has none."""
        words = self.pixel_hash.view("S32").reshape(-1)  # as wide as the bytes: those that end in zeros differ, too
        return np.unique(words, return_inverse=True)[1].reshape(-1).astype(np.int64)


class _Seen(NamedTuple):
    """A row of `Checked`, and the small picture."""

    size: tuple[int, int]
    mode: str
    pixel_hash: bytes
    appearance: NDArray[np.uint8]
    brightness: float
    jpeg: bytes


def brightness(image: Image.Image) -> float:
    """Return the mean grey of a decoded image, 0 to 255."""
    counts = np.array((image if image.mode == "L" else image.convert("L")).histogram())
    return float(counts @ np.arange(256) / counts.sum())


def check_images(images: Images, thumbnails: Path) -> Checked:
    """Decode every image, several at a time and none kept, say what each is, and write the small pictures of them."""

    def check(read: Callable[[], bytes]) -> _Seen | str:
        try:
            image = decode(read())
        except BadImage as error:
            return str(error)
        looks, pixels = appearance(image), bytes.fromhex(pixel_hash(image))
        return _Seen(image.size, image.mode, pixels, looks, brightness(image), thumbnail(image))

    count = len(images)
    checked = Checked(
        size=np.zeros((count, 2), np.int32),
        mode=np.zeros(count, np.uint8),
        pixel_hash=np.zeros((count, 32), np.uint8),
        appearance=np.zeros((count, LOOKS), np.uint8),
        brightness=np.zeros(count),
        wrong={},
    )
    found = progress(in_threads(check, images.readers(range(count))), total=count, unit="image")
    with new_thumbnails(thumbnails) as add:
        for row, (name, seen) in enumerate(zip(images.table["sample"], found, strict=True)):
            if row % ROWS_BETWEEN == 0:
                give_back_freed_memory()
            if isinstance(seen, str):
                checked.wrong[row] = seen
                continue
            checked.size[row], checked.mode[row] = seen.size, MODES.index(seen.mode)
            checked.pixel_hash[row] = np.frombuffer(seen.pixel_hash, np.uint8)
            checked.appearance[row], checked.brightness[row] = seen.appearance, seen.brightness
            add(name.as_py(), seen.jpeg)
    return checked
