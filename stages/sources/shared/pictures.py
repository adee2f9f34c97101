"""Images that lie in arrays or in a library's objects, as files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file's bytes."""
    file = io.BytesIO()
    (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).save(file, "PNG")
    return file.getvalue()
