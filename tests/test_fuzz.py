"""What nobody means to write: a line each, or a rejected image; never a traceback, never a hang."""

from __future__ import annotations

import copy
import io
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.cli import UserError, guard
from stages.extract import extract
from stages.files import read_table
from stages.params import Dataset, Features, read_params
from stages.prepare import prepare
from stages.samples.decoding import BadImage, decode, pixel_hash, to_arrays
from stages.samples.duplicates import LOOKS, appearance
from stages.samples.table import read_samples
from stages.samples.thumbnails import thumbnail
from stages.sources._raw import Found, write_images
from stages.store.activations import read_features
from tests.conftest import cell_files
from tests.samples.heic import HEIC
from tests.test_extract import make_backbone

ROOT = Path(__file__).parents[1]
WRITTEN = (ROOT / "params.yaml").read_text()
VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**30, [], {}, [None], [[]], {1: 2}, ["x"] * 50),
    *("", "x", "a b", "../x", "${key}", "\0", "a\nb", "2024-01-01", "<script>", "raw/lite0", "models/probe", "1e3"),
    *({"a": {}}, {"kind": "logistic"}, {"kind": "../../x"}, {"kind": None}, ["identity", "identity"]),
]
KEYS = ["x", "kind", "C", "images", "1", 1, None, "a b", ""]
PIECES = [b"\t", b"{", b"}", b": ", b"&a ", b"*a ", b"!!python/object:os.system ", b"\xff", b"- ", b"\n", b"'", b"|"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in some content."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in inner:
        yield from places(own, (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def mutated_content(lot: random.Random) -> bytes:
    """Return params.yaml with values and keys removed, replaced, added or taken from elsewhere in it."""
    content = yaml.safe_load(WRITTEN)
    for _ in range(lot.randint(1, 3)):
        ways = [path for path in places(content) if path]
        path = lot.choice(ways)
        parent, value = at(content, path[:-1]), copy.deepcopy(lot.choice(VALUES))
        what = lot.randrange(4)
        if what == 0:
            del parent[path[-1]]
        elif what == 1:
            parent[path[-1]] = value
        elif what == 2 and isinstance(parent, dict):
            parent[lot.choice(KEYS)] = value
        else:
            parent[path[-1]] = copy.deepcopy(at(content, lot.choice(ways)))
    return yaml.safe_dump(content, allow_unicode=True).encode()


def mutated_text(lot: random.Random) -> bytes:
    """Return the text of params.yaml with bytes changed, left out and put in."""
    text = bytearray(WRITTEN.encode())
    for _ in range(lot.randint(1, 8)):
        place = lot.randrange(len(text))
        what = lot.randrange(3)
        if what == 0:
            text[place] = lot.randrange(256)
        elif what == 1:
            del text[place : place + lot.randint(1, 30)]
        else:
            text[place:place] = lot.choice(PIECES)
    return bytes(text)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_params_that_nobody_means_are_told_in_lines(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lot = random.Random(seed)
    refused = 0
    for number in range(20):
        Path("params.yaml").write_bytes((mutated_content if number % 3 else mutated_text)(lot))
        with pytest.raises(SystemExit) as left:
            guard(read_params)
        said = capsys.readouterr().err
        if left.value.code == 0:
            assert not said
            continue
        refused += 1
        assert left.value.code == 2
        lines = said.removesuffix("\n").split("\n")
        assert all(line.startswith("params.yaml") for line in lines)
        assert len(lines) <= 21
    assert refused >= 15  # the others have changed a number, or a comment


@pytest.mark.parametrize("seed", range(3))
def test_the_command_ends_in_2_and_without_a_traceback(seed: int, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(mutated_text(random.Random(seed)))
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    ended = subprocess.run(
        [sys.executable, "-m", "stages.params"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip()


@cache
def images() -> dict[str, bytes]:
    """Return a small image in every format and mode that is read."""
    grey = Image.open(cell_files(1)[0]).resize((64, 64))
    colour = Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (grey, "PNG", {}),
        "png in colour": (colour, "PNG", {}),
        "png with a palette": (colour.convert("P"), "PNG", {"transparency": 3}),
        "png of 16 bits": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG", {}),
        "png of 1 bit": (grey.convert("1"), "PNG", {}),
        "png with alpha": (colour.convert("RGBA"), "PNG", {}),
        "jpeg": (colour, "JPEG", {"exif": turned}),
        "progressive jpeg": (colour, "JPEG", {"progressive": True}),
        "jpeg of four inks": (colour.convert("CMYK"), "JPEG", {}),
        "jpeg 2000": (colour, "JPEG2000", {}),
        "gif": (colour.convert("P"), "GIF", {"save_all": True, "append_images": [colour.rotate(45).convert("P")]}),
        "webp": (colour, "WEBP", {"save_all": True, "append_images": [colour.rotate(30)]}),
        "tiff": (colour, "TIFF", {}),
        "tiff, lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff, deflate": (grey, "TIFF", {"compression": "tiff_deflate"}),
        "bmp": (colour, "BMP", {}),
        "ppm": (colour, "PPM", {}),
        "pcx": (colour, "PCX", {}),
        "tga": (colour, "TGA", {}),
        "avif": (colour, "AVIF", {}),
    }
    found = {"heic": HEIC}
    for name, (image, form, keys) in made.items():
        content = io.BytesIO()
        image.save(content, form, **keys)
        found[name] = content.getvalue()
    return found


def mutated_image(lot: random.Random) -> bytes:
    """Return an image with bytes changed, its header changed, its end cut off, or with a piece of another."""
    names = sorted(images())
    content = bytearray(images()[lot.choice(names)])
    what, place = lot.randrange(5), lot.randrange(len(content))
    if what == 0:
        for _ in range(lot.randint(1, 20)):
            content[lot.randrange(len(content))] = lot.randrange(256)
    elif what == 1:
        del content[place:]
    elif what == 2:
        for _ in range(lot.randint(1, 4)):
            content[lot.randrange(min(64, len(content)))] = lot.choice([0, 1, 127, 128, 255])
    elif what == 3:
        content[place : place + lot.randint(1, 200)] = lot.randbytes(lot.randint(0, 300))
    else:
        other = images()[lot.choice(names)]
        content[place:] = other[lot.randrange(len(other)) :]
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("seed", range(10))
def test_images_that_are_broken_are_refused_or_seen_and_nothing_else(seed: int) -> None:
    lot = random.Random(seed)
    seen = 0
    for _ in range(100):
        content = mutated_image(lot)
        try:
            image = decode(content)
        except BadImage as reason:
            assert str(reason)  # noqa: PT017
            assert "\n" not in str(reason)  # noqa: PT017
            continue
        assert image.mode in ("L", "RGB")
        assert to_arrays(content, [16])[16].shape[1:] == (16, 16)
        assert appearance(image).shape == (LOOKS,)
        assert all(look(image) for look in (pixel_hash, thumbnail))
        seen += 1
    assert 5 <= seen <= 60


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_data_set_of_broken_images_is_prepared_without_them_and_extract_leaves_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    lot = random.Random(0)
    whole = [(f"whole-{n:02}.png", path.read_bytes()) for n, path in enumerate(cell_files(20))]
    broken = [(f"broken-{n:03}", mutated_image(lot)) for n in range(1000)]
    folder = Path("data/raw/photos")
    folder.mkdir(parents=True)
    found = [
        Found(name, lambda content=content: content, {"class": "ab"[n % 2]})
        for n, (name, content) in enumerate([*whole, *broken])
    ]
    write_images(folder, found, source="test", origin="a test", licence="none")
    entry = {"images": "photos", "split": {"test": 0.25}}
    with pytest.raises(UserError, match=r"datasets.mine: \d+ of 1,020 images cannot be used, more than max_unread"):
        prepare("mine", Dataset.model_validate(entry))
    assert not Path("data/prepared/mine").exists()
    prepare("mine", Dataset.model_validate({**entry, "max_unreadable": 1.0}))
    samples = read_samples("mine")
    assert {name for name, _ in whole} <= set(samples.table["sample"].to_pylist())
    rejected = read_table(Path("data/prepared/mine/rejected.parquet")).to_pylist()
    assert len(samples) + samples.facts["rejected"] == 1020
    assert len(rejected) == samples.facts["rejected"]
    assert all(row["reason"] for row in rejected)
    make_backbone(Path("data/raw/network"))
    extract("pixels", Features(images="photos", backbone="raw/network", image_size=[16], cut="image"))
    features = read_features("pixels")
    assert set(features.rejected) == {row["image_hash"] for row in rejected}
    assert set(features.image_hashes) == set(samples.image_hashes)
