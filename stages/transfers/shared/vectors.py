"""The feature vectors that a head is fitted on: an array, or rows that are read when they are asked for.

Of few images all vectors are in memory. Of many they stay on disk, and a head goes over them in pieces: sums over rows
(means, covariances, gradients) are sums over pieces, and scores are one piece after the other. Of an array there is one
piece, which is the array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from stages.threads import in_threads, thread_count

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from stages.transfers import Activations

    Floats = NDArray[np.float64]
    Singles = NDArray[np.float32]
    Indices = NDArray[np.int64]

    Rows: TypeAlias = Indices | slice

T = TypeVar("T")
R = TypeVar("R")

PIECE_BYTES = 32 * 2**20
"""So much of stored vectors, in double precision and with all views that are read, is taken at a time."""
THREADS, AHEAD = 4, 2
"""So many threads read pieces at most, and so many wait for each: 256 MiB in all."""


@dataclass(frozen=True)
class StoredVectors:
    """Vectors (n, D) of stored activations; `vectors[rows]`, by numbers or a slice, is an array like that of an array.

    parts : activations (images, views, *shape), one after the other
    views : which of an image's views are used, see `choose_views`; those of one image follow each other
    normalize : changes rows (k, D) in place once they are read
    """

    parts: Sequence[Activations]
    views: str
    normalize: Callable[[Singles], None] | None = None
    dtype: DTypeLike = np.float32

    @property
    def used(self) -> int:
        """How many vectors there are of an image."""
        return int(self.parts[0].shape[1]) if self.views == "all" else 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return self.used * sum(map(len, self.parts)), math.prod(self.parts[0].shape[2:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def at_once(self) -> int:
        """How many rows are a piece."""
        read = self.parts[0].shape[1] if self.views == "mean" else 1
        return max(1, PIECE_BYTES // (8 * self.shape[1] * read))

    def astype(self, dtype: DTypeLike) -> StoredVectors:
        """Return the same vectors, as numbers of another type when they are read."""
        return replace(self, dtype=dtype)

    def __getitem__(self, rows: Rows) -> NDArray[Any]:
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows go from 0 to {len(self) - 1}")
        images, views = np.divmod(rows, self.used)
        vectors = np.empty((len(rows), self.shape[1]), np.float32)
        first = 0
        for part in self.parts:
            here = (images >= first) & (images < first + len(part))
            if here.any() and here.all():  # not copied once more
                vectors = self._read(part, images - first, views)
            elif here.any():
                vectors[here] = self._read(part, images[here] - first, views[here])
            first += len(part)
        if self.normalize is not None:
            self.normalize(vectors)
        return vectors.astype(self.dtype, copy=False)

    def _read(self, part: Activations, images: Indices, views: Indices) -> Singles:
        if self.views == "mean":
            return choose_views(all_views(part, images), self.views).reshape(len(images), -1)
        return part[images, views].reshape(len(images), -1)


def choose_views(activations: Singles, views: str) -> Singles:
    """Return the vectors (n, views that are used, D) of activations (n, views, *shape).

    views : mean, identity (the first) or all
    """
    vectors = activations.reshape(*activations.shape[:2], math.prod(activations.shape[2:]))
    if views == "identity" or vectors.shape[1] == 1:
        return vectors[:, :1]
    return vectors if views == "all" else vectors.mean(axis=1, keepdims=True)


def all_views(part: Activations, images: Indices) -> Singles:
    """Return the activations (k, views, *shape) of k images."""
    views = part.shape[1]
    read = part[np.repeat(images, views), np.tile(np.arange(views), len(images))]
    return read.reshape(len(images), *part.shape[1:])


def some_images(part: Activations) -> Iterator[Singles]:
    """Yield activations (k, views, *shape), some images at a time; of an array all."""
    if isinstance(part, np.ndarray):
        yield part
        return
    step = max(1, PIECE_BYTES // (8 * math.prod(part.shape[1:])))
    numbers = (np.arange(first, min(first + step, len(part))) for first in range(0, len(part), step))
    yield from read_ahead(lambda images: all_views(part, images), numbers)


def read_ahead(read: Callable[[T], R], which: Iterable[T]) -> Iterator[R]:
    """Yield what is read, in order, by few threads: however many cores there are, memory stays flat."""
    return in_threads(read, which, min(THREADS, thread_count()), AHEAD)


def pieces(vectors: Any, rows: Indices | None = None) -> Iterator[tuple[Rows, NDArray[Any]]]:
    """Yield rows and the vectors (k, D) of these, until it was all, or all of some rows: of an array at once.

    vectors : an array (n, D) or `StoredVectors`
    """
    if isinstance(vectors, np.ndarray):
        chosen: Rows = slice(None) if rows is None else rows
        yield chosen, vectors[chosen]
        return
    step = vectors.at_once
    count = len(vectors) if rows is None else len(rows)

    def at(first: int) -> Rows:
        return slice(first, min(first + step, count)) if rows is None else rows[first : first + step]

    some = [at(first) for first in range(0, max(count, 1), step)]  # one without rows where there are none
    yield from zip(some, read_ahead(lambda own: vectors[own], some), strict=True)


def total(parts: Iterable[T]) -> T:
    """Return the sum of one or more parts, as arrays of one shape; one alone is returned as it is."""
    return reduce(add, parts)


def linear_scores(vectors: Any, rows: Indices, heads: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return x w + b (heads, rows, k) for some rows and each head of weights w (D, k) and bias b (k,)."""
    return np.concatenate(
        [np.stack([piece @ weight + bias for weight, bias in heads]) for _, piece in pieces(vectors, rows)], axis=1
    )
