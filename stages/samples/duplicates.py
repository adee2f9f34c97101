"""Images that look nearly the same: one photograph saved again, made smaller, or taken twice of one thing.

Of each image a perceptual hash of 256 bits is taken (Zauner 2010, "Implementation and Benchmarking of Perceptual Image
Hash Functions", section 3.2.1: the signs of the lowest frequencies of a cosine transform, against their median), and
how red and blue it is. Two images are near duplicates when at most DISTANCE bits differ, and their colours hardly do.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    Looks = NDArray[np.uint8]

DISTANCE = 12
"""Bits of 256. A JPEG of quality 50, half the size or more contrast change up to 12 in 19 of 20 images of cells."""

COLOUR = 16
"""How much redder or bluer than green one may be than the other, in the mean, of 255."""

GREY = (128, 128, 0, 0, 0, 0, 0, 0)
"""Two bytes of colour: neither redder nor bluer than green. The others let rows be read as numbers of eight bytes."""

LOOKS = 40
"""Bytes that say what an image looks like."""

_GROUPS = (range(5), range(5, 10), range(10, 16))
_WINDOW = 200  # rows that are compared with each in a bucket: all of them, but where hundreds look alike


def appearance(image: Image.Image) -> Looks:
    """Return what a decoded image looks like (LOOKS,): 32 bytes of hash, and two of colour."""
    import imagehash

    bits, colour = np.packbits(imagehash.phash(image, hash_size=16).hash.ravel()), np.array(GREY, np.uint8)
    if image.mode != "L":
        red, green, blue = np.asarray(image.convert("RGB").resize((8, 8)), float).mean((0, 1))
        colour[:2] = np.clip(np.round([128 + (red - green) / 2, 128 + (blue - green) / 2]), 0, 255)
    return np.append(bits, colour)


def distances(one: Looks, others: Looks) -> NDArray[np.int64]:
    """Return in how many bits of 256 an image (LOOKS,) differs from others (n, LOOKS); colour is not looked at."""
    found: NDArray[np.int64] = np.bitwise_count(_words(others) ^ _words(one[np.newaxis])).sum(axis=1, dtype=np.int64)
    return found


def _words(appearances: Looks) -> NDArray[np.uint64]:
    """Return the hashes as (n, 4) numbers, which share the memory."""
    return appearances.view(np.uint64)[:, :4]


def near_duplicates(appearances: Looks) -> NDArray[np.int64]:
    """Return the pairs (k, 2) of images (n, LOOKS) that look nearly the same, each once, the lower number first.

    Sixteen bands of 16 bits, of which at most 12 differ: of three groups of bands one has two that are equal. So it is
    enough to compare images that agree in two bands of a group; a million images take 35 sorts.
    """
    if len(appearances) < 2:
        return np.empty((0, 2), np.int64)
    words, colours = _words(appearances), appearances[:, 32:34].astype(np.int16)
    bands = words.view(np.uint16)
    found = np.empty((0, 2), np.int64)
    for group in _GROUPS:
        for one, other in combinations(group, 2):
            more = [found]
            for left, right in _candidates(bands[:, one].astype(np.uint32) * np.uint32(2**16) + bands[:, other], words):
                near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= DISTANCE
                near &= (np.abs(colours[left] - colours[right]) * 2 <= COLOUR).all(axis=1)
                more.append(np.sort(np.stack([left[near], right[near]], axis=1), axis=1))
            found = np.unique(np.concatenate(more), axis=0)  # each time: alike in all bands, a pair is found 35 times
    return found


def _candidates(keys: NDArray[np.uint32], words: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield pairs of rows with equal keys."""
    order = np.lexsort((*words.T, keys)).astype(np.int64, copy=False)
    ordered = keys[order]
    rows = np.arange(len(keys))
    for step in range(1, _WINDOW):
        rows = rows[rows + step < len(keys)]
        rows = rows[ordered[rows] == ordered[rows + step]]
        if not len(rows):
            return
        yield order[rows], order[rows + step]


def clusters(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each of so many images the number of those that it is joined with by pairs, or -1."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), bool)
    _, numbers = connected_components(coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count)))
    return np.where(np.isin(np.arange(count), pairs), numbers, -1).astype(np.int64)
