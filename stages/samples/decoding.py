"""From an image file's bytes to the pixels that a person sees, and to the square array that a network reads.

An image comes out upright, in 8 bits, with one channel (grey) or three (RGB). Nothing here depends on another image:
the same bytes always give the same pixels. All functions may be called from many threads; Pillow releases Python's
lock while it decodes and resizes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREPROCESSING_VERSION = 1
"""Counts up from release to release where a change here changes a pixel; cache keys and fingerprints hold it."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MODES = ("L", "RGB")
"""What an image is when it is decoded: grey, or coloured."""
SMALL = 320
"""Up to this image size a JPEG is decoded alike for all sizes: reading its bits, not the pixels, takes the time."""
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What is decoded, by Pillow's names. Others are refused: Pillow would start Ghostscript for EPS, for one."""

_COLOURS_OF = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""What a colour profile says it is for, by Pillow's modes."""
_UNSEEN = 2
"""A profile that moves no colour by more steps of 255 is taken for sRGB, of which there are many versions."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # of a TIFF file
_ORIENTATION = 0x0112  # the EXIF tag
_JPEG = b"\xff\xd8"  # what such a file begins with
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):  # noqa: N818  (not an error of the program: such images are listed and left out)
    """An image that cannot be decoded; its text says why, in words for the table of rejected images."""


def decode(content: bytes, at_least: int = 0) -> Image.Image:
    """Decode an image file, as a person sees it.

    Turned upright by its EXIF tag; the first frame of several; transparency laid on white; 16 bits of grey brought to
    8; colours of another colour profile (ICC.1) brought to sRGB; the result has mode "L" (grey) or "RGB".

    at_least : allows a JPEG to be decoded at a half, a quarter or an eighth of its size, which is several times as
        fast, as long as its shorter side keeps at least so many pixels; 0 decodes all of them.
    Raises BadImage.
    """
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
            full_range = image.format == "PPM"  # Pillow brings 16-bit PPM to the mode I, but keeps it within 16 bits
            found = _to_eight_bits(_upright(image), full_range)
            found.info.pop("icc_profile", None)  # what is saved of it would otherwise be brought to sRGB again
            return found
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise BadImage(_reason(content, error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow can decode, and silence its warnings, which name no file."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ImportError):  # where a model is served it may not be installed
        import pi_heif

        pi_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:200]


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a broken EXIF block: viewers show such an image as it lies, and so do we
        orientation = None
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_eight_bits(image: Image.Image, full_range: bool) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and full_range):
        pixels = np.asarray(image)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            pixels = 65535 - pixels  # Pillow does so of 8 bits alone
        grey = _from_sixteen_bits(pixels, profile)
        clear = image.info.get("transparency")
        return Image.fromarray(grey if clear is None else np.where(pixels == clear, np.uint8(255), grey))
    if image.mode in ("I", "F"):
        raise BadImage(f"pixels are 32-bit numbers (mode {image.mode}) of unknown range: save it with 8 or 16 bits")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        if change := _change_to_srgb(profile, mode):
            opaque = change(coloured.convert(mode)).convert("RGB")
            opaque.putalpha(coloured.getchannel("A"))
            coloured = opaque
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, coloured).convert(mode)
    if image.mode == "CMYK":
        return _to_srgb(image, profile).convert(mode)
    return _to_srgb(image if image.mode == mode else image.convert(mode), profile)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image as a screen shows it that takes numbers for sRGB, as networks do; grey stays grey."""
    change = _change_to_srgb(profile, image.mode)
    return change(image) if change else image


