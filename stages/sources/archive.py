"""Images in a zip or tar archive, by path or by URL.

Class folders in it are read as `source: folder` reads them, a table in it as `source: table` does; one folder around
everything is passed over, as are hidden files. Nothing is ever written under a name that the archive gives: entries
that are links or devices, or whose names lead out of it, are listed in rejected.parquet with the reason.

    downloads:
      photos: {source: archive, path: photos.zip}
      scans:  {source: archive, path: scans.tar.gz, table: labels.csv}
      public: {source: archive, path: requirements.lock, url: "https://host/photos.zip", sha256: 9f86d0...}
"""

from __future__ import annotations

import itertools
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from stages.cli import UserError, progress
from stages.params import Download
from stages.sources._raw import Found, write_images
from stages.sources.shared.download import downloaded
from stages.sources.shared.folders import NO_CLASS, read_folders, sort_out, tell_passed_over
from stages.sources.shared.listing import find_listed, read_listing
from stages.sources.shared.spelling import spellings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHUNK = 2**20
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


class Params(Download):
    """Keys of an archive of images."""

    source: Literal["archive"] = Field(description="a zip or tar archive, by path or URL")
    url: str | None = Field(None, description="where the archive is downloaded from; path is then what DVC watches")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="hash of the archive's bytes; needed with url"
    )
    table: str | None = Field(None, description="a CSV or Parquet file in the archive that lists the images")
    column: str | None = Field(None, description="with table: column of paths, which lead on from the table's folder")
    max_gigabytes: float = Field(100.0, gt=0, description="largest size of what is unpacked, in 10^9 bytes")
    max_files: int = Field(5_000_000, ge=1, description="largest number of files in the archive")
    licence: str = Field("not stated", description="licence of the images, for the record")

    @model_validator(mode="after")
    def _check(self) -> Params:
        if self.url is not None and self.sha256 is None:
            raise ValueError("what is downloaded is checked: give its sha256, too")
        if self.column is not None and self.table is None:
            raise ValueError("column names a column of the table: name that, too")
        return self


def fetch(params: Params, folder: Path) -> None:
    """Write the images of an archive into a download's folder.

    Raises UserError when it is not there, damaged, not the one whose hash is given, larger than allowed, or holds no
    images.
    """
    with downloaded(params.url, params.sha256, Path(params.path)) as path, TemporaryDirectory(dir=folder) as scratch:
        place = params.url or params.path
        unpacked = _unpack(path, place, Path(scratch), params)
        find = _in_folders if params.table is None else partial(_in_table, params.table, params.column)
        found, rejected = find(unpacked, place)
        write_images(
            folder,
            found,
            source=params.source,
            origin=place,
            licence=params.licence,
            rejected=[*unpacked.rejected, *rejected],
        )


@dataclass(frozen=True)
class _Unpacked:
    """files : where the bytes of each regular file now are, by its name; rejected : other entries, and why."""

    files: dict[PurePosixPath, Path]
    rejected: list[tuple[str, str]]


Finds = tuple[list[Found], list[tuple[str, str]]]


def _in_folders(unpacked: _Unpacked, place: str) -> Finds:
    """Find images by their names, and their classes by the folders that they lie in."""
    names, passed_over = sort_out(unpacked.files)
    if not names:
        raise UserError(f"{place} holds no images; it takes a folder for each class with images in it, or a `table`")
    tell_passed_over(passed_over, place)
    around = _folders_around(names)
    inner = {PurePosixPath(*n.parts[around:]): unpacked.files[n] for n in names if not around or n.parts[around + 1 :]}
    found, rejected = read_folders(inner, place)
    return found, [*((str(n), NO_CLASS) for n in names if around and not n.parts[around + 1 :]), *rejected]


def _folders_around(names: Sequence[PurePosixPath]) -> int:
    """Return how many folders lie around the class folders, where a few images may lie beside these."""
    folders = [name.parts[:-1] for name in names]
    for around in itertools.count():
        deeper = sum(len(parts) > around + 1 for parts in folders)
        if 2 * deeper <= len(folders) or len({parts[around] for parts in folders if parts[around:]}) > 1:
            break
    return around


