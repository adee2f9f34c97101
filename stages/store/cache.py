"""The private cache of activations: what was computed once is found again by all that changes a number in it.

    <cache>/activations/<context>/context.json           what the folder's name is the hash of
    <cache>/activations/<context>/<name>.safetensors     a shard: some images, and what was computed of them in one go

A context is what changes a number and is the same for a whole extraction: weights, engine, resizing, versions. Within
it a `Column` is what is stored of an image: an output of the network, at one size, of one view. Shards are written
under a temporary name, renamed, and never changed: several processes may add to one cache and read it at the same time.
Each row carries a checksum; a shard in which one does not hold is deleted, and its images are computed again. A shard
also remembers what it cost to compute.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.cli import warn
from stages.files import hash_json, is_running, locked, new_file, write_json, writer_of
from stages.store.activations import Digests, to_digests
from stages.store.location import cache_root

Array = npt.NDArray[Any]

FLUSH_IMAGES = 1000
FLUSH_SECONDS = 30.0
FLUSH_BYTES = 32 * 2**20
"""A shard is written when any of the three is reached: a killed extraction loses no more, and memory holds no more."""

_NUMBERS = itertools.count()
OLD_SECONDS = 86400.0
"""What lies unfinished for longer is taken for given up."""
_IMAGE_HASHES, _CHECKSUMS = "image_hashes", "checksums"


class Column(NamedTuple):
    """What is stored of an image: an output of the network (a layer, `logits`, or `image`, the pixels), of one view."""

    size: int
    view: str
    output: str


class DamagedShardError(Exception):
    """A shard is gone: it held other bytes than were written, and was deleted. Look up again what it held."""


class Shard:
    """A shard opened for reading: `columns`, `channels` of its images (1 grey, 3 colour), `digests` sorted, `facts`."""

    def __init__(self, path: Path) -> None:
        """Read the index of a shard; raises DamagedShardError, and FileNotFoundError when it was deleted meanwhile."""
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, framework="numpy") as file:
                written = file.metadata()
                hashes, self._checksums = file.get_tensor(_IMAGE_HASHES), file.get_tensor(_CHECKSUMS)
                if _index_checksum(written["facts"], hashes, self._checksums) != int(written["checksum"]):
                    raise self._damaged()
                self.facts: dict[str, Any] = json.loads(written["facts"])
                self.columns = {Column(*column): number for number, column in enumerate(self.facts["columns"])}
                self.shapes = {c: tuple(file.get_slice(str(n)).get_shape()[1:]) for c, n in self.columns.items()}
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            raise self._damaged() from None
        self.digests: Digests = hashes.reshape(-1).view("S32")
        self.channels = int(self.facts["channels"])

    def read(self, wanted: Digests, column: Column) -> Array:
        """Return a column's rows (n, *shape) of n images, which are sorted and all here; raises DamagedShardError.

        Only the part of the file where they lie is read.
        """
        from safetensors import SafetensorError, safe_open

        number, rows = self.columns[column], np.searchsorted(self.digests, wanted)
        first, stop = int(rows[0]), int(rows[-1]) + 1
        try:
            with safe_open(self.path, framework="numpy") as file:
                found: Array = file.get_slice(str(number))[first:stop]
        except FileNotFoundError:
            raise DamagedShardError(str(self.path)) from None  # another process has found the damage first
        except SafetensorError:
            raise self._damaged() from None
        if len(rows) < stop - first:
            found = found[rows - first]
        if _checksums(found) != self._checksums[rows, number].tolist():
            raise self._damaged()
        return found

    def _damaged(self) -> DamagedShardError:
        # Deleted whole: where one bit has turned others may have.
        self.path.unlink(missing_ok=True)
        warn(f"{self.path} was damaged: what it held is computed again")
        return DamagedShardError(str(self.path))


def shards_in(folder: Path) -> Iterator[Shard]:
    """Yield the shards of a context's folder, in the order in which they were written; damaged ones are deleted."""
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(DamagedShardError, FileNotFoundError):
            yield Shard(path)


def _checksums(rows: Array) -> list[int]:
    return [zlib.crc32(row) for row in rows]


def _index_checksum(facts: str, hashes: Array, checksums: Array) -> int:
    return zlib.crc32(checksums.tobytes(), zlib.crc32(hashes.tobytes(), zlib.crc32(facts.encode())))


