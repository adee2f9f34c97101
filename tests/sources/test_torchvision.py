"""torchvision's data sets, from files in their folder of downloads; there is no network here."""

from __future__ import annotations

import bz2
import io
import json
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from stages.cli import UserError
from stages.files import RAW
from stages.sources import torchvision as source
from stages.sources._raw import Images, read_images
from tests.sources.test_folder import rows

Arrays = dict[str, list[tuple[Any, Any]]]
"""The class and the pixels of each image of a part; the part of a data set without any is called all."""


def fetch(name: str) -> Images:
    folder = RAW / "set"
    folder.mkdir(parents=True)
    source.fetch(source.Params(source="torchvision", path="requirements.lock", name=name, root="cache"), folder)
    return read_images("set")


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files of a few images for the real ones, of which torchvision knows the checksums."""
    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_: True)


def put(path: str, content: Any) -> None:
    """Write a file of torchvision's folder: bytes and text as they are, else in the format that its name says."""
    file = Path("cache") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes | str):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif file.suffix == ".mat":
        savemat(file, content)
    elif file.name == "meta.bin":
        torch.save(content, file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(pickle.dumps(content))


def lines(*rows: Any) -> str:
    return "".join(f"{row}\n" for row in rows)


def cars(**classes: int) -> dict[str, Any]:
    """The annotations of StanfordCars: a box, a class and a file for each image."""
    kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    return {"annotations": np.array([[(1, label, f"{name}.jpg") for name, label in classes.items()]], kinds)}


def scenes(**objects: int) -> dict[str, Any]:
    found = [{"image_filename": f"CLEVR_{name}.png", "objects": [{}] * count} for name, count in objects.items()]
    return {"scenes": found}


SIGNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
EARTHWORM, LIZARD = (
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "00001_Animalia_Chordata_Reptilia_Squamata_Lacertidae_Zootoca_vivipara",
)
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "CLEVRClassification": (
        """
        train: clevr/CLEVR_v1.0/images/train/CLEVR_train_000000.png -> 3
        train: clevr/CLEVR_v1.0/images/train/CLEVR_train_000001.png -> 10
        test: clevr/CLEVR_v1.0/images/val/CLEVR_val_000000.png -> 4
        """,
        {
            "clevr/CLEVR_v1.0/images/test/CLEVR_test_000000.png": "has no label",
            "clevr/CLEVR_v1.0/scenes/CLEVR_train_scenes.json": scenes(train_000001=10, train_000000=3),
            "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json": scenes(val_000000=4),
        },
    ),
    "Caltech101": (
        """
        all: caltech101/101_ObjectCategories/Faces/image_0001.jpg -> Faces
        all: caltech101/101_ObjectCategories/Faces/image_0002.jpg -> Faces
        all: caltech101/101_ObjectCategories/accordion/image_0001.jpg -> accordion
        """,
        {"caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": "is of no class"},
    ),
    "Caltech256": (
        """
        all: caltech256/256_ObjectCategories/001.ak47/001_0001.jpg -> 001.ak47
        all: caltech256/256_ObjectCategories/001.ak47/001_0002.jpg -> 001.ak47
        all: caltech256/256_ObjectCategories/002.american-flag/002_0001.jpg -> 002.american-flag
        """,
        {"caltech256/256_ObjectCategories/002.american-flag/RENAME2": "the archive has such a file"},
    ),
    "Country211": (
        """
        train: country211/train/AD/1.jpg -> AD
        train: country211/train/ZW/2.jpg -> ZW
        validation: country211/valid/AD/3.jpg -> AD
        test: country211/test/ZW/4.jpg -> ZW
        """,
        {},
    ),
    "DTD": (
        """
        train: dtd/dtd/images/banded/banded_0002.jpg -> banded
        train: dtd/dtd/images/zigzagged/zigzagged_0009.jpg -> zigzagged
        validation: dtd/dtd/images/zigzagged/zigzagged_0001.jpg -> zigzagged
        test: dtd/dtd/images/banded/banded_0005.jpg -> banded
        """,
        {
            "dtd/dtd/labels/train1.txt": lines("zigzagged/zigzagged_0009.jpg", "banded/banded_0002.jpg"),
            "dtd/dtd/labels/val1.txt": lines("zigzagged/zigzagged_0001.jpg"),
            "dtd/dtd/labels/test1.txt": lines("banded/banded_0005.jpg"),
        },
    ),
    "EuroSAT": (
        """
        all: eurosat/2750/Forest/Forest_1.jpg -> Forest
        all: eurosat/2750/Forest/Forest_2.jpg -> Forest
        all: eurosat/2750/River/River_1.jpg -> River
        """,
        {},
    ),
    "FGVCAircraft": (
        """
        train: fgvc-aircraft-2013b/data/images/1025794.jpg -> 707-320
        train: fgvc-aircraft-2013b/data/images/0481847.jpg -> Model B200
        validation: fgvc-aircraft-2013b/data/images/1340192.jpg -> Model B200
        test: fgvc-aircraft-2013b/data/images/1514522.jpg -> 707-320
        """,
        {
            "fgvc-aircraft-2013b/data/variants.txt": lines("707-320", "727-200", "Model B200"),
            "fgvc-aircraft-2013b/data/images_variant_train.txt": lines("1025794 707-320", "0481847 Model B200"),
            "fgvc-aircraft-2013b/data/images_variant_val.txt": lines("1340192 Model B200"),
            "fgvc-aircraft-2013b/data/images_variant_test.txt": lines("1514522 707-320"),
        },
    ),
    "Flowers102": (
        """
        train: flowers-102/jpg/image_00002.jpg -> passion flower
        train: flowers-102/jpg/image_00004.jpg -> pink primrose
        validation: flowers-102/jpg/image_00001.jpg -> passion flower
        validation: flowers-102/jpg/image_00005.jpg -> blackberry lily
        test: flowers-102/jpg/image_00003.jpg -> pink primrose
        test: flowers-102/jpg/image_00006.jpg -> blackberry lily
        """,
        {
            "flowers-102/imagelabels.mat": {"labels": np.array([[77, 77, 1, 1, 102, 102]], np.uint8)},
            "flowers-102/setid.mat": {"trnid": [[4, 2]], "valid": [[5, 1]], "tstid": [[6, 3]]},
        },
    ),
    "Food101": (
        """
        train: food-101/images/pho/1.jpg -> pho
        train: food-101/images/pho/2.jpg -> pho
        train: food-101/images/ramen/3.jpg -> ramen
        test: food-101/images/pho/4.jpg -> pho
        """,
        {
            "food-101/meta/train.json": {"ramen": ["ramen/3"], "pho": ["pho/1", "pho/2"]},
            "food-101/meta/test.json": {"pho": ["pho/4"], "ramen": []},
        },
    ),
    "GTSRB": (
        """
        train: gtsrb/GTSRB/Training/00000/00000_00000.ppm -> 0
        train: gtsrb/GTSRB/Training/00001/00000_00029.ppm -> 1
        test: gtsrb/GTSRB/Final_Test/Images/00000.ppm -> 16
        test: gtsrb/GTSRB/Final_Test/Images/00001.ppm -> 1
        """,
        {
            "gtsrb/GTSRB/Training/00000/GT-00000.csv": lines(SIGNS),
            "gtsrb/GT-final_test.csv": lines(SIGNS, "00000.ppm;53;54;6;5;48;49;16", "00001.ppm;42;45;5;5;36;40;1"),
        },
    ),
    "INaturalist-2017": (
        """
        all: 2017/Actinopterygii/Abudefduf saxatilis/5c.jpg -> Actinopterygii/Abudefduf saxatilis
        all: 2017/Plantae/Abies balsamea/0a.jpg -> Plantae/Abies balsamea
        """,
        {},
    ),
    **{
        f"INaturalist-{year}": (
            f"""
            all: {year}/Fungi/1/5c.jpg -> Fungi/1
            all: {year}/Plantae/0/0a.jpg -> Plantae/0
            """,
            {},
        )
        for year in (2018, 2019)
    },
    **{
        f"INaturalist-{of}": (
            f"""
            train: {folder}/{EARTHWORM}/1.jpg -> Lumbricus terrestris
            train: {folder}/{LIZARD}/0.jpg -> Zootoca vivipara
            test: 2021_valid/{EARTHWORM}/2.jpg -> Lumbricus terrestris
            test: 2021_valid/{LIZARD}/3.jpg -> Zootoca vivipara
            """,
            {},
        )
        for of, folder in (("2021", "2021_train"), ("2021_mini", "2021_train_mini"))
    },
    "ImageNet": (  # whose two cranes are a bird and a machine
        """
        train: train/n01440764/n01440764_1.JPEG -> tench
        train: train/n02012849/n02012849_1.JPEG -> crane (n02012849)
        train: train/n03126707/n03126707_1.JPEG -> crane (n03126707)
        test: val/n01440764/ILSVRC2012_val_00000001.JPEG -> tench
        test: val/n02012849/ILSVRC2012_val_00000002.JPEG -> crane (n02012849)
        test: val/n03126707/ILSVRC2012_val_00000003.JPEG -> crane (n03126707)
        """,
        {"meta.bin": ({"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca tinca")}, [])},
    ),
    "Imagenette": (
        """
        train: imagenette2/train/n01440764/n01440764_1.JPEG -> tench
        train: imagenette2/train/n03394916/n03394916_1.JPEG -> French horn
        test: imagenette2/val/n01440764/n01440764_2.JPEG -> tench
        test: imagenette2/val/n03394916/n03394916_2.JPEG -> French horn
        """,
        {},
    ),
    "Omniglot": (
        """
        train: omniglot-py/images_background/Greek/character01/0394_01.png -> Greek/character01
        train: omniglot-py/images_background/Greek/character02/0395_01.png -> Greek/character02
        train: omniglot-py/images_background/Latin/character01/0683_20.png -> Latin/character01
        test: omniglot-py/images_evaluation/Angelic/character01/0965_01.png -> Angelic/character01
        """,
        {"omniglot-py/images_background.zip": "", "omniglot-py/images_evaluation.zip": ""},
    ),
    "OxfordIIITPet": (
        """
        train: oxford-iiit-pet/images/Abyssinian_100.jpg -> Abyssinian
        train: oxford-iiit-pet/images/american_bulldog_100.jpg -> American Bulldog
        test: oxford-iiit-pet/images/Abyssinian_201.jpg -> Abyssinian
        test: oxford-iiit-pet/images/american_bulldog_201.jpg -> American Bulldog
        """,
        {
            "oxford-iiit-pet/annotations/trainval.txt": lines("american_bulldog_100 2 2 1", "Abyssinian_100 1 1 1"),
            "oxford-iiit-pet/annotations/test.txt": lines("Abyssinian_201 1 1 1", "american_bulldog_201 2 2 1"),
        },
    ),
    "Places365": (
        """
        train: data_256_standard/a/airfield/00000001.jpg -> /a/airfield
        train: data_256_standard/f/field/wild/00000002.jpg -> /f/field/wild
        test: val_256/Places365_val_00000001.jpg -> /f/field/wild
        """,
        {
            "categories_places365.txt": lines("/a/airfield 0", "/f/field/wild 1"),
            "places365_train_standard.txt": lines("/a/airfield/00000001.jpg 0", "/f/field/wild/00000002.jpg 1"),
            "places365_val.txt": lines("Places365_val_00000001.jpg 1"),
        },
    ),
    "RenderedSST2": (
        """
        train: rendered-sst2/train/negative/1.png -> negative
        train: rendered-sst2/train/positive/2.png -> positive
        validation: rendered-sst2/valid/negative/3.png -> negative
        validation: rendered-sst2/valid/positive/4.png -> positive
        test: rendered-sst2/test/negative/5.png -> negative
        test: rendered-sst2/test/positive/6.png -> positive
        """,
        {},
    ),
    "SUN397": (
        """
        all: SUN397/a/abbey/sun_aaa.jpg -> abbey
        all: SUN397/a/apartment_building/outdoor/sun_bbb.jpg -> apartment_building/outdoor
        """,
        {"SUN397/ClassName.txt": lines("/a/abbey", "/a/airplane_cabin", "/a/apartment_building/outdoor")},
    ),
    "StanfordCars": (
        """
        train: stanford_cars/cars_train/00001.jpg -> Acura Integra Type R 2001
        train: stanford_cars/cars_train/00002.jpg -> AM General Hummer SUV 2000
        test: stanford_cars/cars_test/00001.jpg -> smart fortwo Convertible 2012
        test: stanford_cars/cars_test/00002.jpg -> AM General Hummer SUV 2000
        """,
        {
            "stanford_cars/devkit/cars_meta.mat": {
                "class_names": np.array(
                    [["AM General Hummer SUV 2000", "Acura Integra Type R 2001", "smart fortwo Convertible 2012"]], "O"
                )
            },
            "stanford_cars/devkit/cars_train_annos.mat": cars(**{"00001": 2, "00002": 1}),
            "stanford_cars/cars_test_annos_withlabels.mat": cars(**{"00001": 3, "00002": 1}),
        },
    ),
}
"""Of data sets whose images lie in files of their own: these, each with its part and class; and what lies beside."""


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize("name", FILES)
def test_images_in_files_come_as_they_are_each_with_its_class_and_part(name: str) -> None:
    listed, beside = FILES[name]
    expected, contents = [], {}
    for part, path, word in (re.split(": | -> ", line.strip()) for line in listed.strip().splitlines()):
        columns = (int(word) if word.isdigit() else word, *([] if part == "all" else [part]))
        expected.append((f"{part}/{path}", *columns))
        contents[f"{part}/{path}"] = path.encode()
        put(path, path)  # no image, for none is decoded to be listed
    for path, content in beside.items():
        put(path, content)
    images = fetch(name)
    assert images.columns == ["class", "split"][: len(expected[0]) - 1]
    assert rows(images, *images.columns) == sorted(expected)
    assert {images.sample(row): images.read(row) for row in range(len(images))} == contents


