"""What the private cache holds, and what of it no features use any more.

    make cache              a line for each network, or way of reading images
    make cache PRUNE=1      remove what is not used

Used is what the features in params.yaml look up, of the images that are fetched, and what those of the studies look up
that share the cache (.transfer/<study>/). What is removed costs time when it is wanted again, and nothing else: a
stage that runs meanwhile computes again what it misses.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from stages.backbones.backbone import load_backbone
from stages.backbones.trained import backbone_folder
from stages.cli import UserError, guard, warn
from stages.extract import context, pixel_context, sizes_elsewhere, wanted_columns
from stages.files import DATA, FEATURES, is_in_use, read_json
from stages.params import read_params
from stages.scoring.wording import size
from stages.sources._raw import read_images
from stages.store.activations import Digests, to_digests
from stages.store.cache import OLD_SECONDS, ActivationCache, Column, Shard, shards_in
from stages.store.location import cache_root, shared_root
from stages.store.pixels import pixel_column

UNFINISHED = ("trainings", "downloads")
"""Folders of the cache in which each thing belongs to a run that will go on with it."""


@dataclass(frozen=True)
class Use:
    """What an entry of features looks up: in which context's folder, columns, and images by their hashes, sorted."""

    features: str
    folder: str
    columns: frozenset[Column]
    digests: Digests

    def needs(self, shard: Shard) -> bool:
        """Whether a shard holds anything of it."""
        return bool(self.columns & shard.columns.keys()) and bool(np.isin(shard.digests, self.digests).any())


@dataclass
class Held:
    """What the cache holds of one context: how many images, of what, its bytes, and the shards that nothing needs."""

    folder: Path
    what: str
    outputs: set[str] = field(default_factory=set)
    images: set[bytes] = field(default_factory=set)
    bytes: int = 0
    unused: list[Path] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


def uses(project: Path, label: str = "") -> Iterator[Use]:
    """Yield what the features of a project look up; raises UserError where images or weights are not fetched."""
    with chdir(project):
        params = read_params()
        names = {entry.images for entry in params.features.values()}
        images = {name: np.unique(to_digests(read_images(name).image_hashes)) for name in sorted(names)}
        for name, entry in params.features.items():
            backbone = load_backbone(backbone_folder(DATA / entry.backbone))
            written = FEATURES / name / "features.json"
            if entry.precision == "int8" and written.is_file():  # before it is extracted, nothing can be of use to it
                backbone = replace(backbone, ranges=read_json(written).get("ranges"))
            looked_up = [(context(entry, backbone), frozenset(wanted_columns(entry)))]
            if entry.cut != "image" and sizes_elsewhere(entry, list(params.features.values())):
                kept = frozenset(pixel_column(size) for size in entry.image_size)
                looked_up.append((pixel_context(entry, backbone), kept))
            for described, columns in looked_up:
                folder = ActivationCache(described).folder.name  # a study has no cache of its own
                yield Use(f"{name}{label}", folder, columns, images[entry.images])


def all_uses() -> tuple[list[Use], list[str]]:
    """Return what this project and the studies look up, and of which of them it is not known, with the reason."""
    found, unknown = [], []
    studies = sorted(path.parent for path in (shared_root() / ".transfer").glob("*/params.yaml"))
    for project, label in ((Path.cwd(), ""), *((study, f" ({study.name})") for study in studies)):
        try:
            found += list(uses(project, label))
        except UserError as error:
            unknown.append(f"{project}: {error.args[0]}")
    return found, unknown


def held(uses: Sequence[Use]) -> list[Held]:
    """Return what the cache holds, the largest first; damaged shards are deleted."""
    rows = []
    by_folder = defaultdict(list)
    for use in uses:
        by_folder[use.folder].append(use)
    for written in sorted((cache_root() / "activations").glob("*/context.json")):
        facts, mine = read_json(written), by_folder[written.parent.name]
        row = Held(written.parent, facts.get("network", "images as pixels"))
        needed = set()
        for shard in shards_in(written.parent):
            of_shard = [use.features for use in mine if use.needs(shard)]
            needed |= set(of_shard)
            row.outputs |= {f"{column.output} at {column.size}" for column in shard.columns}
            row.images |= set(shard.digests.tolist())
            row.bytes += shard.path.stat().st_size
            row.unused += [] if of_shard else [shard.path]
        row.features = [use.features for use in mine if use.features in needed]
        rows.append(row)
    return sorted(rows, key=lambda row: -row.bytes)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    total = 0
    for file in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def given_up() -> Iterator[Path]:
    """Yield what was begun in the cache and not touched for a day: a training's folder, a download.

    The clock may have jumped: what a process of this machine works with is never given up.
    """
    for name in UNFINISHED:
        for path in sorted((cache_root() / name).glob("*")):
            with suppress(FileNotFoundError):
                touched = max(inner.stat().st_mtime for inner in (path, *path.rglob("*")))
                if time.time() - touched > OLD_SECONDS and not is_in_use(path):
                    yield path


def prune(rows: Sequence[Held]) -> int:
    """Remove what is not used and what was given up; return how many bytes that was."""
    freed = 0
    for path in chain((path for row in rows for path in row.unused), given_up()):  # each looked at when its turn comes
        freed += size_of(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for row in rows:
        if not any(row.folder.glob("*.safetensors")):
            (row.folder / "context.json").unlink(missing_ok=True)
            with suppress(OSError):  # another process has begun to fill it
                row.folder.rmdir()
    return freed


def describe(rows: Sequence[Held]) -> Iterator[str]:
    """Yield the lines of the table."""
    root = cache_root()
    unused = {row.folder: sum(path.stat().st_size for path in row.unused) for row in rows}
    features = size_of(FEATURES)
    yield (
        f"{root} adds {size(size_of(root))} to the {size(features)} of data/features; "
        f"{size(sum(unused.values()))} of it no features use"
    )
    for row in rows:
        used = ", ".join(row.features) or "nothing"
        yield (
            f"{size(row.bytes):>8}  {row.what}: {', '.join(sorted(row.outputs))}; {len(row.images):,} images; "
            f"used by {used}" + (f"; {size(unused[row.folder])} unused" if unused[row.folder] and row.features else "")
        )
    for name in ("networks", "ranges", "trained", *UNFINISHED):
        if held_there := size_of(root / name):
            yield f"{size(held_there):>8}  {name}"


def main() -> None:
    """Print what the cache holds, or prune it."""
    about = argparse.ArgumentParser("python -m stages.cache", description="Print what the private cache holds.")
    about.add_argument("--prune", action="store_true", help="remove what no features use")
    wanted = about.parse_args()
    found, unknown = all_uses()
    if unknown and wanted.prune:
        raise UserError(f"what is used is not known, so nothing is removed: {unknown[0]}")
    for line in unknown:
        warn(line)
    rows = held(found)
    for line in describe(rows):
        print(line)
    if wanted.prune:
        print(f"{size(prune(rows))} removed")


if __name__ == "__main__":
    guard(main)
