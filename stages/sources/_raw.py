"""Fetched images on disk: data/raw/<download>/, its writer and its reader.

    images.parquet     a row per image, sorted by `sample`: its name, its sha256, where its bytes are (file, offset,
                       length), and the columns that the source brings (`source_file` for what it calls file)
    rejected.parquet   what the source lists and cannot bring, each with the reason; not there when there is none
    images-00000.tar   the images themselves, packed into few large shards that any tar reads; none with `link: true`,
                       where the files stay in the source's folder, or bucket
    download.json      what was fetched, from where, under which licence

A shard holds no time, no owner and no order but that of the names: the same images give the same bytes.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages.cli import UserError, progress, warn
from stages.files import RAW, doubt_copy, hash_bytes, made_again, read_json, read_table, write_json, write_table
from stages.sources.shared.remote import OUTAGE, STREAMS, NotThereError, Remote, UnreadableError, is_url
from stages.threads import begun_in_threads, in_threads

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SHARD_BYTES = 256 * 2**20
REJECTED = "rejected.parquet"
OWN_COLUMNS = ("sample", "image_hash", "file", "offset", "length", "table_row")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What names a part of a split that a source brings, in lower case."""


@dataclass(frozen=True)
class Found:
    """An image that a source has found: its name, where its bytes are, and a value for each column of the source.

    path : its file; or what gives its bytes, called from any thread, where it lies in no file of its own; it raises
        NotThereError, or UnreadableError, where there are none
    row : where it stands in the table that lists it
    """

    sample: str
    path: Path | Callable[[], bytes]
    columns: Mapping[str, Any]
    row: int | None = None


@dataclass(frozen=True)
class Images:
    """Fetched images: `table` has a row per image, sorted by sample, and `read` gives their bytes.

    rejected : what the source lists and could not bring, by name, and why
    """

    name: str
    facts: dict[str, Any]
    table: pa.Table
    rejected: list[tuple[str, str]]
    _places: _Places

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.table.num_rows)

    def read(self, row: int) -> bytes:
        """Return the bytes of one image, as its file holds them; may be called from many threads.

        Raises UserError when they are not what was fetched.
        """
        return self._places.read(row)

    def readers(self, rows: Sequence[int], held: Sequence[bool] = ()) -> Iterator[Callable[[], bytes]]:
        """Yield for each row, in order, what gives its bytes; what lies in a bucket is on its way some rows ahead.

        held : for each row whether it will hardly be asked for; it is then fetched when it is
        """
        if self._places.remote is None:
            return (partial(self.read, row) for row in rows)
        asked = list(zip(rows, held or [False] * len(rows), strict=True))
        ahead = begun_in_threads(self.read, (row for row, late in asked if not late), STREAMS)
        return (partial(self.read, row) if late else next(ahead) for row, late in asked)

    def sample(self, row: int) -> str:
        """Return the name of one image."""
        name: str = self.table["sample"][row].as_py()
        return name

    @property
    def image_hashes(self) -> list[str]:
        """The sha256 of every image's bytes, in the table's order."""
        hashes: list[str] = self.table["image_hash"].to_pylist()
        return hashes

    @property
    def samples(self) -> pa.Table:
        """The part of the table that means something: sample, image_hash and the source's columns."""
        return self.table.select(["sample", "image_hash", *self.columns])

    @property
    def table_row(self) -> NDArray[np.int64] | None:
        """Where each image stands in the table that lists them, if that has another order than that of names."""
        return self.table["table_row"].to_numpy() if "table_row" in self.table.column_names else None

    @property
    def columns(self) -> list[str]:
        """The names of the columns that the source has brought."""
        return [name for name in self.table.column_names if name not in OWN_COLUMNS]


