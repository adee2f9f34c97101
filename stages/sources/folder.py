"""Images in a folder with a sub-folder for each class: your own photographs.

    photos/cat/1.jpg                                     the class is the name of the first folder
    photos/train/cat/1.jpg, or photos/cat/train/1.jpg    train, val (valid, validation) and test are a split

Columns: `class`; `split` (train, validation, test) when all images lie in such folders; `folder`, the next folder
below the class, when there is any: a patient, a day, a camera to group by; `folder_2` and so on for those below it.
Hidden files and folders are passed over.

    downloads:
      photos: {source: folder, path: photos}             # packed into shards, a copy that DVC versions
      large:  {source: folder, path: photos, link: true} # left where they are; size and hash are recorded
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import Found, write_images
from stages.sources.shared.folders import IMAGE_SUFFIXES, read_folders, tell_passed_over


class Params(Download):
    """Keys of a folder of images."""

    source: Literal["folder"] = Field(description="a folder with a sub-folder for each class")
    link: bool = Field(False, description="leave the images where they are, and record their size and hash")
    licence: str = Field("not stated", description="licence of the images, for the record")


def fetch(params: Params, folder: Path) -> None:
    """Write what a folder holds into a download's folder.

    Raises UserError when it is not there, holds no images, or holds one that lies in no class.
    """
    root = Path(params.path)
    paths, passed_over = find_images(root)
    if not paths:
        raise UserError(f"{_place(root)} holds no images; it takes a sub-folder for each class, with images in it")
    tell_passed_over(passed_over, str(root))
    names = [path.relative_to(root) for path in paths]
    found = zip(names, paths, read_folders(names, root), strict=True)
    write_images(
        folder,
        [Found(name.as_posix(), path, columns) for name, path, columns in found],
        source=params.source,
        origin=params.path,
        licence=params.licence,
        root=params.path if params.link else None,
        passed_over=dict(sorted(passed_over.items())),
    )


def find_images(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images below a folder, sorted, and how many other files there are of each suffix.

    Links are followed, but not back into a folder that they lie in. Hidden files and folders are passed over.
    Raises UserError when the folder, or one below it, cannot be read, and for a link that leads nowhere.
    """
    if not root.is_dir():
        raise UserError(f"{_place(root)} is {'no folder' if root.exists() else 'not there'}")
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in _files(root, frozenset()):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others[suffix or "without suffix"] += 1
    return sorted(images), others


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files below a folder; `above` identifies the folders that it lies in."""
    try:
        state = folder.stat()
        if (state.st_dev, state.st_ino) in above:
            return
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    above |= {(state.st_dev, state.st_ino)}
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            yield from _files(path, above)
        elif path.is_file() if entry.is_symlink() else entry.is_file():
            yield path
        elif entry.is_symlink():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there")


def _place(root: Path) -> str:
    return f"params.yaml: the folder {root}"
