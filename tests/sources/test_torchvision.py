"""torchvision's data sets, from files in their folder of downloads; there is no network here."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from stages.cli import UserError
from stages.files import RAW, hash_file
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
    folder = "all/eurosat/2750"
    assert rows(images, "class") == [
        (f"{folder}/Forest/0.png", "Forest"), (f"{folder}/Forest/2.png", "Forest"), (f"{folder}/River/1.png", "River")
    ]  # fmt: skip
    assert images.columns == ["class"]
    assert images.read(1) == cells[2].read_bytes()  # the file as it is, though torchvision would make it coloured


def test_files_that_a_list_names_bring_its_split(cells: list[Path]) -> None:
    root = Path("cache/food-101")
    (root / "meta").mkdir(parents=True)
    listed = {"train": {"pho": ["pho/1", "pho/2"], "ramen": ["ramen/3"]}, "test": {"pho": ["pho/4"], "ramen": []}}
    for part, of in listed.items():
        (root / "meta" / f"{part}.json").write_text(json.dumps(of))
        for name in (name for names in of.values() for name in names):
            path = root / "images" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cells[int(path.stem)].read_bytes())
    images = fetch("Food101")
    folder = "food-101/images"
    assert rows(images, "class", "split") == [
        (f"test/{folder}/pho/4.jpg", "pho", "test"),
        *[(f"train/{folder}/pho/{n}.jpg", "pho", "train") for n in (1, 2)],
        (f"train/{folder}/ramen/3.jpg", "ramen", "train"),
    ]
    assert images.read(0) == cells[4].read_bytes()


def write_digits(folder: str, images: dict[str, str], labels: dict[str, str], as_labels: Any) -> dict[str, Any]:
    """Write twelve training and three test images in MNIST's format, under these names; returns their pixels."""
    random = np.random.default_rng(0)
    raw = Path("cache") / folder / "raw"
    raw.mkdir(parents=True)
    arrays = {}
    for part, count in (("train", 12), ("test", 3)):
        arrays[part] = random.integers(0, 256, (count, 28, 28), np.uint8)
        for name, content in ((images[part], arrays[part]), (labels[part], as_labels(np.arange(count) % 10))):
            kind = 0x0C00 if content.dtype == np.dtype(">i4") else 0x0800
            header = struct.pack(f">{content.ndim + 1}i", kind + content.ndim, *content.shape)
            (raw / name).write_bytes(header + content.tobytes())
    return arrays


@pytest.mark.usefixtures("work")
def test_a_data_set_in_one_file_brings_its_split() -> None:
    names = {"train": "train", "test": "t10k"}
    arrays = write_digits(
        "FashionMNIST",
        {part: f"{name}-images-idx3-ubyte" for part, name in names.items()},
        {part: f"{name}-labels-idx1-ubyte" for part, name in names.items()},
        lambda digits: digits.astype(np.uint8),
    )
    images = fetch("FashionMNIST")
    assert len(images) == 15
    assert rows(images, "class", "split")[:4] == [
        *[("test/0.png", "T-shirt/top", "test"), ("test/1.png", "Trouser", "test"), ("test/2.png", "Pullover", "test")],
        ("train/00.png", "T-shirt/top", "train"),
    ]
    np.testing.assert_array_equal(pixels(images.read(1)), arrays["test"][1])
    np.testing.assert_array_equal(pixels(images.read(14)), arrays["train"][11])


@pytest.mark.usefixtures("work")
def test_emnist_is_named_with_the_choice_of_its_classes() -> None:
    parts = ("train", "test")
    write_digits(
        "EMNIST",
        {part: f"emnist-letters-{part}-images-idx3-ubyte" for part in parts},
        {part: f"emnist-letters-{part}-labels-idx1-ubyte" for part in parts},
        lambda digits: (digits + 1).astype(np.uint8),
    )
    images = fetch("EMNIST-letters")
    assert images.facts["origin"].endswith(" EMNIST-letters")
    assert rows(images, "class", "split")[2:5] == [
        ("test/2.png", "c", "test"), ("train/00.png", "a", "train"), ("train/01.png", "b", "train")
    ]  # fmt: skip


@pytest.mark.usefixtures("work")
def test_of_qmnist_s_many_labels_the_digit_is_the_class() -> None:
    parts = ("train", "test")
    write_digits(
        "QMNIST",
        {part: f"qmnist-{part}-images-idx3-ubyte" for part in parts},
        {part: f"qmnist-{part}-labels-idx2-int" for part in parts},
        lambda digits: np.stack([digits, *[digits * 0 + 1000 + n for n in range(7)]], axis=1).astype(">i4"),
    )
    assert rows(fetch("QMNIST"), "class", "split")[2:5] == [
        ("test/2.png", "2 - two", "test"), ("train/00.png", "0 - zero", "train"), ("train/01.png", "1 - one", "train")
    ]  # fmt: skip


