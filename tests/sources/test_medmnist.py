"""MedMNIST's data sets, from files in their folder of downloads; there is no network here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.cli import UserError
from stages.files import RAW
from stages.sources import medmnist as source
from stages.sources._raw import Images, read_images
from tests.sources.test_folder import rows

COUNTS = {"train": 12, "val": 3, "test": 5}


def fetch(name: str, **keys: Any) -> Images:
    folder = RAW / "set"
    folder.mkdir(parents=True, exist_ok=True)
    source.fetch(source.Params(source="medmnist", path="requirements.lock", name=name, root="cache", **keys), folder)
    return read_images("set")


def arrays(cells: list[Path], size: int, labels: int, classes: int, colours: int = 1) -> dict[str, Any]:
    """Make what such a file holds, of real cells."""
    found: dict[str, Any] = {}
    at = 0
    for part, count in COUNTS.items():
        images = [np.asarray(Image.open(path).resize((size, size))) for path in cells[at : at + count]]
        found[f"{part}_images"] = np.stack([np.stack([image] * 3, -1) if colours == 3 else image for image in images])
        found[f"{part}_labels"] = (np.arange(count * labels).reshape(count, labels) + at) % classes
        at += count
    return found


def put(name: str, content: dict[str, Any]) -> Path:
    Path("cache").mkdir(exist_ok=True)
    np.savez_compressed(f"cache/{name}.npz", **content)
    return Path(f"cache/{name}.npz")


@pytest.mark.parametrize(("size", "suffix", "colours"), [(28, "", 3), (64, "_64", 1)])
def test_images_come_with_their_class_and_their_part(cells: list[Path], size: int, suffix: str, colours: int) -> None:
    content = arrays(cells, size, 1, 8, colours)
    put(f"bloodmnist{suffix}", content)
    images = fetch("bloodmnist", size=size)
    found = rows(images, "class", "split")
    assert len(found) == 20
    assert found[0] == ("test/0.png", "platelet", "test")  # number 15 of 8 classes
    assert found[5] == ("train/00.png", "basophil", "train")
    assert {part for *_, part in found} == {"train", "validation", "test"}
    pixels = np.asarray(Image.open(io.BytesIO(images.read(2))))
    np.testing.assert_array_equal(pixels, content["test_images"][2])
    assert [path.name for path in (RAW / "set").iterdir() if path.is_dir()] == []


def test_of_several_labels_each_is_a_column(cells: list[Path]) -> None:
    content = arrays(cells, 28, 14, 2)
    put("chestmnist", content)
    images = fetch("chestmnist")
    assert images.columns == ["split", *source.LABELS["chestmnist"].split(", ")]
    np.testing.assert_array_equal(images.table["edema"].to_pylist()[:5], content["test_labels"][:, 9])


def test_all_names_are_known_with_a_hash_for_each_size_and_two_classes_at_least() -> None:
    names = set(source.Params.model_json_schema()["properties"]["name"]["enum"])
    assert names == set(source.MD5) == set(source.LABELS)
    for name in names:
        assert [len(md5) for md5 in source.MD5[name].split()] == [32] * 4
        assert len(set(source.LABELS[name].split(", "))) == len(source.LABELS[name].split(", ")) > 1


def test_a_damaged_file_is_one_line(cells: list[Path]) -> None:
    content = arrays(cells, 28, 1, 8)
    whole = put("bloodmnist", content).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole[:3000] + b"x" + whole[3001:]):
        Path("cache/bloodmnist.npz").write_bytes(broken)
        with pytest.raises(
            UserError, match=r"^cache/bloodmnist.npz is damaged \([^\n]+\): remove it, and get it again$"
        ):
            fetch("bloodmnist")
    for change in (
        {"test_images": None},
        {"test_labels": content["test_labels"][:-1]},
        {"test_labels": content["test_labels"] + 8},
        {"val_images": content["val_images"].astype(np.float32)},
        {"val_labels": np.array([["a"], None, ["b"]], object)},
    ):
        put("bloodmnist", {k: v for k, v in {**content, **change}.items() if v is not None})
        with pytest.raises(UserError, match=r"^cache/bloodmnist.npz is damaged"):
            fetch("bloodmnist")


@pytest.mark.usefixtures("no_network")
def test_what_is_not_there_and_cannot_be_downloaded_is_one_line() -> None:
    with pytest.raises(UserError) as error:
        fetch("bloodmnist", size=224)
    assert str(error.value) == (
        f"bloodmnist_224.npz is not in cache, and {source.URL.format('bloodmnist_224.npz')} cannot be downloaded: "
        "ProxyError; what has come is kept, run it again; or bring it there by hand"
    )
