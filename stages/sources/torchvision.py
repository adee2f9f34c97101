"""A data set that torchvision knows by name, from its folder of downloads.

Columns: `class`, by its name where torchvision says it, else by number; `split`, where the data set brings one. Of
CelebA, where an image has many attributes, a column of 0 and 1 for each of them instead, and `identity`, a number for
each person. Images that lie in files of their own are taken as they are, under their names; others come as PNG, which
keeps each pixel. What is not in the folder is downloaded by torchvision, where a network is.

Omniglot's background set (`split` train) and its evaluation set (test) have no character in common: split them anew.
LFWPeople is left out, as torchvision downloads it no more (its folder of persons is one for `source: folder`), and so
is LSUN, whose images lie in LMDB.

    downloads: {land: {source: torchvision, path: requirements.lock, name: EuroSAT}}
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.cli import UserError
from stages.params import Download, suggest
from stages.sources._raw import Found, write_images
from stages.sources.shared.pictures import as_png

_TRAIN: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: dict[str, dict[str, Any]] = {part: {"split": part} for part in ("train", "test")}
_THREE: dict[str, dict[str, Any]] = {**_TWO, "validation": {"split": "val"}}
_VALIDATED: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "val"}}
_ALL: dict[str, dict[str, Any]] = {"": {}}
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _TRAIN),
    **{
        f"EMNIST-{of}": {part: {"split": of, **keys} for part, keys in _TRAIN.items()}
        for of in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    },
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "SVHN", "StanfordCars"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    "CelebA": {**_TWO, "validation": {"split": "valid"}},
    "Country211": {**_TWO, "validation": {"split": "valid"}},
    **dict.fromkeys(("CLEVRClassification", "ImageNet", "Imagenette"), _VALIDATED),
    "Places365": {"train": {"split": "train-standard", "small": True}, "test": {"split": "val", "small": True}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Omniglot": {"train": {"background": True}, "test": {"background": False}},
    "INaturalist-2021": {"train": {"version": "2021_train"}, "test": {"version": "2021_valid"}},
    "INaturalist-2021_mini": {"train": {"version": "2021_train_mini"}, "test": {"version": "2021_valid"}},
    **{f"INaturalist-{year}": {"": {"version": year}} for year in ("2017", "2018", "2019")},
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _ALL),
}
"""By name what to ask a data set for, to get each of its parts. What follows a dash is asked for, too."""
PAGES = "https://docs.pytorch.org/vision/stable/generated"
MOST_ABSENT = 0.01
"""Share of a data set's files up to which those that are not there are left out; more were never unpacked."""
_FILES: dict[str, Callable[[Any], Iterator[str]]] = {
    "Caltech101": lambda data: (
        f"101_ObjectCategories/{data.categories[label]}/image_{number:04d}.jpg"
        for label, number in zip(data.y, data.index, strict=True)
    ),
    "Caltech256": lambda data: (
        f"256_ObjectCategories/{data.categories[label]}/{label + 1:03d}_{number:04d}.jpg"
        for label, number in zip(data.y, data.index, strict=True)
    ),
    "CelebA": lambda data: (f"{data.base_folder}/img_align_celeba/{file}" for file in data.filename),
    "INaturalist": lambda data: (f"{data.all_categories[label]}/{file}" for label, file in data.index),
    "Omniglot": lambda data: (
        f"{data._get_target_folder()}/{data._characters[label]}/{file}" for file, label in data._flat_character_images
    ),
}
"""Where images lie below the root of a data set that puts their files' names together when it opens them."""
BY_HAND = ("FER2013", "ImageNet", "StanfordCars")
"""Data sets that torchvision reads and does not download."""


class Params(Download):
    """Keys of a data set of torchvision."""

    source: Literal["torchvision"] = Field(description="a data set that torchvision knows by name")
    name: str = Field(description=f"its name in torchvision: {', '.join(sorted(PARTS))}")
    root: str = Field("~/.cache/torchvision", description="the folder with torchvision's downloads")
    licence: str = Field("not stated", description="licence of the images, for the record")


def fetch(params: Params, folder: Path) -> None:
    """Write a data set's images into a download's folder.

    Raises UserError for a name that is none, and when the data set is neither there nor can be downloaded.
    """
    if params.name not in PARTS:
        raise UserError(
            f"params.yaml: name: {params.name} is no data set that is read here; {suggest(params.name, PARTS)}"
        )
    root = Path(params.root).expanduser()
    found = [image for part, keys in PARTS[params.name].items() for image in _find(params.name, root, part, keys)]
    write_images(
        folder,
        found,
        source=params.source,
        origin=f"torchvision {version('torchvision')} {params.name}",
        licence=params.licence,
    )


