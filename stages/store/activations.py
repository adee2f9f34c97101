"""data/features/<name>/: what comes out at the cut, for every image that decodes, once by the hash of its bytes.

    features.json             what the numbers are: views, shape, dtype, blocks, content hash
    index.parquet             image_hash (sorted), row
    rejected.parquet          image_hash, reason: images that cannot be decoded
    activations-00000.npy     (rows, views, *shape), about 256 MB a file; further rows in 00001 and so on
    logits-00000.npy          (rows, classes) of the source classifier, where `logits: true` asks for them
    backbone.safetensors      the network's weights, and
    network.json              what network that is: what lies above the cut is trained from them
    learned.parquet           of a network that was trained here: the images that it has learned from
    SHA256SUMS                of all these files, as `sha256sum --check` reads it

One row is one image, in the order of the hashes, whatever was computed when. Readers map the files into memory and read
the rows that are asked for and nothing else, but for one reading of a whole file before its first row: its checksum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from stages.cli import UserError
from stages.files import (
    FEATURES,
    LEARNED,
    damaged,
    doubt_copy,
    hash_file,
    link_or_copy,
    missing,
    new_folder,
    read_json,
    read_table,
    write_json,
    write_table,
    write_text,
)

CHECKED_BYTES = 64 * 2**20
"""So much is read at a time, to keep memory flat with many samples."""
NUMBERS_AT_ONCE = 16_384
"""So many halves are made singles at a time: they stay in the processor's cache."""
SHARD_BYTES = 256_000_000
"""About the size of one file: few files for DVC, yet small enough to send one again when a transfer breaks."""

CHECKSUMS = "SHA256SUMS"

Array = npt.NDArray[Any]
Digests = npt.NDArray[np.bytes_]
"""Image hashes as numbers (n,): 32 bytes each, which sort as their text does."""


def to_digests(image_hashes: Sequence[str]) -> Digests:
    """Turn image hashes, hexadecimal, into numbers."""
    return np.frombuffer(bytes.fromhex("".join(image_hashes)), "S32")


def to_hashes(digests: Digests) -> list[str]:
    """Turn what `to_digests` gave into hexadecimal again."""
    text = digests.tobytes().hex()  # not one by one: numpy drops zeros from the end of a single item
    return [text[at : at + 64] for at in range(0, len(text), 64)]


class RowWriter:
    """Write rows to <folder>/<stem>-00000.npy and on, as they come; no more than they are is held in memory.

    checksums : of the files that are written, by name

    As a context manager it closes its file; whoever reads the files before all rows were appended finds one too short.
    """

    def __init__(self, folder: Path, stem: str, count: int, shape: Sequence[int], dtype: str) -> None:
        self._folder, self._stem, self._count = folder, stem, count
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self.bytes_per_row = math.prod(self._shape) * self._dtype.itemsize
        self.rows_per_file = max(1, SHARD_BYTES // max(1, self.bytes_per_row))
        self._written = 0
        self._checksum = hashlib.sha256()
        self.checksums: dict[str, str] = {}
        self._file: IO[bytes] | None = None

    def append(self, rows: Array) -> None:
        """Write rows (n, *shape); they are converted to the dtype of the files."""
        if rows.shape[1:] != self._shape or self._written + len(rows) > self._count:
            raise ValueError(f"rows {rows.shape} do not fit {self._stem}, {self._written} of {self._count} written")
        while len(rows):
            if self._file is None:
                self._file = self._open()
            here = rows[: self.rows_per_file - self._written % self.rows_per_file]
            content = np.ascontiguousarray(here, dtype=self._dtype).data
            self._file.write(content)
            self._checksum.update(content)
            self._written += len(here)
            rows = rows[len(here) :]
            if self._written % self.rows_per_file == 0 or self._written == self._count:
                self._file.close()
                self.checksums[Path(self._file.name).name] = self._checksum.hexdigest()
                self._file = None

    def _open(self) -> IO[bytes]:
        number = self._written // self.rows_per_file
        rows = min(self.rows_per_file, self._count - self._written)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        first = BytesIO()
        np.lib.format.write_array_header_1_0(first, {**header, "shape": (rows, *self._shape)})
        file = _shard(self._folder, self._stem, number).open("xb")
        file.write(first.getvalue())
        self._checksum = hashlib.sha256(first.getvalue())
        return file

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None and self._written != self._count:
            raise ValueError(f"{self._written} of {self._count} rows of {self._stem} were written")


def write_features(
    folder: Path,
    facts: Mapping[str, Any],
    image_hashes: Sequence[str],
    rejected: Mapping[str, str],
    activations: Iterable[Array],
    logits: Iterable[Array],
    backbone: Path,
) -> None:
    """Write a folder of features, whole or not at all.

    facts : what features.json says, with `views`, `shape`, `dtype` and, where logits are stored, `logits` (how many).
    image_hashes : of the rows, sorted, none twice.
    rejected : the reason for each image that has no row.
    activations, logits : pieces (n, views, *shape) and (n, classes) that together are the rows in their order.
    backbone : the folder with weights.safetensors and network.json that the rows were computed with.
    """
    import pyarrow as pa

    count, views, shape = len(image_hashes), facts["views"], facts["shape"]
    with new_folder(folder) as new:
        with RowWriter(new, "activations", count, (len(views), *shape), facts["dtype"]) as writer:
            for piece in activations:
                writer.append(piece)
        checksums = writer.checksums
        facts = {**facts, "count": count, "rejected": len(rejected), "rows_per_file": writer.rows_per_file}
        facts["bytes_per_image"] = writer.bytes_per_row
        if facts.get("logits"):
            with RowWriter(new, "logits", count, (facts["logits"],), "float32") as writer:
                for piece in logits:
                    writer.append(piece)
            checksums |= writer.checksums
            facts["bytes_per_image"] += writer.bytes_per_row
            facts["logits_per_file"] = writer.rows_per_file
        rows = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.arange(count))])
        write_table(new / "index.parquet", pa.table({"image_hash": _text(image_hashes), "row": rows}))
        reasons = [rejected[image_hash] for image_hash in sorted(rejected)]
        columns = {"image_hash": _text(sorted(rejected)), "reason": _text(reasons)}
        write_table(new / "rejected.parquet", pa.table(columns))
        link_or_copy(backbone / "weights.safetensors", new / "backbone.safetensors")
        link_or_copy(backbone / "network.json", new / "network.json")
        if (backbone / LEARNED).is_file():
            link_or_copy(backbone / LEARNED, new / LEARNED)
        write_json(new / "features.json", facts)
        write_checksums(new, checksums)


