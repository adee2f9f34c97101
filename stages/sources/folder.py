"""Images in a folder with a sub-folder for each class: your own photographs.

    photos/cat/1.jpg                                     the class is the name of the first folder
    photos/train/cat/1.jpg, or photos/cat/train/1.jpg    train, val (valid, validation) and test are a split

Columns: `class`; `split` (train, validation, test) when all images lie in such folders; `folder`, the next folder
below the class, when there is any: a patient, a day, a camera to group by; `folder_2` and so on for those below it.
Hidden files and folders are passed over.

    downloads:
      photos: {source: folder, path: photos}             # packed into shards, a copy that DVC versions
      large:  {source: folder, path: photos, link: true} # left where they are; size and hash are recorded
      far:    {source: folder, path: requirements.lock, root: "s3://bucket/photos", link: true}
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import Found, write_images
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

    Raises UserError when it is not there, holds no images, or holds one that lies in no class.
    """
    root = params.path if params.root is None else params.root
    remote = Remote(root) if is_url(root) else None
    if remote is None:
        paths, passed_over = find_images(Path(root))
        names: list[PurePath] = [path.relative_to(root) for path in paths]
        contents: list[Path | Callable[[], bytes]] = list(paths)
    else:
        names, passed_over = sort_out(PurePosixPath(name) for name in remote.names() if not is_hidden(name))
        contents = [partial(remote.read, str(name)) for name in names]
    if not names:
        raise UserError(f"{_place(root)} holds no images; it takes a sub-folder for each class, with images in it")
    tell_passed_over(passed_over, root)
    found = zip(names, contents, read_folders(names, root.rstrip("/")), strict=True)
    write_images(
        folder,
        [Found(name.as_posix(), content, columns) for name, content, columns in found],
        source=params.source,
        origin=root,
        licence=params.licence,
        root=root if params.link else None,
        streams=None if remote is None else STREAMS,
        passed_over=dict(sorted(passed_over.items())),
    )


def find_images(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images below a folder, sorted, and how many other files there are of each suffix.

    Links are followed, but not back into a folder that they lie in. Hidden files and folders are passed over.
    Raises UserError when the folder, or one below it, cannot be read, and for a link that leads nowhere.
    """
    if not root.is_dir():
        raise UserError(f"{_place(root)} is {'no folder' if root.exists() else 'not there'}")
    return sort_out(_files(root, frozenset()))


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


def _place(root: Path | str) -> str:
    return f"params.yaml: the folder {root}"
