"""Near duplicates: what counts as one, and that none is missed however many images there are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.samples.duplicates import DISTANCE, GREY, LOOKS, appearance, clusters, near_duplicates


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return Image.open(file)


def tinted(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", [image.point(lambda v: v * 0.5), image, image])


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda i: i.resize((200, 200)),
        lambda i: ImageEnhance.Contrast(i).enhance(1.1),
        lambda i: i.convert("RGB"),
    ],
)
def test_an_image_saved_again_is_a_near_duplicate_and_its_neighbours_are_none(
    cells: list[Path], change: Callable[[Image.Image], Image.Image]
) -> None:
    images = [opened(path) for path in cells[::200]]
    found = near_duplicates(np.array([appearance(image) for image in [*images, *map(change, images)]]))
    assert found.tolist() == [[row, row + len(images)] for row in range(len(images))]


@pytest.mark.parametrize(
    "change", [tinted, lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), lambda i: i.crop((40, 40, 260, 260))]
)
def test_another_colour_side_or_part_is_another_image(
    cells: list[Path], change: Callable[[Image.Image], Image.Image]
) -> None:
    images = [opened(path) for path in cells[::200]]
    found = near_duplicates(np.array([appearance(image) for image in [*images, *map(change, images)]]))
    assert len(found) == 0


def test_cells_of_one_module_that_was_photographed_twice_are_found(cells: list[Path]) -> None:
    # ELPV has fifty cells twice, once out of focus: rows 1734 to 1783 of its table again as 2276 to 2325.
    twice = [*cells[1734:1784], *cells[2276:2326]]
    found = near_duplicates(np.array([appearance(opened(path)) for path in twice]))
    again = [row for row, other in found.tolist() if other == row + 50]
    assert len(again) >= 35
    assert len(found) - len(again) <= 2


def brute_force(seen: np.ndarray) -> list[list[int]]:
    bits = np.unpackbits(seen[:, :32], axis=1).astype(int)
    return [[i, j] for i in range(len(seen)) for j in range(i + 1, len(seen)) if (bits[i] != bits[j]).sum() <= DISTANCE]


def test_no_pair_is_missed() -> None:
    random = np.random.default_rng(0)
    made = []
    for _ in range(60):
        one = random.integers(0, 2, 256, np.uint8)
        for flips in (0, 1, 11, 12, 13, 14):
            other = one.copy()
            other[random.permutation(256)[:flips]] ^= 1
            made.append(np.append(np.packbits(other), np.array(GREY, np.uint8)))
    seen = np.array(made)[random.permutation(len(made))]
    expected = brute_force(seen)
    assert len(expected) >= 60 * 4
    assert near_duplicates(seen).tolist() == expected


def test_hundreds_that_look_alike_become_one_cluster() -> None:
    seen = np.full((1501, LOOKS), 128, np.uint8)
    seen[:1500, :32], seen[1500, :32] = 0, 255
    assert clusters(near_duplicates(seen), len(seen)).tolist() == [0] * 1500 + [-1]


def test_few_images_have_no_pairs() -> None:
    for count in (0, 1):
        found = near_duplicates(np.zeros((count, LOOKS), np.uint8))
        assert found.shape == (0, 2)
        assert clusters(found, count).tolist() == [-1] * count