@dataclass(frozen=True)
class Stored:
    """What the cache holds of some images.

    digests : of the images, sorted (N,); columns : asked for; shards : where they lie;
    shard_of : for every column and image (columns, N) the number of a shard that holds it, or -1.
    """

    digests: Digests
    columns: tuple[Column, ...]
    shards: tuple[Shard, ...]
    shard_of: npt.NDArray[np.int32]

    @property
    def complete(self) -> bool:
        """Whether every column of every image is there."""
        return bool((self.shard_of >= 0).all())

    def lacking(self) -> Iterator[tuple[list[Column], npt.NDArray[np.int64]]]:
        """Yield columns with the positions of the images that lack just these: new images all, a new layer one."""
        patterns, which = np.unique(self.shard_of < 0, axis=1, return_inverse=True)
        for number, pattern in enumerate(patterns.T):
            if pattern.any():
                columns = [column for column, lacks in zip(self.columns, pattern, strict=True) if lacks]
                yield columns, np.nonzero(which.reshape(-1) == number)[0]

    @property
    def channels(self) -> int:
        """Channels of the images that are found: 1 when all are grey, else 3; 0 when none is found."""
        return max((self.shards[k].channels for k in np.unique(self.shard_of) if k >= 0), default=0)

    def shape(self, column: Column) -> tuple[int, ...]:
        """Return the shape of one image's row; at least one must be found."""
        found = self.shard_of[self.columns.index(column)]
        shapes = [self.shards[k].shapes[column] for k in np.unique(found) if k >= 0]
        return max(shapes)  # pixels of grey images have one channel, of colour images three

    def read(
        self, images: npt.NDArray[np.int64], columns: Sequence[Column]
    ) -> Iterator[tuple[Column, npt.NDArray[np.int64], Array]]:
        """Read columns of some images, given by their sorted positions among `digests`, in pieces.

        Yields a column, which of `images` a piece holds (n,), and their rows (n, *shape). Raises DamagedShardError.
        """
        for column in columns:
            found = self.shard_of[self.columns.index(column), images]
            for number in np.unique(found):
                at = np.nonzero(found == number)[0]
                yield column, at, self.shards[number].read(self.digests[images[at]], column)

    def cost(self) -> dict[str, float]:
        """Return what computing it has cost: seconds, core_seconds, and the largest peak_memory_bytes.

        Of a shard that also holds other images or other sizes and views, the share that was used, by pixels.
        """
        total = {"seconds": 0.0, "core_seconds": 0.0, "peak_memory_bytes": 0.0}
        for number in np.unique(self.shard_of):
            if number < 0:
                continue
            shard, used = self.shards[number], self.shard_of == number
            images = used.any(axis=0).sum() / len(shard.digests)
            passes = {(c.size, c.view) for c, row in zip(self.columns, used, strict=True) if row.any()}
            every = {(c.size, c.view) for c in shard.columns}
            share = float(images) * sum(s * s for s, _ in passes) / sum(s * s for s, _ in every)
            for name in ("seconds", "core_seconds"):
                total[name] += share * shard.facts[name]
            total["peak_memory_bytes"] = max(total["peak_memory_bytes"], shard.facts["peak_memory_bytes"])
        return total


class ActivationCache:
    """The cache within one context; see the top of this file.

    context : all that changes a number beside image, size, view and output; written down beside the shards.
    """

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context
        self.folder = cache_root() / "activations" / hash_json(context)[:32]

    def find(self, digests: Digests, columns: Sequence[Column]) -> Stored:
        """Look up images (sorted, none twice) as the cache stands now; damaged shards are deleted."""
        shard_of = np.full((len(columns), len(digests)), -1, np.int32)
        shards: list[Shard] = []
        for shard in shards_in(self.folder) if len(digests) else ():
            at = np.minimum(np.searchsorted(digests, shard.digests), len(digests) - 1)
            at = at[digests[at] == shard.digests]
            held = [c for c, column in enumerate(columns) if column in shard.columns]
            if len(at) and held:
                shard_of[np.ix_(held, at)] = len(shards)
                shards.append(shard)
        return Stored(digests, tuple(columns), tuple(shards), shard_of)

    def alone(self) -> AbstractContextManager[None]:
        """Hold this context's lock: who computes what it lacks looks up again first, as another may have done it."""
        return locked(self.folder.with_suffix(".lock"), "another process computes activations of the same network")

    def writer(self, clock: Callable[[], Array] | None = None) -> CacheWriter:
        """Return a writer that adds to this cache; first remove what killed processes have left there.

        clock : see CacheWriter; that of this process if not given
        """
        for left_over in self.folder.glob(".*.tmp-*"):
            with suppress(FileNotFoundError):
                writer, age = writer_of(left_over), time.time() - left_over.stat().st_mtime
                # The clock may have jumped: what lives on this machine is never given up.
                if age > OLD_SECONDS and (writer is None or not is_running(writer)):
                    left_over.unlink()
        return CacheWriter(self.folder, self._context, clock or clocks)


