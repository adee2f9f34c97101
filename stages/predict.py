"""Predict the classes of images with a trained model.

    data/models/<run>/repeat-<k>/, image files  ->  a line for each: path, class, probability of each class

The model's folder holds all that is needed, the frozen part of the network included. An image goes the way that it went
through extract and evaluate; on the same engine the probabilities are the same to 1e-5.

    python -m stages.predict --run probe photos/ one-more.jpg        files, and folders with all that is in them
    find . -name '*.png' | python -m stages.predict --run probe -    a list of files, one a line
    python -m stages.predict --run probe --repeat 2 --format jsonl photos/
    python -m stages.predict --run probe --final photos/             the model of all samples, where the run has one
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.cli import UserError, guard, warn
from stages.files import MODELS, read_json
from stages.memory import keep_freed_memory
from stages.params import Features, suggest
from stages.samples.decoding import BadImage
from stages.scoring.metrics import LEAST_PRESENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.backbones.passes import Computed, Passes
    from stages.store.cache import Column
    from stages.store.models import Model

    Probabilities = NDArray[np.float64]
    Reader = Callable[[], bytes]

BETWEEN = ";"
"""Between the labels of an image that has several."""
IMAGES_AT_ONCE = 512
"""So many images are read, passed through the network and predicted before the first of them is written."""


class Predictor:
    """One trained model, with the frozen part below it. Opening is cheap: the network is built with the first image.

    folder : data/models/<run>/repeat-<k>/ or final/, run.json in it or above it
    classes : names of the classes, in the order of the probabilities; columns : the same as p_<class>
    Raises UserError when a file is missing there.
    """

    def __init__(self, folder: Path) -> None:
        own = folder / "run.json"
        facts = read_json(own if own.is_file() else folder.parent / "run.json")
        self.classes: list[str] = facts["classes"]
        self.columns = [f"p_{name}" for name in self.classes]
        self.multi_label = bool(facts.get("multi_label"))
        self._folder = folder
        stored = read_json(folder / "features.json")
        self._shape: list[int] = stored["shape"]
        self._features = Features.model_validate(stored["entry"])
        self._ranges = stored.get("ranges")

    def names(self, probabilities: Probabilities) -> list[str]:
        """Return the most probable class; of several labels those of probability one half or more."""
        if self.multi_label:
            return [name for name, p in zip(self.classes, probabilities, strict=True) if p >= LEAST_PRESENT]
        return [self.classes[probabilities.argmax()]]

    def predict(self, contents: Iterable[bytes]) -> list[Probabilities | BadImage]:
        """Return for each image file, given by its bytes, the probabilities (classes,), or why it cannot be decoded."""
        return list(self.predict_each(partial(_itself, content) for content in contents))

    def predict_each(self, readers: Iterable[Reader]) -> Iterator[Probabilities | BadImage]:
        """Yield the same for each image in order, given by what returns its bytes; an OSError there counts as bad."""
        readers = iter(readers)
        while some := list(islice(readers, IMAGES_AT_ONCE)):
            yield from self._predict(some)

    def _predict(self, readers: Sequence[Reader]) -> list[Probabilities | BadImage]:
        results: list[Probabilities | BadImage] = [BadImage("not read")] * len(readers)
        unreadable: dict[str, str] = {}
        images = [(str(i), partial(_read, reader, str(i), unreadable)) for i, reader in enumerate(readers)]
        for batch in self._passes.compute(images):
            if batch.reason:
                name = batch.image_hashes[0]
                results[int(name)] = BadImage(unreadable.get(name, batch.reason))
                continue
            probabilities = self._model.predict_proba(self._activations(batch))
            for name, row in zip(batch.image_hashes, probabilities, strict=True):
                results[int(name)] = row
        return results

    def _activations(self, batch: Computed) -> NDArray[np.float32]:
        """Put together what extract stores of images: (B, views, *shape at the cut)."""
        views = [
            np.concatenate([batch.rows[column] for column in self._columns if column.view == view], axis=1)
            for view in self._features.all_views
        ]
        together = np.stack(views, axis=1).astype(np.float32)
        return _with_channels(together, self._shape[0]) if self._features.cut == "image" else together

    @cached_property
    def _columns(self) -> list[Column]:
        from stages.store.cache import Column

        entry = self._features
        return [
            Column(size, view, layer)
            for size in entry.image_size
            for view in entry.all_views
            for layer in entry.all_layers
        ]

    @cached_property
    def _passes(self) -> Passes:
        from stages.backbones.backbone import load_backbone
        from stages.backbones.passes import Passes

        backbone = load_backbone(self._folder, "backbone.safetensors")
        return Passes(self._columns, self._features, replace(backbone, ranges=self._ranges))

    @cached_property
    def _model(self) -> Model:
        from stages.store.models import read_model

        return read_model(self._folder)


def _with_channels(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Make pixels (B, views, C, S, S) grey or colour, as those are that a model was trained on."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)  # as extract stores grey images among colour ones
    red, green, blue = np.moveaxis(pixels, 2, 0)
    grey: NDArray[np.float32] = np.rint(0.299 * red + 0.587 * green + 0.114 * blue)  # ITU-R BT.601, as Pillow's mode L
    return grey[:, :, np.newaxis]


def _itself(content: bytes) -> bytes:
    return content


def _read(reader: Reader, name: str, unreadable: dict[str, str]) -> bytes:
    try:
        return reader()
    except OSError as error:
        unreadable[name] = error.strerror or str(error)
        return b""  # which cannot be decoded


def model_folder(run: str, repeat: int = 0, final: bool = False) -> Path:
    """Return the folder of a run's model; raises UserError with what there is when it is not there."""
    folder = MODELS / run / ("final" if final else f"repeat-{repeat}")
    if folder.is_dir():
        return folder
    runs = sorted(p.name for p in MODELS.iterdir() if (p / "run.json").is_file()) if MODELS.is_dir() else []
    if run not in runs:
        raise UserError(
            f"{MODELS / run} is not there; {suggest(run, runs)} (`dvc repro` trains it, `dvc pull` gets it)"
        )
    if final:
        raise UserError(f"{folder} is not there: set final: true in runs.{run} of params.yaml, and run `dvc repro`")
    raise UserError(f"{folder} is not there: {run} has the repeats {_listed(sorted(folder.parent.glob('repeat-*')))}")