def pictures(name: str, count: int, *shape: int) -> Any:
    """Make pixels, of each name others."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, (count, *shape), np.uint8)


def labelled(classes: Iterable[Any], images: Any) -> list[tuple[Any, Any]]:
    return list(zip(classes, images, strict=True))


DIGITS = {7: "7 - seven", 0: "0 - zero"}
BALANCED = {9: "9", 35: "Z", 36: "a", 37: "b", 38: "d", 46: "t"}  # c and others look like their capitals
IDX: dict[str, dict[int, str]] = {
    "EMNIST-balanced": BALANCED,
    "EMNIST-byclass": {9: "9", 10: "A", 38: "c", 61: "z"},
    "EMNIST-bymerge": BALANCED,
    "EMNIST-digits": {9: "9", 0: "0"},
    "EMNIST-letters": {1: "a", 26: "z"},
    "EMNIST-mnist": {9: "9", 0: "0"},
    "FashionMNIST": {9: "Ankle boot", 0: "T-shirt/top"},
    "KMNIST": {9: "wo", 0: "o"},
    "MNIST": DIGITS,
    "QMNIST": DIGITS,
}
"""The names of some labels of each data set that has MNIST's format."""


def write_idx(name: str) -> Arrays:
    kind, _, of = name.partition("-")
    before = {"EMNIST": f"emnist-{of}-", "QMNIST": "qmnist-"}.get(kind, "")
    written: Arrays = {}
    for part, labels in (("train", list(IDX[name])), ("test", list(IDX[name])[::-1])):
        images, array = pictures(part, len(labels), 28, 28), np.array(labels)
        files = {"images-idx3-ubyte": images, "labels-idx1-ubyte": array.astype(np.uint8)}
        if kind == "QMNIST":  # which says of each digit who wrote it, and more
            del files["labels-idx1-ubyte"]
            files["labels-idx2-int"] = np.stack([array, *[array + 900] * 7], axis=1).astype(">i4")
        for file, content in files.items():
            header = struct.pack(
                f">{content.ndim + 1}i", {1: 0x0800, 4: 0x0C00}[content.itemsize] + content.ndim, *content.shape
            )
            stem = "t10k" if part == "test" and not before else part
            put(f"{kind}/raw/{before}{stem}-{file}", header + content.tobytes())
        written[part] = labelled([IDX[name][label] for label in labels], images)
    return written


