"""Arrays and tables that would be large in memory, and lie on disk while a process works with them.

Each lies in a file without a name: nothing is left of it when the process ends, however it ends. It is written, and
mapped when it is whole: a full disk is an error where something is written, and kills where it is a map that is.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import DTypeLike, NDArray

BYTES_AT_ONCE = 2**22


class Rows:
    """Rows of an array (n, *shape), appended one after the other, in a folder's file system."""

    def __init__(self, folder: Path, dtype: DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed with the last array that is made of it
        self._dtype, self._shape, self._count = np.dtype(dtype), shape, 0

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows (k, *shape); they are converted to the type of the others."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._count += len(rows)

    def array(self) -> NDArray[Any]:
        """Return the rows as an array that cannot be changed; nothing can be appended any more."""
        shape = (self._count, *self._shape)
        if not math.prod(shape):
            return np.empty(shape, self._dtype)
        self._file.flush()
        return np.asarray(np.memmap(self._file, self._dtype, "r", shape=shape))


def taken(array: NDArray[Any], rows: NDArray[np.int64], folder: Path) -> NDArray[Any]:
    """Return some rows of an array, in a file in a folder's file system."""
    result = Rows(folder, array.dtype, array.shape[1:])
    step = max(1, BYTES_AT_ONCE // max(1, array[:1].nbytes))
    for first in range(0, len(rows), step):
        result.append(array[rows[first : first + step]])
    return result.array()


def table_of(tables: Iterable[pa.Table], folder: Path) -> pa.Table:
    """Return one or more tables, one after the other, as one, in a file in a folder's file system."""
    import pyarrow as pa

    tables = iter(tables)
    first = next(tables)
    with TemporaryFile(dir=folder) as file:
        with pa.ipc.new_stream(file, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        file.flush()
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def rows_of(table: pa.Table, rows: NDArray[np.int64], folder: Path) -> pa.Table:
    """Return some rows of a table, in ascending order, in a file in a folder's file system."""

    def kept() -> Iterator[pa.Table]:
        import pyarrow as pa

        first = 0
        for batch in table.to_batches():
            low, high = np.searchsorted(rows, (first, first + len(batch)))
            yield pa.Table.from_batches([batch.take(pa.array(rows[low:high] - first))], table.schema)
            first += len(batch)

    return table_of(kept(), folder)