class _Places:
    """Where the bytes of each image are, and how to get at them from any thread."""

    def __init__(self, name: str, root: str | None, table: pa.Table) -> None:
        self.name, self.linked = name, root is not None
        self.remote = Remote(root) if root is not None and is_url(root) else None
        self.root = RAW / name if root is None else Path(root)
        self.places = table.select(["sample", "image_hash", "file", "offset", "length"])
        self.open_files: dict[str, IO[bytes]] = {}
        self.lock = threading.Lock()

    def read(self, row: int) -> bytes:
        return self._read_linked(row) if self.linked else self._read_packed(row)

    def _read_packed(self, row: int) -> bytes:
        sample, image_hash, file, offset, length = (column[row].as_py() for column in self.places.columns)
        with self.lock:
            if file not in self.open_files:
                self.open_files[file] = _open(self.root / file)  # stays open as long as the images do
            number = self.open_files[file].fileno()
        content = os.pread(number, length, offset)
        if len(content) != length:
            doubt_copy(self.root / file)
            raise UserError(f"{self.root / file} ends too early: run {made_again(self.root / file)}")
        if hash_bytes(content) != image_hash:
            doubt_copy(self.root / file)
            raise UserError(
                f"{self.root / file} is damaged, the bytes of {sample} are not those that were fetched: run "
                f"`dvc repro --force fetch@{self.name}`, which writes them anew"
            )
        return content

    def _read_linked(self, row: int) -> bytes:
        _, image_hash, file, _, length = (column[row].as_py() for column in self.places.columns)
        if self.remote is None:
            place, content, again = str(self.root / file), _content(self.root / file), "`dvc repro`, which fetches it"
        else:
            place, again = f"{self.remote.url}/{file}", f"`dvc repro --force fetch@{self.name}`, which lists it"
            try:
                content = self.remote.read(file)
            except UnreadableError as error:
                raise UserError(f"{place}: {error}") from None
            except NotThereError:
                content = b""
        if len(content) != length or hash_bytes(content) != image_hash:
            raise UserError(f"{place} has changed since it was fetched: run {again} again")
        return content


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} is not there: run `dvc checkout`, or `dvc repro`") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _content_of(image: Found) -> bytes | NotThereError:
    """Return the bytes of a found image; or why there are none."""
    try:
        return image.path.read_bytes() if isinstance(image.path, Path) else image.path()
    except NotThereError as error:
        return error
    except OSError as error:
        if not isinstance(image.path, Path):
            raise
        own = isinstance(error, FileNotFoundError | PermissionError)
        return (NotThereError if own else UnreadableError)(f"it cannot be read: {error.strerror}")


def read_images(name: str, on_disk: Path | None = None) -> Images:
    """Read what was fetched for one download; raises UserError when that is not there or brought no images.

    on_disk : a folder in whose file system the table lies, where it is large for memory
    """
    folder = RAW / name
    facts = read_json(folder / "download.json")
    table = read_table(folder / "images.parquet", on_disk=on_disk)
    rejected = read_table(folder / REJECTED).to_pylist() if (folder / REJECTED).is_file() else []
    pairs = [(row["sample"], row["reason"]) for row in rejected]
    return Images(name, facts, table, pairs, _Places(name, facts["root"], table))


def write_images(
    folder: Path,
    found: Iterable[Found],
    *,
    source: str,
    origin: str,
    licence: str,
    root: str | None = None,
    rejected: Sequence[tuple[str, str]] = (),
    streams: int | None = None,
    **more: Any,
) -> None:
    """Write images into a download's folder.

    root : None packs the images into shards; else the folder that holds them, as params.yaml writes it, from which
        `sample` leads on: they stay there, and only their size and hash are recorded.
    rejected : what is listed and cannot be brought, by name, and why; streams : how many images are read at once
    more : further facts for download.json.
    An image that cannot be read is left out, and listed with the others that are rejected. Raises UserError when there
    are no images, when two have one name, when none can be read, or so many one after the other that it is not theirs.
    """
    named = sorted(found, key=lambda image: image.sample)
    ordered = [image for image in named if _is_text(image.sample)]
    lost = [*rejected, *((image.sample, "its name is no UTF-8") for image in named if not _is_text(image.sample))]
    _check(ordered, origin, lost)
    rows, kept, unreadable = [], [], 0
    with closing(_pack(folder, ordered, streams) if root is None else _link(ordered, streams)) as found_rows:
        for image, row in zip(ordered, found_rows, strict=True):
            unreadable = unreadable + 1 if isinstance(row, UnreadableError) else 0
            if unreadable == OUTAGE:
                several = f"{OUTAGE} images one after the other cannot be read"
                raise UserError(f"{origin}: {several}, the last of them {image.sample}: {row}; try again")
            if isinstance(row, NotThereError):
                lost.append((image.sample, str(row)))
            else:
                kept.append(image)
                rows.append(row)
    if lost:
        first = "{}: {}".format(*lost[0])
        if not kept:
            raise UserError(f"{origin}: none of its {len(lost):,} images can be used; the first: {first}")
        warn(f"{origin}: {len(lost):,} of {len(kept) + len(lost):,} images are left out; the first: {first}")
    write_table(folder / "images.parquet", _table(kept, rows))
    if lost:
        write_table(folder / REJECTED, _rejected_table(lost))
    facts = {"source": source, "origin": origin, "licence": licence, "images": len(rows)}
    write_json(folder / "download.json", {**facts, "linked": root is not None, "root": root, **more})