@dataclass
class _Buffer:
    """Rows that wait to be written: of grey images, or of colour images."""

    digests: list[Digests]
    rows: dict[Column, list[Array]]
    images: int = 0


class CacheWriter:
    """Adds shards to the cache, one whenever enough has come together; a context manager, which writes what is left.

    It takes the time from its making on: what was spent between two shards is what the later one cost.

    clock : returns seconds and core seconds (2,)
    """

    def __init__(self, folder: Path, context: Mapping[str, Any], clock: Callable[[], Array]) -> None:
        self._folder, self._context, self._clock = folder, context, clock
        self._buffers: dict[int, _Buffer] = {}
        self._bytes = 0
        self._began = clock()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()  # also after an error: what was computed is right, and the next attempt goes on from it

    def add(self, image_hashes: Sequence[str], channels: int, rows: Mapping[Column, Array]) -> None:
        """Add what was computed of some images: for each column (n, *shape), n images with equally many channels."""
        buffer = self._buffers.setdefault(channels, _Buffer([], {}))
        buffer.digests.append(to_digests(image_hashes))
        buffer.images += len(image_hashes)
        for column, values in rows.items():
            buffer.rows.setdefault(column, []).append(values)
            self._bytes += values.nbytes
        full = self._bytes >= FLUSH_BYTES or sum(b.images for b in self._buffers.values()) >= FLUSH_IMAGES
        if full or self._clock()[0] - self._began[0] >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        images = sum(buffer.images for buffer in self._buffers.values())
        if not images:
            return
        now = self._clock()
        seconds, core_seconds = (now - self._began).tolist()
        for channels, buffer in self._buffers.items():
            share = buffer.images / images
            cost = {
                "seconds": share * seconds,
                "core_seconds": share * core_seconds,
                "peak_memory_bytes": peak_memory_bytes(),
            }
            self._write(channels, buffer, cost)
        self._buffers, self._bytes = {}, 0
        self._began = now

    def _write(self, channels: int, buffer: _Buffer, cost: Mapping[str, float]) -> None:
        from safetensors.numpy import save_file

        digests = np.concatenate(buffer.digests)
        order = np.argsort(digests)
        tensors, checksums = {}, np.empty((len(order), len(buffer.rows)), np.uint32)
        for number, parts in enumerate(buffer.rows.values()):
            values = np.ascontiguousarray(np.concatenate(parts)[order])
            checksums[:, number] = _checksums(values)
            tensors[str(number)] = values
        hashes = digests[order].view(np.uint8).reshape(-1, 32)
        facts = json.dumps({"columns": list(buffer.rows), "channels": channels, **cost})
        checksum = _index_checksum(facts, hashes, checksums)
        if not self._folder.is_dir():
            write_json(self._folder / "context.json", self._context)
        # Never a name that another process takes, nor this one, though a clock may stand still or jump back.
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(_NUMBERS)}.safetensors"
        with new_file(self._folder / name) as path:
            tensors = {**tensors, _IMAGE_HASHES: hashes, _CHECKSUMS: checksums}
            save_file(tensors, path, {"facts": facts, "checksum": str(checksum)})


def clocks() -> Array:
    """Return a clock's seconds, and the core seconds of this process (2,): the difference of two is what work took."""
    return np.array([time.monotonic(), core_seconds()])


def core_seconds() -> float:
    """Return the processor time that this process and its ended children have used, over all cores."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_memory_bytes() -> int:
    """Return the most memory that this process, or one of its ended children, has held at once."""
    import sys

    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(used) * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, others KiB
