"""Look at every image once: can it be decoded, how large is it, which picture is it, how does it look when small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.cli import progress
from stages.samples.decoding import BadImage, decode, pixel_hash
from stages.samples.duplicates import appearance
from stages.samples.thumbnails import new_thumbnails, thumbnail
from stages.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image

    from stages.sources._raw import Images


@dataclass(frozen=True, slots=True)  # there is one for each of a million images
class Checked:
    """What an image is when it is decoded, upright; or the reason why it is not.

    appearance : see duplicates.py; brightness : mean grey, 0 to 255
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    pixel_hash: str = ""
    appearance: bytes = b""
    brightness: float = 0.0
    reason: str | None = None


def brightness(image: Image.Image) -> float:
    """Return the mean grey of a decoded image, 0 to 255."""
    counts = np.array((image if image.mode == "L" else image.convert("L")).histogram())
    return float(counts @ np.arange(256) / counts.sum())


def check_images(images: Images, thumbnails: Path) -> list[Checked]:
    """Decode every image, several at a time and none kept, say what each is, and write the small pictures of them."""

    def check(read: Callable[[], bytes]) -> tuple[Checked, bytes]:
        try:
            image = decode(read())
        except BadImage as error:
            return Checked(reason=str(error)), b""
        looks = appearance(image), brightness(image)
        seen = Checked(image.width, image.height, image.mode, pixel_hash(image), *looks)
        return seen, thumbnail(image)

    checked = []
    names = images.table["sample"].to_pylist()
    found = progress(in_threads(check, images.readers(range(len(images)))), total=len(images), unit="image")
    with new_thumbnails(thumbnails) as add:
        for name, (image, jpeg) in zip(names, found, strict=True):
            checked.append(image)
            if image.reason is None:
                add(name, jpeg)
    return checked