@functools.lru_cache(maxsize=16)
def _change_to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return what brings a profile's colours to sRGB.

    None where that changes nothing, and, as viewers do, where it is broken or meant for other colours than these.
    """
    if not profile:
        return None
    from PIL import ImageCms

    # Of grey, Little CMS joins few points by lines unless told not to: up to ten steps of 255 away.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if own.profile.device_class == "link" or own.profile.xcolor_space.strip() != _COLOURS_OF[mode]:
            return None
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform.apply
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    before = levels[np.newaxis] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    after = transform.apply(Image.fromarray(before))
    found = np.asarray(after.getchannel("G") if mode == "L" else after)
    if np.abs(found.astype(np.int16) - before).max() <= _UNSEEN:
        return None
    return transform.apply if mode == "RGB" else functools.partial(Image.Image.point, lut=found[0].tolist())


def _from_sixteen_bits(pixels: NDArray[Any], profile: bytes | None) -> NDArray[np.uint8]:
    """Divide by 257, rounding: 65535 becomes 255. Pillow's own conversion would cut everything above 255.

    Where a profile changes grey, it is looked up between the 256 levels: rounded first, the dark would be in bands.
    """
    if change := _change_to_srgb(profile, "L"):
        levels = np.asarray(change(Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis])))[0]
        table = np.rint(np.interp(np.arange(65536) / 257, np.arange(256), levels)).astype(np.uint8)
        return np.take(table, pixels)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def pixel_hash(image: Image.Image) -> str:
    """Return the sha256 of a decoded image's size and pixels, in hexadecimal.

    Of the pixels, not of the file: an image saved again without loss is the same picture, also when a grey one was
    saved in colour.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0]
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def to_array(image: Image.Image, size: int, resize: str = "crop", interpolation: str = "bilinear") -> NDArray[np.uint8]:
    """Return a decoded image as a square array (C, size, size) of uint8, C = 1 (grey) or 3.

    resize : "crop" keeps the largest square in the middle (as if resized first and cropped then), "stretch" keeps all
        and changes the proportions.
    interpolation : a key of INTERPOLATIONS; all but nearest smooth what they make smaller.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if resize == "crop" else (0, 0, width, height)
    pixels = np.asarray(image.resize((size, size), INTERPOLATIONS[interpolation], box))
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_arrays(
    content: bytes, sizes: Sequence[int], resize: str = "crop", interpolation: str = "bilinear"
) -> dict[int, NDArray[np.uint8]]:
    """Decode an image file into what a network reads: for each size an array (C, size, size), see `to_array`.

    The pixels of one size do not depend on which others are asked for. Everything is decoded once, but for a JPEG and
    sizes above SMALL, which may need more of its pixels. Raises BadImage.
    """
    return to_arrays_of_each(content, {interpolation: sizes}, resize)[interpolation]


def to_arrays_of_each(
    content: bytes, wanted: Mapping[str, Sequence[int]], resize: str = "crop"
) -> dict[str, dict[int, NDArray[np.uint8]]]:
    """The same for each interpolation at its sizes; decoded once for all of them. Raises BadImage."""
    together: dict[object, list[int]] = {}
    for size in dict.fromkeys(size for sizes in wanted.values() for size in sizes):
        together.setdefault(_drafted(content, _enough(size)) if content.startswith(_JPEG) else None, []).append(size)
    found: dict[tuple[str, int], NDArray[np.uint8]] = {}
    for alike in together.values():
        image = decode(content, at_least=_enough(alike[0]) if content.startswith(_JPEG) else 0)
        for how, sizes in wanted.items():
            found |= {(how, size): to_array(image, size, resize, how) for size in sizes if size in alike}
    return {how: {size: found[how, size] for size in sizes} for how, sizes in wanted.items()}


def _enough(size: int) -> int:
    """Return how many pixels a JPEG's shorter side keeps at least; more hardly change what comes of it."""
    return max(size, SMALL) * 3 // 2


def _drafted(content: bytes, at_least: int) -> tuple[int, int] | None:
    """Return how large a JPEG is when `decode` has decoded it; None where its head cannot be read."""
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            image.draft(None, (at_least, at_least))
            return image.size
    except Exception:  # decode says what is wrong
        return None


def apply_view(array: NDArray[Any], view: str) -> NDArray[Any]:
    """Return one of the eight symmetries of square images (..., H, W): one of params.SYMMETRIES.

    flip swaps left and right, flip_vertical top and bottom; turn90, turn180 and turn270 turn counter-clockwise;
    transpose mirrors at the diagonal from the top left, transverse at the other. No pixel is copied.
    """
    if view == "identity":
        return array
    if view == "flip":
        return array[..., ::-1]
    if view == "flip_vertical":
        return array[..., ::-1, :]
    if view == "transpose":
        return array.swapaxes(-1, -2)
    if view == "transverse":
        return array[..., ::-1, ::-1].swapaxes(-1, -2)
    quarters = {"turn90": 1, "turn180": 2, "turn270": 3}[view]
    return np.rot90(array, quarters, axes=(-2, -1))
