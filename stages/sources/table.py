"""Images that a table lists: a CSV or Parquet file with a row for each image, and as many columns as you like.

    file,class,patient,split
    ct/001.png,sound,p17,train

One column holds the images' paths, from `root` on; all others are kept, to be named as label, group or split. In a CSV
file (UTF-8; commas, semicolons or tabs) a column is one of numbers when every value in it is written as one, so
that 007 stays a word; an empty field is no value. A row whose image is not there, cannot be read or lies outside the
root, also by a link in it, is listed in rejected.parquet and left out.

    downloads:
      scans: {source: table, path: scans.csv}                              # paths from the table's folder on
      large: {source: table, path: scans.parquet, column: uri, root: /mnt/scans, link: true}
      far:   {source: table, path: scans.parquet, root: "s3://bucket/scans", link: true}
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import write_images
from stages.sources.shared.listing import PATH_COLUMNS, find_listed, read_listing
from stages.sources.shared.remote import STREAMS, Remote, is_url
from stages.sources.shared.spelling import spellings


class Params(Download):
    """Keys of a table of images."""

    source: Literal["table"] = Field(description="a CSV or Parquet file with a row for each image")
    column: str | None = Field(None, description=f"column of paths; if not named, one called {', '.join(PATH_COLUMNS)}")
    root: str | None = Field(
        None, description="folder or URL (s3://bucket/folder) from which paths lead on; the table's folder if not named"
    )
    link: bool = Field(False, description="leave the images where they are, and record their size and hash")
    licence: str = Field("not stated", description="licence of the images, for the record")


def fetch(params: Params, folder: Path) -> None:
    """Write the images that a table lists into a download's folder.

    Raises UserError when it cannot be read, has no column of paths, names an image twice, or lists none that is there.
    """
    table = read_listing(Path(params.path), params.path)
    remote = Remote(params.root) if params.root is not None and is_url(params.root) else None
    root = str(Path(params.path).parent) if params.root is None else params.root
    if remote is None:
        inside = cache(partial(_lies_in, Path(os.path.realpath(root))))
        locate = partial(_locate, Path(root), _top(Path(root)), inside)
        found, rejected = find_listed(table, params.column, params.path, locate)
    else:
        found, rejected = find_listed(table, params.column, params.path, partial(_locate_remote, remote))
    write_images(
        folder,
        found,
        source=params.source,
        origin=params.path,
        licence=params.licence,
        root=root if params.link else None,
        rejected=rejected,
        streams=None if remote is None else STREAMS,
    )


def _locate_remote(remote: Remote, value: str) -> tuple[str, Callable[[], bytes]] | str:
    """Return an image's path from the root on, and what reads it; or why it is left out."""
    name = remote.name(value)
    return f"it lies outside {remote.url}" if name is None else (name, partial(remote.read, name))


def _top(root: Path) -> Path:
    """Return a root's absolute path; raises UserError where it is no folder."""
    if not root.is_dir():
        raise UserError(f"params.yaml: root: {root} is {'no folder' if root.exists() else 'not there'}")
    return Path(os.path.normpath(root.absolute()))


def _lies_in(root: Path, path: Path) -> bool:
    """Whether a path lies in a folder when links are followed, or in DVC's cache, where cache.type: symlink leads."""
    real = Path(os.path.realpath(path))
    return root in (real, *real.parents) or real.parts[-4:-2] == ("files", "md5")


def _locate(root: Path, top: Path, inside: Callable[[Path], bool], value: str) -> tuple[str, Path] | str:
    """Return an image's path from the root on, and its file; or why it is left out.

    top : the root's absolute path; inside : whether a folder, or a link, leads to what lies in the root
    """
    whole = Path(os.path.normpath(top / value))
    if top not in whole.parents:
        return f"it lies outside {root}"
    try:
        if not value.isascii():
            spelled = [Path(os.path.normpath(top / spelling)) for spelling in spellings(value)]
            whole = next((path for path in spelled if path.exists()), whole)
        regular = stat.S_ISREG(whole.stat().st_mode)
        leads_out = not inside(whole if whole.is_symlink() else whole.parent)
    except FileNotFoundError:
        return f"it is not there, in {root}"
    except (OSError, ValueError) as error:  # the latter for a null character
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    if not regular:
        return "it is no file"
    if not os.access(whole, os.R_OK):
        return "it cannot be read: permission denied"
    if leads_out:
        return f"it lies outside {root}, where a link leads"
    name = whole.relative_to(top)
    return name.as_posix(), root / name
