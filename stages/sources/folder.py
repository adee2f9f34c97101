"""Images in a folder with a sub-folder for each class: your own photographs.

    photos/cat/1.jpg                                     the class is the name of the first folder
    photos/train/cat/1.jpg, or photos/cat/train/1.jpg    train, val (valid, validation) and test are a split

Columns: `class`; `split` (train, validation, test) when all images lie in such folders; `folder`, the next folder
below the class, when there is any: a patient, a day, a camera to group by; `folder_2` and so on for those below it.
Hidden files and folders are passed over; images in no class and links that lead nowhere are listed in rejected.parquet.

    downloads:
      photos: {source: folder, path: photos}             # packed into shards, a copy that DVC versions
      large:  {source: folder, path: photos, link: true} # left where they are; size and hash are recorded
      far:    {source: folder, path: requirements.lock, root: "s3://bucket/photos", link: true}
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import write_images
from stages.sources.shared.folders import is_hidden, read_folders, sort_out, tell_passed_over
from stages.sources.shared.remote import STREAMS, Remote, is_url


class Params(Download):
    """Keys of a folder of images."""

    source: Literal["folder"] = Field(description="a folder with a sub-folder for each class")
    root: str | None = Field(
        None, description="URL of a folder (s3://bucket/photos) in place of path; then path is what DVC watches"
    )
    link: bool = Field(False, description="leave the images where they are, and record their size and hash")
    licence: str = Field("not stated", description="licence of the images, for the record")


def fetch(params: Params, folder: Path) -> None:
    """Write what a folder holds into a download's folder.

    Raises UserError when it is not there, holds no images, or most of them lie in no class.
    """
    root = params.path if params.root is None else params.root
    remote = Remote(root) if is_url(root) else None
    astray: list[Path] = []
    images: dict[PurePath, Path | Callable[[], bytes]]
    if remote is None:
        paths, astray, passed_over = find_images(Path(root))
        images = {path.relative_to(root): path for path in paths}
    else:
        names, passed_over = sort_out(PurePosixPath(name) for name in remote.names() if not is_hidden(name))
        images = {name: partial(remote.read, str(name)) for name in names}
    if not images and not astray:
        raise UserError(f"{_place(root)} holds no images; it takes a sub-folder for each class, with images in it")
    tell_passed_over(passed_over, root)
    found, rejected = read_folders(images, root.rstrip("/"))
    rejected += [(path.relative_to(root).as_posix(), "it is a link to no file or folder") for path in astray]
    write_images(
        folder,
        found,
        source=params.source,
        origin=root,
        licence=params.licence,
        root=root if params.link else None,
        rejected=rejected,
        streams=None if remote is None else STREAMS,
        passed_over=dict(sorted(passed_over.items())),
    )


def find_images(root: Path) -> tuple[list[Path], list[Path], Counter[str]]:
    """Return the images below a folder, sorted, links that lead nowhere, and how many other files there are by suffix.

    Links are followed, but each folder is read once: where it lies, else by the first link to it. Hidden files and
    folders are passed over. Raises UserError when the folder, or one below it, cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{_place(root)} is {'no folder' if root.exists() else 'not there'}")
    files: list[Path] = []
    astray: list[Path] = []
    known: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else heappop(links)
        try:
            state = folder.stat()
            if (state.st_dev, state.st_ino) in known:
                continue
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}") from None
        known.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _follow(path, links, files, astray)
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file():
                files.append(path)
    images, others = sort_out(files)
    return images, sorted(astray), others


def _follow(link: Path, folders: list[Path], files: list[Path], astray: list[Path]) -> None:
    """Put a link to the others of its kind; folders : a heap, those last in order are read last."""
    try:
        mode = link.stat().st_mode
    except OSError:  # of a loop, or what may not be looked at, too
        mode = 0
    if stat.S_ISDIR(mode):
        heappush(folders, link)
    else:
        (files if stat.S_ISREG(mode) else astray).append(link)


def _place(root: Path | str) -> str:
    return f"params.yaml: the folder {root}"
