"""Pass images through the frozen part of a network: at every size, of every view, all outputs of a pass together.

    bytes --[ threads: decode, resize ]--> batches of equal channels --[ engine, every size and view ]--> rows

Threads decode a little ahead of the threads that run the network: neither waits for the other, and memory stays flat.
An image is decoded once for all sizes and views. Grey and colour images never share a batch, and engines fill up a
batch to its full size: what comes out for an image depends on that image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.backbones.backbone import Backbone
from stages.backbones.engines import Engine, open_engine
from stages.params import Features
from stages.samples.decoding import BadImage, apply_view, to_arrays
from stages.store.cache import Column
from stages.threads import in_threads

Array = npt.NDArray[Any]

Decode = Callable[[str, Callable[[], bytes], Sequence[int]], dict[int, Array]]

LOGITS = "logits"


class Computed(NamedTuple):
    """What was computed of one batch; or, with no rows, why an image could not be decoded.

    image_hashes : of the images (B,); channels : of each of them, 1 (grey) or 3; rows : for each column (B, *shape).
    """

    image_hashes: list[str]
    channels: int
    rows: dict[Column, Array]
    reason: str = ""


class _Batch(NamedTuple):
    image_hashes: list[str]
    channels: int
    pixels: list[dict[int, Array]]  # of each image, for every size (C, S, S)


class Passes:
    """The passes of a network that give some columns.

    Opening is cheap: a network is built or read with the first image that goes through it.

    decode : returns an image at some sizes, given by its hash and what reads its bytes; raises BadImage. `to_arrays`,
        as the entry says, if not named
    """

    def __init__(
        self, columns: Iterable[Column], entry: Features, backbone: Backbone, decode: Decode | None = None
    ) -> None:
        def decode_anew(_: str, read: Callable[[], bytes], sizes: Sequence[int]) -> dict[int, Array]:
            return to_arrays(read(), sizes, entry.resize, backbone.facts["interpolation"])

        self._entry, self._decoded = entry, decode or decode_anew
        self._outputs: dict[tuple[int, str], tuple[str, ...]] = {}
        for column in columns:
            key = column.size, column.view
            self._outputs[key] = (*self._outputs.get(key, ()), column.output)
        self.sizes = sorted({size for size, _ in self._outputs})
        self._engines = {outputs: _open(outputs, entry, backbone) for outputs in set(self._outputs.values())}

    def operations(self, channels: int) -> int:
        """Return the multiply-adds of all passes of an image with so many channels."""
        return sum(self._engines[names].operations(size, channels) for (size, _), names in self._outputs.items())

    def compute(self, images: Iterable[tuple[str, Callable[[], bytes]]]) -> Iterator[Computed]:
        """Compute all columns of images, given by a hash and what reads the bytes; they come out in batches."""
        engines = self._engines.values()
        batches = _batches(in_threads(self._decode, images), min(engine.batch_size for engine in engines))
        return in_threads(self._run, batches, threads=min(engine.calls for engine in engines), ahead=2)

    def _decode(self, image: tuple[str, Callable[[], bytes]]) -> tuple[str, dict[int, Array] | BadImage]:
        image_hash, read = image
        try:
            return image_hash, self._decoded(image_hash, read, self.sizes)
        except BadImage as reason:
            return image_hash, reason

    def _run(self, batch: _Batch | Computed) -> Computed:
        if isinstance(batch, Computed):
            return batch
        rows: dict[Column, Array] = {}
        for (size, view), outputs in self._outputs.items():
            images = np.empty((len(batch.pixels), batch.channels, size, size), np.uint8)
            for at, pixels in enumerate(batch.pixels):
                images[at] = apply_view(pixels[size], view)
            found = self._engines[outputs](images)
            for output in outputs:
                values = found[output]
                exact = output in (LOGITS, "image")
                rows[Column(size, view, output)] = values if exact else values.astype(self._entry.dtype, copy=False)
        return Computed(batch.image_hashes, batch.channels, rows)


def _open(outputs: Sequence[str], entry: Features, backbone: Backbone) -> Engine:
    """Open an engine for some of an entry's outputs; where logits alone are wanted it gives the others, too.

    One of eight bits gives them all: its ranges were measured in a network with all of them.
    """
    if entry.precision == "int8":
        return open_engine(backbone, entry)
    layers = [layer for layer in entry.layers if layer in outputs] or entry.layers
    return open_engine(backbone, entry.model_copy(update={"layers": layers, "logits": LOGITS in outputs}))


def _batches(
    decoded: Iterable[tuple[str, dict[int, Array] | BadImage]], batch_size: int
) -> Iterator[_Batch | Computed]:
    waiting: dict[int, _Batch] = {}
    for image_hash, pixels in decoded:
        if isinstance(pixels, BadImage):
            yield Computed([image_hash], 0, {}, str(pixels))
            continue
        channels = len(next(iter(pixels.values())))
        batch = waiting.setdefault(channels, _Batch([], channels, []))
        batch.image_hashes.append(image_hash)
        batch.pixels.append(pixels)
        if len(batch.pixels) == batch_size:
            yield waiting.pop(channels)
    yield from waiting.values()