def write_cifar(folder: str, names: str, fine: str, **batches: list[str]) -> Arrays:
    put(f"{folder}/{names}", {f"{fine}label_names": ["apple", "bee", "can"], "coarse_label_names": ["food", "insects"]})
    written: Arrays = {}
    for part, files in batches.items():
        for file in files:
            images = pictures(file, 3, 32, 32, 3)
            content = {f"{fine}labels": [2, 0, 1], "data": images.transpose(0, 3, 1, 2).reshape(3, -1)}
            put(f"{folder}/{file}", {**content, "coarse_labels": [1, 1, 1]})
            written.setdefault(part, []).extend(labelled(["can", "apple", "bee"], images))
    return written


def write_faces(file: str) -> Arrays:
    """Write FER2013 as one of its three tables; in two of them images of the test part have labels."""
    images = pictures(file, 3, 48, 48)
    ink = [" ".join(map(str, image.ravel())) for image in images]
    if file == "test.csv":
        put("fer2013/train.csv", lines("emotion,pixels", f"3,{ink[0]}", f"6,{ink[1]}"))
        put("fer2013/test.csv", lines("pixels", ink[2]))
        return {"train": labelled([3, 6], images[:2]), "test": labelled([None], images[2:])}
    header, row = {
        "fer2013.csv": ("emotion,pixels,Usage", "{0},{1},{2}"),
        "icml_face_data.csv": ("emotion, Usage, pixels", "{0},{2},{1}"),
    }[file]
    put(f"fer2013/{file}", lines(header, *map(row.format, (3, 6, 0), ink, ("Training", "PublicTest", "PrivateTest"))))
    return {"train": labelled([3], images[:1]), "test": labelled([6, 0], images[1:])}


