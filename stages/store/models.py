"""A trained model on disk: plain arrays and plain facts, so that reading one runs no code from the file.

    model.json          the kind of transfer, the classes, what was chosen: all that is no array
    model.safetensors   the arrays
    history.csv         a row per epoch, where the training has epochs

Both files have the same bytes for the same model. (skops, which keeps scikit-learn's own objects, stamps the time into
its archives; and a model read from arrays predicts without importing scikit-learn.)
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from stages.cli import UserError
from stages.files import damaged, new_file, read_json, write_json
from stages.on_disk import Rows
from stages.params import kind_module, kinds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.transfers.shared.vectors import StoredVectors


LARGE = 2**26
"""An array of more numbers that a kind reads by slices is left on disk."""


class Model(Protocol):
    """A trained transfer."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that were chosen, or the only ones there were."""

    @property
    def history(self) -> list[dict[str, float]]:
        """A row per epoch; empty where the training has no epochs."""

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set."""

    def predict_proba(self, activations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities (n, classes) of samples given by their activations (n, views, *shape)."""

    def save(self, folder: Path) -> None:
        """Write the model into a folder, by `write_arrays`."""


def write_model(folder: Path, model: Model) -> None:
    """Write a model, and its history where it has one, into a new folder."""
    folder.mkdir(parents=True)
    model.save(folder)
    if model.history:
        with new_file(folder / "history.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(model.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(model.history)


def write_arrays(folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any] | StoredVectors]) -> None:
    """Write what a model is made of. The facts name its `kind`, by whose file it is read again.

    What is read like an array is not held in memory as a whole; while it is written it takes its room on disk twice.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from stages.transfers.shared.vectors import StoredVectors, pieces

    write_json(folder / "model.json", facts)
    with new_file(folder / "model.safetensors") as path:

        def at_hand(array: NDArray[Any] | StoredVectors) -> NDArray[Any]:
            if not isinstance(array, StoredVectors):
                return np.asarray(array, order="C")
            rows = Rows(folder, array.dtype, array.shape[1:])
            for _, piece in pieces(array):
                rows.append(piece)
            return rows.array()

        save_file({name: at_hand(array) for name, array in arrays.items()}, path)


class OnDisk:
    """An array in a file of safetensors, of which slices of rows are read when they are asked for."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.shape: tuple[int, ...] = tuple(rows.get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        found: NDArray[Any] = self._rows[start:stop]
        return found


def read_model(folder: Path) -> Model:
    """Read a model; raises UserError when it is not there, is not whole, or is of a kind that is not known here."""
    from safetensors import SafetensorError

    facts, path = read_json(folder / "model.json"), folder / "model.safetensors"
    if facts["kind"] not in kinds("transfers"):
        raise UserError(f"{folder / 'model.json'} is of kind {facts['kind']}, which is no file in stages/transfers/")
    module = kind_module("transfers", facts["kind"])
    try:
        arrays = dict(_arrays(path, getattr(module, "LARGE", ())))
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None
    if "each" in facts:
        from stages.transfers.shared.several import load_each

        return load_each(module.load, facts, arrays)
    model: Model = module.load(facts, arrays)
    return model


def _arrays(path: Path, large: Collection[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a file, by name; large : names of those that may stay on disk."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            stored = OnDisk(file.get_slice(name))
            stays = name.rpartition(".")[2] in large and math.prod(stored.shape) > LARGE
            yield name, cast("NDArray[Any]", stored) if stays else file.get_tensor(name)
