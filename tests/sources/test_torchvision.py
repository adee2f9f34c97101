"""torchvision's data sets, from files in their folder of downloads; there is no network here."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.cli import UserError
from stages.files import RAW
from stages.sources import torchvision as source
from stages.sources._raw import Images, read_images
from tests.sources.test_folder import rows


def fetch(name: str) -> Images:
    folder = RAW / "set"
    folder.mkdir(parents=True)
    source.fetch(source.Params(source="torchvision", path="requirements.lock", name=name, root="cache"), folder)
    return read_images("set")


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_data_set_of_folders_has_the_names_of_its_classes(cells: list[Path]) -> None:
    for at, name in enumerate(("Forest", "River", "Forest")):
        path = Path("cache/eurosat/2750") / name / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cells[at].read_bytes())
    images = fetch("EuroSAT")
    assert rows(images, "class") == [("all/0.png", "Forest"), ("all/1.png", "Forest"), ("all/2.png", "River")]
    assert images.columns == ["class"]
    # ImageFolder gives every image three channels
    np.testing.assert_array_equal(pixels(images.read(1))[..., 0], np.asarray(Image.open(cells[2])))


def test_a_data_set_in_one_file_brings_its_split(work: Path) -> None:
    random = np.random.default_rng(0)
    raw = work / "cache/FashionMNIST/raw"
    raw.mkdir(parents=True)
    arrays = {part: random.integers(0, 256, (count, 28, 28), np.uint8) for part, count in (("train", 12), ("t10k", 3))}
    for part, array in arrays.items():
        labels = np.arange(len(array), dtype=np.uint8) % 10
        for kind, content in (("images-idx3", array), ("labels-idx1", labels)):
            header = struct.pack(f">{content.ndim + 1}i", 0x0800 + content.ndim, *content.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + content.tobytes())
    images = fetch("FashionMNIST")
    assert len(images) == 15
    assert rows(images, "class", "split")[:4] == [
        *[("test/0.png", "T-shirt/top", "test"), ("test/1.png", "Trouser", "test"), ("test/2.png", "Pullover", "test")],
        ("train/00.png", "T-shirt/top", "train"),
    ]
    np.testing.assert_array_equal(pixels(images.read(1)), arrays["t10k"][1])
    np.testing.assert_array_equal(pixels(images.read(14)), arrays["train"][11])


@pytest.mark.usefixtures("no_network")
def test_what_is_not_there_and_cannot_be_downloaded_is_one_line_that_says_how_to_bring_it() -> None:
    with pytest.raises(UserError) as error:
        fetch("CIFAR10")
    assert str(error.value).startswith("torchvision's CIFAR10 is not in cache, and cannot be downloaded (")
    assert "from torchvision.datasets import CIFAR10; CIFAR10('cache', download=True)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^params.yaml: name: Cifar10 is no data set that is read here; did you mean CIFAR10\?$"
    ):
        fetch("Cifar10")


@pytest.mark.parametrize("name", sorted(source.PARTS))
def test_every_name_and_every_part_is_one_of_torchvisions(name: str) -> None:
    import inspect

    from torchvision import datasets

    known = inspect.signature(getattr(datasets, name).__init__).parameters
    assert "download" in known
    for keys in source.PARTS[name].values():
        assert set(keys) <= set(known)
