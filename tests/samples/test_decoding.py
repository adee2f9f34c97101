"""Decoding: what a person sees, from every kind of file, and never anything but BadImage from a broken one."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.params import SYMMETRIES
from stages.samples.decoding import BadImage, apply_view, decode, pixel_hash, to_array, to_arrays
from stages.threads import in_threads
from tests.samples.heic import HEIC

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, *channels: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8))


def photograph(height: int, width: int) -> Image.Image:
    """A smooth picture with some grain, as a camera makes it."""
    small = noise(height // 40, width // 40, 3).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(small, noise(height, width, 3), 0.05)


def test_a_grey_cell_comes_out_as_its_file_holds_it(cells: list[Path]) -> None:
    image = decode(cells[0].read_bytes())
    with Image.open(cells[0]) as file:
        assert (image.mode, image.size) == ("L", (300, 300))
        assert image.tobytes() == file.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [(), (3,)])
def test_an_image_is_turned_upright_by_its_exif_tag(orientation: int, channels: tuple[int, ...]) -> None:
    lying = noise(5, 8, *channels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(lying, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert expected.size == ((8, 5) if orientation < 5 else (5, 8))
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(expected))


def test_an_unknown_orientation_and_a_broken_exif_block_leave_the_image_as_it_lies() -> None:
    image = noise(5, 8)
    exif = Image.Exif()
    exif[0x0112] = 9
    assert decode(saved(image, exif=exif.tobytes())).tobytes() == image.tobytes()
    assert decode(saved(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).tobytes() == image.tobytes()


def test_transparency_is_laid_on_white() -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert np.asarray(decode(saved(Image.fromarray(pixels)))).tolist() == expected
    grey = decode(saved(Image.fromarray(pixels[..., 2:])))  # 30 opaque, 30 clear, 0 at a fifth
    assert grey.mode == "L"
    assert np.asarray(grey).tolist() == [[30, 255, 204]]
    palette = Image.fromarray(pixels[..., :3]).quantize(4)
    clear = palette.getpixel((0, 0))
    seen = np.asarray(decode(saved(palette, transparency=clear))).tolist()
    assert seen[0][0] == [255, 255, 255]
    assert seen[0][2] == [0, 0, 0]


def test_opaque_images_keep_their_pixels_whatever_the_mode() -> None:
    image = noise(4, 6, 3)
    assert decode(saved(image.convert("RGBA"))).tobytes() == image.tobytes()
    grey = noise(4, 6)
    assert decode(saved(grey.convert("LA"))).tobytes() == grey.tobytes()
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert np.asarray(decode(saved(bits))).tolist() == (np.eye(4) * 255).tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16))
    assert np.asarray(decode(saved(image, kind))).tolist() == [[0, 0, 1, 1, 128, 255]]


def test_pixels_of_unknown_range_are_refused_and_not_guessed() -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(BadImage, match=r"32-bit numbers .* save it with 8 or 16 bits"):
            decode(saved(Image.fromarray(np.ones((4, 4), kind)), "TIFF"))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP", "AVIF"])
def test_every_kind_of_file_is_read(kind: str) -> None:
    image = photograph(80, 120)
    found = decode(saved(image, kind))
    assert (found.mode, found.size) == ("RGB", (120, 80))
    assert np.abs(np.asarray(found, np.int16) - np.asarray(image)).mean() < 12  # GIF has 256 colours, JPEG has losses


def test_a_telephones_heic_is_read() -> None:
    image = decode(HEIC)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    for place, colour in {(10, 10): (255, 0, 0), (10, 40): (255, 255, 255), (50, 10): (0, 0, 255)}.items():
        assert image.getpixel(place) == pytest.approx(colour, abs=3)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_printing_colours_become_those_of_a_screen(kind: str) -> None:
    white_and_cyan = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    white_and_cyan.paste((255, 0, 0, 0), (0, 0, 8, 4))
    pixels = np.asarray(decode(saved(white_and_cyan, kind)))
    losses = 3 if kind == "JPEG" else 0
    assert pixels[7, 0].tolist() == pytest.approx([255, 255, 255], abs=losses)
    assert pixels[0, 0].tolist() == pytest.approx([0, 255, 255], abs=losses)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_the_first_picture_of_several_is_taken(kind: str) -> None:
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    content = saved(first, kind, save_all=True, append_images=[second])
    with Image.open(BytesIO(content)) as file:
        assert file.n_frames == 2
    assert np.asarray(decode(content)).tolist() == [[10] * 4] * 4


@pytest.mark.parametrize(("kind", "losses"), [("GIF", 0), ("WEBP", 2), ("AVIF", 2)])
def test_the_first_picture_of_several_is_taken_where_they_are_coloured(kind: str, losses: int) -> None:
    first, second = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
    content = saved(first, kind, save_all=True, append_images=[second])
    with Image.open(BytesIO(content)) as file:
        assert file.n_frames == 2
    assert np.abs(np.asarray(decode(content), np.int16) - 10).max() <= losses


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that says it has side * side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image that can be read"),
        (bomb(100_000), "more than 178 million pixels"),
        (bomb(1000), "image file is truncated"),
    ],
)
def test_a_bad_image_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=f"^{reason}"):
        decode(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_file_that_ends_too_early_is_a_bad_image(kind: str) -> None:
    content = saved(noise(40, 40, 3), kind)
    for length in (20, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(BadImage):
            decode(content[:length])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "TGA", "PCX", "JPEG2000"]), st.integers(0, 10**9))
def test_a_damaged_file_raises_nothing_but_bad_image(kind: str, seed: int) -> None:
    content = bytearray(saved(noise(12, 9, 3), kind))
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    with contextlib.suppress(BadImage):
        assert decode(bytes(content)).mode in ("L", "RGB")


def test_a_large_jpeg_may_be_decoded_smaller_and_is_nearly_the_same() -> None:
    content = saved(photograph(1200, 1600), "JPEG", quality=90)
    whole, small = decode(content), decode(content, at_least=448)
    assert whole.size == (1600, 1200)
    assert small.size == (800, 600)
    difference = to_array(whole, 224).astype(int) - to_array(small, 224)
    assert np.abs(difference).mean() < 0.5  # of 255


def test_no_other_file_is_decoded_smaller(cells: list[Path]) -> None:
    content = cells[0].read_bytes()
    assert decode(content, at_least=32).tobytes() == decode(content).tobytes()
    jpeg = saved(photograph(200, 300), "JPEG")
    assert decode(jpeg, at_least=150).tobytes() == decode(jpeg).tobytes()


def test_same_pixels_have_one_hash_however_they_are_saved(cells: list[Path]) -> None:
    cell = decode(cells[0].read_bytes())
    hashes = {
        pixel_hash(decode(saved(image, kind))) for kind in ("PNG", "BMP") for image in (cell, cell.convert("RGB"))
    }
    assert hashes == {pixel_hash(cell)}


def test_different_pixels_have_different_hashes() -> None:
    wide, high = Image.new("L", (6, 4)), Image.new("L", (4, 6))
    dotted = wide.copy()
    dotted.putpixel((5, 3), 1)
    reddish = wide.convert("RGB")
    reddish.putpixel((0, 0), (1, 0, 0))
    assert len({pixel_hash(image) for image in (wide, high, dotted, reddish)}) == 4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_a_cropped_array_is_the_middle_of_the_resized_image(interpolation: str) -> None:
    image = noise(60, 100, 3)
    middle = image.resize((40, 24), Image.Resampling[interpolation.upper()]).crop((8, 0, 32, 24))
    array = to_array(image, 24, "crop", interpolation)
    assert (array.shape, array.dtype) == ((3, 24, 24), np.uint8)
    np.testing.assert_array_equal(array, np.asarray(middle).transpose(2, 0, 1))


def test_a_stretched_array_keeps_all_of_the_image() -> None:
    image = noise(61, 100)
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_array(image, 24, "stretch", "bicubic"), expected[np.newaxis])


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_an_image_of_the_right_size_keeps_its_pixels(resize: str, cells: list[Path]) -> None:
    cell = decode(cells[0].read_bytes())
    np.testing.assert_array_equal(to_array(cell, 300, resize, "bicubic"), np.asarray(cell)[np.newaxis])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 2)])
def test_the_smallest_images_become_arrays(size: tuple[int, int]) -> None:
    assert to_array(Image.new("L", size, 9), 8).tolist() == [[[9] * 8] * 8]


def test_views_are_the_symmetries_of_the_square_as_pillow_names_them() -> None:
    image = noise(5, 5, 3)
    named = {
        "identity": image,
        "flip": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "flip_vertical": image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        "turn90": image.transpose(Image.Transpose.ROTATE_90),
        "turn180": image.transpose(Image.Transpose.ROTATE_180),
        "turn270": image.transpose(Image.Transpose.ROTATE_270),
        "transpose": image.transpose(Image.Transpose.TRANSPOSE),
        "transverse": image.transpose(Image.Transpose.TRANSVERSE),
    }
    assert set(named) == set(SYMMETRIES)
    array = to_array(image, 5)
    for view, expected in named.items():
        np.testing.assert_array_equal(apply_view(array, view), to_array(expected, 5), err_msg=view)
    assert len({apply_view(array, view).tobytes() for view in SYMMETRIES}) == 8


def test_threads_decode_as_one_after_the_other(cells: list[Path]) -> None:
    def work(path: Path) -> bytes:
        return to_array(decode(path.read_bytes()), 64, "crop", "bicubic").tobytes()

    assert list(in_threads(work, cells[:100], threads=8)) == [work(path) for path in cells[:100]]


def test_a_jpeg_is_decoded_once_for_all_sizes_up_to_320_and_for_larger_ones_that_come_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1100, 1200, 3)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    asked: list[int] = []

    def counting(content: bytes, at_least: int = 0) -> Image.Image:
        asked.append(at_least)
        return decode(content, at_least=at_least)

    monkeypatch.setattr("stages.samples.decoding.decode", counting)
    sizes = [32, 224, 300, 320, 336, 384, 512]
    found = to_arrays(file.getvalue(), sizes)
    assert asked == [480, 576]  # a half, 550 pixels, is enough for the first five; the others need all of them
    for size in sizes:
        np.testing.assert_array_equal(found[size], to_arrays(file.getvalue(), [size])[size])


@pytest.mark.parametrize("size", [160, 224])
def test_a_jpeg_that_is_decoded_small_comes_out_nearly_as_from_all_of_its_pixels(size: int, cells: list[Path]) -> None:
    file = BytesIO()
    decode(cells[0].read_bytes()).resize((1000, 1000), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    small = to_arrays(file.getvalue(), [size], "crop", "bicubic")[size].astype(int)
    whole = to_array(decode(file.getvalue()), size, "crop", "bicubic")
    assert abs(small - whole).mean() < 0.17  # of 255; without pixels to spare 0.2 and more


def test_sixteen_bits_whose_zero_is_white_are_no_negative() -> None:
    stored = np.array([[0, 257 * 10, 65535]], np.uint16)
    file = BytesIO()
    Image.fromarray(stored).save(file, "TIFF", tiffinfo={262: 0})
    assert Image.open(BytesIO(file.getvalue())).tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.asarray(decode(file.getvalue())).tolist() == [[255, 245, 0]]


def test_what_is_clear_in_sixteen_bits_is_white() -> None:
    stored = np.array([[0, 257 * 10, 65535, 257 * 10 + 1]], np.uint16)
    file = BytesIO()
    Image.fromarray(stored).save(file, "PNG", transparency=257 * 10)
    assert np.asarray(decode(file.getvalue())).tolist() == [[0, 255, 255, 10]]
