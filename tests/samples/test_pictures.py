"""Contact sheets: each image in its place, names that every file system takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.samples.pictures import contact_sheet, file_names, write_picture


def test_every_image_lies_in_its_own_square_row_by_row() -> None:
    shades = [10, 60, 110, 160, 210]
    sheet = contact_sheet([Image.new("L", (30, 30), shade) for shade in shades], columns=3, side=20)
    assert sheet.mode == "L"
    assert sheet.size == (3 * 24 + 4, 2 * 24 + 4)
    centres = [(4 + 24 * column + 10, 4 + 24 * row + 10) for row in range(2) for column in range(3)]
    assert [sheet.getpixel(centre) for centre in centres] == [*shades, 255]


def test_an_image_keeps_its_proportions_and_lies_in_the_middle() -> None:
    pixels = np.asarray(contact_sheet([Image.new("RGB", (40, 20), "red")], side=20))
    red = (pixels == [255, 0, 0]).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (4 + 5, 4 + 14, 4, 23)


def test_a_coloured_image_makes_a_coloured_sheet() -> None:
    sheet = contact_sheet([Image.new("L", (8, 8)), Image.new("RGB", (8, 8), "blue")], side=8)
    assert sheet.getpixel((4 + 12 + 4, 8)) == (0, 0, 255)


def test_captions_stand_below_their_images_and_stay_in_their_columns() -> None:
    images = [Image.new("L", (40, 40), 128)] * 2
    pixels = np.asarray(contact_sheet(images, ["a very long caption that goes on and on", ""], columns=2, side=40))
    text = pixels[44:] < 128
    assert text[:, 4:44].any()
    assert not text[:, 44:].any()
    with pytest.raises(ValueError, match="2 images, but 1 captions"):
        contact_sheet(images, ["one"])


def test_names_of_pictures_are_safe_and_differ_also_where_case_does_not_count() -> None:
    names = file_names(["a/b", "a:b", "A b", "<script>", "..", "", "é", "猫", "probability at least 0.5", "x" * 300])
    assert list(names.values())[:8] == [
        "a-b.png",
        "a-b-2.png",
        "A-b-3.png",
        "script.png",
        "class.png",
        "class-2.png",
        "é.png",
        "猫.png",
    ]
    assert names["probability at least 0.5"] == "probability-at-least-0.5.png"
    assert max(map(len, names.values())) < 100


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\u732b", "\U00020000"])
def test_a_picture_of_a_class_of_any_name_can_be_written(letter: str, tmp_path: Path) -> None:
    name = letter * (252 // len(letter.encode()))  # of a folder
    files = file_names([name, f"{name[:-1]}."])
    for file in files.values():
        write_picture(tmp_path / file, Image.new("L", (2, 2)))
    assert len({path.name for path in tmp_path.iterdir()}) == 2


def test_same_picture_same_bytes(tmp_path: Path) -> None:
    picture = contact_sheet([Image.new("L", (9, 9), 7)], ["seven"])
    for name in ("one.png", "two.png"):
        write_picture(tmp_path / name, picture)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert Image.open(tmp_path / "one.png").tobytes() == picture.tobytes()
