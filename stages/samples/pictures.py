"""Contact sheets: many small images on one picture, for people to look at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from stages.files import new_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SIDE = 120  # pixels of an image on a sheet
_GAP = 4  # pixels between two images
_FONT_SIZE = 12
_LONGEST = 160  # bytes of a file's name: file systems take 255 with what is added to them


def fitted(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Return an image that fits into a square of `side` pixels and touches two of its sides."""
    return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str] = (), *, columns: int = 8, side: int = SIDE
) -> Image.Image:
    """Lay decoded images out row by row, each fitted into a square of `side` pixels, its caption below.

    captions : one per image, or none at all, of one or several lines; what is too long for its square is cut off.
    Grey images give a grey sheet.
    """
    if captions and len(captions) != len(images):
        raise ValueError(f"{len(images)} images, but {len(captions)} captions")
    columns = max(1, min(columns, len(images)))
    text_height = (_FONT_SIZE + _GAP) * max((caption.count("\n") + 1 for caption in captions), default=0)
    width, height = side + _GAP, side + _GAP + text_height
    rows = -(-len(images) // columns)
    mode = "RGB" if any(image.mode == "RGB" for image in images) else "L"
    sheet = Image.new(mode, (columns * width + _GAP, max(rows, 1) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for number, image in enumerate(images):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        small = fitted(image, side)
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        if captions:
            for line, text in enumerate(captions[number].split("\n")):
                place = (left, top + side + 1 + line * (_FONT_SIZE + _GAP))
                draw.text(place, _fitted(text, side, font), fill="black", font=font)
    return sheet


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all; equal pictures give equal bytes."""
    with new_file(path) as temporary:
        picture.save(temporary, "PNG")


def file_names(classes: Iterable[str]) -> dict[str, str]:
    """Return a name for a picture of each class that every file system and every browser takes.

    >>> file_names(["probability below 0.5", "a/b", "a:b"])
    {'probability below 0.5': 'probability-below-0.5.png', 'a/b': 'a-b.png', 'a:b': 'a-b-2.png'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in classes:
        stem = re.sub(r"[^\w.]+", "-", name).strip("-.")[:80] or "class"
        stem = stem.encode()[:_LONGEST].decode(errors="ignore")
        number, candidate = 1, stem
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(candidate.casefold())
        found[name] = f"{candidate}.png"
    return found
