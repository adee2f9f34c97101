"""Tables that list images: how a CSV or Parquet file is read, and which of its rows have an image."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import UserError, warn
from stages.params import suggest
from stages.sources._raw import Found

if TYPE_CHECKING:
    import pyarrow as pa

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
"""What the column of paths is called where params.yaml does not say."""

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


def find_listed(
    table: pa.Table,
    column: str | None,
    place: str,
    locate: Callable[[str], tuple[str, Path | Callable[[], bytes]] | str],
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the images of a table's rows, and of the others what their path is and why they are left out.

    column : that of the paths, None where its name says so; place : what the table is called, for messages
    locate : gives an image's name and file for a path, or why there is none
    Of rows that list one image with the same values the first counts; with other values, none.
    Raises UserError when no column is known to be that of the paths, and when no row has an image.
    """
    paths = _column_of_paths(table.column_names, column, place)
    found: dict[str, Found] = {}
    again: dict[str, list[dict[str, Any]]] = {}
    rejected = []
    for row, columns in enumerate(table.to_pylist()):
        value = columns.pop(paths)
        place_or_reason = "no path: the field is empty" if value in (None, "") else locate(str(value))
        if isinstance(place_or_reason, str):
            rejected.append(("" if value is None else str(value), place_or_reason))
        elif place_or_reason[0] in found:
            again.setdefault(place_or_reason[0], []).append(columns)
        else:
            found[place_or_reason[0]] = Found(*place_or_reason, columns, row)
    alike = 0
    for name, rows in again.items():
        if any(_said(columns) != _said(found[name].columns) for columns in rows):
            rejected += [(name, "it is listed twice, with other values")] * (1 + len(rows))
            del found[name]
        else:
            alike += len(rows)
    if alike:
        warn(f"{place}: {alike:,} rows list an image again with the same values; each image counts once")
    if rejected and not found:
        first = "{}: {}".format(*rejected[0])
        raise UserError(f"{place}: no image of its {len(rejected):,} rows can be used; the first: {first}")
    return list(found.values()), rejected


def _said(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row so that it equals another of the same values: a number that is none equals nothing."""
    return {name: None if value != value else value for name, value in columns.items()}


def read_listing(path: Path, place: str) -> pa.Table:
    """Read a CSV, TSV or Parquet file, which is called `place`; raises UserError when it is not there or is none."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1" or path.suffix.lower() in (".parquet", ".pq")
        if parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as whole:
                table = whole.read()
            return pa.table({n: _plain(table[n]) for n in table.column_names if not n.startswith("__index_level_")})
        return _read_csv(path, place)
    except FileNotFoundError:
        raise UserError(f"params.yaml: the table {place} is not there") from None
    except IsADirectoryError:
        raise UserError(f"params.yaml: the table {place} is a folder; name a CSV or Parquet file") from None
    except OSError as error:
        raise UserError(f"params.yaml: the table {place} cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise UserError(f"params.yaml: the table {place} is no Parquet file: {str(error).splitlines()[0]}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with its categories written out."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_csv(path: Path, place: str) -> pa.Table:
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
                        f"{place}, line {rows.line_num}: {len(row)} fields where the first line has {len(header)}; "
                        f"what holds a {delimiter!r} needs quotes"
                    )
                for values, value in zip(columns, row, strict=True):
                    values.append(value)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is no UTF-8 text ({error.reason} at byte {error.start:,}): save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(f"{place}, line {rows.line_num}: {error}") from None
    twice = next((name for at, name in enumerate(header) if name and name in header[:at]), None)
    if twice is not None:
        raise UserError(f"{place} has two columns {twice}: rename one")
    if not columns or not columns[0]:
        raise UserError(f"{place} lists no images: it takes a line of column names, and a line for each image")
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


def _column_of_paths(names: Sequence[str], wanted: str | None, place: str) -> str:
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"params.yaml: column: {place} has no {wanted}; {suggest(wanted, names)}")
        return wanted
    likely = [name for name in names if name.lower() in PATH_COLUMNS]
    if len(likely) != 1:
        found = f"{' and '.join(likely)} may be" if likely else "none is known to be"
        raise UserError(
            f"{place}: of its columns {', '.join(names)} {found} that of the images' paths: name it as `column`"
        )
    return likely[0]
