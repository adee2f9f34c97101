"""MedMNIST: biomedical images of 28, 64, 128 or 224 pixels in twelve data sets, each with its split.

Columns: `class`, `split` (train, validation, test); of chestmnist, where an image has several labels or none, a column
of 0 and 1 for each label instead. What is not in the folder of downloads is downloaded, where a network is. Yang et
al., Scientific Data 2023, arXiv:2110.14795, version 3.

    downloads: {blood: {source: medmnist, path: requirements.lock, name: bloodmnist, size: 64}}
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import Found, write_images
from stages.sources.shared.download import download
from stages.sources.shared.pictures import as_png

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

URL = "https://zenodo.org/records/10519652/files/{}?download=1"
PARTS = {"train": "train", "val": "validation", "test": "test"}
SIZES = (28, 64, 128, 224)
MD5 = {
    "pathmnist": """
        a8b06965200029087d5bd730944a56c1 55aa9c1e0525abe5a6b9d8343a507616
        ac42d08fb904d92c244187169d1fd1d9 2c51a510bcdc9cf8ddb2af93af1eadec""",
    "chestmnist": """
        02c8a6516a18b556561a56cbdd36c4a8 9de6cd0b934ebb5b7426cfba5efbae16
        db107e5590b27930b62dbaf558aebee3 45bd33e6f06c3e8cdb481c74a89152aa""",
    "dermamnist": """
        0744692d530f8e62ec473284d019b0c7 b70a2f5635c6199aeaa28c31d7202e1f
        2defd784463fa5243564e855ed717de1 8974907d8e169bef5f5b96bc506ae45d""",
    "octmnist": """
        c68d92d5b585d8d81f7112f81e2d0842 e229e9440236b774d9f0dfef9d07bdaf
        0a97e76651ace45c5d943ee3f65b63ae abc493b6d529d5de7569faaef2773ba3""",
    "pneumoniamnist": """
        28209eda62fecd6e6a2d98b1501bb15f 8f4eceb4ccffa70c672198ea285246c6
        05b46931834c231683c68f40c47b2971 d6a3c71de1b945ea11211b03746c1fe1""",
    "retinamnist": """
        bd4c0672f1bba3e3a89f0e4e876791e4 afda852cc34dcda56f86ad2b2457dbcc
        e48e916a24454daf90583d4e6efb1a18 eae7e3b6f3fcbda4ae613ebdcbe35348""",
    "breastmnist": """
        750601b1f35ba3300ea97c75c52ff8f6 742edef2a1fd1524b2efff4bd7ba9364
        363e4b3f8d712e9b5de15470a2aaadf1 b56378a6eefa9fed602bb16d192d4c8b""",
    "bloodmnist": """
        7053d0359d879ad8a5505303e11de1dc 2b94928a2ae4916078ca51e05b6b800b
        adace1e0ed228fccda1f39692059dd4c b718ff6835fcbdb22ba9eacccd7b2601""",
    "tissuemnist": """
        ebe78ee8b05294063de985d821c1c34b 123ece2eba09d0aa5d698fda57103344
        61b955355d7425a89687b06cca3ce0c2 b077128c4a949f0a4eb01517f9037b9c""",
    "organamnist": """
        68e3f8846a6bd62f0c9bf841c0d9eacc 2dcccc29b88e6da5a01161ef20cda288
        eeae80d0a227a8d099027e1b3cfd3b60 50747347e05c87dd3aaf92c49f9f3170""",
    "organcmnist": """
        b9ceb9546e10131b32923c5bbeaea2b1 3ce34a8724ea6f548e6db4744d03b6a9
        773c1f009daa3fe5d9a2a201b2a7ed94 050f5e875dc056f6768abf94ec9995d1""",
    "organsmnist": """
        9ab87b696fb54e2a387ebe992d6ed5f1 53a6d115339d874c25e309a994ff46d3
        ded0c5fa01a95dc4978b956f613e9b8e b354719e553fbbb2513d5533f52a4cb1""",
}
"""Of each data set's files, by size."""

