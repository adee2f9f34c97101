"""What is known of checked images: which are the same picture, and where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.samples import checking
from stages.samples.checking import ROW, Checked


def known(count: int, seed: int) -> Checked:
    """Return made-up columns, in which the pixels of many are those of another, or differ in the last byte alone."""
    random = np.random.default_rng(seed)
    columns = {
        field: random.integers(0, 99, (count, *ROW[field].shape)).astype(ROW[field].base) for field in ROW.fields or ()
    }
    columns["pixel_hash"] = np.zeros((count, 32), np.uint8)
    columns["pixel_hash"][:, [0, 8, 31]] = random.integers(0, 3, (count, 3)) * 127
    return Checked(**columns, wrong={count // 2: "broken"})


@pytest.mark.parametrize("at_once", [1, 3, 8192])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_pictures_are_numbered_in_the_order_of_their_hashes(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "ROWS_BETWEEN", at_once)
    checked = known(count, count)
    hashes = [row.tobytes() for row in checked.pixel_hash]
    in_order = sorted(set(hashes))
    assert checked.picture.tolist() == [in_order.index(own) for own in hashes]
    assert count < 60 or len(in_order) < count


def test_some_are_taken_in_files_that_nobody_sees(tmp_path: Path) -> None:
    checked, rows = known(50, 0), np.array([3, 4, 40])
    found = checked.take(rows, tmp_path)
    for field in ROW.fields or ():
        np.testing.assert_array_equal(getattr(found, field), getattr(checked, field)[rows])
    assert not found.wrong
    assert not list(tmp_path.iterdir())
