"""Look at every image once: can it be decoded, how large is it, and which picture is it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.cli import progress
from stages.samples.decoding import BadImage, decode, pixel_hash
from stages.threads import in_threads

if TYPE_CHECKING:
    from stages.sources._raw import Images


@dataclass(frozen=True)
class Checked:
    """What an image is when it is decoded, upright; or the reason why it is not."""

    width: int = 0
    height: int = 0
    mode: str = ""
    pixel_hash: str = ""
    reason: str | None = None


def check_images(images: Images) -> list[Checked]:
    """Decode every image, several at a time and none kept, and say what each is."""

    def check(row: int) -> Checked:
        try:
            image = decode(images.read(row))
        except BadImage as error:
            return Checked(reason=str(error))
        return Checked(image.width, image.height, image.mode, pixel_hash(image))

    return list(progress(in_threads(check, range(len(images))), total=len(images), unit="image"))
