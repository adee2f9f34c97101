"""Small pictures of samples: the right one for each, small, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.cli import UserError
from stages.samples.decoding import decode
from stages.samples.thumbnails import SIDE, new_thumbnails, read_thumbnails, thumbnail


def write(path: Path, files: list[Path]) -> None:
    with new_thumbnails(path) as add:
        for file in files:
            add(file.name, thumbnail(decode(file.read_bytes())))


def test_each_sample_gets_its_own_picture_in_the_order_asked_for(cells: list[Path]) -> None:
    path, files = Path("thumbnails.parquet"), cells[:300]
    write(path, files)
    wanted = [files[299], files[1], files[257]]  # in both groups of rows
    for file, found in zip(wanted, read_thumbnails(path, [f.name for f in wanted]), strict=True):
        with Image.open(file) as whole:
            small = np.asarray(whole.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
        assert (found.mode, found.size) == ("L", (SIDE, SIDE))
        assert np.abs(np.asarray(found, dtype=float) - small).mean() < 3  # JPEG and the way of scaling
    assert path.stat().st_size / len(files) < 10_000
    again = Path("again.parquet")
    write(again, files)
    assert again.read_bytes() == path.read_bytes()


def test_a_picture_keeps_its_shape_and_a_small_one_its_size() -> None:
    def size(width: int, height: int, mode: str = "RGB") -> tuple[int, int]:
        path = Path("one.jpg")
        path.write_bytes(thumbnail(Image.new(mode, (width, height), "grey")))
        with Image.open(path) as picture:
            assert picture.mode == mode
            return picture.size

    assert size(1920, 960) == (SIDE, SIDE // 2)
    assert size(28, 28, "L") == (28, 28)
    assert size(4000, 3) == (SIDE, 1)


def test_where_there_are_none_it_is_said_what_to_do() -> None:
    with pytest.raises(UserError, match=r"thumbnails\.parquet is not there: run `dvc repro prepare`"):
        read_thumbnails(Path("data/prepared/cells/thumbnails.parquet"), ["a"])
    Path("cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"^cut\.parquet cannot be read \(.+\): run `dvc repro --force`$"):
        read_thumbnails(Path("cut.parquet"), ["a"])