def _in_table(table: str, column: str | None, unpacked: _Unpacked, place: str) -> Finds:
    """Find the images that a table in the archive lists."""
    name = PurePosixPath(table)
    if name not in unpacked.files:
        raise UserError(f"params.yaml: table: {place} holds no {table}")

    def locate(value: str) -> tuple[str, Path] | str:
        paths = [_normal(str(name.parent / spelling)) for spelling in spellings(value)]
        if paths[0] is None:
            return f"it lies outside {place}"
        path = next((path for path in paths if path in unpacked.files), None)
        return f"it is not there, in {place}" if path is None else (path.as_posix(), unpacked.files[path])

    called = f"{table} in {place}"
    return find_listed(read_listing(unpacked.files[name], called), column, called, locate)


# ---- unpacking


def _unpack(path: Path, place: str, scratch: Path, params: Params) -> _Unpacked:
    """Write every regular file of an archive under a number."""
    files: dict[PurePosixPath, Path] = {}
    rejected: list[tuple[str, str]] = []
    left = int(params.max_gigabytes * 10**9)
    with _reading(path, place) as (entries, total):
        taken = 0
        for entry in progress(entries, total=total, unit="file"):
            taken += 1
            if taken > params.max_files:
                raise UserError(f"{place} holds more than {params.max_files:,} files: raise max_files, if it should")
            name = _normal(entry.name)
            if entry.folder or (name is not None and _is_hidden(name)):
                continue
            if name is None:
                rejected.append((entry.name, "its name leads out of the archive"))
            elif entry.reason is not None:
                rejected.append((entry.name, entry.reason))
            else:
                files[name] = scratch / str(taken)  # of a name that comes twice the last one counts, as in tar
                left -= _write(entry, files[name], left)
                if left < 0:
                    size = f"{params.max_gigabytes:g} GB"
                    raise UserError(f"{place} unpacks to more than {size}: raise max_gigabytes, if it should")
    return _Unpacked(files, rejected)


def _write(entry: _Entry, target: Path, limit: int) -> int:
    """Write an entry's content into a file, and return its size; of what is larger than the limit, nothing above it."""
    size = 0
    with entry.open() as source, target.open("wb") as file:
        while size <= limit and (chunk := source.read(CHUNK)):
            size += len(chunk)
            if size <= limit:
                file.write(chunk)
    return size


@dataclass(frozen=True)
class _Entry:
    """A file or folder in an archive; reason : why a file is not taken."""

    name: str
    open: Callable[[], IO[bytes]]
    reason: str | None = None
    folder: bool = False


@contextmanager
def _reading(path: Path, place: str) -> Iterator[tuple[Iterator[_Entry], int | None]]:
    """Open an archive, and give its files in their order and, if known, their number; raises UserError if damaged."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield _of_zip(archive), len(archive.infolist())
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                yield _of_tar(archive), None
        else:
            raise UserError(f"{place} is no zip or tar archive, or a damaged one")
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        raise UserError(f"{place} is damaged: {str(error) or type(error).__name__}; get it again") from None


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        reason = None if kind in (0, stat.S_IFREG) else "it is a link or a device, no file"
        if info.flag_bits & 1:
            reason = "it is encrypted"
        yield _Entry(info.filename, partial(archive.open, info), reason, info.is_dir())


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Entry]:
    def content(member: tarfile.TarInfo) -> IO[bytes]:
        file = archive.extractfile(member)
        assert file is not None
        return file

    for member in archive:
        reason = None if member.isreg() else "it is a link or a device, no file"
        yield _Entry(member.name, partial(content, member), reason, member.isdir())
    assert archive.fileobj is not None
    while archive.fileobj.read(CHUNK):  # the checksum comes last
        pass


def _normal(name: str) -> PurePosixPath | None:
    """Return an entry's name without . and .., or None where it leads out of the archive."""
    if name.startswith("/") or "\0" in name:
        return None
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return PurePosixPath(*parts) if parts else None


def _is_hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