def write_pcam() -> Arrays:
    import h5py

    Path("cache/pcam").mkdir(parents=True)
    written: Arrays = {}
    for part, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        images = pictures(part, 2, 96, 96, 3)
        for kind, array in (("x", images), ("y", np.array([1, 0], np.uint8).reshape(2, 1, 1, 1))):
            with h5py.File(f"cache/pcam/camelyonpatch_level_2_split_{file}_{kind}.h5", "w") as content:
                content[kind] = array
        written[part] = labelled([1, 0], images)
    return written


def write_semeion() -> Arrays:
    ink, digits = pictures("semeion", 3, 16, 16) % 2, [3, 0, 9]
    table = np.hstack([ink.reshape(3, -1), np.eye(10)[digits]])
    put("semeion.data", lines(*(" ".join(map(str, row)) for row in table)))
    return {"all": labelled(digits, ink * 255)}


def write_stl10() -> Arrays:
    put("stl10_binary/class_names.txt", lines("airplane", "bird", "car"))
    put("stl10_binary/unlabeled_X.bin", bytes(3 * 96 * 96))
    written: Arrays = {}
    for part in ("train", "test"):
        images = pictures(part, 2, 96, 96, 3)
        put(f"stl10_binary/{part}_X.bin", images.transpose(0, 3, 2, 1).tobytes())  # column by column
        put(f"stl10_binary/{part}_y.bin", bytes([3, 1]))
        written[part] = labelled(["car", "airplane"], images)
    return written