def _check(ordered: Sequence[Found], origin: str, lost: Sequence[tuple[str, str]]) -> None:
    if not ordered and not lost:
        raise UserError(f"{origin} holds no images")
    for before, image in pairwise(ordered):
        if before.sample == image.sample:
            raise UserError(f"{origin} names an image twice: {image.sample}")


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; what of it is not, Python keeps as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


Row = tuple[str, str, int, int]
"""image_hash, file, offset, length"""


def _link(ordered: Sequence[Found], streams: int | None) -> Generator[Row | NotThereError]:
    """Yield where each image is; or why it is not there."""

    def row(image: Found) -> Row | NotThereError:
        content = _content_of(image)
        return content if isinstance(content, NotThereError) else (hash_bytes(content), image.sample, 0, len(content))

    yield from progress(in_threads(row, ordered, streams), total=len(ordered), unit="image")


def _pack(folder: Path, ordered: Sequence[Found], streams: int | None) -> Generator[Row | NotThereError]:
    """Write the images into tar shards, each closed when it has reached SHARD_BYTES."""

    def read(image: Found) -> tuple[str, bytes] | NotThereError:
        content = _content_of(image)
        return content if isinstance(content, NotThereError) else (hash_bytes(content), content)

    contents = progress(in_threads(read, ordered, streams), total=len(ordered), unit="image")
    shard: IO[bytes] | None = None
    shards = 0
    for image, found in zip(ordered, contents, strict=True):
        if isinstance(found, NotThereError):
            yield found
            continue
        image_hash, content = found
        if shard is None:
            shard = (folder / f"images-{shards:05d}.tar").open("wb")
            shards += 1
        yield image_hash, Path(shard.name).name, _add(shard, image.sample, content), len(content)
        if shard.tell() >= SHARD_BYTES:
            _close(shard)
            shard = None
    if shard is not None:
        _close(shard)


def _add(shard: IO[bytes], name: str, content: bytes) -> int:
    """Append a member to a tar and return where its bytes begin. TarInfo's defaults: time 0, owner 0, no names."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
    offset = shard.tell()
    shard.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return offset


def _close(shard: IO[bytes]) -> None:
    shard.write(bytes(2 * tarfile.BLOCKSIZE))
    shard.write(bytes(-shard.tell() % tarfile.RECORDSIZE))
    shard.close()


def _table(ordered: Sequence[Found], rows: Sequence[Row]) -> pa.Table:
    import pyarrow as pa

    hashes, files, offsets, lengths = zip(*rows, strict=True)
    columns: dict[str, Any] = {
        "sample": pa.array([image.sample for image in ordered], pa.string()),
        "image_hash": pa.array(hashes, pa.string()),
        "file": pa.array(files, pa.string()),
        "offset": pa.array(offsets, pa.int64()),
        "length": pa.array(lengths, pa.int64()),
    }
    listed = [image.row for image in ordered if image.row is not None]
    if len(listed) == len(ordered) and listed != sorted(listed):  # a table's order says more than that of names
        columns["table_row"] = pa.array(listed, pa.int64())
    for name in ordered[0].columns:
        columns[free_name(name, {*columns, "table_row"})] = pa.array([image.columns[name] for image in ordered])
    return pa.table(columns)


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name of a source's column beside those that are taken: its own, or source_ before it."""
    while name in taken:
        name = f"source_{name}"
    return name


def _rejected_table(rejected: Sequence[tuple[str, str]]) -> pa.Table:
    import pyarrow as pa

    shown = sorted((os.fsencode(name).decode("utf-8", "backslashreplace"), reason) for name, reason in rejected)
    samples, reasons = zip(*shown, strict=True)
    return pa.table({"sample": pa.array(samples, pa.string()), "reason": pa.array(reasons, pa.string())})
