"""Images that a table lists: a CSV or Parquet file with a row for each image, and as many columns as you like.

    file,class,patient,split
    ct/001.png,sound,p17,train

One column holds the images' paths, from `root` on; all others are kept, to be named as label, group or split. In a CSV
file (UTF-8; commas, semicolons or tabs) a column is one of numbers when every value in it is written as one, so
that 007 stays a word; an empty field is no value. A row whose image is not there, cannot be read or lies outside the
root is listed in rejected.parquet and left out.

    downloads:
      scans: {source: table, path: scans.csv}                              # paths from the table's folder on
      large: {source: table, path: scans.parquet, column: uri, root: /mnt/scans, link: true}
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.cli import UserError, warn
from stages.params import Download, suggest
from stages.sources._raw import Found, write_images

if TYPE_CHECKING:
    import pyarrow as pa

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
"""What the column of paths is called where params.yaml does not say."""

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


class Params(Download):
    """Keys of a table of images."""

    source: Literal["table"] = Field(description="a CSV or Parquet file with a row for each image")
    column: str | None = Field(None, description=f"column of paths; if not named, one called {', '.join(PATH_COLUMNS)}")
    root: str | None = Field(None, description="folder from which paths lead on; that of the table if not named")
    link: bool = Field(False, description="leave the images where they are, and record their size and hash")
    licence: str = Field("not stated", description="licence of the images, for the record")


def fetch(params: Params, folder: Path) -> None:
    """Write the images that a table lists into a download's folder.

    Raises UserError when it cannot be read, has no column of paths, names an image twice, or lists none that is there.
    """
    table = read_listing(Path(params.path))
    column = _column_of_paths(table.column_names, params)
    root = Path(params.path).parent if params.root is None else Path(params.root)
    if not root.is_dir():
        raise UserError(f"params.yaml: root: {root} is {'no folder' if root.exists() else 'not there'}")
    found, rejected = [], []
    for columns in table.to_pylist():
        value = columns.pop(column)
        path, reason = _locate(root, value)
        if reason is None:
            found.append(Found(path.as_posix(), root / path, columns))
        else:
            rejected.append((str(value or ""), reason))
    if rejected and not found:
        name, reason = rejected[0]
        raise UserError(
            f"{params.path}: no image of its {len(rejected):,} rows can be used; the first: {name}: {reason}"
        )
    if rejected:
        name, reason = rejected[0]
        warn(f"{params.path}: {len(rejected):,} of {table.num_rows:,} rows are left out; the first: {name}: {reason}")
    write_images(
        folder,
        found,
        source=params.source,
        origin=params.path,
        licence=params.licence,
        root=str(root) if params.link else None,
        rejected=rejected,
    )


def read_listing(path: Path) -> pa.Table:
    """Read a CSV, TSV or Parquet file; raises UserError when it is not there or is none."""
    import pyarrow as pa

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                table = file.read()
            return pa.table({n: _plain(table[n]) for n in table.column_names if not n.startswith("__index_level_")})
        return _read_csv(path)
    except FileNotFoundError:
        raise UserError(f"params.yaml: the table {path} is not there") from None
    except IsADirectoryError:
        raise UserError(f"params.yaml: the table {path} is a folder; name a CSV or Parquet file") from None
    except OSError as error:
        raise UserError(f"params.yaml: the table {path} cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise UserError(f"params.yaml: the table {path} is no Parquet file: {str(error).splitlines()[0]}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with its categories written out."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_csv(path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(rows, [])
            columns: list[list[str]] = [[] for _ in header]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {rows.line_num}: {len(row)} fields where the first line has {len(header)}; what "
                        f"holds a {delimiter!r} needs quotes"
                    )
                for values, value in zip(columns, row, strict=True):
                    values.append(value)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start:,}): save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None
    twice = next((name for at, name in enumerate(header) if name and name in header[:at]), None)
    if twice is not None:
        raise UserError(f"{path} has two columns {twice}: rename one")
    if not columns or not columns[0]:
        raise UserError(f"{path} lists no images: it takes a line of column names, and a line for each image")
    # A column without a name numbers the rows, as pandas writes it.
    return pa.table({name: _typed(values) for name, values in zip(header, columns, strict=True) if name})


def _typed(values: Sequence[str]) -> pa.Array:
    """Return the fields of a column as whole numbers, numbers or words; an empty field is no value."""
    import pyarrow as pa

    present = [value for value in values if value != ""]
    if present and all(map(_INTEGER.fullmatch, present)):
        return pa.array([int(value) if value else None for value in values], pa.int64())
    if present and all(map(_FLOAT.fullmatch, present)):
        return pa.array([float(value) if value else None for value in values], pa.float64())
    return pa.array([value or None for value in values], pa.string())


def _column_of_paths(names: Sequence[str], params: Params) -> str:
    if params.column is not None:
        if params.column not in names:
            raise UserError(
                f"params.yaml: column: {params.path} has no {params.column}; {suggest(params.column, names)}"
            )
        return params.column
    likely = [name for name in names if name.lower() in PATH_COLUMNS]
    if len(likely) != 1:
        found = f"{' and '.join(likely)} may be" if likely else "none is known to be"
        raise UserError(
            f"{params.path}: of its columns {', '.join(names)} {found} that of the images' paths: name it as `column`"
        )
    return likely[0]


def _locate(root: Path, value: Any) -> tuple[Path, str | None]:
    """Return an image's path from the root on, and None; or why it is left out."""
    if value is None or value == "":
        return Path(), "no path: the field is empty"
    top, whole = (Path(os.path.normpath(path)) for path in (root.absolute(), root.absolute() / str(value)))
    if top not in whole.parents:
        return Path(), f"it lies outside {root}"
    try:
        regular = stat.S_ISREG(whole.stat().st_mode)
    except FileNotFoundError:
        return Path(), f"it is not there, in {root}"
    except (OSError, ValueError) as error:  # the latter for a null character
        return Path(), f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    if not regular:
        return Path(), "it is no file"
    if not os.access(whole, os.R_OK):
        return Path(), "it cannot be read: permission denied"
    return whole.relative_to(top), None