def _find(name: str, root: Path, part: str, keys: dict[str, Any]) -> Iterator[Found]:
    data = _open(name, root, keys)
    files = _files(data)
    absent = [file for file in files if not file.is_file()]
    if len(absent) > MOST_ABSENT * len(files):
        raise UserError(
            f"torchvision's {name} lists {len(files):,} images, and {len(absent):,} of their files are not there, the "
            f"first is {absent[0]}: remove what was unpacked and fetch it again"
        )
    lock = threading.Lock()  # a data set may read from one open file
    width = len(str(len(data)))

    def content(row: int) -> bytes:
        with lock:
            image = data[row][0]
        return as_png(image)

    for row, labels in enumerate(_columns(data)):
        columns = {**labels, **({"split": part} if part else {})}
        if files:  # in no order of their own: by name they are found again
            yield Found(f"{part or 'all'}/{files[row].relative_to(root).as_posix()}", files[row], columns)
        else:
            yield Found(f"{part or 'all'}/{row:0{width}}.png", partial(content, row), columns)


def _open(name: str, root: Path, keys: dict[str, Any]) -> Any:
    """Open a part of a data set, and have it downloaded where it is not there."""
    from torchvision import datasets

    kind = name.partition("-")[0]
    make = getattr(datasets, kind)
    try:
        data = make(str(root), **({} if name in BY_HAND else {"download": False}), **keys)
        if Path(getattr(data, "images_dir", root)).is_dir():  # Places365 does not look for its images
            return data
    except (RuntimeError, OSError) as error:
        if isinstance(error.__context__, ModuleNotFoundError):
            missing = error.__context__.name
            raise UserError(f"torchvision's {name} is read by {missing}: `uv pip install {missing}`") from None
        if name in BY_HAND:
            raise UserError(
                f"torchvision's {name} is not in {root}, and torchvision does not download it ({_reason(error)}): "
                f"bring it there as {PAGES}/torchvision.datasets.{kind}.html says"
            ) from None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return make(str(root), download=True, **keys)
    except Exception as error:  # whatever a download stumbles over, in the library, on the way or on the server
        calls = "; ".join(_call(kind, root, of) for of in PARTS[name].values())
        raise UserError(
            f"torchvision's {name} is not in {root}, and cannot be downloaded ({_reason(error)}): where there is a "
            f'network, run `python -c "from torchvision.datasets import {kind}; {calls}"`, and bring the folder here'
        ) from None


def _call(kind: str, root: Path, keys: dict[str, Any]) -> str:
    given = [f"'{root}'", *(f"{key}={value!r}" for key, value in keys.items()), "download=True"]
    return f"{kind}({', '.join(given)})"


def _columns(data: Any) -> Iterator[dict[str, Any]]:
    """Yield what a data set says of each of its images."""
    if hasattr(data, "attr_names"):
        names = [name for name in data.attr_names if name]  # CelebA's line of names ends in a blank
        for (person,), values in zip(data.identity.tolist(), data.attr.tolist(), strict=True):
            yield {"identity": person, **dict(zip(names, values, strict=True))}
        return
    names = _names(data)
    for label in _labels(data):
        yield {"class": names[label] if names and label is not None else label}


def _names(data: Any) -> list[str]:
    """Return the names of a data set's classes; none where it has only their numbers."""
    if hasattr(data, "wnids"):  # of several words the first
        short = [words[0] for words in data.classes]
        whole = [f"{', '.join(words)} ({wnid})" for words, wnid in zip(data.classes, data.wnids, strict=True)]
    elif hasattr(data, "all_categories"):  # the species, of a folder 00000_Animalia_ ... _Lumbricus_terrestris
        whole = data.all_categories
        short = [" ".join(name.split("_")[-2:]) for name in whole]
    else:
        places = ("classes", "categories", "_characters")
        return next((kept for place in places if (kept := getattr(data, place, None))), [])
    count = Counter(short)  # ImageNet has two cranes: a bird and a machine
    return [one if count[one] == 1 else full for one, full in zip(short, whole, strict=True)]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _labels(data: Any) -> list[int | None]:
    """Return the labels of a data set, without decoding its images where it keeps them apart; None where none is."""
    for place in ("_labels", "targets", "labels", "y"):
        if len(kept := getattr(data, place, ())) == len(data):
            return [_label(label) for label in kept]
    for place, at in (("_samples", 1), ("_flat_character_images", 1), ("index", 0)):
        if len(kept := getattr(data, place, None) or ()) == len(data):
            return [_label(entry[at]) for entry in kept]
    return [_label(data[row][1]) for row in range(len(data))]


def _label(value: Any) -> int | None:
    if value is None:
        return None
    return int(value[0] if getattr(value, "ndim", 0) else value)  # QMNIST says more than the digit


def _files(data: Any) -> list[Path]:
    """Return the files of a data set's images, where each lies in one of its own; else none."""
    if find := _FILES.get(type(data).__name__):
        return [Path(data.root) / file for file in find(data)]
    for place in ("samples", "imgs", "_samples", "_image_files", "_images"):
        kept = getattr(data, place, None) or ()
        found = [entry[0] if isinstance(entry, tuple) else entry for entry in kept]
        if len(found) == len(data) and all(isinstance(entry, str | Path) for entry in found):
            return [Path(entry) for entry in found]
    return []
