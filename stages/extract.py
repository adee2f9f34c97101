"""Compute what comes out at the cut, once for every image and view.

    data/raw/<images>/, a backbone's folder  ->  data/features/<name>/, data/costs/extract/<name>.json

Below the cut all is frozen: what the cache holds is never computed again, and a killed extraction goes on from there.
The output is always rebuilt whole from the cache, in the order of the image hashes: its bytes do not tell what was
computed when.

    python -m stages.extract lite0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.backbones.backbone import Backbone, load_backbone
from stages.backbones.engines import calibrated, open_engine
from stages.backbones.passes import LOGITS, Passes
from stages.backbones.trained import backbone_folder
from stages.cli import UserError, progress, run_stage
from stages.files import COSTS, DATA, FEATURES, hash_json, read_json, write_json
from stages.params import Features, read_params
from stages.samples.decoding import INTERPOLATIONS, PREPROCESSING_VERSION, SMALL, BadImage, to_arrays
from stages.sources._raw import Images, read_images
from stages.store.activations import read_features, to_digests, to_hashes, write_features
from stages.store.cache import ActivationCache, Column, DamagedShardError, Stored
from stages.store.location import cache_root
from stages.store.pixels import KeptPixels
from stages.threads import in_threads

Array = npt.NDArray[Any]

ATTEMPTS = 10
CALIBRATED_ON = 256
"""So many images, those of the lowest hashes, tell `precision: int8` how far numbers reach."""
PIECE_BYTES = 16 * 2**20
"""How much of the output is put together in memory before it is written."""
_NETWORK = ("library", "network", "weights_hash", "mean", "std")


def extract(name: str, entry: Features) -> None:
    """Write data/features/<name>/ as its entry in params.yaml describes it, and what it has cost."""
    images = read_images(entry.images)
    folder = backbone_folder(DATA / entry.backbone)
    backbone = load_backbone(folder)
    digests, rows = np.unique(to_digests(images.image_hashes), return_index=True)
    if entry.precision == "int8":
        backbone = _calibrated(images, rows[:CALIBRATED_ON], entry, backbone)
    cache, columns = ActivationCache(context(entry, backbone)), wanted_columns(entry)
    rejected: dict[str, str] = {}
    for _ in range(ATTEMPTS):  # the second finds what the first has computed; more are needed where a shard is damaged
        decodable = ~np.isin(digests, to_digests(list(rejected)))
        if not decodable.any():
            raise UserError(_nothing_left(images, rejected))
        stored = cache.find(digests[decodable], columns)
        if stored.complete:
            with suppress(DamagedShardError):
                _write(name, entry, backbone, stored, rejected, folder)
                return
            continue
        with cache.alone():
            stored = cache.find(digests[decodable], columns)
            if not stored.complete:
                rejected |= _compute(images, rows[decodable], stored, entry, backbone, cache)
    raise RuntimeError(f"{ATTEMPTS} attempts: the cache does not keep what is written into it")


def _calibrated(images: Images, rows: npt.NDArray[np.int64], entry: Features, backbone: Backbone) -> Backbone:
    """Return the backbone with the ranges of its tensors on some images; they are measured once, and kept."""
    exact = entry.model_copy(update={"precision": "float32"})
    hashes = images.table["image_hash"].take(rows).to_pylist()
    measured = {"outputs": entry.all_layers, "logits": entry.logits, "sizes": entry.image_size, "images": hashes}
    path = cache_root() / "ranges" / f"{hash_json({**context(exact, backbone), **measured})}.json"
    ranges = _kept_ranges(path)
    if ranges is None:

        def decoded(read: Callable[[], bytes]) -> dict[int, Array] | None:
            with suppress(BadImage):  # it is told later
                return to_arrays(read(), entry.image_size, entry.resize, backbone.facts["interpolation"])
            return None

        readers = images.readers(rows.tolist())
        good = [pixels for pixels in in_threads(decoded, readers) if pixels is not None]
        if not good:
            raise UserError(f"data/raw/{images.name}: none of {len(rows)} images to calibrate on can be decoded")
        ranges = calibrated(backbone, entry, good).ranges
        write_json(path, {"ranges": ranges, "hash": hash_json(ranges)})
    return replace(backbone, ranges=ranges)


def _kept_ranges(path: Path) -> dict[str, Any] | None:
    """Return what a file holds; None where it is not there, or damaged."""
    try:
        kept = read_json(path)
        ranges: dict[str, Any] = kept["ranges"]
        return ranges if hash_json(ranges) == kept["hash"] else None
    except (UserError, ValueError, KeyError, TypeError):
        return None


def wanted_columns(entry: Features) -> list[Column]:
    """Return what is stored of an image; the logits of the first size and the view identity alone."""
    sizes, views = entry.image_size, entry.all_views
    columns = [Column(size, view, layer) for size in sizes for view in views for layer in entry.all_layers]
    return columns + [Column(sizes[0], views[0], LOGITS)] * entry.logits


def context(entry: Features, backbone: Backbone) -> dict[str, Any]:
    """Return all that changes a stored number, beside the image and the column."""
    pixels = pixel_context(entry, backbone)
    if entry.cut == "image":
        return pixels
    network = {fact: backbone.facts[fact] for fact in _NETWORK}
    outputs = "averaged" if entry.cut == "pooled" else "whole"
    engine = dict(open_engine(backbone, entry).identity)
    return {**pixels, **network, "outputs": outputs, "dtype": entry.dtype, "engine": engine}


def pixel_context(entry: Features, backbone: Backbone) -> dict[str, Any]:
    """Return all that changes a pixel of a decoded image, beside the image and the size."""
    return {
        "resize": entry.resize,
        "interpolation": backbone.facts["interpolation"],
        "preprocessing_version": PREPROCESSING_VERSION,
        "decoded_alike": SMALL,
        "pillow": version("pillow"),
    }


def _nothing_left(images: Images, rejected: Mapping[str, str]) -> str:
    reason = next(iter(rejected.values()), "there are none")
    return f"data/raw/{images.name}: none of {len(images)} images can be decoded ({reason})"


def _compute(
    images: Images,
    rows: npt.NDArray[np.int64],
    stored: Stored,
    entry: Features,
    backbone: Backbone,
    cache: ActivationCache,
) -> dict[str, str]:
    """Put into the cache what is missing there, and return the reason for each image that cannot be decoded.

    rows : where in `images` each of the images is that were looked up.
    """
    rejected: dict[str, str] = {}
    hashes = images.table["image_hash"]
    kept = KeptPixels(pixel_context(entry, backbone), stored.digests, sizes_elsewhere(entry, _every_features()))
    with kept, cache.writer() as writer:
        for columns, positions in stored.lacking():
            positions = positions[np.argsort(rows[positions])]  # in the order in which they lie on the disk
            wanted = rows[positions].tolist()
            passes = Passes(columns, entry, backbone, None if entry.cut == "image" else kept.decode)
            held = kept.look_up(passes.sizes)[positions].tolist()
            names = (hashes[row].as_py() for row in wanted)
            computed = passes.compute(zip(names, images.readers(wanted, held), strict=True))
            for batch in progress(computed, len(wanted), "image", lambda batch: len(batch.image_hashes)):
                if batch.reason:
                    rejected[batch.image_hashes[0]] = batch.reason
                else:
                    writer.add(batch.image_hashes, batch.channels, batch.rows)
            writer.flush()  # a shard's images all have the same columns
    return rejected


def _every_features() -> list[Features]:
    """Return the entries of params.yaml as it is now: nothing but time hangs on them."""
    try:
        return list(read_params().features.values())
    except UserError:
        return []


def sizes_elsewhere(entry: Features, every: Sequence[Features]) -> dict[str, set[int]]:
    """Return by interpolation the sizes that features of the same images see; nothing where there are no others.

    Features whose network is not there yet, or not whole, count as of the entry's own interpolation.
    """
    alike = [e for e in every if (e.images, e.resize) == (entry.images, entry.resize)]
    found: dict[str, set[int]] = {}
    for e in alike if len(alike) > 1 else ():
        how = _interpolation(e) or _interpolation(entry)
        if how is not None:
            found.setdefault(how, set()).update(e.image_size)
    return found


def _interpolation(entry: Features) -> str | None:
    for folder in ("", "final", "repeat-0"):  # of a download, or of a run's model
        with suppress(UserError, KeyError, TypeError):
            how = read_json(DATA / entry.backbone / folder / "network.json")["interpolation"]
            return str(how) if how in INTERPOLATIONS else None
    return None


class _Block(NamedTuple):
    """Where, along the first axis of what is stored, the output of a layer at a size lies."""

    size: int
    layer: str
    start: int
    stop: int


def _blocks(entry: Features, stored: Stored) -> list[_Block]:
    blocks: list[_Block] = []
    for size in entry.image_size:
        for layer in entry.all_layers:
            start = blocks[-1].stop if blocks else 0
            blocks.append(_Block(size, layer, start, start + stored.shape(Column(size, "identity", layer))[0]))
    return blocks


def _write(
    name: str, entry: Features, backbone: Backbone, stored: Stored, rejected: Mapping[str, str], folder: Path
) -> None:
    """Write the output and what it has cost; raises DamagedShardError."""
    blocks = _blocks(entry, stored)
    shape = (blocks[-1].stop, *stored.shape(stored.columns[0])[1:])
    logits = stored.columns[-1] if entry.logits else None
    dtype = "uint8" if entry.cut == "image" else entry.dtype
    facts = {
        "features": name,
        "images": entry.images,
        "entry": entry.model_dump(mode="json"),
        "views": entry.all_views,
        "shape": list(shape),
        "dtype": dtype,
        "blocks": [block._asdict() for block in blocks],
        "logits": stored.shape(logits)[0] if logits else None,
        "operations": Passes(stored.columns, entry, backbone).operations(stored.channels),
        "weights_hash": backbone.weights_hash,
        "network": backbone.facts,
        "preprocessing_version": PREPROCESSING_VERSION,
        "content_hash": _content_hash(entry, backbone),
        "engine": dict(open_engine(backbone, entry).identity),
        **({"ranges": backbone.ranges} if backbone.ranges else {}),
    }
    activations = _activations(stored, entry, blocks, shape, dtype)
    rows_of_logits = _logits(stored, logits) if logits else ()
    hashes = to_hashes(stored.digests)
    write_features(FEATURES / name, facts, hashes, rejected, activations, rows_of_logits, folder)
    _write_cost(name, stored)


def _activations(
    stored: Stored, entry: Features, blocks: Sequence[_Block], shape: tuple[int, ...], dtype: str
) -> Iterator[Array]:
    """Put together (n, views, *shape), piece by piece, in the order of the hashes."""
    views, columns = entry.all_views, [column for column in stored.columns if column.output != LOGITS]
    place = {(block.size, block.layer): slice(block.start, block.stop) for block in blocks}
    for images in _split(stored, len(views) * math.prod(shape) * np.dtype(dtype).itemsize):
        piece = np.empty((len(images), len(views), *shape), dtype)
        for column, at, rows in stored.read(images, columns):
            # Where some images are in colour, the one channel of a grey one is repeated.
            piece[at, views.index(column.view), place[column.size, column.output]] = rows
        yield piece


def _logits(stored: Stored, column: Column) -> Iterator[Array]:
    shape = stored.shape(column)
    for images in _split(stored, 4 * math.prod(shape)):
        piece = np.empty((len(images), *shape), np.float32)
        for _, at, rows in stored.read(images, [column]):
            piece[at] = rows
        yield piece


def _split(stored: Stored, bytes_per_image: int) -> Iterator[npt.NDArray[np.int64]]:
    positions = np.arange(len(stored.digests))
    step = max(1, PIECE_BYTES // bytes_per_image)
    return (positions[start : start + step] for start in range(0, len(positions), step))


def _content_hash(entry: Features, backbone: Backbone) -> str:
    """The fingerprint of what the numbers mean; where images and weights lie, engine and machine have no part in it."""
    written = entry.model_dump(mode="json", exclude={"images", "backbone"})
    network = {fact: backbone.facts[fact] for fact in (*_NETWORK, "interpolation")}
    meaning = {**written, "views": entry.all_views, "layers": entry.all_layers, "network": network}
    return hash_json({**meaning, "preprocessing_version": PREPROCESSING_VERSION})


def _write_cost(name: str, stored: Stored) -> None:
    """Write what it cost when it was computed, which may have been for other features and long ago."""
    facts, cost = read_features(name).facts, stored.cost()
    seconds = {key: round(cost[key], 3) for key in ("seconds", "core_seconds")}
    written = {
        **seconds,
        "images": facts["count"],
        "images_per_second": round(facts["count"] / max(cost["seconds"], 1e-9), 2),
        "peak_memory_bytes": int(cost["peak_memory_bytes"]),
        "bytes": facts["count"] * facts["bytes_per_image"],
        "operations": facts["operations"],
    }
    write_json(COSTS / "extract" / f"{name}.json", written)


if __name__ == "__main__":
    run_stage(extract, level="features")
