"""Decoded images of large files, kept in the private cache at the sizes that networks see.

Where a project extracts several features of the same images, a photograph of some megabytes takes longer to read and
decode than most networks take to look at it. So the first extraction keeps its pixels, at the sizes of all of them, and
the others begin with these. Small files are decoded again: that is fast, and their pixels take several times the room
of the files. Of a disk, pixels never take more than half of what is free when they begin to be kept.

They lie where features with `cut: image` look for theirs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.samples.decoding import to_arrays_of_each
from stages.store.activations import Digests, to_digests
from stages.store.cache import ActivationCache, Column, DamagedShardError, Stored, clocks
from stages.store.location import cache_root
from stages.threads import thread_count

Pixels = dict[int, npt.NDArray[np.uint8]]
"""Of an image, for each size (C, S, S)."""

LARGEST_SHARE = 4.0
"""Pixels are kept where they take at most so much of the room that their file takes."""
SHARE_OF_FREE = 0.5
COLOURS = 3
"""Whether an image is grey is seen when it is decoded; until then it counts as a coloured one."""


def pixel_column(size: int) -> Column:
    """Return the column that pixels of a size are."""
    return Column(size, "identity", "image")


def _area(sizes: Iterable[int]) -> int:
    return sum(size * size for size in sizes)


class KeptPixels(AbstractContextManager["KeptPixels"]):
    """Decodes images, or finds them decoded; a context manager, which writes what it keeps.

    context : all that changes a pixel, beside image and size; digests : of the images that will be asked for, sorted
    elsewhere : by interpolation the sizes that all features of these images see; without any, nothing is kept
    """

    def __init__(self, context: Mapping[str, Any], digests: Digests, elsewhere: Mapping[str, Iterable[int]]) -> None:
        self._resize, self._interpolation = context["resize"], context["interpolation"]
        self._digests, self._elsewhere = digests, {how: set(sizes) for how, sizes in elsewhere.items()}
        self._cache, self._lock = ActivationCache(context), Lock()
        self._took = {how: np.zeros(2) for how in self._elsewhere}
        self._left = 0
        if self._elsewhere:
            cache_root().mkdir(parents=True, exist_ok=True)
            self._left = int(SHARE_OF_FREE * shutil.disk_usage(cache_root()).free)
        self._found: Stored | None = None
        self._writers = {
            how: ActivationCache({**context, "interpolation": how}).writer(took.copy)
            for how, took in self._took.items()
        }

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.flush()

    def look_up(self, sizes: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Look up some sizes, before images are asked for at these; returns which of `digests` are there at all."""
        self._found = self._cache.find(self._digests, [pixel_column(size) for size in sizes])
        return np.asarray((self._found.shard_of >= 0).all(axis=0))

    def decode(self, image_hash: str, read: Callable[[], bytes], sizes: Sequence[int]) -> Pixels:
        """Return an image at the sizes that were looked up; may be called from many threads.

        Raises BadImage, and what `read` raises.
        """
        kept = self._kept(image_hash, sizes)
        if kept is not None:
            return kept
        content, began = read(), clocks()
        mine = self._interpolation
        of_mine = {mine: {*sizes, *self._elsewhere.get(mine, ())}}
        for every in ({**self._elsewhere, **of_mine}, of_mine):  # where not all of them have room, the own alone
            room = COLOURS * sum(map(_area, every.values()))
            if self._reserve(room, len(content)):
                break
        else:
            return to_arrays_of_each(content, {mine: sizes}, self._resize)[mine]
        taken = 0
        try:
            pixels = to_arrays_of_each(content, {how: sorted(of) for how, of in every.items()}, self._resize)
            taken = sum(array.nbytes for of in pixels.values() for array in of.values())
        finally:
            with self._lock:
                self._left += room - taken
        seconds = (clocks() - began)[0]
        with self._lock:
            for how in self._writers.keys() & every.keys():
                share = _area(every[how]) / sum(map(_area, every.values()))
                self._took[how] += np.array([seconds / thread_count(), seconds]) * share
                rows = {pixel_column(size): array[np.newaxis] for size, array in pixels[how].items()}
                self._writers[how].add([image_hash], len(next(iter(pixels[how].values()))), rows)
        return {size: pixels[mine][size] for size in sizes}

    def _reserve(self, room: int, file: int) -> bool:
        """Say whether the pixels of an image are to be kept, and take the room that they need at most."""
        with self._lock:
            keep = bool(self._elsewhere) and room <= min(LARGEST_SHARE * file, self._left)
            self._left -= room if keep else 0
        return keep

    def _kept(self, image_hash: str, sizes: Sequence[int]) -> Pixels | None:
        if self._found is None or not self._found.shards:
            return None
        digest = to_digests([image_hash])
        at = min(int(np.searchsorted(self._digests, digest)[0]), len(self._digests) - 1)
        columns = [pixel_column(size) for size in sizes]
        shards = self._found.shard_of[[self._found.columns.index(column) for column in columns], at]
        if self._digests[at] != digest[0] or (shards < 0).any():
            return None
        try:
            rows = [self._found.shards[k].read(digest, c)[0] for k, c in zip(shards, columns, strict=True)]
        except DamagedShardError:  # it is told, and decoded again
            return None
        return dict(zip(sizes, rows, strict=True))
