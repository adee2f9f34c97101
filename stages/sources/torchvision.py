"""A data set that torchvision knows by name, from its folder of downloads.

Columns: `class`, by its name where torchvision says it, else by number; `split`, where the data set brings one. Images
come as PNG, which keeps each pixel. What is not in the folder is downloaded by torchvision, where a network is.

    downloads: {land: {source: torchvision, path: requirements.lock, name: EuroSAT}}
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
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
_ALL: dict[str, dict[str, Any]] = {"": {}}
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), _TRAIN),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    "Country211": {**_TWO, "validation": {"split": "valid"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SUN397"), _ALL),
}
"""By name what to ask a data set for, to get each of its parts."""


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
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    lock = threading.Lock()  # a data set may read from one open file
    width = len(str(len(data)))

    def content(row: int) -> bytes:
        with lock:
            image = data[row][0]
        return as_png(image)

    for row, label in enumerate(_labels(data)):
        word = names[label] if names else label
        columns = {"class": word[0] if isinstance(word, tuple) else word, **({"split": part} if part else {})}
        yield Found(f"{part or 'all'}/{row:0{width}}.png", partial(content, row), columns)


def _open(name: str, root: Path, keys: dict[str, Any]) -> Any:
    """Open a part of a data set, and have it downloaded where it is not there."""
    from torchvision import datasets

    make = getattr(datasets, name)
    try:
        return make(str(root), **keys)
    except (RuntimeError, OSError):  # not there, or not whole
        pass
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return make(str(root), download=True, **keys)
    except Exception as error:  # whatever a download stumbles over, in the library, on the way or on the server
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"torchvision's {name} is not in {root}, and cannot be downloaded ({reason}): where there is a network, "
            f"run `python -c \"from torchvision.datasets import {name}; {name}('{root}', download=True)\"`, and bring "
            "the folder here"
        ) from None


def _labels(data: Any) -> list[int]:
    """Return the labels of a data set, without decoding its images where it keeps them apart."""
    for place in ("_labels", "targets", "labels", "y"):
        if len(kept := getattr(data, place, ())) == len(data):
            return [int(label) for label in kept]
    if len(kept := getattr(data, "_samples", None) or ()) == len(data):
        return [int(label) for _, label in kept]
    return [int(data[row][1]) for row in range(len(data))]