def test_digits_as_lines_of_numbers_are_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ink = np.random.default_rng(0).integers(0, 2, (4, 256))
    lines = [
        " ".join(map(str, [*row, *np.eye(10, dtype=int)[digit]])) for row, digit in zip(ink, (3, 0, 9, 3), strict=True)
    ]
    (work / "cache").mkdir()
    (work / "cache/semeion.data").write_text("\n".join(lines))
    monkeypatch.setattr(datasets.SEMEION, "md5_checksum", hash_file(work / "cache/semeion.data", "md5"))
    images = fetch("SEMEION")
    assert rows(images, "class") == [("all/0.png", 3), ("all/1.png", 0), ("all/2.png", 9), ("all/3.png", 3)]
    np.testing.assert_array_equal(pixels(images.read(2)), ink[2].reshape(16, 16) * 255)


def test_test_images_whose_labels_are_not_published_have_none(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = work / "cache/fer2013"
    folder.mkdir(parents=True)
    face = " ".join(str(n % 256) for n in range(48 * 48))
    (folder / "train.csv").write_text(f"emotion,pixels\n3,{face}\n6,{face}\n")
    (folder / "test.csv").write_text(f"pixels\n{face}\n")
    known = {part: (f"{part}.csv", hash_file(folder / f"{part}.csv", "md5")) for part in ("train", "test")}
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", {**datasets.FER2013._RESOURCES, **known})
    images = fetch("FER2013")
    assert rows(images, "class", "split") == [
        ("test/0.png", None, "test"), ("train/0.png", 3, "train"), ("train/1.png", 6, "train")
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels(images.read(0)).ravel(), np.arange(48 * 48) % 256)


def test_of_imagenet_s_two_cranes_each_is_a_class_of_its_own(cells: list[Path]) -> None:
    wnids = {"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca tinca")}
    root = Path("cache")
    for at, wnid in enumerate(wnids):
        for part in ("train", "val"):
            path = root / part / wnid / f"{at}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(cells[at].read_bytes())
    torch.save((wnids, []), root / "meta.bin")
    images = fetch("ImageNet")
    assert rows(images, "class", "split") == [
        ("test/val/n01440764/2.JPEG", "tench", "test"),
        ("test/val/n02012849/0.JPEG", "crane (n02012849)", "test"),
        ("test/val/n03126707/1.JPEG", "crane (n03126707)", "test"),
        ("train/train/n01440764/2.JPEG", "tench", "train"),
        ("train/train/n02012849/0.JPEG", "crane (n02012849)", "train"),
        ("train/train/n03126707/1.JPEG", "crane (n03126707)", "train"),
    ]


def test_images_that_are_not_unpacked_are_not_taken_for_there(cells: list[Path]) -> None:
    folder = Path("cache/eurosat/2750/Forest")
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(cells[0].read_bytes())
    (folder / "1.png").symlink_to("nowhere.png")
    with pytest.raises(
        UserError, match=r"^torchvision's EuroSAT lists 2 images, and 1 of their files are not there, the"
    ):
        fetch("EuroSAT")


@pytest.mark.usefixtures("no_network")
def test_places365_is_not_there_without_its_images(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "cache").mkdir()
    lists = {
        "categories_places365.txt": "/a/airfield 0\n/b/bar 1\n",
        "places365_train_standard.txt": "/a/airfield/1.jpg 0\n/b/bar/2.jpg 1\n",
    }
    for name, text in lists.items():
        (work / "cache" / name).write_text(text)
    known = {name: (name, hash_file(work / "cache" / name, "md5")) for name in lists}
    monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", known["categories_places365.txt"])
    monkeypatch.setattr(
        datasets.Places365, "_FILE_LIST_META", {"train-standard": known["places365_train_standard.txt"]}
    )
    with pytest.raises(UserError, match=r"^torchvision's Places365 is not in cache, and cannot be downloaded \("):
        fetch("Places365")


@pytest.mark.usefixtures("no_network")
def test_what_is_not_there_and_cannot_be_downloaded_is_one_line_that_says_how_to_bring_it() -> None:
    with pytest.raises(UserError) as error:
        fetch("CIFAR10")
    assert str(error.value).startswith("torchvision's CIFAR10 is not in cache, and cannot be downloaded (")
    calls = "CIFAR10('cache', train=True, download=True); CIFAR10('cache', train=False, download=True)"
    assert f"from torchvision.datasets import CIFAR10; {calls}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^params.yaml: name: Cifar10 is no data set that is read here; did you mean CIFAR10\?$"
    ):
        fetch("Cifar10")


@pytest.mark.usefixtures("no_network")
def test_what_is_downloaded_by_hand_is_told_with_the_page_that_says_how() -> None:
    with pytest.raises(UserError) as error:
        fetch("ImageNet")
    assert str(error.value).startswith("torchvision's ImageNet is not in cache, and torchvision does not download it (")
    assert str(error.value).endswith("torchvision.datasets.ImageNet.html says")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("work")
def test_a_package_that_a_data_set_is_read_by_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"^torchvision's PCAM is read by h5py: `uv pip install h5py`$"):
        fetch("PCAM")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", sorted(source.PARTS))
def test_every_part_of_every_data_set_is_one_that_torchvision_has(name: str) -> None:
    for keys in source.PARTS[name].values():
        with pytest.raises(UserError, match=f"^torchvision's {name} (is not in cache, and|is read by h5py)") as error:
            source._open(name, Path("cache"), keys)  # a key or value that it has not would be another error
        assert "\n" not in str(error.value)