_ORGANS = (
    "bladder, femur-left, femur-right, heart, kidney-left, kidney-right, liver, lung-left, lung-right, pancreas, spleen"
)
LABELS = {
    "pathmnist": "adipose, background, debris, lymphocytes, mucus, smooth muscle, normal colon mucosa, cancer- "
    "associated stroma, colorectal adenocarcinoma epithelium",
    "chestmnist": "atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumonia, pneumothorax, "
    "consolidation, edema, emphysema, fibrosis, pleural, hernia",
    "dermamnist": "actinic keratoses and intraepithelial carcinoma, basal cell carcinoma, benign keratosis-like "
    "lesions, dermatofibroma, melanoma, melanocytic nevi, vascular lesions",
    "octmnist": "choroidal neovascularization, diabetic macular edema, drusen, normal",
    "pneumoniamnist": "normal, pneumonia",
    "retinamnist": "0, 1, 2, 3, 4",
    "breastmnist": "malignant, normal or benign",
    "bloodmnist": "basophil, eosinophil, erythroblast, immature granulocytes, lymphocyte, monocyte, neutrophil, "
    "platelet",
    "tissuemnist": "Collecting Duct or Connecting Tubule, Distal Convoluted Tubule, Glomerular endothelial cells, "
    "Interstitial endothelial cells, Leukocytes, Podocytes, Proximal Tubule Segments, Thick Ascending "
    "Limb",
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), _ORGANS),
}
"""The names of the classes, in the order of their numbers."""


class Params(Download):
    """Keys of a data set of MedMNIST."""

    source: Literal["medmnist"] = Field(description="a data set of MedMNIST, by name and size")
    name: Literal[
        "bloodmnist",
        "breastmnist",
        "chestmnist",
        "dermamnist",
        "octmnist",
        "organamnist",
        "organcmnist",
        "organsmnist",
        "pathmnist",
        "pneumoniamnist",
        "retinamnist",
        "tissuemnist",
    ] = Field(description="its name")
    size: Literal[28, 64, 128, 224] = Field(28, description="side of the images, in pixels")
    root: str = Field("~/.medmnist", description="the folder with MedMNIST's downloads")


def fetch(params: Params, folder: Path) -> None:
    """Write a data set's images into a download's folder; raises UserError when it cannot be had, or is damaged."""
    file = f"{params.name}{'' if params.size == 28 else f'_{params.size}'}.npz"
    path = Path(params.root).expanduser() / file
    if not path.is_file():
        url, md5 = URL.format(file), MD5[params.name].split()[SIZES.index(params.size)]
        try:
            download(url, path, "md5", md5)
        except UserError as error:
            raise UserError(f"{file} is not in {path.parent}, and {error}; or bring it there by hand") from None
    with TemporaryDirectory(dir=folder) as scratch:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(scratch, [f"{part}_{kind}.npy" for part in PARTS for kind in ("images", "labels")])
            found = [image for part in PARTS for image in _find(Path(scratch), part, LABELS[params.name].split(", "))]
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it, and get it again") from None
        licence = "CC BY-NC 4.0" if params.name == "dermamnist" else "CC BY 4.0"
        write_images(folder, found, source=params.source, origin=f"MedMNIST 3 {file}", licence=licence)


def _find(scratch: Path, part: str, names: list[str]) -> Iterator[Found]:
    """Find the images of a part; their pixels stay on disk."""
    images = np.load(scratch / f"{part}_images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(scratch / f"{part}_labels.npy", allow_pickle=False)
    if len(images) != len(labels) or images.dtype != np.uint8 or labels.max() >= len(names):
        raise ValueError(f"its {part}_images and {part}_labels do not go together")
    width = len(str(len(images)))
    for row, label in enumerate(labels):
        columns: dict[str, Any] = {"split": PARTS[part]}
        columns |= {"class": names[label[0]]} if len(label) == 1 else dict(zip(names, map(int, label), strict=True))
        yield Found(f"{PARTS[part]}/{row:0{width}}.png", partial(_png, images, row), columns)


def _png(images: NDArray[np.uint8], row: int) -> bytes:
    from PIL import Image

    return as_png(Image.fromarray(images[row]))
