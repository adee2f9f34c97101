"""Pictures inside the page: scaled down, each once, and all together not larger than a page should be."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PICTURE_BYTES = 2_500_000
"""For all pictures together, before base64 makes a third more of them."""
WIDTHS = (1000, 800, 640, 480, 360)


@dataclass(frozen=True)
class Picture:
    """A picture as the template needs it; width and height in pixels."""

    url: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass
class Pictures:
    """What the page shows so far, and how many bytes are left."""

    left: int = PICTURE_BYTES
    seen: set[str] = field(default_factory=set)

    def add(self, path: Path, alt: str, caption: str) -> Picture | None:
        """Return a picture scaled down, as a data URL; None when it is not there, was shown, or there is no room."""
        return self.add_bytes(path.read_bytes(), alt, caption) if path.is_file() else None

    def add_bytes(self, content: bytes, alt: str, caption: str) -> Picture | None:
        """Do the same with the bytes of a picture."""
        key = hashlib.sha256(content).hexdigest()
        if key in self.seen:
            return None
        self.seen.add(key)
        for encoded, width, height in _encodings(content):
            if len(encoded) <= min(self.left, PICTURE_BYTES // 5):
                self.left -= len(encoded)
                url = f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"
                return Picture(url, width, height, alt, caption)
        return None


def _encodings(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield a picture as WebP, smaller and smaller."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    for width in WIDTHS:
        small = image.copy()
        small.thumbnail((width, 10 * width))
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=72, method=4)
        yield buffer.getvalue(), *small.size
