"""Arrays and tables on disk: what was written, nothing left beside it, and little of it in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import on_disk
from stages.on_disk import Rows, rows_of, table_of, taken


@pytest.mark.parametrize(("dtype", "shape"), [("f8", ()), ("u1", (3,)), ("f4", (2, 5))])
def test_rows_are_those_that_were_appended(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    pieces = [np.random.default_rng(0).integers(0, 99, (count, *shape)).astype(dtype) for count in (4, 0, 7)]
    rows = Rows(tmp_path, dtype, shape)
    for piece in pieces:
        rows.append(piece)
    found = rows.array()
    np.testing.assert_array_equal(found, np.concatenate(pieces))
    assert found.dtype == dtype
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
    assert not list(tmp_path.iterdir())


def test_a_column_of_a_record_is_appended_as_its_own_numbers(tmp_path: Path) -> None:
    records = np.array([(1, 2.5), (3, 4.5)], [("one", "u1"), ("other", "f8")])
    rows = Rows(tmp_path, "f8")
    rows.append(records["other"])
    assert rows.array().tolist() == [2.5, 4.5]


def test_no_rows_are_an_empty_array(tmp_path: Path) -> None:
    assert Rows(tmp_path, "i4", (2,)).array().shape == (0, 2)
    assert taken(np.zeros((5, 3)), np.empty(0, np.int64), tmp_path).shape == (0, 3)


@pytest.mark.parametrize("at_once", [1, 50, 2**22])
def test_some_rows_are_taken_in_any_order(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "BYTES_AT_ONCE", at_once)
    array, rows = np.arange(60, dtype=np.int32).reshape(20, 3), np.array([7, 0, 19, 7])
    np.testing.assert_array_equal(taken(array, rows, tmp_path), array[rows])


def pieces() -> list[pa.Table]:
    """Return three tables of five, none and four rows, with a name that is not there and a dictionary."""
    schema = pa.schema([("name", pa.string()), ("kind", pa.dictionary(pa.int8(), pa.string()))])
    names = ["a", None, "ä\n", "", "e"]
    kinds = ["x", "y", "x", None, "y"]
    return [
        pa.table([names[:n], pa.array(kinds[:n]).dictionary_encode().cast(schema[1].type)], schema) for n in (5, 0, 4)
    ]


def test_a_table_is_its_pieces(tmp_path: Path) -> None:
    assert table_of(iter(pieces()), tmp_path).to_pylist() == pa.concat_tables(pieces()).to_pylist()
    assert table_of(iter(pieces()[1:2]), tmp_path).num_rows == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [[], [0], [4, 5], [0, 2, 3, 6, 8], list(range(9))])
def test_rows_of_a_table_are_taken_from_whichever_piece(rows: list[int], tmp_path: Path) -> None:
    table = pa.concat_tables(pieces())
    found = rows_of(table, np.array(rows, np.int64), tmp_path)
    assert found.schema == table.schema
    assert found.to_pylist() == [table.to_pylist()[row] for row in rows]


def test_little_of_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "BYTES_AT_ONCE", 2**16)

    def columns() -> Any:
        for start in range(0, 400_000, 10_000):
            yield pa.table({"number": np.arange(start, start + 10_000)})

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        rows = Rows(tmp_path, "f8", (10,))
        for number in range(50):
            rows.append(np.full((1000, 10), number, "f8"))
        array = taken(rows.array(), np.arange(0, 50_000, 2), tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    table = rows_of(table_of(columns(), tmp_path), np.arange(0, 400_000, 2), tmp_path)
    assert peak < array.nbytes / 4
    assert pa.total_allocated_bytes() - before < table.nbytes / 4
    assert (array[-1, 0], table["number"][-1].as_py()) == (49, 399_998)