def _listed(repeats: Sequence[Path]) -> str:
    return ", ".join(sorted((p.name.removeprefix("repeat-") for p in repeats), key=int))


def image_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Return the files that are named: files, what lies in folders, and for `-` the lines of standard input.

    Raises UserError for a folder without images.
    """
    from stages.sources.folder import find_images

    named = [name for name in arguments if name != "-" and Path(name).is_dir()]
    folders = {name: [path for some in find_images(Path(name))[:2] for path in some] for name in named}
    for name, found in folders.items():
        if not found:
            raise UserError(f"{name} holds no images")
    return chain.from_iterable(
        (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        if name == "-"
        else map(str, folders.get(name, [name]))
        for name in arguments
    )


def predict(arguments: argparse.Namespace) -> bool:
    """Write a line for each image to standard output; returns whether all could be read."""
    keep_freed_memory()
    predictor = Predictor(model_folder(arguments.run, arguments.repeat, arguments.final))
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # file names need not be UTF-8
    wanted = image_paths(arguments.paths)
    write = _writer(arguments.format, predictor)
    complete = True
    paths = deque[str]()
    for result in predictor.predict_each(partial(Path.read_bytes, Path(path)) for path in _noted(wanted, paths)):
        path = paths.popleft()
        if isinstance(result, BadImage):
            warn(f"{path}: {result}")
            complete = False
        else:
            write(path, result)
    sys.stdout.flush()
    return complete


def _noted(wanted: Iterable[str], paths: deque[str]) -> Iterator[str]:
    for path in wanted:
        paths.append(path)
        yield path


def _writer(form: str, predictor: Predictor) -> Callable[[str, Probabilities], None]:
    """Return what writes a line; probabilities have nine digits, more than float32 has."""
    table = csv.writer(sys.stdout, lineterminator="\n")

    def write_csv(path: str, probabilities: Probabilities) -> None:
        table.writerow([path, BETWEEN.join(predictor.names(probabilities)), *(f"{p:.9g}" for p in probabilities)])

    def write_json(path: str, probabilities: Probabilities) -> None:
        rounded = {name: float(f"{p:.9g}") for name, p in zip(predictor.classes, probabilities, strict=True)}
        names = predictor.names(probabilities)
        answer = {"classes": names} if predictor.multi_label else {"class": names[0]}
        print(json.dumps({"path": path, **answer, "probabilities": rounded}))

    if form == "jsonl":
        return write_json
    table.writerow(["path", "class", *predictor.columns])
    return write_csv


def main() -> None:
    """Read the command line; ends with exit code 1 when an image could not be read."""
    parser = argparse.ArgumentParser("python -m stages.predict", description="Predict the classes of images.")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, a folder of images, or - for a list on stdin"
    )
    parser.add_argument("--run", required=True, help="a run of params.yaml that is trained")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--repeat", type=int, default=0, help="the model of another repeat than 0")
    which.add_argument("--final", action="store_true", help="the model of all samples")
    parser.add_argument(
        "--format", choices=["csv", "jsonl"], default="csv", help="csv (default), or a JSON object a line"
    )
    if not predict(parser.parse_args()):
        sys.exit(1)


if __name__ == "__main__":
    guard(main)
