"""What a data set is like, for the report.

How large and bright its images are, how many of each class are in each part, what is left out and why, what leaks from
one part into another, and which images look the same but are labelled otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.samples.decoding import MODES
from stages.samples.splitting import PARTS, first_alike

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.samples.checking import Checked
    from stages.samples.labels import Labels

    Ints = NDArray[np.int64]
    Part = NDArray[np.int8]

MOST_SIZES = 5
MOST_REASONS = 10
LEFT_OUT_COPY = "same pixels as an image of a later part"


def describe(checked: Checked, labels: Labels, part: Part, rejected: pa.Table) -> dict[str, Any]:
    """Return what dataset.json says of the images.

    sizes, modes : how many images have them, the most frequent first; brightness : for each class the 5th, 50th and
    95th percentile of the images' mean grey, 0 to 255; parts : images of each class in each part of the first repeat;
    reasons : why how many images are left out
    """
    sizes = [(f"{width} x {height}", count) for (width, height), count in _frequent(checked.size)]
    reasons = Counter(_kind(reason) for reason in rejected["reason"].to_pylist())
    brightness: dict[str, list[float]] = {}
    parts: dict[str, dict[str, int]] = {}
    for number, name in enumerate(labels.classes):
        rows = labels.having(number)
        if rows.any():
            brightness[name] = np.round(np.percentile(checked.brightness[rows], (5, 50, 95)), 1).tolist()
        held = np.bincount(part[rows], minlength=len(PARTS)).tolist()
        parts[name] = dict(zip(PARTS, held, strict=True))
    return {
        "sizes": dict(sizes[:MOST_SIZES]),
        "other_sizes": sum(count for _, count in sizes[MOST_SIZES:]),
        "modes": {MODES[mode]: count for (mode,), count in _frequent(checked.mode[:, np.newaxis])},
        "brightness": brightness,
        "parts": parts,
        "reasons": dict(reasons.most_common(MOST_REASONS)),
    }


def _frequent(rows: NDArray[Any]) -> list[tuple[list[int], int]]:
    """Return the different rows and how many there are of each: the most frequent first, of such the first."""
    values, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return [(values[at].tolist(), int(counts[at])) for at in np.lexsort((first, -counts))]


def _kind(reason: str) -> str:
    """Return a reason without the names in it, so that equal ones are counted together."""
    for start in ("same pixels as", "it lies outside", "it is not there", "unknown label"):
        if reason.startswith(start):
            return start if start != "same pixels as" else LEFT_OUT_COPY
    return reason


def leakage(pairs: Ints, part: Part, rejected: pa.Table) -> dict[str, int]:
    """Return what leaks from one part into another.

    same_pixels : images left out because a later part has their pixels; near_duplicates : images that look nearly the
    same as one in another part; test_images : those of them that are tested

    pairs : (k, 2) rows of images that look nearly the same; part : 0 train, 1 validation, 2 test
    """
    apart = np.unique(pairs[part[pairs[:, 0]] != part[pairs[:, 1]]])
    return {
        "same_pixels": sum(_kind(reason) == LEFT_OUT_COPY for reason in rejected["reason"].to_pylist()),
        "near_duplicates": len(apart),
        "test_images": int((part[apart] == 2).sum()),
    }


class Contradiction(NamedTuple):
    """Two images whose labels differ though they are the same in pixels or looks, and their labels."""

    sample: str
    other: str
    same: str
    label: str
    other_label: str


def contradictions(name: Callable[[int], str], labels: Labels, picture: Ints, pairs: Ints) -> Iterator[Contradiction]:
    """Yield pairs of images whose labels differ though they look the same.

    name : of a row; picture : (images,) the same number where pixels are the same
    pairs : (k, 2) rows of images that look nearly the same
    """

    def found(one: int, other: int, same: str) -> Contradiction:
        return Contradiction(name(one), name(other), same, _label(labels, one), _label(labels, other))

    first = first_alike(picture)
    for row in np.flatnonzero(labels.index != labels.index[first]).tolist():
        yield found(int(first[row]), row, "pixels")
    for one, other in pairs.tolist():
        if labels.index[one] != labels.index[other] and picture[one] != picture[other]:
            yield found(one, other, "looks")


def _label(labels: Labels, row: int) -> str:
    if labels.several is None:
        return str(labels.classes[labels.index[row]])
    return ", ".join(name for name, has in zip(labels.classes, labels.several[row], strict=True) if has) or "none"
