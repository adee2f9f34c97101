"""Colour profiles: numbers that mean other colours come out as a screen shows them, by the standards' formulas."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sklearn
from numpy.typing import NDArray
from PIL import Image

from stages.samples.decoding import decode, to_arrays
from stages.threads import in_threads
from tests.samples.test_decoding import noise, saved

D50 = (0.9642, 1.0, 0.8249)
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""Linear sRGB to XYZ (D50), IEC 61966-2-1; and Adobe RGB (1998), whose gamma is 2.19921875."""
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
ADOBE_GAMMA = 2.19921875


def profile(kind: str, colours: str, connection: str, tags: Mapping[str, bytes]) -> bytes:
    """Return an ICC profile, version 2.1 (ICC.1:1998-09)."""
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        at = 128 + 4 + 12 * len(tags) + len(data)
        table += name.encode() + struct.pack(">II", at, len(content))
        data += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4xI4s4s4s", size, 0x02100000, kind.encode(), colours.encode(), connection.encode())
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(*D50)[8:]
    return head.ljust(128, b"\0") + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def power(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def coloured(to_xyz: NDArray[np.float64], gamma: float) -> bytes:
    columns = {f"{name}XYZ": xyz(*to_xyz[:, number]) for number, name in enumerate("rgb")}
    return profile("mntr", "RGB ", "XYZ ", {"wtpt": xyz(*D50), **columns, **{f"{n}TRC": power(gamma) for n in "rgb"}})


def grey(gamma: float) -> bytes:
    return profile("mntr", "GRAY", "XYZ ", {"wtpt": xyz(*D50), "kTRC": power(gamma)})


def printer(labs: NDArray[np.float64]) -> bytes:
    """Return a profile of four inks by the Lab colours (2, 2, 2, 2, 3) of each of them in full, or none of it."""
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    colours = np.round(labs * [2.55, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    table += bytes(range(256)) * 4 + colours.tobytes() + bytes(range(256)) * 3
    return profile("prtr", "CMYK", "Lab ", {"wtpt": xyz(*D50), "A2B0": table})


def shown(of_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return XYZ (…, 3) as sRGB of 8 bits, IEC 61966-2-1."""
    linear = np.clip(of_xyz @ np.linalg.inv(SRGB).T, 0, 1)
    found: NDArray[np.float64] = 255 * np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return found


ADOBE_RGB = coloured(ADOBE, ADOBE_GAMMA)


def by_hand(image: Image.Image) -> NDArray[np.float64]:
    return shown((np.asarray(image, np.float64) / 255) ** ADOBE_GAMMA @ ADOBE.T)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_colours_of_a_wide_range_come_out_as_a_screen_shows_them(kind: str, options: dict[str, bool]) -> None:
    image = noise(16, 16, 3)
    found = np.asarray(decode(saved(image, kind, icc_profile=ADOBE_RGB, **options)), np.float64)
    assert np.abs(found - by_hand(image)).max() < 2
    assert np.abs(by_hand(image) - np.asarray(image)).max() > 50
    assert decode(saved(image, kind, **options)).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_so_do_those_of_files_with_losses(kind: str) -> None:
    image = noise(4, 4, 3).resize((64, 64), Image.Resampling.BICUBIC)
    found = np.asarray(decode(saved(image, kind, quality=95, icc_profile=ADOBE_RGB)), np.float64)
    plain = decode(saved(image, kind, quality=95))
    assert np.abs(found - by_hand(plain)).max() < 2


def test_a_jpeg_that_is_decoded_small_has_the_same_colours() -> None:
    content = saved(Image.new("RGB", (2000, 2000), (60, 200, 90)), "JPEG", icc_profile=ADOBE_RGB)
    expected = by_hand(Image.new("RGB", (1, 1), (60, 200, 90)))[0, 0]
    for size, array in to_arrays(content, [64, 512]).items():
        assert array.shape == (3, size, size)
        assert np.abs(array.mean((1, 2)) - expected).max() < 3


def test_the_colours_of_a_palette_and_of_what_is_half_clear_are_brought_along() -> None:
    colour = (60, 200, 90)
    expected = by_hand(Image.new("RGB", (1, 1), colour))[0, 0]
    palette = Image.new("RGB", (4, 4), colour).quantize(2)
    assert np.abs(np.asarray(decode(saved(palette, icc_profile=ADOBE_RGB))) - expected).max() < 2
    clear = Image.new("RGBA", (4, 4), (*colour, 51))
    found = np.asarray(decode(saved(clear, icc_profile=ADOBE_RGB)), np.float64)
    assert np.abs(found - (0.2 * expected + 0.8 * 255)).max() < 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma_stays_grey(mode: str) -> None:
    steps = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(steps.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(steps).convert(mode)
    found = decode(saved(image, icc_profile=grey(1.0)))
    assert found.mode == "L"
    expected = shown((steps / 255)[..., np.newaxis] * np.array(D50))[..., 1]
    assert np.abs(np.asarray(found, np.float64) - expected).max() < 2
    assert np.abs(expected - steps).max() > 50


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_what_is_dark(kind: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(decode(saved(Image.fromarray(ramp), kind, icc_profile=grey(1.0))), np.float64)
    expected = shown((ramp / 65535)[..., np.newaxis] * np.array(D50))[..., 1]
    assert np.abs(found - expected).max() < 2.5  # levels are joined by lines
    assert len(np.unique(found)) == 256


def test_what_is_clear_is_white_whatever_the_profile_makes_of_it() -> None:
    dark = profile(
        "mntr", "GRAY", "XYZ ", {"wtpt": xyz(*D50), "kTRC": b"curv\0\0\0\0" + struct.pack(">I2H", 2, 65535, 0)}
    )
    for image in (
        Image.fromarray(np.full((4, 4), 257 * 10, np.uint16)),
        Image.fromarray(np.full((4, 4), 10, np.uint8)),
    ):
        clear = 257 * 10 if image.mode == "I;16" else 10
        assert np.asarray(decode(saved(image, icc_profile=dark))).max() > 240  # it is an inverting one
        assert np.asarray(decode(saved(image, icc_profile=dark, transparency=clear))).tolist() == [[255] * 4] * 4


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_come_out_as_their_profile_says(kind: str) -> None:
    labs = np.zeros((2, 2, 2, 2, 3))
    labs[0, 0, 0, 0], labs[1, 0, 0, 0], labs[0, 0, 0, 1] = (100, 0, 0), (55, -37, -50), (16, 0, 0)
    for ink, lab in (((0, 0, 0, 0), (100, 0, 0)), ((255, 0, 0, 0), (55, -37, -50)), ((0, 0, 0, 255), (16, 0, 0))):
        found = np.asarray(decode(saved(Image.new("CMYK", (16, 16), ink), kind, icc_profile=printer(labs))), np.float64)
        light = (lab[0] + 16) / 116
        f = np.array([light + lab[1] / 500, light, light - lab[2] / 200])
        of_xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50  # CIE 15:2004
        assert found.shape == (16, 16, 3)
        assert np.abs(found - shown(of_xyz)).max() < 4


def test_a_version_of_srgb_changes_nothing() -> None:
    path = Path(sklearn.__file__).parent / "datasets/images/china.jpg"
    with Image.open(path) as file:
        assert len(file.info["icc_profile"]) > 3000
        assert decode(path.read_bytes()).tobytes() == file.tobytes()
    image = noise(8, 8, 3)
    assert (
        decode(saved(image, icc_profile=coloured(SRGB, 2.4))).tobytes() != image.tobytes()
    )  # not by its primaries alone


def test_a_profile_for_other_colours_or_a_broken_one_is_passed_over() -> None:
    image = noise(8, 8, 3)
    for wrong in (grey(1.0), b"no profile", ADOBE_RGB[:200], bytes(300)):
        assert decode(saved(image, icc_profile=wrong)).tobytes() == image.tobytes()
    assert decode(saved(noise(8, 8), icc_profile=ADOBE_RGB)).tobytes() == noise(8, 8).tobytes()


def test_a_profile_that_joins_two_devices_is_passed_over() -> None:
    link = ADOBE_RGB[:12] + b"link" + ADOBE_RGB[16:]
    assert decode(saved(noise(8, 8, 3), icc_profile=link)).tobytes() == noise(8, 8, 3).tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK"])
def test_what_is_saved_of_a_decoded_image_is_not_brought_to_srgb_again(mode: str) -> None:
    image = noise(8, 8, 3).convert(mode)
    own = {"L": grey(1.0), "LA": grey(1.0), "CMYK": printer(np.full((2, 2, 2, 2, 3), 30.0))}
    once = decode(saved(image, "TIFF" if mode == "CMYK" else "PNG", icc_profile=own.get(mode, ADOBE_RGB)))
    assert once.tobytes() != decode(saved(image, "TIFF" if mode == "CMYK" else "PNG")).tobytes()
    assert "icc_profile" not in once.info
    assert decode(saved(once)).tobytes() == once.tobytes()


def test_a_profile_with_any_byte_wrong_never_costs_the_image() -> None:
    lot, image = random.Random(0), noise(8, 8, 3)
    for _ in range(300):
        broken = bytearray(ADOBE_RGB)
        broken[lot.randrange(len(broken))] = lot.randrange(256)
        assert decode(saved(image, icc_profile=bytes(broken))).size == (8, 8)


def test_many_threads_find_the_same_colours() -> None:
    content = saved(noise(64, 64, 3), icc_profile=ADOBE_RGB)
    expected = decode(content).tobytes()
    assert all(found == expected for found in in_threads(lambda _: decode(content).tobytes(), range(64)))


def test_the_same_colours_in_another_kind_of_file_are_the_same(tmp_path: Path) -> None:
    """A photograph saved with its profile by another program has other bytes, and the same pixels."""
    image = noise(8, 8, 3)
    file = tmp_path / "saved.tiff"
    image.save(file, icc_profile=ADOBE_RGB)
    assert decode(file.read_bytes()).tobytes() == decode(saved(image, "PNG", icc_profile=ADOBE_RGB)).tobytes()
    with Image.open(BytesIO(file.read_bytes())) as stored:
        assert stored.info["icc_profile"] == ADOBE_RGB
