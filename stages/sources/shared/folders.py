"""What the folders of an image say about it: its class, its part of a split, what to group by."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from stages.cli import UserError, warn
from stages.sources._raw import SPLIT_WORDS, Found

_SUFFIXES = "avif bmp gif heic heif jfif jp2 jpe jpeg jpg pbm pcx pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""File names that end so are taken for images; whether one can be decoded is found out when it is."""

NO_CLASS = "it lies in no class"

AnyPath = TypeVar("AnyPath", bound=PurePath)


def read_folders(
    images: Mapping[AnyPath, Path | Callable[[], bytes]], place: str
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return images with the columns that their folders say: class, split, folder; and those that lie in no class.

    images : where the bytes of each are, by its name; place : where the names lead on from, for messages
    Raises UserError when most of them lie in no class.
    """
    split_at = _split_level([name for name in images if len(name.parts) > 1])
    class_at = 1 if split_at == 0 else 0
    placed = [name for name in images if len(name.parts) > _used(split_at)]
    strays = [name for name in images if len(name.parts) <= _used(split_at)]
    if 2 * len(strays) > len(images):
        name = strays[0]
        parent = "/".join([place, *name.parts[:-1]])
        raise UserError(f"{place}/{name} lies in no class: move it into a sub-folder of {parent}, or remove it")
    deeper = max((len(name.parts) for name in placed), default=0) - _used(split_at) - 1
    found = []
    for name in placed:
        folders = name.parts[:-1]
        columns: dict[str, Any] = {"class": unicodedata.normalize("NFC", folders[class_at])}
        if split_at is not None:
            columns["split"] = SPLIT_WORDS[folders[split_at].lower()]
        between = folders[_used(split_at) :]
        for level in range(deeper):
            columns[f"folder_{level + 1}" if level else "folder"] = between[level] if level < len(between) else None
        found.append(Found(name.as_posix(), images[name], columns))
    return found, [(name.as_posix(), NO_CLASS) for name in strays]


def sort_out(files: Iterable[AnyPath]) -> tuple[list[AnyPath], Counter[str]]:
    """Return which of some files are images, by their names, sorted, and how many others there are of each suffix."""
    images: list[AnyPath] = []
    others: Counter[str] = Counter()
    for path in files:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others[suffix or "without suffix"] += 1
    return sorted(images), others


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, is hidden."""
    return any(part.startswith(".") for part in name.split("/"))


def tell_passed_over(others: Counter[str], place: str) -> None:
    """Warn of files that are not taken for images; others : how many there are of each suffix."""
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        warn(f"{place}: {others.total():,} files are passed over, their names are not those of images: {kinds}")


def _used(split_at: int | None) -> int:
    """Return how many folders on an image's way stand for class and split."""
    return 1 if split_at is None else 2


def _split_level(names: Sequence[PurePath]) -> int | None:
    """Return which folder on an image's way names its part: the first (0), the second (1), or none."""
    for level in (0, 1):
        if names and all(len(name.parts) > level + 1 and name.parts[level].lower() in SPLIT_WORDS for name in names):
            return level
    first = {name.parts[0] for name in names if len(name.parts) > 2}
    parts = {folder for folder in first if folder.lower() in SPLIT_WORDS}
    if len({SPLIT_WORDS[folder.lower()] for folder in parts}) > 1:
        stray = ", ".join(sorted(first - parts) or sorted({name.parts[0] for name in names} - parts))
        raise UserError(
            f"{' and '.join(sorted(parts))} are parts of a split, and {stray} beside them is none: move it out, or "
            "move its images into one of the parts"
        )
    return None
