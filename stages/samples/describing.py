"""What a data set is like, for the report.

How large and bright its images are, how many of each class are in each part, what is left out and why, and which images
look the same but are labelled otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.samples.splitting import PARTS

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.samples.checking import Checked
    from stages.samples.labels import Labels

    Ints = NDArray[np.int64]

MOST_SIZES = 5
MOST_REASONS = 10


def describe(checked: Sequence[Checked], labels: Labels, part: Ints, rejected: pa.Table) -> dict[str, Any]:
    """Return what dataset.json says of the images.

    sizes, modes : how many images have them, the most frequent first; brightness : for each class the 5th, 50th and
    95th percentile of the images' mean grey, 0 to 255; parts : images of each class in each part of the first repeat;
    reasons : why how many images are left out
    """
    sizes = Counter(f"{image.width} x {image.height}" for image in checked)
    brightness = np.array([image.brightness for image in checked])
    reasons = Counter(_kind(reason) for reason in rejected["reason"].to_pylist())
    having = {name: labels.having(c) for c, name in enumerate(labels.classes)}
    return {
        "sizes": dict(sizes.most_common(MOST_SIZES)),
        "other_sizes": sum(sizes.values()) - sum(count for _, count in sizes.most_common(MOST_SIZES)),
        "modes": dict(Counter(image.mode for image in checked).most_common()),
        "brightness": {
            name: np.round(np.percentile(brightness[rows], (5, 50, 95)), 1).tolist()
            for name, rows in having.items()
            if rows.any()
        },
        "parts": {
            name: {p: int(((part == i) & rows).sum()) for i, p in enumerate(PARTS)} for name, rows in having.items()
        },
        "reasons": dict(reasons.most_common(MOST_REASONS)),
    }


def _kind(reason: str) -> str:
    """Return a reason without the names in it, so that equal ones are counted together."""
    for start in ("same pixels as", "it lies outside", "it is not there", "unknown label"):
        if reason.startswith(start):
            return start if start != "same pixels as" else "same pixels as an image of a later part"
    return reason


def contradictions(table: pa.Table, pairs: Ints) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of samples whose labels differ though they look the same, and how: pixels or looks.

    pairs : (k, 2) rows of images that look nearly the same
    """
    several = table["label"].null_count > 0
    names, labels = table["sample"].to_pylist(), table["target" if several else "label"].to_pylist()
    pixels = table["pixel_hash"].to_pylist()
    first: dict[str, int] = {}
    for row, value in enumerate(pixels):
        other = first.setdefault(value, row)
        if labels[row] != labels[other]:
            yield names[other], names[row], "pixels"
    for one, other in pairs.tolist():
        if labels[one] != labels[other] and pixels[one] != pixels[other]:
            yield names[one], names[other], "looks"