def write_svhn() -> Arrays:
    written: Arrays = {}
    for part in ("train", "test"):
        images = pictures(part, 2, 32, 32, 3)
        labels = np.array([[10], [9]], np.uint8)  # the digit 0 is called ten
        put(f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels})
        written[part] = labelled([0, 9], images)
    return written


def write_usps() -> Arrays:
    written: Arrays = {}
    for part, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        images = pictures(part, 2, 16, 16)
        values = ((image.ravel() + 0.5) / 127.5 - 1 for image in images)  # half a grey, for what is read is cut off
        inks = (" ".join(f"{at}:{value:.6f}" for at, value in enumerate(row, 1)) for row in values)
        put(file, bz2.compress(lines(*map("{} {}".format, (10, 1), inks)).encode()))  # the digit 0 is called one
        written[part] = labelled([9, 0], images)
    return written


ARRAYS: dict[str, Callable[[], Arrays]] = {
    **{name: partial(write_idx, name) for name in IDX},
    "CIFAR10": partial(
        write_cifar,
        "cifar-10-batches-py",
        "batches.meta",
        "",
        train=[f"data_batch_{number}" for number in range(1, 6)],
        test=["test_batch"],
    ),
    "CIFAR100": partial(write_cifar, "cifar-100-python", "meta", "fine_", train=["train"], test=["test"]),
    **{f"FER2013 {file}": partial(write_faces, file) for file in ("test.csv", "fer2013.csv", "icml_face_data.csv")},
    "PCAM": write_pcam,
    "SEMEION": write_semeion,
    "STL10": write_stl10,
    "SVHN": write_svhn,
    "USPS": write_usps,
}
"""Of data sets whose images lie together in few files, what writes these."""


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize("name", ARRAYS)
def test_images_in_arrays_come_with_each_pixel_and_their_class_and_part(name: str) -> None:
    written = ARRAYS[name]()
    images = fetch(name.partition(" ")[0])
    expected, contents = [], []
    for part, of_part in sorted(written.items()):
        width = len(str(len(of_part)))
        for row, (word, picture) in enumerate(of_part):
            expected.append((f"{part}/{row:0{width}}.png", word, *([] if part == "all" else [part])))
            contents.append(picture)
    assert images.columns == ["class", "split"][: len(expected[0]) - 1]
    assert rows(images, *images.columns) == expected
    for row, picture in enumerate(contents):
        np.testing.assert_array_equal(pixels(images.read(row)), picture)
    assert images.facts["origin"].endswith(f" {name.partition(' ')[0]}")