def write_checksums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a folder's files into SHA256SUMS; known : those of files that need not be read."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    found = {path.name: (known or {}).get(path.name) or hash_file(path) for path in files}
    write_text(folder / CHECKSUMS, "".join(f"{checksum}  {name}\n" for name, checksum in found.items()))


class FeatureStore:
    """A folder of features, opened for reading; safe to use from several threads.

    Raises UserError for rows whose file is not there or has another checksum, when the first of them is read.

    facts : what features.json says; checksums : of the files, by name; views : names of the views, identity first;
    shape : of one view of one image; image_hashes : of the rows, sorted; rejected : the reason for each image that has
    no row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = read_json(folder / "features.json")
        self.checksums = _read_checksums(folder / CHECKSUMS)
        self.whole("features.json")
        self.views: list[str] = self.facts["views"]
        self.shape: tuple[int, ...] = tuple(self.facts["shape"])
        self._digests = to_digests(read_table(self.whole("index.parquet"), ["image_hash"])["image_hash"].to_pylist())
        self._files: dict[str, Array] = {}

    @property
    def image_hashes(self) -> list[str]:
        """The hashes of the images that have a row, in the order of the rows."""
        return to_hashes(self._digests)

    @property
    def rejected(self) -> dict[str, str]:
        """The reason for each image that cannot be decoded, by its hash."""
        table = read_table(self.whole("rejected.parquet"))
        return dict(zip(table["image_hash"].to_pylist(), table["reason"].to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self._digests)

    def rows(self, image_hashes: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the row of each image, -1 where it has none."""
        wanted = to_digests(image_hashes)
        found = np.minimum(np.searchsorted(self._digests, wanted), len(self) - 1)
        return np.where(self._digests[found] == wanted, found, -1)

    def whole(self, name: str) -> Path:
        """Return the path of one of the folder's files, having read it; raises UserError where it has changed."""
        path = self.folder / name
        try:
            if hash_file(path) == self.checksums.get(name):
                return path
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as error:
            raise damaged(path, error) from None
        doubt_copy(self.folder / CHECKSUMS)  # which of the two it is cannot be told
        raise damaged(path, ValueError(f"its bytes are not those of {CHECKSUMS}"))

    def read(self, rows: npt.ArrayLike, views: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Return activations (n, views, *shape) of n rows, of all views or of those named, in the order asked for.

        Pixels (`cut: image`) come as they are stored, 0 to 255. Raises UserError for a view that is not stored.
        """
        for view in views or ():
            if view not in self.views:
                raise UserError(f"{self.folder}: the view {view} is not stored; stored: {', '.join(self.views)}")
        at = None if views is None or list(views) == self.views else [self.views.index(view) for view in views]
        if at is None:
            return self._gather("activations", rows, (len(self.views), *self.shape))
        return self._gather("activations", rows, (len(at), *self.shape), np.array(at))

    def checked(
        self, rows: npt.NDArray[np.int64], samples: Sequence[str], views: Sequence[str] | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield activations (k, views, *shape) of n rows, some at a time, of all views or of those named.

        samples : the names of the rows, see `check_finite`
        """
        views = views or self.views
        step = max(1, CHECKED_BYTES // (4 * len(views) * math.prod(self.shape)))
        for i in range(0, len(rows), step):
            activations = self.read(rows[i : i + step], views)
            check_finite(activations, self.folder, samples[i : i + step], views)
            yield activations

    def stored(self, rows: npt.ArrayLike) -> StoredRows:
        """Return activations (n, views, *shape) of n rows to be read little by little, when they are asked for."""
        return StoredRows(self, np.asarray(rows, np.int64).reshape(-1))

    def logits(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the source classifier's outputs (n, classes): of the view identity, at the first image size.

        Raises UserError when they are not stored.
        """
        if not self.facts.get("logits"):
            raise UserError(f"{self.folder}: the source classifier's outputs are not stored; set logits: true")
        return self._gather("logits", rows, (self.facts["logits"],))

    def _gather(
        self, stem: str, rows: npt.ArrayLike, shape: tuple[int, ...], views: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Read rows: all that is stored of each, or some views (v,) of all, or of each row a view of its own (n, 1)."""
        rows_per_file = int(self.facts["rows_per_file" if stem == "activations" else "logits_per_file"])
        wanted = np.asarray(rows, np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{self.folder}: rows go from 0 to {len(self) - 1}")
        result = np.empty((len(wanted), *shape), np.float32)
        numbers = wanted // rows_per_file
        for number in np.unique(numbers):
            here = np.nonzero(numbers == number)[0]
            source, inside = self._open(stem, int(number)), wanted[here] - number * rows_per_file
            if views is None:
                found = source[inside]
            else:
                found = source[inside[:, None], views if views.ndim == 1 else views[here]]
            result[here] = to_singles(found) if found.dtype == np.float16 else found
        return result

    def _open(self, stem: str, number: int) -> Array:
        name = _shard(self.folder, stem, number).name
        if name not in self._files:
            path = self.whole(name)
            try:
                self._files[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise damaged(path, error) from None
        return self._files[name]


class StoredRows:
    """Some rows of a folder of features, read when they are asked for: `stored[rows, views]` is (k, *shape)."""

    def __init__(self, store: FeatureStore, rows: npt.NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows
        self.shape: tuple[int, ...] = (len(rows), len(store.views), *store.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, where: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        rows, views = where
        return self._store._gather("activations", self._rows[rows], (1, *self._store.shape), views[:, None])[:, 0]


def to_singles(halves: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return the same numbers in single precision, as `astype` does.

    That looks at each number by itself, and takes eight times as long where every other one is zero, as after a ReLU.
    Here exponent and fraction move to their places, and a factor brings the one exponent's bias to the other's: exact,
    of the smallest numbers, too.
    """
    result = np.empty(halves.shape, np.float32)
    bits, into = np.ascontiguousarray(halves).reshape(-1).view(np.uint16), result.reshape(-1).view(np.uint32)
    for start in range(0, len(bits), NUMBERS_AT_ONCE):
        own = into[start : start + NUMBERS_AT_ONCE]
        own[:] = bits[start : start + NUMBERS_AT_ONCE]
        signs = (own & 0x8000) << 16
        own &= 0x7FFF
        own <<= 13
        numbers = own.view(np.float32)
        numbers *= np.float32(2.0**112)
        if numbers.max() >= 2.0**16:  # what no number is: infinity, and what is not a number
            numbers[:] = bits[start : start + NUMBERS_AT_ONCE].view(np.float16)
        else:
            own |= signs
    return result


def check_finite(activations: Array, folder: Path, samples: Sequence[str], views: Sequence[str]) -> None:
    """Raise UserError when activations (n, views, *shape) of n samples are no numbers, naming the first of them."""
    finite = np.isfinite(activations)
    if finite.all():
        return
    bad = np.argwhere(~finite.reshape(*activations.shape[:2], -1))
    image, view, number = bad[0]
    raise UserError(
        f"{folder}: {len(bad)} activations of {len(np.unique(bad[:, 0]))} images are not finite, the first is number "
        f"{number} of the view {views[view]} of {samples[image]}: look at that image and at the weights, "
        "and with dtype: float16 use float32"
    )


def read_features(name: str | Path) -> FeatureStore:
    """Open data/features/<name>/, or any folder of features given as a path; raises UserError when it is not there."""
    return FeatureStore(name if isinstance(name, Path) else FEATURES / name)


def _text(values: Sequence[str]) -> Any:
    """An Arrow array of texts. Not by pa.array, which imports pandas to ask whether the values are a Series."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _read_checksums(path: Path) -> dict[str, str]:
    """Return the checksum of each file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        raise missing(path) from None
    except ValueError as error:
        raise damaged(path, error) from None


def _shard(folder: Path, stem: str, number: int) -> Path:
    return folder / f"{stem}-{number:05d}.npy"