@pytest.mark.usefixtures("any_checksum")
def test_celeba_has_a_column_for_each_attribute_and_one_for_the_person() -> None:
    parts = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 1, "000004.jpg": 1, "000005.jpg": 2, "000006.jpg": 2}
    for file in parts:
        put(f"celeba/img_align_celeba/{file}", file)
    signs = ["-1  1 -1", " 1  1 -1", "-1 -1  1", " 1 -1 -1", "-1  1  1", "-1 -1 -1"]
    tables = {
        "list_eval_partition": map("{} {}".format, parts, parts.values()),
        "identity_CelebA": map("{} {}".format, parts, (2880, 2880, 7, 8, 9, 10)),
        "list_attr_celeba": [6, "5_o_Clock_Shadow Smiling Young ", *map("{} {}".format, parts, signs)],
        "list_bbox_celeba": [6, "image_id x_1 y_1 width height", *(f"{file} 95  71 226 313" for file in parts)],
        "list_landmarks_align_celeba": [6, "lefteye_x lefteye_y", *(f"{file} 69  109" for file in parts)],
    }
    for name, table in tables.items():
        put(f"celeba/{name}.txt", lines(*table))
    images = fetch("CelebA")
    assert images.columns == ["identity", "5_o_Clock_Shadow", "Smiling", "Young", "split"]
    folder = "celeba/img_align_celeba"
    assert rows(images, *images.columns) == [
        (f"test/{folder}/000005.jpg", 9, 0, 1, 1, "test"),
        (f"test/{folder}/000006.jpg", 10, 0, 0, 0, "test"),
        (f"train/{folder}/000001.jpg", 2880, 0, 1, 0, "train"),
        (f"train/{folder}/000002.jpg", 2880, 1, 1, 0, "train"),
        (f"validation/{folder}/000003.jpg", 7, 0, 0, 1, "validation"),
        (f"validation/{folder}/000004.jpg", 8, 1, 0, 0, "validation"),
    ]
    assert images.read(3) == b"000002.jpg"


def test_every_data_set_is_read_from_its_files_in_a_test() -> None:
    assert set(source.PARTS) == {*FILES, *(name.partition(" ")[0] for name in ARRAYS), "CelebA"}


def test_images_that_are_not_unpacked_are_not_taken_for_there() -> None:
    put("eurosat/2750/Forest/0.png", "an image")
    Path("cache/eurosat/2750/Forest/1.png").symlink_to("nowhere.png")
    with pytest.raises(
        UserError, match=r"^torchvision's EuroSAT lists 2 images, and 1 of their files are not there, the"
    ):
        fetch("EuroSAT")


@pytest.mark.usefixtures("no_network", "any_checksum")
def test_places365_is_not_there_without_its_images() -> None:
    for path, content in FILES["Places365"][1].items():
        put(path, content)
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
        with pytest.raises(UserError, match=f"^torchvision's {name} is not in cache, and") as error:
            source._open(name, Path("cache"), keys)  # a key or value that it has not would be another error
        assert "\n" not in str(error.value)
